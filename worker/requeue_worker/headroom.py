"""Room on the disk: intake stops while less than the reserve is free, long before RocksDB finds none left.

    write thread, before each commit ─┐
    once a second, on a thread      ──┴── look ──▶ event loop: `note` ──▶ intake off (507), on again above the reserve

What is pending goes on being replayed and settled from the reserve. While intake is off, half of the reserve is taken
into a file (the ballast), so that no other process can eat it up; RocksDB gets it back when the rest runs out, and at the
next start, which has to write the log into tables. Settled records are compacted away, since only that gives room back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from requeue_protocol.errors import DiskFull
from requeue_protocol.policy import read_size
from requeue_worker.counts import Counts
from requeue_worker.errors import DataDirGone

log = logging.getLogger(__name__)

BALLAST: Final = ".~ballast"  #: in the data directory, for all its workers; no instance has such a name
LOOK_S: Final = 1.0
RECLAIM_S: Final = 5.0  #: while full, settled records are compacted away this often at most
TELL_S: Final = 60.0  #: what fails in the background is logged this often at most
_SMALL_SHARE: Final = 4  #: an absolute reserve is at most a quarter of the disk


class Room(NamedTuple):
    """What one look found. `ballast_bytes` are not free, and ours."""

    free_bytes: int
    total_bytes: int
    ballast_bytes: int


def reserve_bytes(reserve: str, total_bytes: int) -> int:
    """The reserve on a disk of this size: `10%` of it, or a size, of which a quarter of the disk is the most."""
    if reserve.endswith("%"):
        return total_bytes * int(reserve[:-1]) // 100
    return min(int(str(read_size(reserve))), total_bytes // _SMALL_SHARE)


class Headroom:
    """Watches the disk under one instance directory. `look` blocks and runs on any thread, all else on the event loop."""

    def __init__(
        self,
        path: Path,
        reserve: str,
        counts: Counts,
        *,
        waiting_bytes: Callable[[], int],
        refuse: Callable[[DiskFull | None], None],
        reclaim: Callable[[], Awaitable[None]],
        writable: Callable[[], bool],
        background_errors: Callable[[], int],
    ) -> None:
        self._path = path
        self._ballast = path.parent / BALLAST
        self._reserve = reserve
        self._counts = counts
        self._waiting_bytes = waiting_bytes
        self._refuse = refuse
        self._reclaim = reclaim
        self._writable = writable
        self._background_errors = background_errors
        stat = path.stat()
        self._identity = (stat.st_dev, stat.st_ino)
        self._reclaimed_s = 0.0
        self._told_errors_s = -TELL_S
        #: intake is off
        self.full = False

    def look(self) -> Room:
        """Ask the file system. Raises DataDirGone when the directory is not the one that was opened."""
        try:
            stat, disk = self._path.stat(), os.statvfs(self._path)
        except OSError as error:
            raise DataDirGone(_gone(self._path, str(error.strerror))) from error
        if (stat.st_dev, stat.st_ino) != self._identity:
            raise DataDirGone(_gone(self._path, "another directory stands there now"))
        try:
            ballast = self._ballast.stat().st_blocks * 512
        except OSError:
            ballast = 0
        return Room(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize, ballast)

    def note(self, room: Room) -> None:
        """Switch the intake off below the reserve, and on again when a quarter more than that is there.

        Room alone is not enough after a flush that had none: a write would fail, and end the worker.
        """
        reserve = reserve_bytes(self._reserve, room.total_bytes)
        # What was accepted is as good as written.
        left = room.free_bytes + room.ballast_bytes - self._waiting_bytes()
        self._counts.disk_free_bytes, self._counts.disk_reserve_bytes = room.free_bytes, reserve
        if not self.full and left < reserve > 0:
            self._set(
                DiskFull(f"the worker's disk has less than {reserve >> 20:,} MiB left: send again later")
            )
            log.error("the disk is full: no messages are taken in", extra=self._extra(room, reserve))
        elif self.full and left >= reserve + reserve // 4 and self._writable():
            self._set(None)
            log.info("the disk has room again: messages are taken in", extra=self._extra(room, reserve))

    async def watch_forever(self) -> None:
        """Look once a second, and mind ballast and settled records while the disk is full. Raises DataDirGone."""
        while True:
            await self.look_now()
            await asyncio.sleep(LOOK_S)

    async def look_now(self) -> None:
        """One look, with all that follows from it."""
        room = await asyncio.to_thread(self.look)
        self.note(room)
        self._note_background_errors()
        await asyncio.to_thread(self._mind_ballast, room)
        if self.full and time.monotonic() - self._reclaimed_s >= RECLAIM_S:
            self._reclaimed_s = time.monotonic()
            await self._reclaim()
            self._reclaimed_s = time.monotonic()

    def _note_background_errors(self) -> None:
        errors, before = self._background_errors(), self._counts.disk_background_errors
        self._counts.disk_background_errors = errors
        if errors > before and time.monotonic() - self._told_errors_s >= TELL_S:
            self._told_errors_s = time.monotonic()
            extra = {"directory": str(self._path), "errors": errors}
            log.error("tables can't be rewritten: room is given back later", extra=extra)

    def _set(self, error: DiskFull | None) -> None:
        self.full = self._counts.disk_full = error is not None
        self._refuse(error)

    def _mind_ballast(self, room: Room) -> None:
        reserve = reserve_bytes(self._reserve, room.total_bytes)
        try:
            if room.ballast_bytes and (not self.full or room.free_bytes < reserve // 8):
                self._ballast.unlink(missing_ok=True)
            elif self.full and not room.ballast_bytes and room.free_bytes >= reserve // 2 + reserve // 8:
                _fill(self._ballast, reserve // 2)
        except OSError as error:
            log.debug("no ballast", extra={"error": str(error)})

    def _extra(self, room: Room, reserve: int) -> dict[str, object]:
        return {"directory": str(self._path), "free_bytes": room.free_bytes, "reserve_bytes": reserve}


def give_back_ballast(data_dir: Path) -> None:
    """Before a store is opened: RocksDB writes its log into tables then, and the disk may be full."""
    with contextlib.suppress(OSError):
        (data_dir / BALLAST).unlink()


def _fill(file: Path, size: int) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _gone(path: Path, why: str) -> str:
    return f"{path} was removed, moved or unmounted under the running worker: {why}"
