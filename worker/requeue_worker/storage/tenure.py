"""Who holds an instance directory: a locked file that also says since when and what for, and a heartbeat.

`<directory>/tenure` is locked (flock) for as long as the directory is in use, by its owner or by a neighbour that
merges it, from before its database is opened until after it is closed (and, by a merge, moved away). Its line,
``epoch role holder token``, grows by one epoch with each holder. The owner reads it again before each commit: where a
file system has lost the lock of a process that still runs, that process finds itself fenced and writes no more.

`<directory>/heartbeat` is touched by a thread of the owner, so that a busy loop looks no different from an idle one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from requeue_worker.errors import CommitError, DataDirLocked, DataDirUnreadable

TENURE: Final = "tenure"
HEARTBEAT: Final = "heartbeat"
HEARTBEAT_S: Final = 5.0
_RETRY_S: Final = 0.05
_LINE_BYTES: Final = 512


class Role(StrEnum):
    """What a holder does with the directory."""

    OWNER = "owner"
    MERGE = "merge"


class Line(NamedTuple):
    """What the file says. An unreadable or absent line has epoch 0 and no role."""

    epoch: int
    role: str
    holder: str
    token: str

    @classmethod
    def parse(cls, raw: bytes) -> Line:
        """The reverse of `encode`."""
        parts = raw.decode("utf-8", "replace").split()
        if len(parts) != 4 or not parts[0].isdigit():
            return cls(0, "", "", "")
        return cls(int(parts[0]), *parts[1:])

    def encode(self) -> bytes:
        """One line of text."""
        return f"{self.epoch} {self.role} {self.holder} {self.token}\n".encode()


class Tenure:
    """A directory that this process holds. Thread-safe: nothing changes but by `release`."""

    def __init__(self, directory: Path, descriptor: int, line: Line, before: bytes | None) -> None:
        self.directory = directory
        self.epoch = line.epoch
        self._descriptor = descriptor
        self._line = line.encode()
        self._before = before
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    @classmethod
    def take(cls, directory: Path, role: Role, holder: str) -> Tenure:
        """Lock the directory now. Raises DataDirLocked when somebody holds it, OSError when it cannot be."""
        file = directory / TENURE
        existed = file.exists()
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, file)
            before = os.pread(descriptor, _LINE_BYTES, 0)
            line = Line(Line.parse(before).epoch + 1, role, holder, os.urandom(8).hex())
            _write(descriptor, line.encode())
        except BaseException:
            os.close(descriptor)
            raise
        return cls(directory, descriptor, line, before if existed else None)

    @classmethod
    def await_own(cls, directory: Path, holder: str, patience_s: float = 1.0) -> Tenure:
        """Make and lock the own directory; wait for as long as a neighbour merges it. Blocks.

        Raises DataDirLocked when another owner has it, DataDirUnreadable when it cannot be made or locked.
        """
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                return cls.take(directory, Role.OWNER, holder)
            except FileNotFoundError:
                pass  # it was merged and moved away between the two calls
            except DataDirLocked:
                # A merge locks first and says so a moment later: only a line that stays is believed.
                if read_line(directory).role != Role.MERGE and time.monotonic() > deadline_s:
                    raise
            except (OSError, ValueError) as error:
                raise DataDirUnreadable(f"{directory} can't be made or locked: {error}") from error
            time.sleep(_RETRY_S)

    def check(self) -> None:
        """Raise CommitError unless the directory is still ours."""
        if read_raw(self.directory) != self._line:
            raise CommitError(
                f"{self.directory} was taken over by another process: {read_line(self.directory)}"
            )

    def beat(self, interval_s: float = HEARTBEAT_S) -> None:
        """Touch the heartbeat now, and from a thread until `release`."""
        file = self.directory / HEARTBEAT
        try:
            file.touch()
        except OSError as error:
            raise DataDirUnreadable(f"{file} can't be written: {error}") from error

        def touch_for_ever() -> None:
            while not self._ended.wait(interval_s):
                with contextlib.suppress(OSError):  # a full disk or a hiccup: the next beat may succeed
                    os.utime(file)

        self._heart = threading.Thread(target=touch_for_ever, name="requeue-heartbeat", daemon=True)
        self._heart.start()

    def undo(self) -> None:
        """Put back what the file said before `take`: nothing was changed here after all."""
        with contextlib.suppress(OSError):
            if self._before is None:
                (self.directory / TENURE).unlink()
            else:
                _write(self._descriptor, self._before)

    def release(self) -> None:
        """Stop the heartbeat and unlock."""
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        os.close(self._descriptor)


def read_raw(directory: Path) -> bytes:
    """The line as it stands, empty when there is none. Opened each time: a network file system may cache a stat."""
    try:
        descriptor = os.open(directory / TENURE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _LINE_BYTES)
    finally:
        os.close(descriptor)


def read_line(directory: Path) -> Line:
    """Who holds the directory, or held it last."""
    return Line.parse(read_raw(directory))


def _lock(descriptor: int, file: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataDirLocked(f"{file.parent} is open in another process") from error
    # What is locked may have been moved away meanwhile: then `stat` raises FileNotFoundError, or finds another file.
    if not os.path.samestat(os.fstat(descriptor), file.stat()):
        raise DataDirLocked(f"{file.parent} was moved away just now")


def _write(descriptor: int, line: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, line, 0)
    os.fsync(descriptor)
