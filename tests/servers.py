"""The real parts that integration tests run on: a nats-server and workers, as child processes.

    from tests.servers import NatsServer, WorkerProcess

Mostly reached through the fixtures of tests/conftest.py. The classes are the ones that
`requeue bench` starts for itself, so they are tested wherever they are used.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from nats.aio.client import Client
from requeue_client import local
from requeue_client.local import LocalProcess, LocalProcessError, NatsServer, WorkerProcess, free_port

__all__ = [
    "LocalProcess",
    "LocalProcessError",
    "NatsServer",
    "NatsServerFactory",
    "WorkerFactory",
    "WorkerProcess",
    "free_port",
    "keep_ports_apart",
    "settle",
    "until",
]


_PORTS_EACH = 1_500


def keep_ports_apart() -> None:
    """Give this process ports that no other process of a run with `-n` draws.

    A server that is down for a moment would find its port taken otherwise. Commands under test draw from the range of
    `local`, this process from one below it.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 6
    first = 11_000 + number * _PORTS_EACH
    local._PORTS = range(first, first + _PORTS_EACH)


async def settle(nc: Client) -> None:
    """Wait until the server has all that was sent on `nc`, subscriptions too.

    nats-py 2.16's `flush` writes its PING past commands that still wait for the flusher task, so that one
    round trip says nothing about a SUB just before it; after the first one the flusher has run.
    """
    await nc.flush()
    await nc.flush()


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait for something that nothing signals. Raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not so within {timeout_s:g} s")
        await asyncio.sleep(0.01)


class NatsServerFactory(Protocol):
    """What the fixture `nats_server_factory` is: makes a server, started unless told otherwise."""

    def __call__(
        self, *, config: str = "", jetstream: bool = False, args: Sequence[str] = (), start: bool = True
    ) -> NatsServer: ...


class WorkerFactory(Protocol):
    """What the fixture `worker_factory` is: makes a worker, ready unless told otherwise.

    Without `data_dir` each worker gets a fresh one. `args` go after `requeue-worker run --server --data-dir`.
    """

    def __call__(
        self,
        server: NatsServer | str,
        *args: str,
        data_dir: Path | None = None,
        start: bool = True,
    ) -> WorkerProcess: ...
