"""What the bridge writes: a message or a dead letter, and with it a mark that this advisory is done.

The mark is in the same batch as the message, and goes once JetStream has taken the ack. So an advisory that comes again
after a crash in between makes no second copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from requeue_worker.record import HEAD_TIMES, Attempt, DeadReason, decode, encode
from requeue_worker.storage.keys import META_BRIDGED, TIME
from requeue_worker.storage.transaction import Ids, NewMessage, Transaction


@dataclass(slots=True)
class Take:
    """Edge a, for a message of a stream: the message is pending."""

    message: NewMessage
    ids: Ids
    mark: bytes | None

    def apply(self, transaction: Transaction) -> None:
        """Write the message and the mark."""
        transaction.insert_new([self.message], self.ids)
        write_mark(transaction, self.mark)

    def durable(self) -> None:
        """The bridge waits for the commit itself."""


@dataclass(slots=True)
class Bury:
    """Edge i, for a message of a stream: the message is a dead letter at once, its deliveries there are its history."""

    message: NewMessage
    message_id: bytes
    deliveries: int
    why: str
    announce: Callable[[bytes], None] | None
    publish: Callable[[Transaction, bytes], None] | None
    mark: bytes | None
    dead_key: bytes = b""

    def apply(self, transaction: Transaction) -> None:
        """Write the dead letter and the mark."""
        message, now_ns = self.message, transaction.now_ns
        record = decode(message.head + HEAD_TIMES.pack(now_ns, 0) + message.tail)
        extras = record.extras
        extras.remember(Attempt(self.deliveries, now_ns, self.why))
        extras.reason, extras.died_ns = str(DeadReason.EXHAUSTED), now_ns
        message.lane.queue.waiting -= 1
        message.lane.queue.waiting_bytes -= message.size
        value = encode(record, attempts=self.deliveries, extras=extras)
        self.dead_key = transaction.add_dead(message.lane.queue, self.message_id, value, record.size)
        if self.publish is not None:
            self.publish(transaction, self.dead_key)
        write_mark(transaction, self.mark)

    def durable(self) -> None:
        """Tell the publisher of dead letters."""
        if self.announce is not None:
            self.announce(self.dead_key)


@dataclass(slots=True)
class Unmark:
    """JetStream has taken the ack: the advisory does not come again."""

    marks: list[bytes]

    def apply(self, transaction: Transaction) -> None:
        """Remove the marks."""
        for mark in self.marks:
            transaction.batch.delete_meta(META_BRIDGED + mark)

    def durable(self) -> None:
        """Nothing waits for it."""


def write_mark(transaction: Transaction, mark: bytes | None) -> None:
    """Say that this advisory is done, and since when."""
    if mark is not None:
        transaction.batch.put_meta(META_BRIDGED + mark, TIME.pack(transaction.now_ns))
