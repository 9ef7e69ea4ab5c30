"""The identity of a volume: a small file at the top of the data directory, written once, by the first worker there.

A proof that nothing remains repeats it, so that nobody takes the proof of one volume for that of another. It begins with a
dot and has a ``~`` in it: no instance can be named like it. A copy of instance directories (backup) does not have it.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Final

IDENTITY: Final = ".volume~id"
_MAX_BYTES: Final = 256


def ensure_identity(data_dir: Path) -> str:
    """The volume's identity; made, and made durable, when it has none. Blocks. Raises OSError."""
    known = read_identity(data_dir)
    if known is not None:
        return known
    data_dir.mkdir(parents=True, exist_ok=True)
    draft = data_dir / f"{IDENTITY}.{uuid.uuid4().hex}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, f"{uuid.uuid4()}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        # A link replaces nothing: of two workers that start at once the second finds the first one's.
        os.link(draft, data_dir / IDENTITY)
    except FileExistsError:
        pass
    except OSError:  # not every file system has links
        draft.rename(data_dir / IDENTITY)
    finally:
        draft.unlink(missing_ok=True)
    sync_directory(data_dir)
    return read_identity(data_dir) or ""


def read_identity(data_dir: Path) -> str | None:
    """The volume's identity, None when it has none (or an empty one). Blocks. Raises OSError."""
    try:
        with (data_dir / IDENTITY).open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace").strip() or None
    except FileNotFoundError:
        return None


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
