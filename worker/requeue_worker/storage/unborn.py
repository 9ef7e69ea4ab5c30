"""A directory whose owner was killed while its database was made, before anything was ever committed there.

    config, IDENTITY ─▶ MANIFEST-000001 ─▶ CURRENT ─▶ a log, the next manifest ─▶ four families ─▶ the first commit

It holds nothing, and its owner's next start finishes it. Damage must not look like that: so no table, no byte in a log,
and what RocksDB makes before the first commit stands there in the order in which it is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from requeue_worker.errors import DataDamaged, DataDirError
from requeue_worker.storage.directory import data_files
from requeue_worker.storage.rocksdb import is_blank

UNBORN: Final = "it was left while its database was made, before it held anything"
_BEFORE_CURRENT: Final = frozenset({"rocksdict-config.json", "IDENTITY", "MANIFEST-000001"})


def is_unborn(path: Path) -> bool:
    """Whether nothing was ever committed here; False in doubt, and without any file of a database. Blocks.

    For a directory that nobody has open.
    """
    try:
        sizes = {file.name: file.stat().st_size for file in data_files(path)}
        if "CURRENT" not in sizes:
            return bool(sizes) and sizes.keys() <= _BEFORE_CURRENT
        logs = [size for name, size in sizes.items() if name.endswith(".log")]
        # A log that was removed by hand leaves the same as one that was never written to.
        made = bool(logs) or (path / "CURRENT").read_text().strip() == "MANIFEST-000001"
        tables = any(name.endswith((".sst", ".blob")) for name in sizes)
        return made and not tables and not any(logs) and is_blank(path)
    except (OSError, ValueError, DataDirError, DataDamaged):
        return False
