"""The scheduler's limits, made so small that a few messages reach each of them."""

from __future__ import annotations

import pytest
from requeue_worker import readahead, scheduler
from requeue_worker.allowance import FAIR_SLOTS
from requeue_worker.app import Worker
from requeue_worker.scheduler import UNSENT_BYTES
from requeue_worker.storage import queues, store, transaction

__all__ = ["FAIR_SLOTS", "UNSENT_BYTES", "check_memory", "patch", "wake_ups"]

TINY = {
    "TICK_MESSAGES": 5,
    "READ_LIMIT": 4,
    "READ_LEAST": 2,
    "READ_MOST": 6,
    "READ_LANES": 2,
    "FEW_LANES": 1,
    "HOP_MESSAGES": 3,
    "READY_BYTES": 1500,
    "LANE_READ_NS": 50_000_000,
    "RETAIN_NS": 300_000_000,
    "RETAIN_MOST": 3,
    "FLOOD": 2,
    "QUANTUM": 3,
    "SEND_CHUNK": 2,
}


def patch(patches: pytest.MonkeyPatch, tiny: bool) -> None:
    """Put tiny limits in place of the real ones, until `patches` is undone."""
    if tiny:
        for name, value in TINY.items():
            [module] = [
                each for each in (readahead, scheduler, store, queues, transaction) if hasattr(each, name)
            ]
            patches.setattr(module, name, value)


def check_memory(worker: Worker) -> None:
    """What is counted as read ahead is there, and wake-ups do not pile up."""
    ready = sum(
        len(value) for queue in worker._registry for lane in queue.lanes.values() for _, value in lane.ready
    )
    assert ready == worker._scheduler.read_ahead.ready_bytes
    assert wake_ups(worker._scheduler) < 400, "wake-ups pile up"


def wake_ups(of: scheduler.Scheduler) -> int:
    """How many wake-ups its heaps hold, replaced ones too."""
    return sum(map(len, (of._lane_wakes, of._queue_wakes, of.read_ahead._heads)))
