"""The changes of a handover in the target's store, each one WriteBatch with the mark that says how far (as a merge's)."""

from __future__ import annotations

from dataclasses import dataclass

from requeue_worker.deadletters import DeadLetters
from requeue_worker.faults import fault_point
from requeue_worker.reaper.merge import adopt_page
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.claims import mark_key, put_mark
from requeue_worker.storage.pages import Mark, Page
from requeue_worker.storage.transaction import Transaction


@dataclass(slots=True)
class TakeLuggage:
    """What the source has beside records. A pause holds as long as the longer one, a mark is never put back."""

    source: bytes
    mark: Mark
    paused: dict[str, int]
    marks: dict[bytes, Mark]
    registry: QueueRegistry

    def apply(self, transaction: Transaction) -> None:
        """Write pauses and marks."""
        for name, until_ns in self.paused.items():
            queue = self.registry.adopt(name)
            queue.paused_until_ns = max(queue.paused_until_ns, until_ns)
            transaction.touch([queue])
        for uid, mark in self.marks.items():
            put_mark(transaction.batch, uid, mark)
        put_mark(transaction.batch, self.source, self.mark)

    def durable(self) -> None:
        """Nothing waits for it."""
        fault_point("handover: begun")


@dataclass(slots=True)
class TakePage:
    """Records, and the mark that they are here. The page may have fewer than the source sent: none, if all were here."""

    source: bytes
    mark: Mark
    page: Page
    registry: QueueRegistry
    dead_letters: DeadLetters

    def apply(self, transaction: Transaction) -> None:
        """Write the records and what belongs to them."""
        adopt_page(transaction, self.page, self.registry, self.dead_letters)
        put_mark(transaction.batch, self.source, self.mark)

    def durable(self) -> None:
        """Dead letters wait for their publisher and for their end, here now."""
        fault_point("handover: page durable")
        if self.page.phase == 2:
            self.dead_letters.adopted(self.page.unpublished)


@dataclass(slots=True)
class DropMark:
    """The source has let go of its target, under another uid: nobody asks for this mark any more."""

    source: bytes

    def apply(self, transaction: Transaction) -> None:
        """Remove the mark."""
        transaction.batch.delete_meta(mark_key(self.source))

    def durable(self) -> None:
        """Nothing waits for it."""
        fault_point("handover: mark dropped")
