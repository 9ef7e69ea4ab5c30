"""The parts under load: own ones in a temporary directory, or a server that runs already."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from requeue_client.bench.figures import Figure
from requeue_client.bench.usage import Usage, cpu_us_per, read_usage
from requeue_client.local import NatsServer, WorkerProcess

_SYNC_ALWAYS = 'jetstream {{ store_dir: "{store}", sync_interval: always }}'


@dataclass(frozen=True, slots=True)
class System:
    """Where the load goes. The processes are None for a server that was given: nothing is known of them."""

    url: str
    server: NatsServer | None
    worker: WorkerProcess | None

    def meter(self) -> Meter:
        """Start to measure CPU."""
        return Meter(
            server_pid=self.server.pid if self.server else None,
            worker_pid=self.worker.pid if self.worker else None,
        )


class Meter:
    """CPU per message and memory of worker, server and of the load generator itself (this process)."""

    def __init__(self, *, server_pid: int | None, worker_pid: int | None) -> None:
        self._server_pid = server_pid
        self._worker_pid = worker_pid
        self._server = read_usage(server_pid)
        self._worker = read_usage(worker_pid)
        self._generator_s = time.process_time()

    def figures(self, messages: int) -> dict[str, Figure]:
        """Give the figures since the meter was started; what cannot be known is left out."""
        worker, server = read_usage(self._worker_pid), read_usage(self._server_pid)
        generator_s = time.process_time() - self._generator_s
        found: dict[str, float | None] = {
            "worker_cpu_us_per_msg": cpu_us_per(self._worker, worker, messages),
            "server_cpu_us_per_msg": cpu_us_per(self._server, server, messages),
            "generator_cpu_us_per_msg": generator_s / messages * 1e6 if messages else None,
            "worker_rss_mb": _rss(worker),
            "worker_peak_rss_mb": worker.peak_rss_mb if worker else None,
            "server_rss_mb": _rss(server),
        }
        return {name: round(value, 1) for name, value in found.items() if value is not None}


def _rss(usage: Usage | None) -> float | None:
    return usage.rss_mb if usage else None


_LEAST_PLACES = 10_000  #: `max_queues` by default


class Lab:
    """Makes systems to measure. Everything of its own is stopped and removed at its end.

    `server_url`: measure what runs there instead. `jetstream`: the own server gets a JetStream (for the
    peer). `directory`: where the own data goes, on the disk that is to be measured; None = the system's
    temporary directory. `shards`, `cores`: of the own worker; no cores = any. `queues`: that it has room
    for, unless `worker_config` says: a worker that is short of places lets idle queues go all the time.
    """

    def __init__(
        self,
        *,
        server_url: str | None = None,
        directory: Path | None = None,
        worker_config: Path | None = None,
        jetstream: bool = False,
        shards: int = 1,
        queues: int = 1,
        cores: Collection[int] = (),
    ) -> None:
        self._given_url = server_url
        self._parent = directory
        self._worker_config = worker_config
        self._queues = queues
        self._shards_args = ["--shards", str(shards)] if shards > 1 else []
        self._shards = shards
        self._cores = cores
        self._jetstream = jetstream
        self._stack = AsyncExitStack()
        self._server: NatsServer | None = None
        self.root = Path()
        self._made = 0

    @property
    def own(self) -> bool:
        """Whether the parts are the lab's own: only then can they be restarted, filled and thrown away."""
        return self._given_url is None

    @property
    def placement(self) -> str:
        """How many shards the own worker has, and on which cores; empty when it is one, on any."""
        shards = [f"{self._shards} shards"] if self._shards > 1 else []
        cores = [f"cores {', '.join(map(str, sorted(self._cores)))}"] if self._cores else []
        return f"the worker: {' on '.join(shards + cores)}" if shards or cores else ""

    async def __aenter__(self) -> Self:
        """Start the own server, if it is to be one. Raises LocalProcessError."""
        if self._parent is not None:
            self._parent.mkdir(parents=True, exist_ok=True)
        holder = tempfile.TemporaryDirectory(
            prefix="requeue-bench-", dir=self._parent, ignore_cleanup_errors=True
        )
        self.root = Path(self._stack.enter_context(holder))
        if self.own:
            server = NatsServer(self.root / "server", jetstream=self._jetstream)
            self._server = self._stack.enter_context(server)
            await asyncio.to_thread(server.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def new_directory(self, name: str) -> Path:
        """An empty directory on the disk that is measured, removed at the end."""
        self._made += 1
        directory = self.root / f"{name}-{self._made}"
        directory.mkdir()
        return directory

    @asynccontextmanager
    async def requeue(self) -> AsyncIterator[System]:
        """A worker with an empty data directory, or whatever workers the given server has."""
        if self._given_url is not None:
            yield System(self._given_url, None, None)
            return
        assert self._server is not None
        self._made += 1
        data_dir = self.root / f"worker-{self._made}"
        config = self._worker_config
        if config is None:
            config = self.root / "worker.yaml"
            config.write_text(f"max_queues: {max(_LEAST_PLACES, 2 * self._queues)}\n")
        args = ["--config", str(config), *self._shards_args]
        with WorkerProcess(self._server.url, data_dir, args=args, cores=self._cores) as worker:
            await asyncio.to_thread(worker.start)
            yield System(self._server.url, self._server, worker)
            if self._shards > 1:  # they outlive their supervisor for a while, and would take what comes next
                await asyncio.to_thread(worker.stop)
            worker.kill()  # nothing of it is needed any more

    @asynccontextmanager
    async def peer(self, *, sync_always: bool) -> AsyncIterator[System]:
        """A JetStream: of the server itself, or of a second one that syncs every write."""
        if not sync_always:
            yield System(self._given_url or (self._server.url if self._server else ""), self._server, None)
            return
        self._made += 1
        directory = self.root / f"server-{self._made}"
        config = _SYNC_ALWAYS.format(store=directory / "jetstream")
        with NatsServer(directory, config=config) as server:
            await asyncio.to_thread(server.start)
            yield System(server.url, server, None)
