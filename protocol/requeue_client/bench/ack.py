"""How long an ack takes at a modest rate, where it is one fsync and the way there and back."""

from __future__ import annotations

import time
from dataclasses import replace

from requeue_client.bench.disk import fsyncs_ns
from requeue_client.bench.figures import Result, spread_ms
from requeue_client.bench.ingest import HOUR_NS, parameters
from requeue_client.bench.messages import Load, envelopes
from requeue_client.bench.publisher import WindowedPublisher, check_all_acked, new_inbox
from requeue_client.bench.target import Lab, System
from requeue_client.bench.wire import Wire, WireError

_SECONDS = 10


async def measure_ack(lab: Lab, load: Load, *, rate_per_s: float) -> Result:
    """Publish evenly at `rate_per_s` for 10 s (or `load.n` messages), and say what one fsync costs on the same disk.

    Raises WireError on a given server: what is published here would stay there.
    """
    if not lab.own:
        raise WireError("the ack scenario leaves its messages behind: leave --server out")
    timed = replace(load, n=max(1, min(load.n, round(rate_per_s * _SECONDS))))
    # Before and after: the disk's speed changes within seconds where it is shared.
    fsyncs = fsyncs_ns(lab.root, load.size)
    async with lab.requeue() as system:
        figures = await _publish(system, timed, rate_per_s)
    fsyncs += fsyncs_ns(lab.root, load.size)
    figures["fsync_p50_ms"] = spread_ms("fsync", fsyncs)["fsync_p50_ms"]
    return Result("ack", "requeue", {**parameters(timed), "rate_per_s": rate_per_s}, figures)


async def _publish(system: System, load: Load, rate_per_s: float) -> dict[str, float | int | str | None]:
    wire = await Wire.connect(system.url, "requeue-bench")
    inbox, due_ns = new_inbox(), time.time_ns() + HOUR_NS
    compose = envelopes(inbox, load, lambda _: due_ns)
    publisher = WindowedPublisher(wire, inbox, compose, n=load.n, window=load.window, per_second=rate_per_s)
    meter = system.meter()
    published = await publisher.run()
    check_all_acked(published)
    costs = meter.figures(load.n)
    await wire.close()
    return {**spread_ms("ack", published.latencies_ns), **costs}
