"""The RocksDB adapter, on a real disk."""

import gc
from pathlib import Path

from requeue_worker.storage.rocksdb import MESSAGES, Engine


def test_a_bounded_scan_sees_every_record_whatever_is_collected_meanwhile(tmp_path: Path) -> None:
    """rocksdict frees the upper bound with its ReadOptions: a scan that outlives them ended early, anywhere."""
    engine = Engine(tmp_path / "db")
    batch = engine.batch()
    for number in range(20_000):
        batch.put(b"\x04soon\x04" + number.to_bytes(24, "big"), b"v" * 40)
    engine.write(batch)

    scans = [engine.items(MESSAGES, b"\x04soon\x04", b"\x04soon\x05") for _ in range(20)]
    gc.collect()
    churn = [bytes((index % 256,)) * 6 for index in range(100_000)]

    assert [sum(1 for _ in scan) for scan in scans] == [20_000] * 20
    assert churn
    engine.close()
