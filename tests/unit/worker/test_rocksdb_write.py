"""When a write is done, and who sees it meanwhile: a real database, looked at while its log is being synced."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from requeue_worker.errors import CommitError, DataDamaged
from requeue_worker.storage.rocksdb import MESSAGES, Engine
from rocksdict import Rdict

LANE, END = b"\x04soon\x04", b"\x04soon\x05"
OLD, NEW = LANE + bytes(24), LANE + bytes(23) + b"\x01"


class Observed:
    """A database where something happens right before each sync of its log."""

    def __init__(self, db: Rdict, meanwhile: Callable[[], None]) -> None:
        self._db = db
        self._meanwhile = meanwhile

    def flush_wal(self, sync: bool) -> None:
        self._meanwhile()
        self._db.flush_wal(sync)

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)


def with_old(path: Path) -> Engine:
    engine = Engine(path)
    batch = engine.batch()
    batch.put(OLD, b"old")
    engine.write(batch)
    return engine


def move_old_to_new(engine: Engine, meanwhile: Callable[[], None]) -> None:
    engine._db = Observed(engine._db, meanwhile)  # type: ignore[assignment]
    batch = engine.batch()
    batch.delete(OLD)
    batch.put(NEW, b"new")
    engine.write(batch)


READS: dict[str, Callable[[Engine], object]] = {
    "items": lambda engine: list(engine.items(MESSAGES, LANE, END)),
    "keys": lambda engine: list(engine.keys(MESSAGES, LANE, END)),
    "few": lambda engine: engine.few(MESSAGES, LANE, END),
    "first_key": lambda engine: engine.first_key(MESSAGES, LANE),
    "get": lambda engine: engine.get(MESSAGES, NEW),
    "present": lambda engine: engine.present(MESSAGES, [OLD, NEW]),
}
AFTER = {
    "items": [(NEW, b"new")],
    "keys": [NEW],
    "few": [(NEW, b"new")],
    "first_key": NEW,
    "get": b"new",
    "present": {NEW},
}


def test_no_read_sees_what_is_written_before_the_log_is_synced(tmp_path: Path) -> None:
    """Else a handover would confirm, or a publisher hear of a duplicate, what a power cut takes away again."""
    engine = with_old(tmp_path / "db")
    found: dict[str, object] = {}
    readers = [
        threading.Thread(target=lambda name=name, read=read: found.update({name: read(engine)}))
        for name, read in READS.items()
    ]
    meanwhile: dict[str, object] = {}

    def look() -> None:
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(0.1)
        meanwhile.update(found)

    move_old_to_new(engine, look)
    for reader in readers:
        reader.join()

    assert meanwhile == {}
    assert found == AFTER
    engine.close()


def test_a_scan_under_way_goes_on_to_what_became_durable_meanwhile(tmp_path: Path) -> None:
    engine = with_old(tmp_path / "db")
    scan = engine.items(MESSAGES, LANE, END)
    found = [next(scan)]

    move_old_to_new(engine, lambda: None)

    assert found + list(scan) == [(OLD, b"old"), (NEW, b"new")]
    engine.close()


def fail() -> None:
    raise OSError("input/output error")


@pytest.mark.parametrize("name", READS)
def test_what_could_not_be_synced_is_not_read(tmp_path: Path, name: str) -> None:
    engine = with_old(tmp_path / "db")
    with pytest.raises(CommitError, match="input/output error"):
        move_old_to_new(engine, fail)

    with pytest.raises(DataDamaged, match="may not be on disk: input/output error"):
        READS[name](engine)
    engine.close()


def test_a_database_can_be_closed_after_a_sync_that_failed(tmp_path: Path) -> None:
    engine = with_old(tmp_path / "db")
    with pytest.raises(CommitError):
        move_old_to_new(engine, fail)
    engine.close()

    Engine(tmp_path / "db").close()


@contextmanager
def counting() -> Iterator[list[int]]:
    """A thread that counts whenever the interpreter is let go of. Nobody takes it away from who holds it."""
    steps, ended = [0], threading.Event()

    def count() -> None:
        while not ended.is_set():
            steps[0] += 1
            time.sleep(0)

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield steps
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval_s)


def test_python_goes_on_while_a_log_is_synced(tmp_path: Path) -> None:
    """The event loop is a thread like any other: rocksdict's own write with an fsync would stop it for that long."""
    engine = Engine(tmp_path / "db")
    value = bytes(4 << 20)

    def steps_in_a_write(*, sync: bool) -> int:
        batch = engine.batch()
        batch.put(OLD, value)
        with counting() as steps:
            before = steps[0]
            engine.write(batch, sync=sync)
            return steps[0] - before

    assert [steps_in_a_write(sync=False) for _ in range(3)] == [0, 0, 0]
    # Of nine, since a loaded machine may not run the other thread before the disk is done.
    assert any(steps_in_a_write(sync=True) for _ in range(9))
    engine.close()
