"""Growth: the same measurements at a backlog of one size after the other, in one worker that is filled up meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from requeue_client.bench.figures import Figure, Result, spread_ms
from requeue_client.bench.ingest import HOUR_NS, parameters, publish
from requeue_client.bench.lateness import lateness_figures, replay_at_rate
from requeue_client.bench.messages import Load
from requeue_client.bench.replay import replay_at_once
from requeue_client.bench.target import Lab, System
from requeue_client.bench.usage import read_usage
from requeue_client.bench.wire import Wire, WireError

_DAY_NS = 24 * HOUR_NS


async def measure_growth(lab: Lab, load: Load, *, rate_per_s: float, backlogs: Sequence[int]) -> list[Result]:
    """Ingest, replay and lateness of `load` at each backlog, ascending; what waits is due within a day, from in an hour on.

    Raises WireError on a given server: the backlog would stay there.
    """
    if not lab.own:
        raise WireError("the growth scenario leaves its backlog behind: leave --server out")
    results, filled = [], 0
    async with lab.requeue() as system:
        for backlog in sorted(backlogs):
            if backlog > filled:
                wire = await Wire.connect(system.url, "requeue-bench-backlog")
                await publish(wire, replace(load, n=backlog - filled), time.time_ns() + HOUR_NS)
                await wire.close()
                filled = backlog
            results.append(await _measure(system, load, rate_per_s, backlog))
            filled += load.n
    return results


async def _measure(system: System, load: Load, rate_per_s: float, backlog: int) -> Result:
    wire = await Wire.connect(system.url, "requeue-bench")
    ingested = await publish(wire, load, time.time_ns() + _DAY_NS)
    await wire.close()
    replayed, _, _ = await replay_at_once(system, load)
    timed = await replay_at_rate(system, load, rate_per_s)
    usage = read_usage(system.worker.pid if system.worker else None)
    late = lateness_figures(timed)
    figures: dict[str, Figure] = {
        "ingest_per_s": round(ingested.rate_per_s),
        "replay_per_s": round(replayed.rate_per_s),
        **{name: value for name, value in late.items() if name.startswith("lateness")},
        "missing": load.n - len(replayed.numbers) + timed.load.n - len(timed.delivered.numbers),
        "early": replayed.early + timed.delivered.early,
        "worker_rss_mb": round(usage.rss_mb, 1) if usage else None,
        **spread_ms("ack", ingested.latencies_ns),
    }
    return Result("growth", f"{backlog:,} pending", {**parameters(load), "rate_per_s": rate_per_s}, figures)
