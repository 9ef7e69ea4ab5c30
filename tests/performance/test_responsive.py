"""Many queues and millions pending: no call holds the event loop up, and neither a look nor a change slows the intake down.

    RESPONSIVE_PENDING=5000000 python -m pytest -s tests/performance/test_responsive.py

fills in that many (default: few, so that the suite is quick) and prints the tables of docs/benchmarks.md. What is asserted
is CPU alone: times are a matter of what else the machine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from nats.aio.client import Client
from requeue_client import Message, RequeueClient
from requeue_client.bench.ingest import fill
from requeue_client.bench.messages import Load
from requeue_client.bench.wire import Wire

from tests.performance.callers import EVERY_S, LOOK, Caller, Round, meanwhile, top
from tests.performance.watching import Acks, Longest, Watched, publish_for, watched_worker
from tests.servers import NatsServer

PENDING = int(os.environ.get("RESPONSIVE_PENDING", "10000"))
IS_LARGE = PENDING >= 1_000_000
QUEUES, DEAD = (1000, 20_000) if IS_LARGE else (50, 500)
PAIRS, SATURATED_PAIRS = (6, 12) if IS_LARGE else (1, 1)
STEADY_PER_S = 5000
STEADY = Load(STEADY_PER_S * 2 if IS_LARGE else 500, size=64, window=8192, queues=QUEUES, prefix="load")
SATURATED = Load(100_000 if IS_LARGE else 5000, size=64, window=8192, queues=QUEUES, prefix="load")
WARM = 20  #: a call begins after so small a part of a load, or its first step is that of a worker with nothing to do
HOLD_MS = 200.0
SLOWER = 0.05

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

Company = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def watched(nats_server: NatsServer, tmp_path: Path) -> Iterator[Watched]:
    with watched_worker(nats_server, tmp_path) as watched:
        yield watched


@pytest.fixture
async def caller(watched: Watched, nc: Client) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession(watched.web) as http:
        yield Caller(nc, http, QUEUES)


async def bury(nc: Client, messages: int) -> None:
    client = RequeueClient(nc)
    wanted = (Message("nobody.here", b"%d" % n, queue="lost", retries=1) for n in range(messages))
    assert all([outcome.ok async for outcome in client.publish_many(wanted)])


@pytest.mark.timeout(3600)
async def test_no_call_holds_the_loop_up_alone_or_beside_the_intake_and_lookers_cost_little(
    watched: Watched, nc: Client, caller: Caller
) -> None:
    await fill(watched.url, Load(PENDING, size=64, window=8192, queues=QUEUES, prefix="load"))
    await bury(nc, DEAD)
    while (instance := await caller.ask("instances"))["dead"] < DEAD:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    assert (instance["pending"], instance["queues"]) == (PENDING, QUEUES + 1)
    print(f"\n{PENDING:,} pending, {QUEUES:,} queues, {DEAD:,} dead\n")
    rounds: dict[str, Round] = {
        "purge of a queue": caller.purge,
        "purge by a filter that means nothing": caller.purge_none,
        "move of a queue": caller.move,
        "redrive of all": caller.redrive,
        "dead-export": caller.export,
        "dead-delete, dead-import": caller.delete_and_import,
        "count": caller.count,
        "list by subject": caller.list,
    }
    await _each_alone(watched, caller, rounds)
    await _shares_of_lookers(watched, caller)
    lookers: dict[str, Company] = {
        "`requeue top`": lambda: top(watched.url),
        "web view": lambda: meanwhile(caller.view_again),
    }
    changes: dict[str, Company] = {name: lambda made=made: meanwhile(made) for name, made in rounds.items()}  # type: ignore[misc]
    wire = await Wire.connect(watched.url, "requeue-bench")
    print(f"\nbeside {STEADY_PER_S:,} messages/s, without and with the call (medians of {PAIRS} pairs)\n")
    companies = lookers | changes
    for name in companies if IS_LARGE else ("`requeue top`", "redrive of all"):
        await _paired(watched, wire, STEADY, STEADY_PER_S, PAIRS, name, companies[name])
    print(f"\nbeside as much as the worker takes in (medians of {SATURATED_PAIRS} pairs)\n")
    for name in (*lookers, "count", "purge of a queue", "redrive of all") if IS_LARGE else ("web view",):
        await _paired(watched, wire, SATURATED, 0, SATURATED_PAIRS, name, companies[name])
    await wire.close()


async def _each_alone(watched: Watched, caller: Caller, rounds: dict[str, Round]) -> None:
    """Each call while nothing else goes on."""
    begun_s = time.monotonic()
    await asyncio.sleep(5 if IS_LARGE else 0.2)
    _show("nothing asked", watched.longest(begun_s))
    for endpoint, request in CALLS:
        begun_s = time.monotonic()
        number = await caller.pages(endpoint, by_view=True, **request)
        took_ms = (time.monotonic() - begun_s) / number * 1000
        await asyncio.sleep(0.05)
        _show(f"{endpoint} {request or ''}: {number} pages, {took_ms:.1f} ms each", watched.longest(begun_s))
    for name, made in rounds.items():
        begun_s = time.monotonic()
        await made()
        took_s = time.monotonic() - begun_s
        await asyncio.sleep(0.05)
        _show(f"{name}: a round in {took_s:.2f} s", watched.longest(begun_s))


async def _shares_of_lookers(watched: Watched, caller: Caller) -> None:
    """How much of a core a looker takes of the worker, look after look."""
    looks = 30 if IS_LARGE else 10
    before_s = watched.cpu_s()
    for _ in range(looks):
        await caller.view()
    shares = {"web view": (watched.cpu_s() - before_s) / looks / EVERY_S}
    idle = await _share(watched)
    async with top(watched.url):
        shares["`requeue top`"] = await _share(watched) - idle
    for name, share in shares.items():
        print(f"  {name}, a look every {EVERY_S:g} s: {share:.2%} of a core")
        # Over so short a time the clock of a process's CPU says nothing.
        assert share < SLOWER or not IS_LARGE, name


async def _share(watched: Watched) -> float:
    """What of a core the worker uses now."""
    before_s, begun_s = watched.cpu_s(), time.monotonic()
    await asyncio.sleep(15 * EVERY_S if IS_LARGE else EVERY_S)
    return (watched.cpu_s() - before_s) / (time.monotonic() - begun_s)


async def _paired(
    watched: Watched, wire: Wire, load: Load, rate_per_s: float, pairs: int, name: str, company: Company
) -> None:
    """The same load without and with company, in turns: what grows meanwhile is on both sides."""
    acks: dict[bool, list[Acks]] = {False: [], True: []}
    longest: dict[bool, list[Longest]] = {False: [], True: []}
    for number in range(2 * pairs):
        has_company = number % 4 in (1, 2)
        await publish_for(watched, wire, replace(load, n=load.n // WARM), rate_per_s=rate_per_s)
        async with company() if has_company else contextlib.nullcontext():
            begun_s = time.monotonic()
            acks[has_company].append(await publish_for(watched, wire, load, rate_per_s=rate_per_s))
            longest[has_company].append(watched.longest(begun_s))
    without, with_ = (
        Acks(*(statistics.median(each[at] for each in acks[side]) for at in range(4)))
        for side in (False, True)
    )
    dearer, slower = (
        statistics.median(b[at] / a[at] for a, b in zip(acks[False], acks[True], strict=True))
        for at in (3, 2)
    )
    print(
        f"  {name:38} acks p50 {without.p50_ms:5.1f} {with_.p50_ms:5.1f} ms, p99 {without.p99_ms:6.1f} "
        f"{with_.p99_ms:6.1f} ms, {without.rate_per_s:7,.0f} {with_.rate_per_s:7,.0f}/s ({slower:.3f}), CPU of a "
        f"message {without.cpu_us:5.1f} {with_.cpu_us:5.1f} us ({dearer:.3f})"
    )
    for side, all_of in longest.items():
        wall_ms, cpu_ms = (max(each[at] for each in all_of) for at in (0, 1))
        _show(f"{name}{', with' if side else ', without'}", Longest(wall_ms, cpu_ms))


def _show(what: str, longest: Longest) -> None:
    print(f"  longest turn {longest.wall_ms:6.1f} ms, of which CPU {longest.cpu_ms:6.1f} ms   {what}")
    assert longest.cpu_ms < HOLD_MS, what
