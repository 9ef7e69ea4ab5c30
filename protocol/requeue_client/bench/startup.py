"""Start-up: how soon a worker is ready on a backlog, and replays what became due while it was down."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from requeue_client.bench.figures import Figure, Result
from requeue_client.bench.ingest import fill, parameters, publish
from requeue_client.bench.messages import Load
from requeue_client.bench.responder import Responder
from requeue_client.bench.target import Lab
from requeue_client.bench.usage import read_usage
from requeue_client.bench.wire import Wire
from requeue_client.local import LocalProcessError, WorkerProcess

_DUE = 1_000
_DUE_IN_NS = 3 * 10**9
_IDLE_S = 5.0
_TIMEOUT_S = 60.0


async def measure_startup(lab: Lab, load: Load, *, backlog: int) -> Result:
    """Fill a worker with `backlog` messages of mixed delays, let 1,000 become due while it is down, start it.

    Times count from the start of the process. Raises LocalProcessError on a given server: it cannot be
    restarted.
    """
    if not lab.own:
        raise LocalProcessError("startup restarts its worker: leave --server out")
    async with lab.requeue() as system:
        assert system.worker is not None
        await fill(system.url, replace(load, n=backlog))
        wire = await Wire.connect(system.url, "requeue-bench")
        idle = await _idle(system.worker)
        due_ns = time.time_ns() + _DUE_IN_NS
        await publish(wire, replace(load, n=_DUE), due_ns)
        await asyncio.to_thread(system.worker.stop)
        responder = Responder(wire, load.size, _DUE)
        await responder.listen()
        await asyncio.sleep(max(0.0, (due_ns - time.time_ns()) / 1e9))
        started_s = time.perf_counter()
        await asyncio.to_thread(system.worker.start, _TIMEOUT_S)
        ready_s = time.perf_counter() - started_s
        delivered = await responder.finish(idle_s=_TIMEOUT_S)
        after = read_usage(system.worker.pid)
        await wire.close()
    figures: dict[str, Figure] = {
        "ready_s": round(ready_s, 3),
        "first_replay_s": round(delivered.first_s - started_s, 3),
        "due_replayed_s": round(delivered.last_s - started_s, 3),
        "missing": _DUE - len(delivered.numbers),
        "duplicates": delivered.duplicates,
        "rss_after_start_mb": round(after.rss_mb, 1) if after else None,
        **idle,
    }
    return Result("startup", "requeue", {**parameters(load), "n": _DUE, "backlog": backlog}, figures)


async def _idle(worker: WorkerProcess) -> dict[str, Figure]:
    """Memory with the backlog, and CPU while nothing happens."""
    await asyncio.sleep(1.0)
    before = read_usage(worker.pid)
    await asyncio.sleep(_IDLE_S)
    after = read_usage(worker.pid)
    if before is None or after is None:
        return {}
    return {
        "rss_with_backlog_mb": round(after.rss_mb, 1),
        "peak_rss_mb": round(after.peak_rss_mb, 1),
        "idle_cpu_percent": round((after.cpu_s - before.cpu_s) / _IDLE_S * 100, 2),
    }
