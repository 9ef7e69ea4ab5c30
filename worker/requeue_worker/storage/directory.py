"""What lies in a data directory: instance directories, and beside them names that no instance can have.

An instance id has no ``~`` in it. So what a worker or a command puts beside the instance directories (its control
socket, a copy that is not complete yet) has one, and a dot in front, and is never taken for an instance.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Final

from requeue_worker.errors import DataDirLocked, DataDirUnreadable

_INSTANCE_ID: Final = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,128}")
_LOCK: Final = "LOCK"
#: the files of a database; locks, logs and what else may stand beside them is no data
_DATA_FILE: Final = re.compile(
    r"CURRENT|IDENTITY|rocksdict-config\.json|(?:MANIFEST|OPTIONS)-\d+|\d+\.(?:sst|blob|log)"
)


def instance_ids(data_dir: Path, chosen: Sequence[str] = ()) -> list[str]:
    """The instances that have a directory here, or the chosen ones. Raises DataDirUnreadable where one has none."""
    for name in chosen:
        if _INSTANCE_ID.fullmatch(name) is None:
            raise DataDirUnreadable(
                f"{name!r} is no instance id; one is 1 to 128 of A-Z a-z 0-9 _ . - without a dot in front"
            )
        if not (data_dir / name).is_dir():
            raise DataDirUnreadable(f"{data_dir} has no directory of the instance {name}")
    if chosen:
        return list(dict.fromkeys(chosen))
    try:
        # The name first: nobody but root may look into `lost+found`.
        named = [entry for entry in data_dir.iterdir() if _INSTANCE_ID.fullmatch(entry.name)]
        return sorted(entry.name for entry in named if entry.is_dir() and data_files(entry))
    except OSError as error:
        raise DataDirUnreadable(f"{error.filename} can't be read: {error.strerror}") from error


def data_files(path: Path) -> list[Path]:
    """The database's own files in an instance directory. Raises OSError."""
    return [file for file in path.iterdir() if _DATA_FILE.fullmatch(file.name)]


def control_path(data_dir: Path, instance_id: str) -> Path:
    """The running worker's socket. Short whatever the id: a socket's name has room for a hundred bytes."""
    return data_dir / f".~{blake2b(instance_id.encode(), digest_size=6).hexdigest()}"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold an instance directory as RocksDB itself does, so that no worker starts on it meanwhile.

    Not for a process that has this database open: closing the lock file would let go of that lock too. Raises
    DataDirLocked when another process has it, DataDirUnreadable where it cannot be locked. A read-only file system
    needs no lock.
    """
    try:
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise DataDirUnreadable(f"{path} can't be locked: {error.strerror}") from error
        yield
        return
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise DataDirLocked(f"{path} is open in another process") from error
            raise DataDirUnreadable(f"{path} can't be locked: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)
