"""The RocksDB adapter, on a real disk."""

import subprocess
import sys
from pathlib import Path

# In a fresh interpreter: whether freed memory is used again, and so shows, depends on all that was allocated before.
SCANS = """
import sys
from pathlib import Path
from requeue_worker.storage.keys import after_prefix, queue_prefix, time_of
from requeue_worker.storage.rocksdb import MESSAGES, META, Engine

engine = Engine(Path(sys.argv[1]))
for queue in ("default", "soon"):
    batch = engine.batch()
    for number in range(20_000):
        key = queue_prefix(queue) + bytes((4,)) + number.to_bytes(24, "big")
        batch.put(key, b"h" * 60 + bytes(300) + number.to_bytes(4, "big"))
    engine.write(batch)
    del batch
batch = engine.batch()
for key in (b"format", b"qdefault", b"qsoon"):
    batch.put_meta(key, bytes(70))
engine.write(batch)
del batch
engine.close()
engine = Engine(Path(sys.argv[1]))
for key, value in engine.items(META, b"", b"\\xff"):
    value.hex()
for queue in ("soon", "default"):
    prefix = queue_prefix(queue)
    seen = 0
    for key, value in engine.items(MESSAGES, prefix, after_prefix(prefix)):
        if seen == 0:
            time_of(key)
        seen += 1
    print(queue, seen)
"""


def test_a_bounded_scan_sees_every_record_while_blocks_are_loaded(tmp_path: Path) -> None:
    """rocksdict frees the upper bound with its ReadOptions, and a scan that outlived them ended early, silently."""
    run = subprocess.run(
        [sys.executable, "-c", SCANS, str(tmp_path / "db")], capture_output=True, text=True, check=True
    )

    assert run.stdout.split("\n")[:2] == ["soon 20000", "default 20000"]
