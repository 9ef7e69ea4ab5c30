"""The bridge: an advisory that a consumer gave a message up, the message from its stream, and one commit.

    advisory ──▶ marked here already? ──yes──────────────────────────────────────▶ ack ──▶ unmark
                        │ no                                                        ▲
                        ▼                                                           │
                 get by sequence ──gone───────────────────────────────────────────▶─┤
                        ▼                                                           │
                 pending here by its id, without a mark ─────────────────────────▶─┤
                        ▼                                                           │
                 checked as at the intake ──refused for good──▶ dead letter invalid─┤
                        ▼                                                           │
                 message or dead letter, and mark: one batch, fsync ──▶ delete ─────┘

Each advisory goes to one worker of the group. Where a stream captures the advisories, one is acked only after the fsync;
what goes wrong for now (no room, no answer) comes again. Docs: docs/jetstream.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from requeue_protocol.errors import RefusedError
from requeue_worker.bridge.changes import Bury, Take, Unmark
from requeue_worker.bridge.message import Advisory, Stored, block_for, read_advisory, round_of
from requeue_worker.bridge.settings import BridgedConsumer, BridgeSettings
from requeue_worker.broker.jetstream import JetStreamTrouble, Messages, Notice, Source
from requeue_worker.broker.parser import Raw
from requeue_worker.counts import Counts
from requeue_worker.deadletters import DeadLetters
from requeue_worker.errors import CommitError
from requeue_worker.ingest import Ingest
from requeue_worker.record import DeadReason, decode
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.keys import META_BRIDGED, TIME
from requeue_worker.storage.store import Store
from requeue_worker.supervisor import ended

log = logging.getLogger(__name__)

AGAIN_S: Final = 2.0
MARK_KEPT_NS: Final = 7 * 24 * 3600 * 10**9  #: an advisory that did not come again for so long was acked
_MARKS: Final = 100_000


class Bridge:
    """Takes over what JetStream consumers gave up."""

    def __init__(
        self,
        settings: BridgeSettings,
        store: Store,
        committer: Committer,
        ingest: Ingest,
        dead_letters: DeadLetters,
        counts: Counts,
        clock: Callable[[], int],
        *,
        messages: Messages,
        source: Source,
    ) -> None:
        self._settings = settings
        self._store = store
        self._committer = committer
        self._ingest = ingest
        self._dead_letters = dead_letters
        self._counts = counts
        self._clock = clock
        self._messages = messages
        self._source = source
        #: advisories that are done here and not acked yet, as on disk
        self._marks: set[bytes] = set()
        self._at_work: set[bytes] = set()
        self._running: asyncio.Task[None] | None = None
        self._batch: asyncio.Future[list[None]] | None = None

    async def run_forever(self) -> None:
        """Take advisories until `stop`."""
        self._running = asyncio.current_task()
        await self._load()
        trouble = ""
        while True:
            try:
                notices = await self._source.fetch()
            except JetStreamTrouble as error:
                if str(error) != trouble:
                    log.warning("bridge: no advisories, trying on", extra={"error": str(error)})
                trouble = str(error)
                await asyncio.sleep(AGAIN_S)
                continue
            trouble = ""
            self._batch = asyncio.gather(*[self._deal_with(notice) for notice in notices])
            await asyncio.shield(self._batch)

    async def stop(self) -> None:
        """Take no more advisories; those that are being written are finished, others come again."""
        await ended(self._running)
        if self._batch is not None:
            await asyncio.wait([self._batch])  # its error, if any, has ended the worker already

    async def _load(self) -> None:
        """Advisories that an earlier run committed and perhaps did not ack."""
        old: list[bytes] = []
        for key, value in await self._store.marks(META_BRIDGED, _MARKS):
            mark = key[len(META_BRIDGED) :]
            if TIME.unpack(value)[0] + MARK_KEPT_NS < self._clock():
                old.append(mark)
            else:
                self._marks.add(mark)
        if old:
            self._committer.submit(Unmark(old))

    async def _deal_with(self, notice: Notice) -> None:
        try:
            advisory = read_advisory(notice.payload)
        except (ValueError, RecursionError) as error:
            log.warning("bridge: not an advisory", extra={"error": str(error)})
            await self._ack(notice, None)
            return
        wanted = self._settings.for_advisory(advisory.stream, advisory.consumer)
        mark = advisory.mark
        if wanted is None:
            await self._ack(notice, None)
        elif mark not in self._at_work:  # else it comes again, when the first one has failed
            self._at_work.add(mark)
            try:
                await self._take_over(notice, advisory, wanted)
            except (JetStreamTrouble, RefusedError, CommitError) as error:
                self._count(advisory, "again")
                log.info("bridge: later", extra={"id": advisory.id, "error": str(error)})
                await notice.again(AGAIN_S)
            finally:
                self._at_work.discard(mark)

    async def _take_over(self, notice: Notice, advisory: Advisory, wanted: BridgedConsumer) -> None:
        mark = advisory.mark
        if mark not in self._marks:
            stored = await self._messages.get(advisory.stream, advisory.sequence)
            if stored is None:
                self._count(advisory, "gone")
                log.warning("bridge: the message is gone from its stream", extra={"id": advisory.id})
                await self._ack(notice, None)
                return
            if await self._is_pending(advisory.id.encode(), stored):
                result = "known"
            else:
                result = await self._commit(advisory, stored, wanted, mark if notice.comes_again else None)
            self._count(advisory, result)
            log.info("bridge: taken over", extra={"id": advisory.id, "result": result})
            self._marks.add(mark)
        if wanted.delete:
            await self._messages.delete(advisory.stream, advisory.sequence)
        await self._ack(notice, mark)

    async def _is_pending(self, client_id: bytes, stored: Stored) -> bool:
        """Whether its message is here without a mark: merged or handed over from the worker that had taken it.

        The id alone would not do: a client may have used the same for something else.
        """
        [keys] = await self._store.keys_of_ids([client_id])
        values = await self._store.get_messages(keys)
        return any(value is not None and decode(value).payload == stored.payload for value in values)

    async def _commit(
        self, advisory: Advisory, stored: Stored, wanted: BridgedConsumer, mark: bytes | None
    ) -> str:
        """Write the message; on return it is on disk. Raises a transient RefusedError or CommitError."""
        block = block_for(advisory, stored, wanted)
        requeue = wanted.action == "requeue" and round_of(stored) <= wanted.rounds
        try:
            message = self._ingest.prepare(block, stored.payload, limited=requeue)
        except RefusedError as error:
            if not error.permanent:
                raise
            kept = asyncio.get_running_loop().create_future()
            raw: Raw = (b"", b"", block, stored.payload)
            self._dead_letters.keep_invalid(raw, error, lambda: kept.set_result(None))
            await kept
            return "invalid"
        if requeue:
            await self._committer.commit(Take(message, self._committer.ids, mark))
            return "requeued"
        queue = message.lane.queue
        announce, publish = self._dead_letters.announcer(queue)
        await self._committer.commit(
            Bury(
                message,
                self._committer.mint_id(),
                advisory.deliveries,
                advisory.text,
                announce,
                publish,
                mark,
            )
        )
        queue.counts.dead[str(DeadReason.EXHAUSTED)] += 1
        return "dead"

    async def _ack(self, notice: Notice, mark: bytes | None) -> None:
        try:
            await notice.ack()
        except JetStreamTrouble as error:
            log.info("bridge: an advisory may come again", extra={"error": str(error)})
            return
        if mark is not None:
            self._marks.discard(mark)
            if notice.comes_again:
                self._committer.submit(Unmark([mark]))

    def _count(self, advisory: Advisory, result: str) -> None:
        self._counts.bridged[advisory.stream, advisory.consumer, result] += 1


def subjects_of(settings: BridgeSettings) -> Sequence[str]:
    """Subjects of the advisories that are wanted."""
    return [each.advisories for each in settings.consumers]
