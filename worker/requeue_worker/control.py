"""The running worker's own door: a Unix socket beside its data, through which `requeue-worker backup` asks for a copy.

    backup ──connect──▶ worker: checkpoint at <data-dir>/.<instance-id>~copy-N, hard links, the work goes on
           ◀──{"copy": name}── then it waits
    backup moves the copy to where it is wanted, or copies it, and hangs up ──▶ worker removes what is left of it

Whoever may connect is the owner of the data (the socket has mode 0600), and there is nothing to say: the worker writes
nowhere but into its own data directory. So there is nothing to configure and nothing to restrict.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from requeue_worker.storage.directory import control_path

log = logging.getLogger(__name__)


class Control:
    """Serves the socket of one worker, from `start` to `close`."""

    def __init__(
        self, data_dir: Path, instance_id: str, checkpoint: Callable[[Path], Awaitable[None]]
    ) -> None:
        self._data_dir = data_dir
        self._instance_id = instance_id
        self._checkpoint = checkpoint
        self._path = control_path(data_dir, instance_id)
        self._numbers = itertools.count(1)
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. The directory's lock is held, so a socket or a copy that stands there is a dead one's."""
        await asyncio.to_thread(self._clear)
        try:
            listening = _listen(self._path)
        except OSError as error:
            # Not every file system has sockets: a worker without online backups is better than none.
            log.warning("no backups while it runs", extra={"path": str(self._path), "error": str(error)})
            return
        self._server = await asyncio.start_unix_server(self._on_connection, sock=listening)

    async def close(self) -> None:
        """Stop listening and remove the copies that nobody took."""
        if self._server is None:
            return
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        self._path.unlink(missing_ok=True)
        for left in self._data_dir.glob(f".{self._instance_id}~copy-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        copy = self._data_dir / f".{self._instance_id}~copy-{next(self._numbers)}"
        making = asyncio.ensure_future(self._checkpoint(copy))
        try:
            try:
                await asyncio.shield(making)
                answer = {"copy": copy.name}
                log.info("copied for a backup", extra={"path": str(copy)})
            except OSError as error:
                answer = {"error": str(error)}
                log.warning("not copied for a backup", extra={"error": str(error)})
            writer.write(json.dumps(answer).encode() + b"\n")
            await reader.read()  # until it hangs up: the copy is its own so long
        except ConnectionError:
            pass
        finally:
            writer.close()
            await asyncio.wait({making})  # a thread is at it, whether or not somebody waits
            await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)


class NotReachable(Exception):
    """The process that has the directory open cannot be asked from here."""


@contextmanager
def copy_of_running(data_dir: Path, instance_id: str, patience_s: float) -> Iterator[Path]:
    """A copy made by the running worker, to be moved or copied away inside the block. Blocks.

    Raises NotReachable when no worker answers, OSError when it could not make one.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(patience_s)
        try:
            with _short(control_path(data_dir, instance_id)) as address:
                connection.connect(address)
            line = connection.makefile("rb").readline()
        except OSError as error:
            raise NotReachable(str(error)) from error
        answer = json.loads(line) if line.endswith(b"\n") else {}
        if "error" in answer:
            raise OSError(answer["error"])
        if "copy" not in answer:
            raise NotReachable("it ended before it answered")
        yield data_dir / Path(answer["copy"]).name


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        with _short(path) as address:
            listening.bind(address)
        path.chmod(0o600)  # before `listen`, until which nobody gets in
        listening.listen()
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the socket that has room in an address, however deep the directory lies."""
    if sys.platform != "linux":
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        with contextlib.suppress(OSError):
            os.close(directory)
