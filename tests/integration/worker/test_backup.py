"""`requeue-worker backup` and `restore`, offline and beside a running worker. Real processes, real databases."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client.local import find_executable
from requeue_worker.control import copy_of_running
from requeue_worker.drain.volume import IDENTITY
from requeue_worker.storage.claims import uid_of
from requeue_worker.storage.directory import control_path, held
from requeue_worker.storage.keys import META_FORMAT
from requeue_worker.storage.rocksdb import MESSAGES, Batch, Engine
from requeue_worker.verify import verify

from tests.formats.sample import DEAD_LETTERS, PENDING, write_sample
from tests.servers import NatsServer, WorkerFactory, WorkerProcess, settle, until

NAME = "tested"
HOUR_AWAY = {"Requeue-Subject": "jobs.later", "Requeue-Delay": "1h"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with one instance that is not running."""
    write_sample(tmp_path / "data" / NAME)
    return tmp_path / "data"


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory on another file system, where the machine has one in memory."""
    parent = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(dir=parent if parent.is_dir() else None))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def worker(nats_server: NatsServer, worker_factory: WorkerFactory) -> WorkerProcess:
    return worker_factory(nats_server, "--instance-id", NAME)


def requeue_worker(*args: object) -> subprocess.CompletedProcess[str]:
    command = [find_executable("requeue-worker", ""), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


async def command(*args: object) -> str:
    """Run it beside the test's event loop; it has to succeed."""
    done = await asyncio.to_thread(requeue_worker, *args)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def refused(code: int, sentence: str, *args: object) -> None:
    done = requeue_worker(*args)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }


def edit(path: Path, change: Callable[[Engine, Batch], None]) -> None:
    """Change a directory past the worker. A function: the batch holds the database open for as long as it lives."""
    engine = Engine(path)
    batch = engine.batch()
    change(engine, batch)
    engine.write(batch)
    engine.close()


def beside(data_dir: Path) -> list[str]:
    """What stands in a data directory beside instances and its identity."""
    return [entry.name for entry in data_dir.iterdir() if "~" in entry.name and entry.name != IDENTITY]


async def taken(nc: Client, payload: bytes = b"", headers: dict[str, str] | None = None) -> None:
    answer = await nc.request("requeue.jobs", payload, headers=headers or HOUR_AWAY, timeout=20)
    assert answer.data == b""


# -- offline -----------------------------------------------------------------------------------------------------


def test_backup_and_restore_of_a_directory_at_rest_keep_every_record(data_dir: Path, tmp_path: Path) -> None:
    done = requeue_worker("backup", "--data-dir", data_dir, "--to", tmp_path / "copy")
    assert (done.returncode, done.stdout) == (0, f"{NAME}: backed up to {tmp_path / 'copy' / NAME}\n")
    shutil.rmtree(data_dir)

    done = requeue_worker("restore", "--from", tmp_path / "copy", "--data-dir", data_dir, "--json")
    assert done.returncode == 0, done.stderr
    restored = [{"instance": NAME, "path": str(data_dir / NAME), "online": False}]
    assert json.loads(done.stdout) == {"instances": restored}

    report = verify(data_dir / NAME)
    assert (report.ok, report.records["messages"], report.records["dead"]) == (True, PENDING, DEAD_LETTERS)


def test_what_a_crash_left_is_backed_up_with_its_log(tmp_path: Path) -> None:
    write_sample(tmp_path / "data" / NAME, crash=True)
    done = requeue_worker(
        "backup", "--data-dir", tmp_path / "data", "--to", tmp_path / "copy", "--instance-id", NAME
    )
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "copy" / NAME).records["messages"] == PENDING


def test_a_backup_changes_nothing_and_links_the_tables(data_dir: Path, tmp_path: Path) -> None:
    before = contents(data_dir)
    assert requeue_worker("backup", "--data-dir", data_dir, "--to", tmp_path / "copy").returncode == 0
    assert contents(data_dir) == before
    tables = list((tmp_path / "copy" / NAME).glob("*.sst"))
    assert tables
    assert all(table.samefile(data_dir / NAME / table.name) for table in tables)
    others = [file for file in (tmp_path / "copy" / NAME).iterdir() if file.suffix != ".sst"]
    assert all(file.stat().st_nlink == 1 for file in others)


def test_a_backup_on_another_file_system_is_a_full_copy(data_dir: Path, elsewhere: Path) -> None:
    assert requeue_worker("backup", "--data-dir", data_dir, "--to", elsewhere / "copy").returncode == 0
    shutil.rmtree(data_dir)
    assert verify(elsewhere / "copy" / NAME).records["messages"] == PENDING


def test_all_instances_are_copied_unless_some_are_chosen(data_dir: Path, tmp_path: Path) -> None:
    write_sample(data_dir / "other")
    write_sample(data_dir / "third")
    both, one = tmp_path / "copy", tmp_path / "one"
    chosen = ("--instance-id", "other", "--instance-id", NAME)
    assert requeue_worker("backup", "--data-dir", data_dir, "--to", both, *chosen).returncode == 0
    assert sorted(path.name for path in both.iterdir()) == ["other", NAME]
    assert requeue_worker("restore", "--from", both, "--data-dir", one, *chosen[:2]).returncode == 0
    assert [path.name for path in one.iterdir()] == ["other"]


def test_nothing_is_ever_replaced(data_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert requeue_worker("backup", "--data-dir", data_dir, "--to", copy).returncode == 0
    before = contents(tmp_path)
    for args in (
        ("backup", "--data-dir", data_dir, "--to", copy),
        ("restore", "--from", copy, "--data-dir", data_dir),
    ):
        refused(3, f"{NAME} exists already, and nothing is ever replaced: name another directory", *args)
    assert contents(tmp_path) == before


def test_what_is_not_there_is_told(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    to = ("--to", tmp_path / "copy")
    refused(3, "holds no instance directory", "backup", "--data-dir", tmp_path / "empty", *to)
    refused(3, "can't be read: No such file", "backup", "--data-dir", tmp_path / "nowhere", *to)
    refused(3, "no directory of the instance x", "backup", "--data-dir", data_dir, "--instance-id", "x", *to)
    refused(1, "can't be written: ", "backup", "--data-dir", data_dir, "--to", "/proc/copy")
    assert not (tmp_path / "copy").exists()


# -- restore -----------------------------------------------------------------------------------------------------


def test_a_backup_that_is_not_sound_is_not_restored_unless_asked_for(data_dir: Path, tmp_path: Path) -> None:
    edit(data_dir / NAME, lambda engine, batch: batch.delete(next(engine.keys(MESSAGES, b"", b"\xff"))))

    restore = ("restore", "--from", data_dir, "--data-dir", tmp_path / "new")
    refused(6, "is not restored, since it is not sound: 3 findings, the first: counters: queue ", *restore)
    assert list((tmp_path / "new").iterdir()) == []
    assert requeue_worker(*restore, "--no-verify").returncode == 0
    assert len(verify(tmp_path / "new" / NAME).findings) == 3


def test_a_backup_of_a_newer_format_is_refused_and_not_rewritten(data_dir: Path, tmp_path: Path) -> None:
    edit(data_dir / NAME, lambda _, batch: batch.put_meta(META_FORMAT, b"\x02"))
    before = contents(data_dir)

    for more in ((), ("--no-verify",)):
        restore = ("restore", "--from", data_dir, "--data-dir", tmp_path / "new", *more)
        refused(3, "has data format 2, this release knows up to 1", *restore)
    assert contents(data_dir) == before
    assert list((tmp_path / "new").iterdir()) == []


def test_a_restored_copy_stands_alone(data_dir: Path, tmp_path: Path) -> None:
    """A worker on it must not write into the backup, not even through a link."""
    assert requeue_worker("restore", "--from", data_dir, "--data-dir", tmp_path / "new").returncode == 0
    assert all(file.stat().st_nlink == 1 for file in (tmp_path / "new" / NAME).iterdir())


def test_a_restored_copy_is_another_source_for_whoever_merged_a_part_of_the_original(
    data_dir: Path, tmp_path: Path
) -> None:
    # A neighbour's mark says how far it came with the original: what the copy takes in below it must not be skipped.
    def uid(path: Path) -> bytes:
        engine = Engine(path)
        try:
            return uid_of(engine)
        finally:
            engine.close()

    backup, new = tmp_path / "backup", tmp_path / "new"
    original = uid(data_dir / NAME)
    assert requeue_worker("backup", "--data-dir", data_dir, "--to", backup).returncode == 0
    assert requeue_worker("restore", "--from", backup, "--data-dir", new).returncode == 0

    assert uid(backup / NAME) == original
    assert uid(new / NAME) != original


async def test_a_worker_goes_on_from_a_restored_directory(
    worker: WorkerProcess, nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    """What was settled after the backup goes out again, under the same id: at least once, never lost."""
    seen: list[Msg] = []

    async def settle_it(msg: Msg) -> None:
        seen.append(msg)
        await msg.respond(b"")

    for number in range(3):
        await taken(nc, b"%d" % number, {"Requeue-Subject": "jobs.now", "Requeue-Delay": "2s"})
    await command("backup", "--data-dir", worker.data_dir, "--to", tmp_path / "copy")
    await nc.subscribe("jobs.now", cb=settle_it)
    await until(lambda: len(seen) == 3)
    await asyncio.to_thread(worker.stop)

    await command("restore", "--from", tmp_path / "copy", "--data-dir", tmp_path / "new")
    worker_factory(nats_server, "--instance-id", NAME, data_dir=tmp_path / "new")
    await until(lambda: len(seen) == 6)
    ids = [(msg.headers or {})["Requeue-Id"] for msg in seen]
    assert sorted(ids[:3]) == sorted(ids[3:])


# -- beside a running worker -------------------------------------------------------------------------------------


async def test_a_backup_under_load_holds_all_that_was_acknowledged_before_it_and_agrees_with_itself(
    worker: WorkerProcess, nc: Client, tmp_path: Path
) -> None:
    acknowledged = 0
    ended = asyncio.Event()

    async def publish(client: int) -> None:
        nonlocal acknowledged
        number = 0
        while not ended.is_set():
            number += 1
            await taken(nc, bytes(500), {**HOUR_AWAY, "Nats-Msg-Id": f"{client}-{number}"})
            acknowledged += 1

    async with asyncio.TaskGroup() as load:
        for client in range(8):
            load.create_task(publish(client))
        for number in range(3):
            before = acknowledged
            copy = tmp_path / f"copy-{number}"
            said = await command("backup", "--data-dir", worker.data_dir, "--to", copy)
            assert said == f"{NAME}: backed up to {copy / NAME}, beside its running worker\n"
            report = await asyncio.to_thread(verify, copy / NAME)
            assert report.ok, report.findings
            assert before <= report.records["messages"] <= acknowledged + 8
        ended.set()
    assert acknowledged > before
    assert worker.running
    await until(lambda: beside(worker.data_dir) == [control_path(worker.data_dir, NAME).name])


async def test_several_backups_at_a_time_are_each_whole(
    worker: WorkerProcess, nc: Client, tmp_path: Path
) -> None:
    await taken(nc)
    copies = [tmp_path / f"copy-{number}" for number in range(4)]
    await asyncio.gather(*[command("backup", "--data-dir", worker.data_dir, "--to", copy) for copy in copies])
    for copy in copies:
        assert verify(copy / NAME).records["messages"] == 1


async def test_a_running_worker_is_backed_up_to_another_file_system(
    worker: WorkerProcess, nc: Client, elsewhere: Path
) -> None:
    await taken(nc)
    await command("backup", "--data-dir", worker.data_dir, "--to", elsewhere / "copy")
    assert verify(elsewhere / "copy" / NAME).records["messages"] == 1
    await until(lambda: len(beside(worker.data_dir)) == 1)


async def test_the_worker_removes_a_copy_that_nobody_took(worker: WorkerProcess, nc: Client) -> None:
    await taken(nc)
    with copy_of_running(worker.data_dir, NAME, 30) as copy:
        assert verify(copy).records["messages"] == 1
    await until(lambda: not copy.exists())


async def test_a_worker_that_is_stopped_waits_for_nobody_to_take_a_copy(
    worker: WorkerProcess, nc: Client
) -> None:
    await taken(nc)
    with copy_of_running(worker.data_dir, NAME, 30):
        assert await asyncio.to_thread(worker.stop) == 0
        assert beside(worker.data_dir) == []


def test_only_the_owner_of_the_data_gets_at_the_socket(worker: WorkerProcess) -> None:
    status = control_path(worker.data_dir, NAME).stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    worker.stop()
    assert beside(worker.data_dir) == []


def test_a_start_clears_what_a_killed_worker_left(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.kill()
    left = worker.data_dir / f".{NAME}~copy-1"
    left.mkdir()
    assert control_path(worker.data_dir, NAME).exists()
    worker.start()
    assert not left.exists()
    assert requeue_worker("backup", "--data-dir", worker.data_dir, "--to", tmp_path / "copy").returncode == 0


def test_a_deep_directory_and_a_long_name_are_no_matter(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    deep, name = tmp_path.joinpath(*["directory" * 5] * 4), "n" * 100
    worker_factory(nats_server, "--instance-id", name, data_dir=deep)
    done = requeue_worker("backup", "--data-dir", deep, "--to", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert "beside its running worker" in done.stdout


def test_a_process_that_cannot_be_asked_is_told_from_a_worker(data_dir: Path, tmp_path: Path) -> None:
    with held(data_dir / NAME):
        args = ("backup", "--data-dir", data_dir, "--to", tmp_path / "copy")
        refused(3, f"{data_dir / NAME} is open in another process, which can't be asked for a copy", *args)
        assert not (tmp_path / "copy").exists()


async def test_a_worker_whose_data_directory_has_no_room_for_a_copy_says_so_and_goes_on(
    worker: WorkerProcess, nc: Client, tmp_path: Path
) -> None:
    (worker.data_dir / f".{NAME}~copy-1").write_text("in the way")
    done = await asyncio.to_thread(
        requeue_worker, "backup", "--data-dir", worker.data_dir, "--to", tmp_path / "copy"
    )
    assert done.returncode == 1
    assert "made no copy: no checkpoint at " in done.stderr
    await settle(nc)
    await taken(nc)
    await command("backup", "--data-dir", worker.data_dir, "--to", tmp_path / "copy")
