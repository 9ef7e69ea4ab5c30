"""Growth: the same measurements at a backlog of one size after the other, in one worker that is filled up meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from requeue_client.bench.disk import disk_bytes
from requeue_client.bench.figures import Figure, Result, spread_ms
from requeue_client.bench.ingest import HOUR_NS, fill, parameters, publish
from requeue_client.bench.lateness import lateness_figures, replay_at_rate
from requeue_client.bench.messages import Load
from requeue_client.bench.replay import replay_at_once
from requeue_client.bench.target import Lab, System
from requeue_client.bench.usage import read_usage
from requeue_client.bench.wire import Wire, WireError

_DAY_NS = 24 * HOUR_NS
_TIME_AND_ID_BYTES = 24  #: of a key, which has the queue, two bytes, these
_REST_LOOKS = 5  #: nothing is compacted any more when the size is the same so often, once a second
_REST_S = 180.0


async def measure_growth(
    lab: Lab, load: Load, *, rate_per_s: float, backlogs: Sequence[int], queues: Sequence[int]
) -> list[Result]:
    """Ingest, replay and lateness of `load` at each backlog, ascending, in a worker for each number of queues.

    What waits has mixed delays. Raises WireError on a given server: the backlog would stay there.
    """
    if not lab.own:
        raise WireError("the growth scenario leaves its backlog behind: leave --server out")
    results = []
    for number in queues:
        filled, spread = 0, replace(load, queues=number)
        async with lab.requeue() as system:
            for backlog in sorted(backlogs):
                if backlog > filled:
                    await fill(system.url, replace(spread, n=backlog - filled))
                    filled = backlog
                results.append(await _measure(system, spread, rate_per_s, backlog))
                filled += load.n
    return results


async def _measure(system: System, load: Load, rate_per_s: float, backlog: int) -> Result:
    wire = await Wire.connect(system.url, "requeue-bench")
    ingested = await publish(wire, load, time.time_ns() + _DAY_NS)
    await wire.close()
    replayed, _, notes = await replay_at_once(system, load)
    timed = await replay_at_rate(system, load, rate_per_s)
    usage = read_usage(system.worker.pid if system.worker else None)
    late = lateness_figures(timed)
    figures: dict[str, Figure] = {
        "ingest_per_s": round(ingested.rate_per_s),
        "replay_per_s": round(replayed.rate_since_due_per_s),
        **{name: value for name, value in late.items() if name.startswith("lateness")},
        "missing": load.n - len(replayed.numbers) + timed.load.n - len(timed.delivered.numbers),
        "early": replayed.early + timed.delivered.early,
        "worker_rss_mb": round(usage.rss_mb, 1) if usage else None,
        "worker_peak_rss_mb": round(usage.peak_rss_mb, 1) if usage else None,
        "disk_share": await _disk_share(system, load, backlog + load.n),
        **spread_ms("ack", ingested.latencies_ns),
    }
    said = {**parameters(load), "rate_per_s": rate_per_s, "backlog": backlog}
    title = f"{backlog:,} pending" + (f", {load.queues:,} queues" if load.queues > 1 else "")
    return Result("growth", title, said, figures, notes)


async def _disk_share(system: System, load: Load, pending: int) -> float | None:
    """What the worker has on disk, once it has come to rest, as a multiple of the payloads and keys that are pending."""
    if system.worker is None:
        return None
    seen, deadline_s = [0], time.monotonic() + _REST_S
    while seen[-_REST_LOOKS:] != [seen[-1]] * _REST_LOOKS and time.monotonic() < deadline_s:
        await asyncio.sleep(1.0)
        seen.append(await asyncio.to_thread(disk_bytes, system.worker.data_dir))
    key_bytes = 2 + len(load.queue(load.queues - 1)) + _TIME_AND_ID_BYTES
    return round(seen[-1] / (pending * (load.size + key_bytes)), 3)
