"""Backup and restore: whole instance directories, from one data directory to another.

A backup is a data directory like any other: `verify` reads it, and a worker could run on it. A directory that nobody has
open is taken as it is; a running worker makes the copy itself (`control.py`). Tables are never changed once written, so
they are hard links where the file system is the same; everything else is copied. A copy gets its name when it is complete
and on disk, and nothing that exists is ever replaced.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from requeue_worker.control import NotReachable, copy_of_running
from requeue_worker.errors import DataDamaged, DataDirLocked, DataDirUnreadable, WorkerError
from requeue_worker.storage.claims import renew_uid
from requeue_worker.storage.directory import data_files, held, instance_ids
from requeue_worker.storage.rocksdb import Engine
from requeue_worker.storage.store import read_format

WORKER_PATIENCE_S: Final = 300.0
_TABLES: Final = (".sst", ".blob")


class BackupError(WorkerError):
    """A copy could not be made. Nothing that existed was changed."""


class Damaged(BackupError):
    """A copy was read back and is not sound."""


class Copied(NamedTuple):
    """One instance directory that was copied. `online` says that its worker was running."""

    instance: str
    path: Path
    online: bool


def backup(data_dir: Path, to: Path, chosen: Sequence[str] = ()) -> Iterator[Copied]:
    """Copy instance directories (all, unless some are chosen) into the directory `to`, one after the other.

    Raises DataDirError for a directory that cannot be used and BackupError for a copy that cannot be made.
    """
    running: list[tuple[str, DataDirLocked]] = []
    for instance in to_copy(data_dir, to, chosen):
        try:
            with held(data_dir / instance), new_directory(to, instance) as stage:
                copy_files(data_dir / instance, stage, link=True)
        except DataDirLocked as error:
            running.append((instance, error))
        else:
            yield Copied(instance, to / instance, False)
    # The running ones last: what one of them takes over from another meanwhile is then in both copies, not in none.
    for instance, locked in running:
        _take_from_worker(data_dir, instance, to, locked)
        yield Copied(instance, to / instance, True)


def _take_from_worker(data_dir: Path, instance: str, to: Path, locked: DataDirLocked) -> None:
    try:
        with (
            copy_of_running(data_dir, instance, WORKER_PATIENCE_S) as copy,
            new_directory(to, instance) as stage,
        ):
            try:
                stage.rmdir()
                copy.rename(stage)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                stage.mkdir()
                copy_files(copy, stage, link=False)
    except NotReachable as error:
        raise DataDirLocked(
            f"{locked}, which can't be asked for a copy from here ({error}): run this where the worker runs"
        ) from error
    except OSError as error:
        raise BackupError(f"the worker on {data_dir / instance} made no copy: {error}") from error


def restore(
    source: Path, data_dir: Path, chosen: Sequence[str] = (), check: Callable[[Path], str] | None = None
) -> Iterator[Copied]:
    """Copy instance directories of a backup into a data directory; no worker may have the same ones.

    `check` reads a copy before it gets its name, and says what is wrong with it. Raises as `backup`, and Damaged.
    """
    instances = to_copy(source, data_dir, chosen)
    for instance in instances:
        with held(source / instance), new_directory(data_dir, instance) as stage:
            _check_format(source / instance)
            copy_files(source / instance, stage, link=False)
            wrong = check(stage) if check is not None else ""
            if wrong:
                raise Damaged(f"{source / instance} is not restored, since it is not sound: {wrong}")
            with suppress(
                DataDirUnreadable, DataDamaged
            ):  # restored all the same: to be salvaged, not to be run
                _renew(stage)
        yield Copied(instance, data_dir / instance, False)


def to_copy(source: Path, to: Path, chosen: Sequence[str]) -> list[str]:
    """What is to be copied: something, and nothing that stands there already."""
    instances = instance_ids(source, chosen)
    if not instances:
        raise DataDirUnreadable(f"{source} holds no instance directory")
    for instance in instances:
        if not data_files(source / instance):
            raise DataDirUnreadable(f"{source / instance} holds no data")
        _refuse_existing(to / instance)
    return instances


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise DataDirUnreadable(
            f"{path} exists already, and nothing is ever replaced: name another directory"
        )


def _renew(path: Path) -> None:
    engine = Engine(path)
    try:
        renew_uid(engine)
    finally:
        engine.close()


def _check_format(path: Path) -> None:
    engine = Engine(path, read_only=True)
    try:
        read_format(engine, path)
    finally:
        engine.close()


@contextmanager
def new_directory(parent: Path, name: str) -> Iterator[Path]:
    """A directory to fill, which gets its name at the end of the block, complete and on disk, or goes."""
    stage = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{name}~", dir=parent))
        yield stage
        for lock in ("LOCK", "tenure"):
            (stage / lock).unlink(missing_ok=True)  # a check may have left its own
        _sync(stage)
        _refuse_existing(parent / name)
        stage.rename(parent / name)  # fails where a worker has begun to fill that directory meanwhile
        _sync(parent)
    except OSError as error:
        raise BackupError(f"{parent / name} can't be written: {error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def copy_files(source: Path, stage: Path, *, link: bool) -> None:
    """Copy a database's files, tables as hard links where they may be. Raises OSError."""
    shutil.copymode(source, stage)
    for file in data_files(source):
        if link and file.suffix in _TABLES:
            copy_table(file, stage)
        else:
            shutil.copy(file, stage / file.name)
            _sync(stage / file.name)


def copy_table(file: Path, stage: Path) -> None:
    """Link a table, which is never changed, or copy it. Raises OSError."""
    try:
        os.link(file, stage / file.name)
    except OSError as error:  # another file system, too many links, or one without links
        if error.errno == errno.ENOSPC:
            raise
        shutil.copy(file, stage / file.name)
        _sync(stage / file.name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
