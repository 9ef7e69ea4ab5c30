"""Head of line: what a queue with a dead handler and a great backlog does to the lateness of another queue."""

from __future__ import annotations

from dataclasses import replace

from requeue_client.bench.figures import Result
from requeue_client.bench.ingest import parameters, publish
from requeue_client.bench.lateness import lateness_figures, replay_at_rate
from requeue_client.bench.messages import Load
from requeue_client.bench.target import Lab
from requeue_client.bench.wire import Wire, WireError

_DEAD_SUBJECT = "requeue-bench.dead"
_DEAD_SID = 9


async def measure_head_of_line(lab: Lab, load: Load, *, rate_per_s: float, backlog: int) -> Result:
    """Make `backlog` messages of one queue due, for a handler that takes each and never answers, then measure another.

    Raises WireError on a given server: the backlog would stay there.
    """
    if not lab.own:
        raise WireError("the headofline scenario leaves its backlog behind: leave --server out")
    async with lab.requeue() as system:
        dead = await Wire.connect(system.url, "requeue-bench-dead")
        dead.reader = _take_all
        dead.subscribe(_DEAD_SUBJECT, _DEAD_SID)
        await dead.flush()
        stuck = replace(load, n=backlog, queues=1, subject=_DEAD_SUBJECT, prefix="bench-stuck")
        publisher = await Wire.connect(system.url, "requeue-bench-stuck")
        await publish(publisher, stuck, 0)  # due at once
        await publisher.close()
        timed = await replay_at_rate(system, replace(load, prefix="bench-lively"), rate_per_s)
        await dead.close()
    figures = lateness_figures(timed)
    return Result(
        "headofline",
        "requeue",
        {**parameters(timed.load), "rate_per_s": rate_per_s, "backlog": backlog},
        figures,
    )


def _take_all(buffer: bytes) -> int:
    """Read everything and answer nothing."""
    return len(buffer)
