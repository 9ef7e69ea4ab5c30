"""Small disks of one's own, for tests that fill, tear out or freeze them: tmpfs, or ext4 on a loop device.

Both need the right to mount (root, or a container with CAP_SYS_ADMIN); elsewhere the tests that ask for one are skipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20
KINDS = ("tmpfs", "ext4")
_EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32); 1: with a flush of the log before


class Disk:
    """A mounted file system; `path` is where, and belongs to the test."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.image = path.with_name(path.name + ".img")
        self.kind = kind
        self._filler = path / "filler"

    @property
    def free_bytes(self) -> int:
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """What another process does: take all that is free, but for so much."""
        with self._filler.open("ab") as filler, contextlib.suppress(OSError):
            while (room := self.free_bytes - leave_bytes) > 0:
                written = os.write(filler.fileno(), b"x" * min(room, MIB))
                os.fsync(filler.fileno())
                if not written:
                    return

    def make_room(self) -> None:
        """The other process takes its file away."""
        self._filler.unlink(missing_ok=True)

    def remount(self, how: str) -> None:
        """`ro` or `rw`."""
        _run("mount", "-o", f"remount,{how}", str(self.path))

    def unmount(self) -> None:
        """Take it away from under whoever uses it."""
        _run("umount", "-l", str(self.path))

    def shut_down(self) -> None:
        """As ext4 does by itself after an I/O error that it can't go on after: nothing is written any more."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", 1))
        except OSError as error:
            pytest.skip(f"this kernel's ext4 can't be shut down: {error}")
        finally:
            os.close(descriptor)

    def mount_again(self) -> None:
        """What an operator does after that."""
        _run("umount", str(self.path))
        _run("mount", "-o", "loop", str(self.image), str(self.path))


@contextmanager
def mounted(path: Path, kind: str, size: int) -> Iterator[Disk]:
    """A fresh file system of this size at `path`; skips the test where it may not be made."""
    path.mkdir(parents=True)
    image = path.with_name(path.name + ".img")
    try:
        if kind == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
        else:
            if shutil.which("mkfs.ext4") is None:
                pytest.skip("no mkfs.ext4 on this machine")
            with image.open("wb") as file:
                file.truncate(size)
            _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
            _run("mount", "-o", "loop", str(image), str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no right to mount a {kind} here (it takes root): {error}")
    try:
        yield Disk(path, kind)
    finally:
        # Lazily: a process that was stopped just now may not have let go of it yet.
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)
        image.unlink(missing_ok=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
