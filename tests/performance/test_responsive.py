"""A thousand queues and five million pending: no question holds the event loop up, nor does a view slow the intake down.

`RESPONSIVE_PENDING` fills in another number. `-s` prints the table of docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil
import pytest
from nats.aio.client import Client
from requeue_client import Message, RequeueClient
from requeue_client.bench.ingest import fill, publish
from requeue_client.bench.messages import Load
from requeue_client.bench.wire import Wire

from tests.servers import NatsServer, free_port

PENDING = int(os.environ.get("RESPONSIVE_PENDING", "5000000"))
QUEUES = 1000
DEAD = 20_000
HOLD_S = 0.2
EVERY_S = 2.0  #: a view looks so often
SLOWER = 0.05
LOOK = ("instances", "queues", "stats")
CALLS: list[tuple[str, dict[str, Any]]] = [
    *((endpoint, {}) for endpoint in (*LOOK, "jobs")),
    ("list", {"limit": 200, "payload_bytes": 1024}),
    ("list", {"queue": "load-7", "limit": 200}),
    ("list", {"subject": "nobody.*"}),
    ("list", {"subject": "requeue-bench.>", "limit": 200}),
    ("list", {"id": "0" * 32}),
    ("list", {"id": "no-such-id"}),
    ("list", {"reason": "exhausted"}),
    ("list", {"enqueued_before_ns": 1}),
    ("list", {"enqueued_after_ns": 2**62}),
    ("list", {"state": "in-flight"}),
    ("list", {"state": "dead", "limit": 200, "payload_bytes": 1024}),
    ("list", {"state": "dead", "reason": "expired"}),
    ("list", {"state": "dead", "subject": "no.such"}),
    ("count", {}),
    ("count", {"state": "dead"}),
    ("get", {"id": "0" * 32, "after": "p:"}),
    ("get", {"id": "no-such-id"}),
]


class Turn(NamedTuple):
    """A turn of the worker's event loop that took 5 ms and more."""

    ended_s: float
    wall_s: float
    cpu_s: float


class Watched(NamedTuple):
    process: psutil.Process
    turns_file: Path
    web: str
    url: str

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def turns(self, since_s: float) -> list[Turn]:
        lines = self.turns_file.read_text().splitlines()
        turns = [Turn(*map(float, line.split())) for line in lines if line.count(" ") == 2]
        return [turn for turn in turns if turn.ended_s >= since_s]


@pytest.fixture
def watched(nats_server: NatsServer, tmp_path: Path) -> Iterator[Watched]:
    turns, port, config = tmp_path / "turns", free_port(), tmp_path / "worker.yaml"
    config.write_text("reconnect_grace: 0s\n")
    argv = [sys.executable, "-m", "tests.performance.watched", str(turns), "run", "--config", str(config)]
    argv += ["--server", nats_server.url, "--data-dir", str(tmp_path / "data"), "--instance-id", "worker-0"]
    argv += ["--web", f"127.0.0.1:{port}"]
    with (tmp_path / "worker.log").open("w") as log:
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if line.startswith("ready"):
                break
        yield Watched(psutil.Process(child.pid), turns, f"http://127.0.0.1:{port}", nats_server.url)
    finally:
        child.kill()
        child.wait()


async def ask(http: aiohttp.ClientSession, endpoint: str, request: dict[str, Any]) -> Any:
    async with http.post(f"/ui/api/{endpoint}", json=request) as response:
        assert response.status == 200
        return await response.json()


async def pages(http: aiohttp.ClientSession, endpoint: str, request: dict[str, Any], most: int) -> int:
    """How many pages there were; `most` at most."""
    after: str | None = request.get("after", "")
    for number in itertools.count(1):
        [answer] = (await ask(http, endpoint, {**request, "after": after} if after else request))["answers"]
        assert "code" not in answer, answer
        after = answer.get("next")
        if after is None or number == most:
            return number
    raise AssertionError


async def look(http: aiohttp.ClientSession) -> None:
    """What the view asks for each time."""
    await asyncio.gather(*(ask(http, endpoint, {}) for endpoint in LOOK))


@contextlib.asynccontextmanager
async def viewer(http: aiohttp.ClientSession) -> AsyncIterator[None]:
    async def forever() -> None:
        while True:
            begun_s = time.monotonic()
            await look(http)
            await asyncio.sleep(max(EVERY_S - (time.monotonic() - begun_s), 0))

    task = asyncio.create_task(forever())
    yield
    task.cancel()


async def bury(nc: Client, messages: int) -> None:
    client = RequeueClient(nc)
    wanted = (Message("nobody.here", b"%d" % n, queue="lost", retries=1) for n in range(messages))
    assert all([outcome.ok async for outcome in client.publish_many(wanted)])


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_no_question_over_five_million_pending_holds_the_loop_up_and_a_view_slows_no_intake(
    watched: Watched, nc: Client
) -> None:
    await fill(watched.url, Load(PENDING, size=64, window=8192, queues=QUEUES, prefix="load"))
    await bury(nc, DEAD)
    async with aiohttp.ClientSession(watched.web) as http:
        while True:
            [instance] = (await ask(http, "instances", {}))["answers"]
            if instance["dead"] == DEAD:
                break
            await asyncio.sleep(0.2)
        assert (instance["pending"], instance["queues"]) == (PENDING, QUEUES + 1)
        print(f"\n{PENDING:,} pending, {QUEUES:,} queues, {DEAD:,} dead\n")
        begun_s = time.monotonic()
        await asyncio.sleep(5)
        _show("nothing asked, 5 s", watched.turns(begun_s))
        for endpoint, request in CALLS:
            begun_s = time.monotonic()
            number = await pages(http, endpoint, request, most=40)
            took_s = (time.monotonic() - begun_s) / number
            await asyncio.sleep(0.05)
            turns = watched.turns(begun_s)
            _show(f"{endpoint} {request or ''}: {number} pages, {took_s * 1000:.1f} ms each", turns)
            assert max((turn.cpu_s for turn in turns), default=0) < HOLD_S, (endpoint, request)
        share = await _share_of_a_view(watched, http)
        print(f"a view, every {EVERY_S:g} s: {share:.2%} of a core")
        assert share < SLOWER
        print(
            f"CPU of a message with a view, over without: {await _paired(watched, http):.3f} (median of pairs)"
        )


async def _share_of_a_view(watched: Watched, http: aiohttp.ClientSession, looks: int = 30) -> float:
    before_s = watched.cpu_s()
    for _ in range(looks):
        await look(http)
    return (watched.cpu_s() - before_s) / looks / EVERY_S


async def _paired(
    watched: Watched, http: aiohttp.ClientSession, pairs: int = 6, messages: int = 200_000
) -> float:
    """CPU that a message costs the worker while a view looks on, over that without: intake is bound by its CPU."""
    wire = await Wire.connect(watched.url, "requeue-bench")
    load = Load(messages, size=64, window=8192, queues=QUEUES, prefix="load")

    async def once() -> tuple[float, float]:
        before_s = watched.cpu_s()
        published = await publish(wire, load, time.time_ns() + 86_400 * 10**9)
        return watched.cpu_s() - before_s, published.rate_per_s

    ratios = []
    for number in range(pairs):
        costs = {}
        for is_viewed in (
            (False, True) if number % 2 else (True, False)
        ):  # what grows meanwhile is on both sides
            async with viewer(http) if is_viewed else contextlib.nullcontext():
                costs[is_viewed], rate = await once()
            print(
                f"  CPU {costs[is_viewed]:.2f} s, {rate:,.0f} messages/s{', with a view' if is_viewed else ''}"
            )
        ratios.append(costs[True] / costs[False])
    await wire.close()
    return statistics.median(ratios)


def _show(what: str, turns: list[Turn]) -> None:
    wall, cpu = (max((each[at] for each in turns), default=0) * 1000 for at in (1, 2))
    print(f"  longest turn {wall:6.1f} ms, of which CPU {cpu:6.1f} ms   {what}")
