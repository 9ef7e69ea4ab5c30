"""A directory that is being merged: checked, locked, claimed, read page by page, trimmed, moved aside and removed.

Everything here blocks and runs on the reaper's own thread, one call at a time. The lock (`Tenure`) is held from before
the database is opened until after the directory has another name, so that an owner that starts meanwhile waits and
then finds its place free.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from requeue_worker.errors import DataDirLocked
from requeue_worker.faults import fault_point
from requeue_worker.reaper.prepare import SetAside, prepare, set_aside
from requeue_worker.storage.claims import META_MERGED, Claim, take_over, uid_of
from requeue_worker.storage.keys import after_prefix
from requeue_worker.storage.pages import Mark, Page, check_empty, pages, queues_of, trim
from requeue_worker.storage.rocksdb import META, Engine
from requeue_worker.storage.tenure import HEARTBEAT, TENURE, Role, Tenure
from requeue_worker.storage.unborn import UNBORN, is_unborn

ASIDE: Final = ".reaped-"  #: prefix of a directory whose last record is durable elsewhere


class Source:
    """A directory under its lock."""

    def __init__(self, path: Path, tenure: Tenure, engine: Engine) -> None:
        self.path = path
        self.uid = uid_of(engine)
        self._tenure = tenure
        self._engine: Engine | None = engine
        self._pages: Iterator[Page] | None = None

    @classmethod
    def open(cls, path: Path, instance_id: str) -> Self:
        """Lock and open an orphan.

        Raises DataDirLocked when it is in use, FileNotFoundError when it is gone, and SetAside for what cannot be
        merged; then it was left as it is.
        """
        _check_shape(path)
        try:
            tenure = Tenure.take(path, Role.MERGE, instance_id)
        except (FileNotFoundError, DataDirLocked):
            raise
        except OSError as error:
            raise SetAside("unreadable", f"it can't be locked: {error}") from error
        try:
            prepare(path)
            return cls(path, tenure, Engine(path, source=True))
        except BaseException as error:
            tenure.undo()
            tenure.release()
            if isinstance(error, DataDirLocked | SetAside) or not isinstance(error, Exception):
                raise
            raise set_aside(error) from None

    @property
    def engine(self) -> Engine:
        """Its database."""
        assert self._engine is not None, "closed"
        return self._engine

    def claim(self, claim: Claim, own_mark: Callable[[bytes], Mark | None]) -> bool:
        """Say on its disk who merges it; True when we had begun with it before."""
        return take_over(self.engine, self.path, claim, own_mark)

    def paused(self) -> dict[str, int]:
        """For each queue of it until when it is paused (Unix ns, 0: it is not)."""
        return {name: until_ns for name, (_, _, until_ns) in queues_of(self.engine).items()}

    def marks(self) -> dict[bytes, Mark]:
        """What it had itself merged of others, by their uid."""
        return {
            key[len(META_MERGED) :]: Mark.decode(raw)
            for key, raw in self.engine.items(META, META_MERGED, after_prefix(META_MERGED))
        }

    def remaining(self) -> int:
        """Records that it holds, by its counters. Blocks."""
        return sum(pending + dead for pending, dead, *_ in queues_of(self.engine).values())

    def next_page(self) -> Page | None:
        """The next records, None after the last ones. Raises DataDamaged, DataFormatTooNew or CommitError (fenced)."""
        if self._pages is None:
            self._pages = pages(self.engine)
        self._tenure.check()
        return next(self._pages, None)

    def trim(self, page: Page) -> None:
        """Remove what is durable elsewhere."""
        trim(self.engine, page)

    def finish(self) -> Path:
        """Check that nothing is left, close, and move the directory aside: durable when this returns. Returns where to."""
        self._stop_reading()
        check_empty(self.engine)
        self._tenure.check()
        fault_point("merge: emptied")
        self._close_engine()
        fault_point("merge: closed")
        aside = self.path.with_name(f"{ASIDE}{self.path.name}-{self.uid.hex()}")
        self.path.rename(aside)
        _sync_directory(self.path.parent)
        fault_point("merge: moved aside")
        return aside

    def close(self) -> None:
        """Unlock. What was merged so far stays merged; the rest is there for whoever comes next."""
        self._stop_reading()
        self._close_engine()
        self._tenure.release()

    def _stop_reading(self) -> None:
        # An iterator holds the database open.
        if self._pages is not None:
            self._pages.close()  # type: ignore[attr-defined]
            self._pages = None

    def _close_engine(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def remove(aside: Path) -> None:
    """Delete a directory that was moved aside; another reaper may be doing the same. Blocks."""
    for name in ("CURRENT", TENURE, HEARTBEAT):
        (aside / name).unlink(missing_ok=True)
    fault_point("merge: half removed")
    shutil.rmtree(aside, onerror=_unless_gone)


def _unless_gone(
    _function: object, _path: str, what: tuple[type[BaseException], BaseException, object]
) -> None:
    if not isinstance(what[1], FileNotFoundError):
        raise what[1]


def _check_shape(path: Path) -> None:
    """What can be told without a lock."""
    if path.is_symlink():
        raise SetAside("not-a-directory", "it is a symbolic link")
    if not path.is_dir():
        path.lstat()  # gone: FileNotFoundError
        raise SetAside("not-a-directory", "it is a file, and an instance has a directory")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise SetAside("unreadable", "it needs read, write and search rights for this user")
    if not (path / "CURRENT").exists():
        with suppress(FileNotFoundError):
            if not {entry.name for entry in path.iterdir()} - {TENURE, HEARTBEAT}:
                raise SetAside("empty", "it is empty")
        if is_unborn(path):
            raise SetAside("empty", UNBORN)
        raise SetAside("empty", "it holds no database")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
