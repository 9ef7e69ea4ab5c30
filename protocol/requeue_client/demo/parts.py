"""The demo's own nats-server and worker, in a directory of their own; and what the worker's metrics say."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from requeue_client.demo.plan import DEAD_SUBJECT
from requeue_client.local import HOST, NatsServer, WorkerProcess, free_port

_CONFIG: Final = f"""\
defaults:
  dead_letter_subject: {DEAD_SUBJECT}   # every dead letter is published there too
  jitter: 0                        # so that the demo knows to the millisecond when a retry is due
queues:
  - name: orders
    weight: 300                    # three times the share of the others when all have due messages
  - name: emails
    max_rate: 500                  # per second
"""
_GAUGES: Final = ("requeue_pending_messages", "requeue_in_flight_messages", "requeue_dead_letter_messages")
_GAUGE: Final = re.compile(rf"^({'|'.join(_GAUGES)})\{{[^}}]*\}} (\S+)$", re.MULTILINE)


class Gauges(NamedTuple):
    """Messages on the worker's disk, in all queues."""

    pending: int
    in_flight: int
    dead: int


class Parts:
    """Starts both at `with`, and leaves nothing behind at its end. The directory is the caller's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config_file = directory / "config.yaml"
        self.config_file.write_text(_CONFIG)
        self.server = NatsServer(directory / "nats")
        self.worker: WorkerProcess | None = None
        self.http_port = 0

    @property
    def url(self) -> str:
        """The server's."""
        return self.server.url

    @property
    def metrics_url(self) -> str:
        """Where the worker serves its metrics."""
        return f"http://{HOST}:{self.http_port}/metrics"

    def __enter__(self) -> Self:
        """Start both. Raises LocalProcessError."""
        try:
            self.server.start()
            self.http_port = free_port()
            self.worker = WorkerProcess(
                self.url,
                self.directory / "data",
                args=[
                    *("--instance-id", "demo"),
                    *("--config", str(self.config_file)),
                    *("--http", f"{HOST}:{self.http_port}"),
                ],
            )
            self.worker.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self.worker is not None:
            self.worker.kill()  # its data goes anyway, so nothing has to be waited for
        self.server.stop()

    def kill_worker(self) -> None:
        """SIGKILL."""
        assert self.worker is not None
        self.worker.kill()

    async def start_worker_again(self) -> None:
        """Start the worker on the same data; return when it is ready. Raises LocalProcessError."""
        assert self.worker is not None
        self.worker.spawn()  # here and not in the thread: what is cancelled meanwhile is still known to `_end`
        await asyncio.to_thread(self.worker.until_ready)

    async def gauges(self) -> Gauges:
        """Read the worker's metrics. Raises OSError."""
        text = await asyncio.to_thread(_get, self.metrics_url)
        sums = dict.fromkeys(_GAUGES, 0)
        for name, value in _GAUGE.findall(text):
            sums[name] += int(float(value))
        return Gauges(*sums.values())


def _get(url: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=5) as response:
        text: str = response.read().decode()
        return text
