"""The RocksDB adapter, on a real disk."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from requeue_worker.errors import DataDamaged
from requeue_worker.storage.rocksdb import IDS, MESSAGES, Engine
from rocksdict import ReadOptions


def test_a_bounded_scan_keeps_its_read_options_alive(tmp_path: Path) -> None:
    """rocksdict's iterator does not, and the upper bound in them is freed with them.

    Seen on a directory with 5,000,000 records: after other reads had used that memory again, a scan of 20,000 records
    ended after 37, silently. That needs an unlucky heap, so the test looks at what prevents it.
    """
    engine = Engine(tmp_path / "db")
    batch = engine.batch()
    batch.put(b"\x04soon\x04" + bytes(24), b"value")
    engine.write(batch)

    scan = engine.items(MESSAGES, b"\x04soon\x04", b"\x04soon\x05")
    next(scan)

    assert isinstance(inspect.getgeneratorlocals(scan)["options"], ReadOptions)  # type: ignore[arg-type]


def test_a_closed_store_can_be_opened_again_in_the_same_process(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "db")
    list(engine.items(MESSAGES, b"", b"\xff"))
    engine.close()

    Engine(tmp_path / "db").close()


def a_closed_database(path: Path, records: int = 5000) -> Path:
    engine = Engine(path)
    batch = engine.batch()
    for number in range(records):
        batch.put(b"\x04soon\x04" + number.to_bytes(24, "big"), number.to_bytes(8, "big") * 30)
        batch.put_id(b"\x00\x04" + number.to_bytes(20, "big"), number.to_bytes(8, "big") * 4)
    engine.write(batch)
    engine.close()
    return path


def flip_a_bit_in_every_table(path: Path) -> None:
    for table in path.glob("*.sst"):
        content = bytearray(table.read_bytes())
        content[len(content) // 3] ^= 1
        table.write_bytes(content)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_scan_that_meets_a_damaged_block_raises_and_does_not_just_end(
    tmp_path: Path, read_only: bool
) -> None:
    flip_a_bit_in_every_table(a_closed_database(tmp_path / "db"))
    engine = Engine(tmp_path / "db", read_only=read_only)

    with pytest.raises(DataDamaged, match=r"messages can't be read at .*checksum mismatch"):
        deque(engine.items(MESSAGES, b"", b"\xff"), 0)
    with pytest.raises(DataDamaged, match="checksum mismatch"):
        deque(engine.keys(MESSAGES, b"", b"\xff"), 0)
    with pytest.raises(DataDamaged, match="checksum mismatch"):
        engine.few(IDS, b"", b"\xff")
    engine.close()


def test_a_scan_takes_in_what_is_written_behind_it_meanwhile(tmp_path: Path) -> None:
    """It is on disk, so it is no damage that the scan, which began before, had ended without it."""
    engine = Engine(a_closed_database(tmp_path / "db", records=3))
    items, keys = engine.items(MESSAGES, b"", b"\xff"), engine.keys(MESSAGES, b"", b"\xff")
    begun = [next(items) for _ in range(3)], [next(keys) for _ in range(3)]
    batch = engine.batch()
    behind = b"\x04soon\x05" + bytes(24)
    batch.put(behind, b"value")
    engine.write(batch)

    assert list(items) == [(behind, b"value")]
    assert list(keys) == [behind]
    assert [key for key, _ in begun[0]] == begun[1]
    engine.close()


def test_scans_of_sound_ranges_give_all_that_is_in_them(tmp_path: Path) -> None:
    engine = Engine(a_closed_database(tmp_path / "db"))
    first, last = (b"\x04soon\x04" + number.to_bytes(24, "big") for number in (10, 20))

    assert [key[-1] for key in engine.keys(MESSAGES, first, last)] == list(range(10, 20))
    assert list(engine.items(MESSAGES, first, last)) == engine.few(MESSAGES, first, last)
    assert list(engine.items(MESSAGES, last, last)) == engine.few(MESSAGES, last, last) == []
    engine.close()


def test_a_read_only_database_changes_no_file_and_leaves_the_lock_alone(tmp_path: Path) -> None:
    path = a_closed_database(tmp_path / "db")
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    reader = Engine(path, read_only=True)
    assert sum(1 for _ in reader.keys(MESSAGES, b"", b"\xff")) == 5000
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    Engine(path).close()
    reader.close()


def test_a_checkpoint_holds_what_was_written_before_it(tmp_path: Path) -> None:
    engine = Engine(a_closed_database(tmp_path / "db"))
    engine.checkpoint(tmp_path / "copy")
    batch = engine.batch()
    batch.put(b"\x05later\x04" + bytes(24), b"value")
    engine.write(batch)
    engine.close()

    copy = Engine(tmp_path / "copy", read_only=True)
    assert sum(1 for _ in copy.keys(MESSAGES, b"", b"\xff")) == 5000
    copy.close()


class BusyEngine(Engine):
    """A database in which a record comes to stand at a key right after each of the first `writes` scans from there."""

    key = b"\x04soon\x04" + bytes(24)
    writes = 0

    def _what_follows(
        self, family: str, start: bytes, last: bytes, options: ReadOptions, *, once_more: bool
    ) -> bytes | None:
        if self.writes:
            self.writes -= 1
            batch = self.batch()
            batch.put(self.key, b"value")
            self.write(batch)
        return super()._what_follows(family, start, last, options, once_more=once_more)


@pytest.mark.parametrize("read", [Engine.items, Engine.keys])
def test_a_record_that_comes_to_stand_where_an_empty_scan_began_is_no_damage(
    tmp_path: Path, read: Callable[[Engine, str, bytes, bytes], Iterator[object]]
) -> None:
    # A message that is moved away from a key and back again, while its lane is read from there.
    engine = BusyEngine(tmp_path / "db")
    engine.writes = 1

    found = list(read(engine, MESSAGES, engine.key, b"\x04soon\x05"))

    assert found in ([(engine.key, b"value")], [engine.key])
