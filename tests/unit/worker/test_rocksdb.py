"""The RocksDB adapter, on a real disk."""

from pathlib import Path

from requeue_worker.storage.rocksdb import MESSAGES, META, Engine


def test_a_bounded_scan_sees_every_record_while_blocks_are_loaded(tmp_path: Path) -> None:
    """rocksdict frees the upper bound with its ReadOptions, and a scan that outlived them ended early, silently."""
    engine = Engine(tmp_path / "db")
    for queue in (b"\x04soon", b"\x05later"):
        batch = engine.batch()
        for number in range(20_000):
            batch.put(queue + b"\x04" + number.to_bytes(24, "big"), number.to_bytes(4, "big") * 100)
        batch.put_meta(b"q" + queue, b"state")
        engine.write(batch)
    del batch  # its column family handles hold the database open
    engine.close()

    engine = Engine(tmp_path / "db")
    for _ in range(3):
        assert len(list(engine.items(META, b"", b"\xff"))) == 2
        for queue in (b"\x04soon", b"\x05later"):
            assert sum(1 for _ in engine.items(MESSAGES, queue, queue + b"\xff")) == 20_000
    engine.close()
