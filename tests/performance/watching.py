"""A worker whose event loop is watched, and what a publisher sees of it while something else goes on.

with watched_worker(server, directory) as watched:
    since_s = time.monotonic()
    acks = await publish_for(wire, load, rate_per_s=5000, seconds=1)
    longest(watched.turns(since_s))
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from requeue_client.bench.figures import percentile
from requeue_client.bench.messages import Load, envelopes
from requeue_client.bench.publisher import WindowedPublisher, check_all_acked, new_inbox
from requeue_client.bench.wire import Wire

from tests.servers import NatsServer, free_port

DAY_NS = 86_400 * 10**9


class Turn(NamedTuple):
    """A turn of the worker's event loop that took 5 ms and more."""

    ended_s: float
    wall_s: float
    cpu_s: float


class Longest(NamedTuple):
    """The longest turn by the clock, and the one that used most CPU, which needs not be the same."""

    wall_ms: float
    cpu_ms: float


class Acks(NamedTuple):
    """How long acks took, and how fast and how dear the messages were."""

    p50_ms: float
    p99_ms: float
    rate_per_s: float
    cpu_us: float  #: of the whole worker, a message


class Watched(NamedTuple):
    """A worker under watch, with its web view."""

    process: psutil.Process
    turns_file: Path
    web: str
    url: str

    def cpu_s(self) -> float:
        """What it has used up to now, with all its threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def turns(self, since_s: float) -> list[Turn]:
        """The long turns since then (CLOCK_MONOTONIC)."""
        lines = self.turns_file.read_text().splitlines()
        turns = [Turn(*map(float, line.split())) for line in lines if line.count(" ") == 2]
        return [turn for turn in turns if turn.ended_s >= since_s]

    def longest(self, since_s: float) -> Longest:
        """Of the turns since then; 0 where none was long."""
        turns = self.turns(since_s)
        return Longest(*(max((each[at] for each in turns), default=0) * 1000 for at in (1, 2)))


@contextmanager
def watched_worker(server: NatsServer, directory: Path) -> Iterator[Watched]:
    """Start a worker `worker-0` with an eye on its loop, and kill it in the end."""
    turns, port, config = directory / "turns", free_port(), directory / "worker.yaml"
    config.write_text("reconnect_grace: 0s\n")
    argv = [sys.executable, "-m", "tests.performance.watched", str(turns), "run", "--config", str(config)]
    argv += ["--server", server.url, "--data-dir", str(directory / "data"), "--instance-id", "worker-0"]
    argv += ["--web", f"127.0.0.1:{port}"]
    with (directory / "worker.log").open("w") as log:
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if line.startswith("ready"):
                break
        yield Watched(psutil.Process(child.pid), turns, f"http://127.0.0.1:{port}", server.url)
    finally:
        child.kill()
        child.wait()


async def publish_for(watched: Watched, wire: Wire, load: Load, *, rate_per_s: float = 0) -> Acks:
    """Publish this load, due in a day, at this rate or (0) as fast as acks come. Raises WireError unless all is acked."""
    inbox, due_ns, before_s = new_inbox(), time.time_ns() + DAY_NS, watched.cpu_s()
    compose = envelopes(inbox, load, lambda _: due_ns)
    publisher = WindowedPublisher(wire, inbox, compose, n=load.n, window=load.window, per_second=rate_per_s)
    published = await publisher.run()
    check_all_acked(published)
    used_s = watched.cpu_s() - before_s
    took_ms = sorted(each / 1e6 for each in published.latencies_ns)
    p50_ms, p99_ms = (percentile(took_ms, share) or 0.0 for share in (0.5, 0.99))
    return Acks(p50_ms, p99_ms, published.rate_per_s, used_s / load.n * 1e6)
