"""Several workers under one command, a process each, since one worker keeps one core busy at most.

    run --shards 3 ─┬─ shard 0: DIR/ID.0        all in one queue group; one HTTP address answers for all (shard_http.py)
                    ├─ shard 1: DIR/ID.1        a shard that ends by itself is started again, alone
                    └─ shard 2: DIR/ID.2        fewer the next time: the reaper merges what the others left

A shard is the same command with `--shards 1` and an instance id of its own. It inherits a listening socket for its HTTP,
which stays open over its restarts, and a pipe at standard input: when that ends, its supervisor is gone, and it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from requeue_worker.settings import Settings

log = logging.getLogger(__name__)

LISTENER: Final = "NATS_REQUEUE_SHARD_LISTENER"
"""Environment variable of a shard: the file descriptor of its listening socket."""
NUMBER: Final = "NATS_REQUEUE_SHARD_NUMBER"
"""Environment variable of a shard: which of them it is."""
_FINAL: Final = (2, 3)  #: exit codes that another try does not change: configuration, data
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_CALM_S: Final = 60.0  #: who ran for so long begins with the first wait again
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def listener() -> socket.socket | None:
    """The socket that this process was given as a shard; None when it is none."""
    number = os.environ.get(LISTENER)
    return None if number is None else socket.socket(fileno=int(number))


def shard_number() -> int | None:
    """Which shard this process is; None when it is none."""
    number = os.environ.get(NUMBER)
    return None if number is None else int(number)


def watch_supervisor(gone: Callable[[], None]) -> None:
    """Call `gone` when the supervisor of this shard has ended, however it did."""
    loop = asyncio.get_running_loop()

    def on_end() -> None:
        if not os.read(0, 1):
            loop.remove_reader(0)
            gone()

    loop.add_reader(0, on_end)


class Probe(NamedTuple):
    """A shard as far as asking goes. `port`: of its HTTP on 127.0.0.1."""

    number: int
    port: int
    is_running: bool
    restarts: int


class _Shard:
    def __init__(self, number: int, settings: Settings) -> None:
        self.number = number
        self.instance = f"{settings.instance_id}.{number}"
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.process: asyncio.subprocess.Process | None = None
        self.is_ready = asyncio.Event()
        self.restarts = 0

    async def run(self, argv: Sequence[str], stop: asyncio.Event) -> int:
        """Start it, and return its exit code when it has ended."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "requeue_worker.cli", *argv, "--shards", "1", "--instance-id", self.instance),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(self.socket.fileno(),),
            env={**os.environ, LISTENER: str(self.socket.fileno()), NUMBER: str(self.number)},
            start_new_session=True,  # Ctrl-C is for the supervisor: a second signal would end a shard at once
        )
        if stop.is_set():
            self.signal(signal.SIGTERM)
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.startswith(b"ready"):
                self.is_ready.set()
        code = await self.process.wait()
        self.process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """Runs `settings.shards` of them until a signal stops it. `argv`: of this command, after its name."""

    def __init__(self, settings: Settings, argv: Sequence[str], ready: Callable[[], None]) -> None:
        self._settings = settings
        self._argv = argv
        self._ready = ready
        self._stop = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        """Exit code: 0 after a signal, that of a shard which cannot run. Raises HttpListenError."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        self._shards = [_Shard(number, self._settings) for number in range(self._settings.shards)]
        http = None
        if self._settings.http is not None:
            from requeue_worker.shard_http import ShardHttp  # noqa: PLC0415 - only when HTTP is on

            http = ShardHttp(self._settings.http, self._probe)
            await http.start()
        told = asyncio.create_task(self._tell_ready())
        try:
            await asyncio.gather(*(self._keep(shard) for shard in self._shards))
        finally:
            told.cancel()
            if http is not None:
                await http.close()
            for shard in self._shards:
                shard.socket.close()
        return self._code

    async def _keep(self, shard: _Shard) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._stop.is_set():
            since_s = time.monotonic()
            code = await shard.run(self._argv, self._stop)
            if self._stop.is_set():
                return
            extra = {"shard": shard.number, "exit_code": code}
            if code in _FINAL:
                log.error("a shard cannot run: all are stopped", extra=extra)
                self._end(code)
                return
            shard.restarts += 1
            wait_s = (
                _FIRST_WAIT_S if time.monotonic() - since_s > _CALM_S else min(2 * wait_s, _LONGEST_WAIT_S)
            )
            log.error("a shard has ended by itself, starting it again", extra={**extra, "in_s": wait_s})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait_s)

    async def _tell_ready(self) -> None:
        for shard in self._shards:
            await shard.is_ready.wait()
        self._ready()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            log.warning("ended at once by a second signal", extra={"signal": number.name})
            for shard in self._shards:
                shard.signal(signal.SIGKILL)
            os._exit(128 + number)
        log.info("stopping: a signal asks for it", extra={"signal": number.name})
        self._end(0)

    def _end(self, code: int) -> None:
        self._code = code
        self._stop.set()
        for shard in self._shards:
            shard.signal(signal.SIGTERM)

    def _probe(self) -> list[Probe]:
        return [
            Probe(shard.number, shard.socket.getsockname()[1], shard.process is not None, shard.restarts)
            for shard in self._shards
        ]
