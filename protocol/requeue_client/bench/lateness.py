"""Lateness: how exactly messages come when they are due, with others coming in and a backlog waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from requeue_client.bench.figures import Figure, Result, spread_ms
from requeue_client.bench.ingest import fill, parameters
from requeue_client.bench.messages import Load, plain
from requeue_client.bench.publisher import WindowedPublisher, check_all_acked, new_inbox
from requeue_client.bench.responder import Delivered, Responder
from requeue_client.bench.target import Lab, System
from requeue_client.bench.wire import in_and_out

_LEAD_NS = 2 * 10**9
_SECONDS = 10
_IDLE_S = 15.0


@dataclass(frozen=True, slots=True)
class Timed:
    """What was published at a rate, what came of it, and what it cost."""

    load: Load
    delivered: Delivered
    costs: dict[str, Figure]


async def measure_lateness(lab: Lab, load: Load, *, rate_per_s: float, backlog: int) -> Result:
    """Measure `replay_at_rate` beside a backlog of mixed delays, which was taken in right before."""
    notes = []
    async with lab.requeue() as system:
        if lab.own and backlog:
            await fill(system.url, replace(load, n=backlog))
        elif backlog:
            notes.append("no backlog was made: it would stay on the given server")
        timed = await replay_at_rate(system, load, rate_per_s)
    said = {**parameters(timed.load), "rate_per_s": rate_per_s, "backlog": backlog if lab.own else 0}
    return Result("lateness", "requeue", said, lateness_figures(timed), notes)


async def replay_at_rate(system: System, load: Load, rate_per_s: float) -> Timed:
    """Publish at `rate_per_s`, each message with an exact instant 2 s ahead, for 10 s (or `load.n` messages).

    So from the third second on as many come in as go out.
    """
    n = max(1, min(load.n, round(rate_per_s * _SECONDS)))
    timed = replace(load, n=n)
    async with in_and_out(system.url) as (inward, outward):
        responder = Responder(outward, load.size, n)
        await responder.listen()
        inbox, interval_ns = new_inbox(), 1e9 / rate_per_s
        start_ns = time.time_ns() + _LEAD_NS
        compose = plain(inbox, timed, lambda i: start_ns + int(i * interval_ns))
        publisher = WindowedPublisher(
            inward, inbox, compose, n=n, window=max(load.window, round(rate_per_s)), per_second=rate_per_s
        )
        meter = system.meter()
        check_all_acked(await publisher.run())
        delivered = await responder.finish(idle_s=_IDLE_S)
        costs = meter.figures(n)
    return Timed(timed, delivered, costs)


def lateness_figures(timed: Timed) -> dict[str, Figure]:
    """The figures of a timed load."""
    delivered = timed.delivered
    return {
        **spread_ms("lateness", delivered.lateness_ns),
        "early": delivered.early,
        "missing": timed.load.n - len(delivered.numbers),
        "duplicates": delivered.duplicates,
        "rate_per_s": round(delivered.rate_per_s),
        **timed.costs,
    }
