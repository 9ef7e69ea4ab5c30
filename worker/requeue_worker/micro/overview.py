"""Endpoints `instances`, `queues` and `stats`: what the worker has in memory, in pages bounded by size."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, TypeVar

from pydantic import BaseModel
from requeue_protocol.admin import (
    INSTANCES,
    QUEUES,
    STATS,
    AdminAnswer,
    AdminSubject,
    Buckets,
    InstanceAnswer,
    InstancesRequest,
    QueueEntry,
    QueuesAnswer,
    QueuesRequest,
    QueueTotals,
    StatsAnswer,
    StatsRequest,
)
from requeue_worker.counts import Counts, QueueCounts
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.queues import QueueState

ENVELOPE_BYTES: Final = 4096  #: of an answer, for what stands around its entries

T = TypeVar("T", bound=BaseModel)


class Overview:
    """Answers from memory; nothing here waits."""

    def __init__(
        self,
        registry: QueueRegistry,
        counts: Counts,
        instance_id: str,
        fleet: str,
        version: str,
        clock: Callable[[], int],
        ready: Callable[[], tuple[bool, str]],
        max_payload: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._counts = counts
        self._instance_id = instance_id
        self._fleet = fleet
        self._version = version
        self._clock = clock
        self._ready = ready
        self._max_payload = max_payload
        self._started_ns = clock()

    async def instances(self, _: InstancesRequest) -> InstanceAnswer:
        """This instance."""
        queues = list(self._registry)
        ready, state = self._ready()
        return InstanceAnswer(
            instance=self._instance_id,
            fleet=self._fleet,
            version=self._version,
            started_ns=self._started_ns,
            time_ns=self._clock(),
            ready=ready,
            state=state,
            queues=len(queues),
            pending=sum(queue.pending for queue in queues),
            pending_bytes=sum(queue.bytes for queue in queues),
            in_flight=sum(queue.in_flight for queue in queues),
            dead=sum(queue.dead for queue in queues),
            dead_bytes=sum(queue.dead_bytes for queue in queues),
            disk_free_bytes=self._counts.disk_free_bytes,
            disk_full=self._counts.disk_full,
        )

    async def queues(self, request: QueuesRequest) -> QueuesAnswer:
        """A page of queues, by name."""
        page, following = self._page(request, self._entry)
        return QueuesAnswer(instance=self._instance_id, queues=page, next=following)

    async def stats(self, request: StatsRequest) -> StatsAnswer:
        """Totals since the start, with a page of queues."""
        counts, late = self._counts, self._counts.lateness_seconds
        page, following = self._page(request, lambda queue: _totals(queue.name, queue.counts))
        return StatsAnswer(
            instance=self._instance_id,
            started_ns=self._started_ns,
            time_ns=self._clock(),
            intake_messages=counts.intake_messages,
            intake_bytes=counts.intake_bytes,
            duplicates=counts.duplicates,
            refused={str(code): count for code, count in counts.refused.items()},
            commits=counts.commits,
            lateness=Buckets(bounds_s=list(late.bounds), counts=list(late.counts)),
            queues=page,
            next=following,
        )

    async def lines(self) -> AsyncIterator[bytes]:
        """All three with all their pages, as JSON lines. What moves meanwhile may be in it twice or not at all."""
        yield _line(INSTANCES, await self.instances(InstancesRequest()))
        after: str | None = ""
        while after is not None:
            queues = await self.queues(QueuesRequest(after=after))
            yield _line(QUEUES, queues)
            after = queues.next
            await asyncio.sleep(0)  # messages have their turn
        after = ""
        while after is not None:
            stats = await self.stats(StatsRequest(after=after))
            yield _line(STATS, stats)
            after = stats.next
            await asyncio.sleep(0)

    def _page(self, request: QueuesRequest, show: Callable[[QueueState], T]) -> tuple[list[T], str | None]:
        """Queues behind `after`, as many as were asked for and one message takes."""
        if request.queue is not None:
            queue = self._registry.by_name.get(request.queue)
            return ([show(queue)] if queue is not None else []), None
        names = sorted(self._registry.by_name)
        begin = bisect_right(names, request.after) if request.after else 0
        return fill(
            ((name, show(self._registry.by_name[name])) for name in names[begin:]),
            request.limit,
            self._max_payload(),
        )

    def _entry(self, queue: QueueState) -> QueueEntry:
        paused = queue.paused_until_ns > self._clock()
        return QueueEntry(
            name=queue.name,
            pending=queue.pending,
            pending_bytes=queue.bytes,
            in_flight=queue.in_flight,
            dead=queue.dead,
            dead_bytes=queue.dead_bytes,
            next_due_ns=queue.next_due_ns,
            paused_until_ns=queue.paused_until_ns if paused else None,
        )


def _line(subject: AdminSubject, answer: AdminAnswer) -> bytes:
    return b'{"endpoint":"%b","answer":%b}\n' % (subject.endpoint.encode(), answer.model_dump_json().encode())


def _totals(name: str, counts: QueueCounts) -> QueueTotals:
    return QueueTotals(
        name=name,
        accepted=counts.accepted,
        replays=counts.replays,
        settled=counts.settled,
        retried=counts.retried,
        held=counts.held,
        expired=counts.expired,
        dead=dict(counts.dead),
        dropped=dict(counts.dropped),
    )


def fill(entries: Iterable[tuple[str, T]], limit: int, max_payload: int) -> tuple[list[T], str | None]:
    """The first of these that fit one message, and the cursor behind the last one when more follow.

    One at least: what is larger than a message by itself is the caller's to shorten.
    """
    page: list[T] = []
    last: str | None = None
    room = max_payload - ENVELOPE_BYTES
    for cursor, entry in entries:
        room -= len(entry.model_dump_json()) + 1
        if page and (room < 0 or len(page) == limit):
            return page, last
        page.append(entry)
        last = cursor
    return page, None
