"""The changes that end or move messages, as the committer takes them (`storage.committer.Change`).

Each is decided on the event loop, written into the next transaction, and told when that is durable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from requeue_worker.faults import fault_point
from requeue_worker.inflight import Delivery
from requeue_worker.record import MAX_TIME_NS, Attempt, DeadReason, Record, encode
from requeue_worker.revival import Revived
from requeue_worker.storage.keys import META_MARK, TIME, id_of, ids_prefix, retimed
from requeue_worker.storage.queues import Lane, QueueState
from requeue_worker.storage.transaction import Transaction


def key_time_ns(due_ns: int, deadline_ns: int) -> int:
    """The time that a message is keyed by: due or deadline, the earlier."""
    due_ns = min(due_ns, MAX_TIME_NS)
    return min(due_ns, deadline_ns) if deadline_ns else due_ns


@dataclass(slots=True)
class Requeue:
    """Edges d, e and j: the message is due again at `due_ns`; `attempt` is remembered when one was spent."""

    lane: Lane
    key: bytes
    record: Record
    due_ns: int
    attempt: Attempt | None

    def apply(self, transaction: Transaction) -> None:
        """Write the message under its new time."""
        record, value = self.record, self.record.value
        if self.attempt is not None:
            extras = record.extras
            extras.remember(self.attempt)
            value = encode(record, attempts=self.attempt.number, extras=extras)
        new_key = retimed(self.key, key_time_ns(self.due_ns, record.deadline_ns))
        transaction.requeue(self.lane, self.key, new_key, value, record.client_id)

    def durable(self) -> None:
        """Nothing waits for it."""


@dataclass(slots=True)
class Remove:
    """Edges h and k: the message goes without a trace but its count. `done` hears when that is durable."""

    lane: Lane
    key: bytes
    record: Record
    done: Callable[[], None] | None = None

    def apply(self, transaction: Transaction) -> None:
        """Remove the message."""
        transaction.remove(self.lane, self.key, self.record.size, self.record.client_id)

    def durable(self) -> None:
        """Tell whoever asked."""
        if self.done is not None:
            self.done()


@dataclass(slots=True)
class Rekey:
    """A long job moves to its ack deadline, so that the checkpoint is not pinned by it. It stays in flight."""

    delivery: Delivery
    time_ns: int
    still_in_flight: Callable[[Delivery], bool]

    def apply(self, transaction: Transaction) -> None:
        """Write the same value under the new time, unless the delivery was answered meanwhile."""
        delivery = self.delivery
        if not self.still_in_flight(delivery):
            return
        old_key, lane = delivery.key, delivery.lane
        new_key = retimed(old_key, self.time_ns)
        # It is there already; a rewrite would let go of the key, and it would be read again.
        if new_key == old_key:
            return
        # Nor may it go back to a key that it had, whose removal is still to come: that would let go of it too.
        time_ns = self.time_ns
        while new_key in lane.unsettled:
            time_ns += 1
            new_key = retimed(old_key, time_ns)
        transaction.rewrite(lane, old_key, new_key, delivery.value, delivery.client_id)
        lane.hold(new_key, delivery)
        delivery.key = new_key

    def durable(self) -> None:
        """Nothing waits for it."""


@dataclass(slots=True)
class Entomb:
    """Edges f and g: the message becomes a dead letter. `announce` gets its key when that is durable."""

    lane: Lane
    key: bytes
    record: Record
    reason: DeadReason
    attempt: Attempt | None
    announce: Callable[[bytes], None] | None
    mark: Callable[[Transaction, bytes], None] | None
    dead_key: bytes = b""

    def apply(self, transaction: Transaction) -> None:
        """Write the dead letter with its reason and history, and remove the pending message."""
        record, extras = self.record, self.record.extras
        attempts = record.attempts
        if self.attempt is not None:
            extras.remember(self.attempt)
            attempts = self.attempt.number
        extras.reason, extras.died_ns = str(self.reason), transaction.now_ns
        value = encode(record, attempts=attempts, extras=extras)
        self.dead_key = transaction.bury(self.lane, self.key, value, record.size, record.client_id)
        if self.mark is not None:
            self.mark(transaction, self.dead_key)

    def durable(self) -> None:
        """Tell the publisher of dead letters."""
        if self.announce is not None:
            self.announce(self.dead_key)


@dataclass(slots=True)
class RemoveDead:
    """Edge l: dead letters (key and size) go, and with them the marks that they are still to be published.

    `leaving` says which of them are there still, where others than the holder of `DeadLetters.leaving` remove some.
    """

    queue: QueueState
    letters: list[tuple[bytes, int]]
    leaving: Callable[[list[tuple[bytes, int]]], list[tuple[bytes, int]]] | None = None

    def apply(self, transaction: Transaction) -> None:
        """Remove them."""
        if self.leaving is not None:
            self.letters = self.leaving(self.letters)
        for key, size in self.letters:
            transaction.remove_dead(self.queue, key, size)
            transaction.batch.delete_meta(META_MARK + key)

    def durable(self) -> None:
        """Nothing waits for it."""


@dataclass(slots=True)
class Redrive:
    """Edge m: dead letters of a queue are pending again under the ids that they had, due at `due_ns`."""

    queue: QueueState
    letters: list[Revived]
    due_ns: int

    def apply(self, transaction: Transaction) -> None:
        """Write the messages and remove the dead letters, all in this one transaction."""
        for letter in self.letters:
            transaction.remove_dead(self.queue, letter.dead_key, letter.dead_size)
            transaction.batch.delete_meta(META_MARK + letter.dead_key)
        by_lane = sorted(self.letters, key=lambda letter: letter.priority)
        for priority, letters in groupby(by_lane, key=lambda letter: letter.priority):
            self._insert(transaction, self.queue.lane(priority), list(letters))
        fault_point("redrive: step sealed")

    def _insert(self, transaction: Transaction, lane: Lane, letters: list[Revived]) -> None:
        messages = []
        for letter in letters:
            time_ns = TIME.pack(key_time_ns(self.due_ns, letter.deadline_ns))
            key = lane.prefix + time_ns + id_of(letter.dead_key)
            messages.append((key, letter.value))
            if letter.client_id is not None:
                transaction.adopt_id(ids_prefix(letter.client_id) + id_of(key), key)
        transaction.adopt(lane, sorted(messages), sum(letter.size for letter in letters))

    def durable(self) -> None:
        """Nothing waits for it."""
