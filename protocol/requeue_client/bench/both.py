"""Both at once: messages come in as fast as they are acknowledged, and each is due at once."""

from __future__ import annotations

import asyncio

from requeue_client.bench.figures import Result, spread_ms
from requeue_client.bench.ingest import parameters, publish
from requeue_client.bench.messages import Load
from requeue_client.bench.responder import Responder
from requeue_client.bench.target import Lab
from requeue_client.bench.wire import in_and_out

_IDLE_S = 15.0


async def measure_both(lab: Lab, load: Load) -> Result:
    """Publish without delay, and answer what comes meanwhile.

    `both_per_s` is counted from the first message to the last delivery: so many a second went each way. `acked_per_s` and
    `delivered_per_s` have a time of their own each.
    """
    async with lab.requeue() as system, in_and_out(system.url) as (inward, outward):
        responder = Responder(outward, load.size, load.n)
        await responder.listen()
        meter = system.meter()
        started_s = asyncio.get_running_loop().time()
        published = await publish(inward, load, 0)
        delivered = await responder.finish(idle_s=_IDLE_S)
        seconds = asyncio.get_running_loop().time() - started_s
        costs = meter.figures(load.n)
    figures = {
        "both_per_s": round(load.n / seconds),
        "acked_per_s": round(published.rate_per_s),
        "delivered_per_s": round(delivered.rate_per_s),
        "missing": load.n - len(delivered.numbers),
        "duplicates": delivered.duplicates,
        **spread_ms("ack", published.latencies_ns),
        **costs,
    }
    return Result("both", "requeue", parameters(load), figures)
