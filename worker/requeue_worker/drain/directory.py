"""An instance directory on the volume that is drained: what it has, whom it is handed to, and taking that away from it.

    FREE ──choose──▶ CHOSEN ──first page──▶ SENT ──target told its last mark──▶ FREE, under another uid
                                                                                       (each arrow one fsync)

`claim` on its disk names the chosen worker, as a merge's does; `handover` beside it says that a drain wrote it, and
whether a page may have been sent. Then there may be pages on that worker's disk which are here still, so that it goes only
when the worker has told how far it came; before, anybody else may be chosen.
A uid belongs to one choice: a mark that is made of it anywhere descends from the worker that was chosen under it.

Everything here blocks and runs on the drain's own thread, one call at a time.
"""

from __future__ import annotations

import os
import time
from typing import Final

from requeue_worker.drain.messages import Luggage
from requeue_worker.reaper.source import Source
from requeue_worker.storage.claims import (
    META_CLAIM,
    META_HANDOVER,
    META_UID,
    Claim,
    claim_of,
    mark_key,
    take_over,
    uid_of,
)
from requeue_worker.storage.keys import meta_queue_key
from requeue_worker.storage.pages import Mark, Page, check_empty, pages, queues_of, trim
from requeue_worker.storage.queues import unpaused
from requeue_worker.storage.rocksdb import META

HOLDER: Final = "drain"
#: behind what `handover` says otherwise. An older release takes it for a merge that moved nothing: true as well
_NOTHING_SENT: Final = b"nothing sent"


class Directory(Source):
    """A locked directory. `open` raises as Source's."""

    @property
    def chosen(self) -> Claim | None:
        """The worker that it is handed to; None when there is none such."""
        claim = claim_of(self.engine)
        if claim is None or self._handover not in (
            self.uid + claim.uid,
            self.uid + claim.uid + _NOTHING_SENT,
        ):
            return None
        return claim

    @property
    def sent(self) -> bool:
        """Whether the chosen worker may have taken what is here still."""
        return self.chosen is not None and not self._handover.endswith(_NOTHING_SENT)

    @property
    def _handover(self) -> bytes:
        return self.engine.get(META, META_HANDOVER) or b""

    def finish_merge(self) -> None:
        """Where a neighbour on this volume had begun to merge it: nobody has what it has, from now on."""
        if self.chosen is None and claim_of(self.engine) is not None:
            take_over(self.engine, self.path, Claim(self.uid, HOLDER), lambda _: None, take_back=True)
            self.uid = uid_of(self.engine)

    def choose(self, target: Claim) -> None:
        """Write down whom it is handed to, under a new uid. Durable when this returns."""
        self.uid = os.urandom(len(self.uid))
        batch = self.engine.batch()
        batch.put_meta(META_UID, self.uid)
        batch.put_meta(META_CLAIM, target.encode())
        batch.put_meta(META_HANDOVER, self.uid + target.uid + _NOTHING_SENT)
        self._tenure.check()
        self.engine.write(batch)

    def note_sending(self) -> None:
        """Write down, before the first page goes out, that the chosen worker may have some. Durable when this returns."""
        if self.sent:
            return
        batch = self.engine.batch()
        batch.put_meta(META_HANDOVER, self._handover.removesuffix(_NOTHING_SENT))
        self._tenure.check()
        self.engine.write(batch)

    def let_go(self, emptied: bool) -> None:
        """It is nobody's again, and so is all that was removed. Durable when this returns.

        With `emptied` what it had beside records is gone, too. Raises DataDamaged when its counters say otherwise.
        """
        self.stop_reading()
        batch = self.engine.batch()
        if emptied:
            check_empty(self.engine)
            for uid in self.marks():
                batch.delete_meta(mark_key(uid))
            for queue, until_ns in self.paused().items():
                key = meta_queue_key(queue)
                if until_ns and (stored := self.engine.get(META, key)) is not None:
                    batch.put_meta(key, unpaused(stored))
        self.uid = os.urandom(len(self.uid))
        batch.put_meta(META_UID, self.uid)
        batch.delete_meta(META_CLAIM)
        batch.delete_meta(META_HANDOVER)
        self._tenure.check()
        self.engine.write(batch)

    def luggage(self) -> Luggage:
        """What it has beside records."""
        now_ns = time.time_ns()
        return Luggage(
            {queue: until_ns for queue, until_ns in self.paused().items() if until_ns > now_ns}, self.marks()
        )

    def left(self) -> int:
        """Records, by its counters. Raises DataDamaged."""
        return sum(pending + dead for pending, dead, _ in queues_of(self.engine).values())

    def first_page(self, page_bytes: int) -> Page | None:
        """Start reading, with pages of about so many bytes. Raises as `next_page`."""
        self.stop_reading()
        self._pages = pages(self.engine, page_bytes=page_bytes)
        return self.next_page()

    def trim_to(self, mark: Mark) -> int:
        """Remove everything up to the mark. Returns how many records that were."""
        self.stop_reading()
        count = 0
        for page in pages(self.engine, until=mark):
            trim(self.engine, page)
            count += len(page)
        return count

    def stop_reading(self) -> None:
        """Let go of the page that is read ahead."""
        self._stop_reading()
