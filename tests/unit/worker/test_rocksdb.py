"""The RocksDB adapter, on a real disk."""

import inspect
from pathlib import Path

from requeue_worker.storage.rocksdb import MESSAGES, Engine
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
