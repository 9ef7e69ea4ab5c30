"""CPU time and memory of a process, from /proc (Linux); None where there is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
_MB = 1_000_000


class Usage(NamedTuple):
    """CPU seconds used since its start, and memory in MB (10^6 bytes): now, and at most since the start."""

    cpu_s: float
    rss_mb: float
    peak_rss_mb: float


def read_usage(pid: int | None) -> Usage | None:
    """Give the usage of a process and its children: a worker's shards. The peak is then at most the sum of theirs."""
    if pid is None or (own := _own_usage(pid)) is None:
        return None
    parts = [own, *(part for child in _children(pid) if (part := read_usage(child)))]
    return Usage(*(sum(values) for values in zip(*parts, strict=True)))


def _children(pid: int) -> list[int]:
    try:
        texts = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in texts for child in text.split()]


def _own_usage(pid: int) -> Usage | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name may hold spaces; what follows starts with field 3
    memory = {
        name: int(rest.split()[0]) * 1024 / _MB
        for name, _, rest in (line.partition(":") for line in status.splitlines())
        if name in ("VmRSS", "VmHWM")
    }
    cpu_s = (int(fields[11]) + int(fields[12])) * _TICK_S
    return Usage(cpu_s, memory.get("VmRSS", 0.0), memory.get("VmHWM", 0.0))


def cpu_us_per(before: Usage | None, after: Usage | None, messages: int) -> float | None:
    """Give the CPU between two readings in µs per message."""
    if before is None or after is None or not messages:
        return None
    return (after.cpu_s - before.cpu_s) / messages * 1e6
