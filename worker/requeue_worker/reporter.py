"""Stats on `_requeue._stats`, every few seconds; and, since it wakes up anyway, an eye on the wall clock.

Timers run on the monotonic clock, and what is due is due by the wall clock: a step of the latter would go unnoticed
until the next timer ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable

from requeue_protocol.stats import QueueStats, build_stats
from requeue_protocol.subjects import STATS
from requeue_worker.broker.nats import Broker
from requeue_worker.counts import QueueSnapshot
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.queues import INVALID_QUEUE

log = logging.getLogger(__name__)

CLOCK_WATCH_S = 5.0  #: a step is noticed so soon, however rare stats are
CLOCK_STEP_NS = (
    50_000_000  #: wall clock against monotonic clock: more than this between two reports is a step
)


class Reporter:
    """Publishes `InstanceStatsMessage`s and snapshots for the metrics."""

    def __init__(
        self,
        registry: QueueRegistry,
        broker: Broker,
        instance_id: str,
        interval_ns: int,
        clock: Callable[[], int],
        clock_stepped: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._broker = broker
        self._instance_id = instance_id
        self._interval_s = interval_ns / 1e9
        self._clock = clock
        self._clock_stepped = clock_stepped

    async def report_forever(self) -> None:
        """Publish at the interval; skip while disconnected."""
        offset_ns, looks = self._clock_offset_ns(), math.ceil(self._interval_s / CLOCK_WATCH_S)
        while True:
            for _ in range(looks):
                await asyncio.sleep(self._interval_s / looks)
                offset_ns = self._look_at_clock(offset_ns)
            if self._broker.connected:
                for message in self._messages():
                    await self._broker.publish(STATS, message)

    def _look_at_clock(self, before_ns: int) -> int:
        offset_ns = self._clock_offset_ns()
        if abs(offset_ns - before_ns) > CLOCK_STEP_NS:
            log.warning("the wall clock was stepped", extra={"step_s": (offset_ns - before_ns) / 1e9})
            self._clock_stepped()
        return offset_ns

    def _clock_offset_ns(self) -> int:
        return self._clock() - int(asyncio.get_running_loop().time() * 1e9)

    def _messages(self) -> list[bytes]:
        queues = [
            QueueStats(queue.name, queue.pending, queue.in_flight)
            for queue in self._registry
            if queue.name != INVALID_QUEUE
        ]
        return build_stats(self._instance_id, queues, self._broker.max_payload)

    def snapshot(self) -> Iterable[QueueSnapshot]:
        """Every queue as it stands now, for the metrics."""
        now_ns = self._clock()
        return [
            QueueSnapshot(
                queue.name,
                queue.pending,
                queue.bytes,
                queue.dead,
                queue.dead_bytes,
                queue.in_flight,
                queue.next_due_ns,
                queue.paused_until_ns > now_ns,
            )
            for queue in self._registry
        ]
