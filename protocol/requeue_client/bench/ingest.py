"""Ingest: how fast messages get to disk, and how long an ack takes."""

from __future__ import annotations

import time

from requeue_client.bench.figures import Result, spread_ms
from requeue_client.bench.messages import Load, due_within, envelopes
from requeue_client.bench.publisher import Published, WindowedPublisher, check_all_acked, new_inbox
from requeue_client.bench.responder import Responder
from requeue_client.bench.target import Lab
from requeue_client.bench.wire import Wire

HOUR_NS = 3600 * 10**9
_MIXED_NS = 22 * HOUR_NS
_DRAIN_IDLE_S = 15.0


async def measure_ingest(lab: Lab, load: Load) -> Result:
    """Publish envelopes and wait for every fsynced ack.

    On a given server they are replayed and settled afterwards.
    """
    async with lab.requeue() as system:
        wire = await Wire.connect(system.url, "requeue-bench")
        due_ns = time.time_ns() + (HOUR_NS if lab.own else lead_ns(load))
        meter = system.meter()
        published = await publish(wire, load, due_ns)
        costs = meter.figures(load.n)
        if not lab.own:
            responder = Responder(wire, load.size, load.n)
            await responder.listen()
            await responder.finish(idle_s=(due_ns - time.time_ns()) / 1e9 + _DRAIN_IDLE_S)
        await wire.close()
    figures = {"rate_per_s": round(published.rate_per_s), **spread_ms("ack", published.latencies_ns), **costs}
    return Result("ingest", "requeue", parameters(load), figures)


async def publish(wire: Wire, load: Load, due_ns: int, spread_ns: int = 0) -> Published:
    """Publish a load that is due all at once, or within a while. Raises WireError unless all of it was acknowledged."""
    inbox = new_inbox()
    compose = envelopes(inbox, load, due_within(due_ns, spread_ns))
    published = await WindowedPublisher(wire, inbox, compose, n=load.n, window=load.window).run()
    check_all_acked(published)
    return published


async def fill(url: str, load: Load) -> None:
    """Make a backlog: messages of mixed delays, due in an hour at the earliest and within a day."""
    wire = await Wire.connect(url, "requeue-bench-backlog")
    await publish(wire, load, time.time_ns() + HOUR_NS, _MIXED_NS)
    await wire.close()


def lead_ns(load: Load) -> int:
    """Time to get a load to disk before it is due, assuming 20,000 messages a second and a bit."""
    return (3 + load.n // 20_000) * 10**9


def parameters(load: Load) -> dict[str, float | int | str | None]:
    """What the load was, for the report."""
    return {"n": load.n, "size": load.size, "window": load.window, "queues": load.queues}
