"""Group commit: everything that waits goes into one transaction with one fsync, then the acks go out.

    accept / settle / change ──> waiting ──seal──> one WriteBatch ──write thread, fsync──> on_durable
                                    ▲                                      │
                                    └────────── meanwhile more waits <─────┘

One write is under way at a time, and the next transaction is sealed only after the last one is durable: at low load the
latency is one fsync, under load the batch grows. Accept order is kept. A failed write ends the committer, and nothing of
that batch is acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from requeue_worker.counts import Counts
from requeue_worker.errors import CommitError
from requeue_worker.inflight import Delivery
from requeue_worker.storage.queues import Lane, QueueState
from requeue_worker.storage.store import Store
from requeue_worker.storage.transaction import (
    CHECKPOINT_INTERVAL_NS,
    Accepted,
    Ids,
    Retained,
    Transaction,
    size_of,
)

log = logging.getLogger(__name__)

BATCH_MESSAGES = 8192  #: a batch takes at most so many of each kind: bounds its memory and the wait behind it
BATCH_BYTES = 16 << 20
SETTLE_WAIT_S = 0.005  #: settlements alone wait so long for company; a crash in between repeats those replays


class Change(Protocol):
    """Anything else than the two bulk paths: it writes into the transaction, and hears when that is durable."""

    def apply(self, transaction: Transaction) -> None:
        """Write. Called on the event loop while no write is under way, so memory agrees with the disk."""

    def durable(self) -> None:
        """The fsync has happened."""


class Committer:
    """The one writer of the store. Everything here runs on the event loop; only `Store.write` leaves it."""

    def __init__(
        self,
        store: Store,
        counts: Counts,
        clock: Callable[[], int],
        *,
        on_durable: Callable[[list[Accepted]], None],
        on_earlier: Callable[[list[Lane]], None],
        room: Callable[[], int],
        on_retained: Callable[[list[Retained]], None],
        on_failed: Callable[[CommitError, list[Accepted]], None],
    ) -> None:
        """`room`: so many bytes of what is due soon may be retained in memory; `on_retained` gets them durable."""
        self._store = store
        self._counts = counts
        self._clock = clock
        self._on_durable = on_durable
        self._on_earlier = on_earlier
        self._room = room
        self._on_retained = on_retained
        self._on_failed = on_failed
        self._ids = Ids(os.urandom(8))
        self._new: list[Accepted] = []
        #: when the new messages came, and how many at a time
        self._accepted: deque[tuple[float, int]] = deque()
        self._settled: list[Delivery] = []
        self._changes: list[Change] = []
        self._checkpointed_ns = 0
        self._touch: set[QueueState] = set()
        self._awaited: set[_Awaited] = set()
        self._writing: asyncio.Task[None] | None = None
        self._lazy: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.failed: CommitError | None = None
        #: bytes accepted and not yet durable: what bounds the intake's memory
        self.waiting_bytes = 0
        self._watchers: list[set[bytes]] = []

    @property
    def ids(self) -> Ids:
        """What new messages get their Requeue-Ids of."""
        return self._ids

    def on_their_way(self) -> set[QueueState]:
        """The queues of new messages that are in no batch yet."""
        return {message[0].queue for message in self._new}

    def mint_id(self) -> bytes:
        """A new Requeue-Id."""
        self._ids.sequence += 1
        return self._ids.epoch + self._ids.sequence.to_bytes(8, "big")

    def accept(self, messages: list[Accepted]) -> None:
        """Take accepted messages; `on_durable` gets them back once they are on disk."""
        self._new += messages
        self._accepted.append((time.perf_counter(), len(messages)))
        self.waiting_bytes += sum(map(size_of, messages))
        self._kick()

    def settle(self, deliveries: list[Delivery]) -> None:
        """Take settled deliveries: their records go, with the next batch or a few milliseconds from now."""
        self._settled += deliveries
        if self._writing is None and self._lazy is None:
            # Nobody waits for it: a few milliseconds let a trickle share its fsyncs.
            self._lazy = asyncio.get_running_loop().call_later(SETTLE_WAIT_S, self._kick)

    def submit(self, change: Change) -> None:
        """Take any other change."""
        self._changes.append(change)
        self._kick()

    async def commit(self, change: Change) -> None:
        """Take a change and return when it is durable. Raises CommitError when it never will be."""
        awaited = _Awaited(change, asyncio.get_running_loop().create_future())
        self._awaited.add(awaited)
        try:
            if self.failed is not None:
                raise self.failed
            self.submit(awaited)
            await awaited.future
        finally:
            self._awaited.discard(awaited)

    async def idle(self) -> None:
        """Return when nothing waits any more. Raises CommitError when the committer has failed."""
        self._kick()
        await self._idle.wait()
        if self.failed is not None:
            raise self.failed

    @contextmanager
    def departures(self) -> Iterator[set[bytes]]:
        """The keys that pending messages leave, durably, while the block runs: what it reads may be gone by its end."""
        left: set[bytes] = set()
        self._watchers.append(left)
        try:
            yield left
        finally:
            # By identity: equal sets of others stay.
            self._watchers = [each for each in self._watchers if each is not left]

    def checkpoint(self, queues: Iterable[QueueState]) -> None:
        """Move the checkpoints of these queues as far forward as they may go, in the next batch."""
        self._checkpointed_ns = 0
        self._touch.update(queues)
        self._kick()

    async def checkpointed(self, queues: Iterable[QueueState]) -> None:
        """As `checkpoint`, and return when it is durable. Raises CommitError when it never will be."""
        self._checkpointed_ns = 0
        await self.commit(_Touched(list(queues)))

    def _kick(self) -> None:
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if self._writing is None and self.failed is None:
            self._idle.clear()
            self._writing = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        # Let what came with the same socket read join the first batch.
        await asyncio.sleep(0)
        while self._new or self._settled or self._changes or self._touch:
            new, settled, changes = self._take()
            started = time.perf_counter()
            try:
                transaction = self._seal(new, settled, changes)
                await self._store.write(transaction.batch)
            except Exception as error:
                # A new one: the traceback of `error` holds the batch, and that holds the database open.
                self._fail(CommitError(str(error) if isinstance(error, CommitError) else repr(error)), new)
                return
            self._counts.commit_seconds.observe(time.perf_counter() - started)
            self._counts.commit_messages.observe(len(new) + len(settled) + len(changes))
            self._counts.commits += 1
            try:
                self._finish(transaction, new, changes)
            except Exception as error:
                # On disk, but memory may no longer say so: only a restart mends that.
                log.exception("after a commit")
                self._fail(CommitError(repr(error)), [])
                return
        self._writing = None
        self._idle.set()

    def _take(self) -> tuple[list[Accepted], list[Delivery], list[Change]]:
        new, settled, changes = self._new, self._settled, self._changes
        if len(new) > BATCH_MESSAGES or self.waiting_bytes > BATCH_BYTES:
            size = count = 0
            while count < min(len(new), BATCH_MESSAGES) and size < BATCH_BYTES:
                size += size_of(new[count])
                count += 1
            self._new, new = new[count:], new[:count]
        else:
            self._new = []
        self._settled, settled = settled[BATCH_MESSAGES:], settled[:BATCH_MESSAGES]
        self._changes, changes = changes[BATCH_MESSAGES:], changes[:BATCH_MESSAGES]
        return new, settled, changes

    def _seal(self, new: list[Accepted], settled: list[Delivery], changes: list[Change]) -> Transaction:
        now_ns = self._clock()
        transaction = Transaction(self._store.batch(), now_ns, room=self._room())
        transaction.insert_new(new, self._ids)
        transaction.remove_settled(settled)
        for change in changes:
            change.apply(transaction)
        mono_ns = time.monotonic_ns()
        checkpoints_due = mono_ns - self._checkpointed_ns >= CHECKPOINT_INTERVAL_NS
        if checkpoints_due:
            self._checkpointed_ns = mono_ns
        transaction.touch(self._touch)
        self._touch.clear()
        transaction.seal(checkpoints_due)
        return transaction

    def _finish(self, transaction: Transaction, new: list[Accepted], changes: list[Change]) -> None:
        if new:
            self._on_durable(new)  # first of all: somebody waits for it
            self._measure_acks(len(new))
        earlier = transaction.settle_in_memory()
        for watcher in self._watchers:
            watcher.update(transaction.left_keys())
        self.waiting_bytes -= sum(map(size_of, new))
        for change in changes:
            change.durable()
        if earlier:
            self._on_earlier(earlier)
        if transaction.retained:
            self._on_retained(transaction.retained)

    def _measure_acks(self, acknowledged: int) -> None:
        """The oldest messages were acknowledged: once for all that came together."""
        now_s = time.perf_counter()
        # A figure is no reason to end a worker: where the books are short, it measures less.
        while acknowledged and self._accepted:
            accepted_s, number = self._accepted.popleft()
            if number > acknowledged:
                self._accepted.appendleft((accepted_s, number - acknowledged))
                number = acknowledged
            self._counts.ack_seconds.observe(now_s - accepted_s, number)
            acknowledged -= number

    def _fail(self, error: CommitError, new: list[Accepted]) -> None:
        self.failed = error
        self._writing = None
        self._idle.set()
        for awaited in self._awaited:
            if not awaited.future.done():
                awaited.future.set_exception(error)
        self._on_failed(error, new + self._new)


@dataclass(slots=True, eq=False)
class _Awaited:
    """A change that somebody waits for."""

    change: Change
    future: asyncio.Future[None]

    def apply(self, transaction: Transaction) -> None:
        self.change.apply(transaction)

    def durable(self) -> None:
        self.change.durable()
        if not self.future.done():
            self.future.set_result(None)


@dataclass(slots=True, eq=False)
class _Touched:
    """A change that only has the checkpoints of these queues written."""

    queues: list[QueueState]

    def apply(self, transaction: Transaction) -> None:
        transaction.touch(self.queues)

    def durable(self) -> None:
        pass
