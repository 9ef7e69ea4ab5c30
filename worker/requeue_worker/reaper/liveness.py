"""Which directories beside our own are orphans, without touching any.

An orphan is a directory whose instance is outside the live set, if one is configured, or whose heartbeat is still for
`reap_after`. That its lock is free is found out by taking it (`source.Source.open`). Times are compared on the clock of
the file system, ours against theirs, so that machines may disagree; a heartbeat without a past, or one from the
future, counts from when it was first seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from requeue_protocol.errors import MalformedMessage
from requeue_protocol.subjects import check_queue_name
from requeue_worker.storage.tenure import HEARTBEAT


class Found(NamedTuple):
    """An entry of the data directory. `signature` is another one when it has changed."""

    path: Path
    signature: tuple[int, int, int]
    orphan_in_s: float  #: 0 or less: it is an orphan now


@dataclass(slots=True)
class _Seen:
    beat: tuple[int, int]
    since_s: float


class Liveness:
    """Watches the heartbeats of a data directory."""

    def __init__(
        self,
        own: Path,
        live: tuple[str, ...],
        reap_after_ns: int,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = own
        self._live = frozenset(live)
        self._reap_after_ns = reap_after_ns
        self._monotonic_s = monotonic_s
        self._seen: dict[str, _Seen] = {}

    def look(self) -> list[Found]:
        """Every neighbour, in order of name. Blocks. Raises OSError when the data directory can't be read."""
        neighbours = [path for path in sorted(self._own.parent.iterdir()) if self._is_neighbour(path)]
        now_ns = self._now_ns() if neighbours else 0
        found = []
        for path in neighbours:
            try:
                stat = path.lstat()
                in_s = self._orphan_in_s(path, now_ns)
            except FileNotFoundError:
                continue  # merged by another reaper meanwhile
            except OSError:
                in_s = self._still_unseen_s(path.name, (0, 0))
            found.append(Found(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size), in_s))
        gone = self._seen.keys() - {path.name for path in neighbours}
        for name in gone:
            del self._seen[name]
        return found

    def _is_neighbour(self, path: Path) -> bool:
        """Hidden files and what no instance can be named (`lost+found`) are none of our business."""
        try:
            check_queue_name(path.name)
        except MalformedMessage:
            return False
        return not path.name.startswith(".") and path != self._own

    def _now_ns(self) -> int:
        """The file system's clock: what a heartbeat of now would say."""
        file = self._own / HEARTBEAT
        file.touch()
        return file.stat().st_mtime_ns

    def _orphan_in_s(self, path: Path, now_ns: int) -> float:
        if self._live and path.name not in self._live:
            return 0.0
        try:
            beat = (path / HEARTBEAT).stat()
        except (FileNotFoundError, NotADirectoryError):
            return self._still_unseen_s(path.name, (0, 0))
        seen_s = self._still_unseen_s(path.name, (beat.st_ino, beat.st_mtime_ns))
        return min(seen_s, (beat.st_mtime_ns + self._reap_after_ns - now_ns) / 1e9)

    def _still_unseen_s(self, name: str, beat: tuple[int, int]) -> float:
        """How much longer this heartbeat has to stay as it is, by what we have seen ourselves."""
        now_s = self._monotonic_s()
        seen = self._seen.get(name)
        if seen is None or seen.beat != beat:
            seen = self._seen[name] = _Seen(beat, now_s)
        return seen.since_s + self._reap_after_ns / 1e9 - now_s
