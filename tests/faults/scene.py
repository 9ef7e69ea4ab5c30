"""A worker under a steady load of publishes, acks and replays, and what has to hold whatever happens to it meanwhile.

    async with Scene(worker, nc) as scene:
        await scene.flows()
        with scene.fault():
            ...
        await scene.flows()

At its end the load stops, and then: nothing acknowledged is lost, nothing came early, what came twice had an ack in
flight at a fault, no attempt was spent, and `verify` finds nothing wrong with the data.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_worker.verify import verify

from tests.faults.load import Load
from tests.servers import WorkerProcess, until

INSTANCE = "w0"
WAIT_S = 60.0
GRAIN_S = 0.01

#: the ack timeout is one that the handler, which answers at once, does not reach on a busy machine
CONFIG = """
defaults: {{ack_timeout: 3s, min_backoff: 50ms, max_backoff: 200ms}}
nats: {{reconnect_wait: 100ms, {nats}}}
"""


def arguments(directory: Path, nats: str = "ping_interval: 10s") -> tuple[str, ...]:
    """The flags of a worker for a scene; `nats` goes into that section of its configuration."""
    path = directory / "worker.yaml"
    path.write_text(CONFIG.format(nats=nats))
    return "--instance-id", INSTANCE, "--config", str(path)


class CountingLoad(Load):
    """Notes the number of each attempt too."""

    def __init__(self, nc: Client) -> None:
        super().__init__(nc)
        self.later_attempts = 0

    async def _handle(self, msg: Msg) -> None:
        assert msg.headers is not None
        self.later_attempts += msg.headers["Requeue-Attempt"] != "1"
        await super()._handle(msg)


class Scene:
    """One worker, one load. `nc` is a connection beside the worker's, which may break too."""

    def __init__(self, worker: WorkerProcess, nc: Client) -> None:
        self.worker = worker
        self.nc = nc
        self.load = CountingLoad(nc)
        self.faults_s: list[float] = []

    async def __aenter__(self) -> Self:
        await self.load.listen()
        self._publishing = asyncio.create_task(self.load.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.load.stop()
        if error is not None:
            self._publishing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._publishing
            return
        await self._publishing
        books = self.load.books
        await until(lambda: not books.lost, WAIT_S)
        assert await asyncio.to_thread(self.worker.stop) == 0
        report = await asyncio.to_thread(verify, self.worker.data_dir / INSTANCE)

        assert report.ok, report.findings
        assert books.acked
        assert books.early == set()
        assert books.repeated_without(self.faults_s) == []
        assert self.load.later_attempts == 0

    async def flows(self, messages: int = 100) -> None:
        """Wait until so many more are acknowledged, and as many more were replayed."""
        books = self.load.books
        acked, came = len(books.acked), len(books.came_s)
        await until(
            lambda: len(books.acked) >= acked + messages and len(books.came_s) >= came + messages, WAIT_S
        )

    @contextmanager
    def fault(self) -> Iterator[None]:
        """What is in flight at any moment of this block may come twice."""
        began_s = time.time()
        try:
            yield
        finally:
            count = int((time.time() - began_s) / GRAIN_S) + 1
            self.faults_s += [began_s + number * GRAIN_S for number in range(count)] + [time.time()]

    async def logged(self, text: str, times: int = 1) -> None:
        """Wait until the worker's log has this so often."""
        await until(lambda: self.worker.log.count(text) >= times, WAIT_S)

    def lines(self, text: str) -> list[str]:
        """Lines of the worker's log with this text."""
        return [line for line in self.worker.log.splitlines() if text in line]
