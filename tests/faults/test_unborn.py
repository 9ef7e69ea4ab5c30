"""A worker that is killed while its database is made: the directory holds nothing, and its owner finishes it.

What is damaged looks much the same, and is never taken for that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import unpack_from

import pytest
from requeue_worker.drain.drain import Drain, Options
from requeue_worker.drain.volume import ensure_identity
from requeue_worker.errors import WorkerError
from requeue_worker.reaper.prepare import SetAside
from requeue_worker.reaper.source import Source
from requeue_worker.settings import Settings
from requeue_worker.storage.rocksdb import Engine
from requeue_worker.storage.store import Store, read_format
from requeue_worker.storage.tenure import Role, Tenure
from requeue_worker.storage.unborn import is_unborn
from requeue_worker.verify import verify

from tests.servers import free_port
from tests.zombies import Zombie, contents, registry_of

#: in the order in which they appear
FILES = (
    "rocksdict-config.json",
    "IDENTITY",
    "MANIFEST-000001",
    "CURRENT",
    "*.log",
    "MANIFEST-00000[2-9]",
    "OPTIONS-*",
)
_CREATE = "import sys, pathlib; from requeue_worker.storage.rocksdb import Engine; Engine(pathlib.Path(sys.argv[1]))"


def cuts(made: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What a kill leaves at each step of making the database at `made`."""
    [manifest] = made.glob("MANIFEST-*")
    raw = manifest.read_bytes()
    first = {"rocksdict-config.json": b"", "IDENTITY": b"", "MANIFEST-000001": raw[:53]}

    def only(names: list[str], current: bool = False) -> Callable[[Path], None]:
        def cut(path: Path) -> None:
            for file in path.iterdir():
                if file.name not in ("tenure", "heartbeat", "LOCK"):
                    file.unlink()
            for name in names:
                (path / name).write_bytes(first[name])
            if current:
                (path / "CURRENT").write_text("MANIFEST-000001\n")

        return cut

    for count in range(1, len(first) + 1):
        yield f"{list(first)[count - 1]} was made", only(list(first)[:count])
    at, ends = 0, []
    while at < len(raw):
        at += 7 + int(unpack_from("<H", raw, at + 4)[0])
        ends.append(at)
    for end in ends[-5:-1]:
        yield (
            f"{end} bytes of the manifest",
            lambda path, end=end: (path / manifest.name).write_bytes(raw[:end]),
        )  # type: ignore[misc]
        torn = raw[: end + 9]
        yield f"{len(torn)} bytes of it", lambda path, torn=torn: (path / manifest.name).write_bytes(torn)  # type: ignore[misc]
    yield "all families were made", lambda _: None


def newborn(path: Path) -> Path:
    """A directory whose owner was killed right before its first commit."""
    path.mkdir(parents=True)
    Tenure.take(path, Role.OWNER, path.name).release()
    subprocess.run([sys.executable, "-c", f"{_CREATE}; import os; os._exit(0)", str(path)], check=True)
    return path


def offline(volume: Path, **options: bool) -> Drain:
    """A drain that reaches nobody."""
    nats = {"servers": [f"nats://127.0.0.1:{free_port()}"]}
    return Drain(Settings(data_dir=volume, nats=nats), Options(timeout_s=0.0, **options))


def reason_of(path: Path) -> str:
    """Why a reaper sets it aside; empty when it would merge it."""
    try:
        Source.open(path, "heir").close()
    except SetAside as error:
        return error.kind
    return ""


async def test_whatever_a_kill_leaves_of_a_database_that_is_made_holds_nothing(tmp_path: Path) -> None:
    made = newborn(tmp_path / "made")
    volume = tmp_path / "volume"
    ensure_identity(volume)
    for number, (what, cut) in enumerate(cuts(made)):
        path = volume / f"w{number}"
        shutil.copytree(made, path)
        cut(path)
        assert is_unborn(path), what
        assert verify(path).ok, what
    assert reason_of(volume / "w0") == reason_of(path) == "empty"
    for dry_run in (True, False):
        proof = await offline(volume, dry_run=dry_run).run()
        assert (proof.remains, proof.exit_code) == ([], 0)


async def test_its_owner_finishes_what_a_kill_left(tmp_path: Path) -> None:
    made = newborn(tmp_path / "made")
    for number, (what, cut) in enumerate(cuts(made)):
        path = tmp_path / f"data-{number}" / "w0"
        shutil.copytree(made, path)
        cut(path)
        Store.open(path.parent, "w0", registry_of(Settings(data_dir=path.parent))).close()
        assert not is_unborn(path), what
        before = Zombie(path.parent, "w0").fill(10).contents
        assert contents(path) == before, what
        assert verify(path).ok, what


@pytest.mark.parametrize("name", FILES)
def test_a_kill_when_a_file_appears_leaves_what_is_unborn_or_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w0"
    path.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", f"{_CREATE}; input()", str(path)], stdin=subprocess.PIPE
    )
    while not list(path.glob(name)) and not list(path.glob("OPTIONS-*")):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert is_unborn(path)
    Store.open(tmp_path, "w0", registry_of(Settings(data_dir=tmp_path))).close()
    assert not is_unborn(path)


def _lose(*patterns: str) -> Callable[[Path], None]:
    def lose(path: Path) -> None:
        for pattern in patterns:
            for file in path.glob(pattern):
                file.unlink()

    return lose


def _cut_manifest(path: Path) -> None:
    [manifest] = path.glob("MANIFEST-*")
    os.truncate(manifest, 116)  # before its families


@pytest.mark.parametrize(
    "harm",
    [
        _lose(),
        _lose("CURRENT"),
        _lose("CURRENT", "*.log"),
        _lose("*.log"),
        _lose("*.log", "IDENTITY", "OPTIONS-*"),
        _lose("MANIFEST-*"),
        _lose("CURRENT", "MANIFEST-*"),
        _cut_manifest,
    ],
    ids=["crashed", "current", "current and log", "log", "more", "manifest", "both", "cut manifest"],
)
@pytest.mark.parametrize("flushed", [False, True])
def test_what_held_a_message_is_never_unborn(
    tmp_path: Path, flushed: bool, harm: Callable[[Path], None]
) -> None:
    Zombie(tmp_path / "made", "w0").fill(3)
    made = tmp_path / "made" / "w0"
    path = tmp_path / "w0"
    if flushed:
        shutil.copytree(made, path)
    else:  # all is in the log alone, as in the first minutes of a life
        made = newborn(tmp_path / "first")
        store = Store.open(tmp_path, "first", registry_of(Settings(data_dir=tmp_path)))
        shutil.copytree(made, path)
        store.close()
        assert not list(path.glob("*.sst"))
    harm(path)
    assert not is_unborn(path)


def test_a_database_of_somebody_else_is_none_of_ours(tmp_path: Path) -> None:
    path = newborn(tmp_path / "w0")
    engine = Engine(path)
    batch = engine.batch()
    batch.put(b"theirs", b"1")
    engine.write(batch)
    assert read_format(engine, path) is None
    engine.close()
    assert not is_unborn(path)
    assert reason_of(path) == "unreadable"


def test_what_cannot_be_read_is_not_unborn(tmp_path: Path) -> None:
    path = newborn(tmp_path / "w0")
    (path / "CURRENT").write_bytes(b"\xff\xfe")
    assert not is_unborn(path)
    with pytest.raises(WorkerError):
        Engine(path, read_only=True)
