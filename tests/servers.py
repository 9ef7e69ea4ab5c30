"""The real parts that integration tests run on: a nats-server and workers, as child processes.

    from tests.servers import NatsServer, WorkerProcess

Mostly reached through the fixtures of tests/conftest.py. The classes are the ones that
`requeue bench` starts for itself, so they are tested wherever they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from requeue_client.local import LocalProcess, LocalProcessError, NatsServer, WorkerProcess, free_port

__all__ = [
    "LocalProcess",
    "LocalProcessError",
    "NatsServer",
    "NatsServerFactory",
    "WorkerFactory",
    "WorkerProcess",
    "free_port",
]


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
