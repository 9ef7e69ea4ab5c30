"""Replay: how fast messages that are due all at once are dispatched and settled."""

from __future__ import annotations

import asyncio
import time

from requeue_client.bench.figures import Figure, Result
from requeue_client.bench.ingest import lead_ns, parameters, publish
from requeue_client.bench.messages import Load
from requeue_client.bench.responder import Delivered, Responder
from requeue_client.bench.target import Lab, System
from requeue_client.bench.wire import in_and_out

_IDLE_S = 15.0


async def measure_replay(lab: Lab, load: Load) -> Result:
    """Publish a load that is due at one instant, and answer what comes from then on."""
    async with lab.requeue() as system:
        delivered, costs, notes = await replay_at_once(system, load)
    return Result("replay", "requeue", parameters(load), {**due_figures(load, delivered), **costs}, notes)


async def replay_at_once(system: System, load: Load) -> tuple[Delivered, dict[str, Figure], list[str]]:
    """Publish a load that is due at one instant; what was delivered, what it cost, and notes."""
    notes = []
    async with in_and_out(system.url) as (inward, outward):
        responder = Responder(outward, load.size, load.n)
        await responder.listen()
        due_ns = time.time_ns() + lead_ns(load)
        await publish(inward, load, due_ns)
        left_s = (due_ns - time.time_ns()) / 1e9
        if left_s < 0:
            notes.append(f"ingest ended {-left_s:.1f} s after the due instant: both ran at once for a while")
        await asyncio.sleep(max(0.0, left_s - 0.1))
        meter = system.meter()
        delivered = await responder.finish(idle_s=_IDLE_S)
        costs = meter.figures(delivered.count)
    return delivered, costs, notes


def due_figures(load: Load, delivered: Delivered) -> dict[str, Figure]:
    """The figures of a load that was due at one instant."""
    return {
        "rate_per_s": round(delivered.rate_since_due_per_s),
        "missing": load.n - len(delivered.numbers),
        "duplicates": delivered.duplicates,
        "early": delivered.early,
        "first_after_due_ms": round(min(delivered.lateness_ns, default=0) / 1e6, 3),
        "all_after_due_ms": round(max(delivered.lateness_ns, default=0) / 1e6, 3),
    }
