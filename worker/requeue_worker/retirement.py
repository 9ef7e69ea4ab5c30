"""Queues that hold nothing leave: memory and metrics at once, their row in the `meta` family with the next commit.

Any client can name a queue, so names must not add up. A queue is *idle* when nothing of it is pending, dead, in flight,
on its way to disk or being read, it isn't paused, and the configuration doesn't name it. An idle queue leaves after two
looks between which nothing came through it, and at once when the worker starts. When `max_queues` is near, new ones leave at
once too, and others until it is not near any more: what is used again and again would only be made anew each time.

Order: memory first. A crash before the row is gone leaves a row of an empty queue, which leaves at the next start. A
name that is used again meanwhile is a new queue; its row is written with its first message, behind that commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.keys import meta_queue_key
from requeue_worker.storage.queues import INVALID_QUEUE, QueueState
from requeue_worker.storage.transaction import Transaction

LOOK_S: Final = 300.0
CROWDED_WAIT_S: Final = 1.0  #: near `max_queues` with little to free: look no more often
_BUSY: Final = -1  #: no count of moves: the queue held something


class Retirement:
    """Lets idle queues go. `held`: whether a message for a queue waits elsewhere; `forget`: nobody may wake up for it."""

    def __init__(
        self,
        registry: QueueRegistry,
        committer: Committer,
        clock: Callable[[], int],
        *,
        held: Callable[[QueueState], bool],
        forget: Callable[[QueueState], None],
    ) -> None:
        self._registry = registry
        self._committer = committer
        self._clock = clock
        self._held = held
        self._forget = forget
        #: the queues at the last look, and how often a message of theirs had moved by then; _BUSY where they held something
        self._seen: dict[QueueState, int] = {}
        self._crowded = asyncio.Event()
        registry.crowded = self._crowded.set

    async def retire_forever(self) -> None:
        """Look at the start, now and then, and when it is getting crowded."""
        at_once, down_to = True, 0
        while True:
            await self.retire(at_once, down_to)
            down_to = self._registry.crowd - 1
            if at_once:
                await asyncio.sleep(CROWDED_WAIT_S)
            at_once = await self._is_crowded_within(LOOK_S)

    async def _is_crowded_within(self, wait_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._crowded.wait()
        crowded = self._crowded.is_set()
        self._crowded.clear()
        return crowded

    async def retire(self, at_once: bool, down_to: int = 0) -> None:
        """Let idle queues go, and return when their rows are gone: those that nothing came through since the last look.

        `at_once`: also those that are new since, and others until `down_to` queues are left.
        """
        now_ns, seen = self._clock(), self._seen
        coming = self._committer.on_their_way()
        now = {
            queue: _moves(queue) if queue not in coming and self._is_idle(queue, now_ns) else _BUSY
            for queue in self._registry
        }
        idle = [queue for queue, moves in now.items() if moves != _BUSY]
        leaving = [queue for queue in idle if seen.get(queue) == now[queue]]
        if at_once:
            leaving += [queue for queue in idle if queue not in seen]
            used = [queue for queue in idle if queue in seen and seen[queue] != now[queue]]
            leaving += used[: max(0, len(self._registry) - len(leaving) - down_to)]
        for queue in leaving:
            self._registry.remove(queue)
            self._forget(queue)
            del now[queue]
        self._seen = now
        if leaving:
            names = [queue.name for queue in leaving]
            await self._committer.commit(_RemoveRows(self._registry, names))

    def _is_idle(self, queue: QueueState, now_ns: int) -> bool:
        if queue.pending or queue.dead or queue.waiting or queue.in_flight or queue.in_ring:
            return False
        if queue.paused_until_ns > now_ns or queue.name == INVALID_QUEUE:
            return False
        if any(lane.unsettled or lane.reading or lane.inserting is not None for lane in queue.lanes.values()):
            return False
        return not self._registry.is_configured(queue.name) and not self._held(queue)


def _moves(queue: QueueState) -> int:
    counts = queue.counts
    return counts.accepted + counts.replays + counts.expired + counts.settled


@dataclass(slots=True)
class _RemoveRows:
    registry: QueueRegistry
    names: list[str]

    def apply(self, transaction: Transaction) -> None:
        """A name that is known again keeps its row: its queue may have written it."""
        for name in self.names:
            if name not in self.registry.by_name:
                transaction.batch.delete_meta(meta_queue_key(name))

    def durable(self) -> None:
        """Nothing waits for it."""
