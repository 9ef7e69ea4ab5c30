"""The changes of a merge, as the committer takes them: each is one WriteBatch here, with the mark that says how far.

Keys are taken over as they are, so a message has the same Requeue-Id and due time here as there. A queue that is new
here is made, beyond `max_queues` too: a merge is never refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from requeue_worker.deadletters import DeadLetters
from requeue_worker.faults import fault_point
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.claims import mark_key, put_mark
from requeue_worker.storage.pages import START, Mark, Page
from requeue_worker.storage.queues import INVALID_QUEUE
from requeue_worker.storage.transaction import Transaction


@dataclass(slots=True)
class Begin:
    """What a directory has beside records: paused queues, and marks of merges that it had not finished."""

    uid: bytes
    registry: QueueRegistry
    paused: dict[str, int]
    marks: dict[bytes, Mark]
    own_marks: dict[bytes, Mark]

    def apply(self, transaction: Transaction) -> None:
        """A pause holds as long as the longer one; of two marks the further one is right."""
        for name, until_ns in self.paused.items():
            queue = self.registry.adopt(name)
            queue.paused_until_ns = max(queue.paused_until_ns, until_ns)
            transaction.touch([queue])
        for uid, mark in self.marks.items():
            put_mark(transaction.batch, uid, max(mark, self.own_marks.get(uid, START)))
        put_mark(transaction.batch, self.uid, START)

    def durable(self) -> None:
        """Nothing waits for it."""
        fault_point("merge: begun")


@dataclass(slots=True)
class Adopt:
    """A page of records, and the mark that they are here."""

    uid: bytes
    page: Page
    registry: QueueRegistry
    dead_letters: DeadLetters

    def apply(self, transaction: Transaction) -> None:
        """Write the records and what belongs to them."""
        adopt_page(transaction, self.page, self.registry, self.dead_letters)
        put_mark(transaction.batch, self.uid, self.page.mark)

    def durable(self) -> None:
        """Dead letters wait for their publisher and for their end, here now."""
        fault_point("merge: page durable")
        if self.page.phase == 2:
            self.dead_letters.adopted(self.page.unpublished)


def adopt_page(
    transaction: Transaction, page: Page, registry: QueueRegistry, dead_letters: DeadLetters
) -> None:
    """Write a page's records and what belongs to them."""
    for group in page.groups:
        queue = registry.adopt(group.queue)
        if group.priority is not None:
            transaction.adopt(queue.lane(group.priority), group.records, group.size)
            continue
        transaction.adopt_dead(queue, group.records, group.size)
        if group.queue == INVALID_QUEUE:
            dead_letters.adopt_invalid(transaction, queue, group.records)
    for entry, key in page.ids:
        transaction.adopt_id(entry, key)
    dead_letters.mark_unpublished(transaction, page.unpublished)


@dataclass(slots=True)
class Forget:
    """The source is gone, so its mark may go."""

    uid: bytes

    def apply(self, transaction: Transaction) -> None:
        """Remove the mark."""
        transaction.batch.delete_meta(mark_key(self.uid))

    def durable(self) -> None:
        """Nothing waits for it."""
        fault_point("merge: mark dropped")
