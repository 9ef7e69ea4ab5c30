"""The disk below the parts: what an fsync costs there, whether it costs anything, and what files take."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from array import array
from pathlib import Path

_APPENDS = 200
_BLOCK = 512  #: bytes, whatever the file system's blocks are (stat(2))
_fdatasync = getattr(os, "fdatasync", os.fsync)  # as RocksDB's log; not everywhere


def fsyncs_ns(directory: Path, size: int) -> array[int]:
    """How long each of 200 appends of `size` bytes to a new file takes, with its fsync, in ns."""
    taken, record = array("q"), os.urandom(size)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(_APPENDS):
            before_ns = time.perf_counter_ns()
            file.write(record)
            _fdatasync(file.fileno())
            taken.append(time.perf_counter_ns() - before_ns)
    return taken


def disk_bytes(directory: Path) -> int:
    """What the files under a directory take on the disk; files that vanish meanwhile count nothing."""
    taken = 0
    for file in directory.rglob("*"):
        with contextlib.suppress(OSError):
            taken += file.stat().st_blocks * _BLOCK
    return taken


def costless_fsync(directory: Path) -> bool:
    """Whether a directory is in memory, where an fsync costs nothing and a figure says nothing about disks."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text()
    except OSError:
        return False
    for line in mounts.splitlines():
        _, at, filesystem, *_ = line.split()
        inside = f"{directory.resolve()}/".startswith(at.rstrip("/") + "/")
        if inside and len(at) >= len(best):
            best, kind = at, filesystem
    return kind in ("tmpfs", "ramfs")
