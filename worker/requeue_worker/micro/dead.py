"""Endpoints `dead-delete`, `dead-export`, `dead-known` and `dead-import`, page by page as those that look.

Whoever removes or imports dead letters holds `DeadLetters.leaving` from its look at them until its commit is durable.
So none is removed twice, and none imported twice. Edges l and n of docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from requeue_protocol.dead_letters import (
    DeadDeleteAnswer,
    DeadDeleteRequest,
    DeadExportAnswer,
    DeadExportRequest,
    DeadFilter,
    DeadImportAnswer,
    DeadImportRequest,
    DeadKnownAnswer,
    DeadKnownRequest,
    DeadLetter,
    RefusedLetter,
    pack,
    unpack,
)
from requeue_protocol.durations import format_duration
from requeue_protocol.errors import DiskFull, MalformedMessage, RefusedError
from requeue_worker.changes import RemoveDead
from requeue_worker.counts import Counts
from requeue_worker.deadletters import DeadLetters
from requeue_worker.letters import letter_of, value_of
from requeue_worker.micro.filters import wanted_by
from requeue_worker.micro.overview import ENVELOPE_BYTES
from requeue_worker.micro.scans import Range, Scan, look, read_cursor
from requeue_worker.micro.turns import Turns
from requeue_worker.record import decode
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.keys import TIME, after_prefix, dead_key, id_of, queue_of, queue_prefix
from requeue_worker.storage.queues import INVALID_QUEUE
from requeue_worker.storage.rocksdb import DEAD, Engine
from requeue_worker.storage.store import Store
from requeue_worker.storage.transaction import Transaction

log = logging.getLogger(__name__)

PAGE_LETTERS: Final = 256
JSON_BYTES: Final = 4096  #: of an import's JSON beyond twice the bytes of the largest message


class DeadEndpoints:
    """What can be done about dead letters besides redriving them."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        registry: QueueRegistry,
        dead_letters: DeadLetters,
        instance_id: str,
        clock: Callable[[], int],
        counts: Counts,
        turns: Turns,
        *,
        max_payload: Callable[[], int],
        has_room: Callable[[], bool],
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._dead_letters = dead_letters
        self._instance_id = instance_id
        self._clock = clock
        self._counts = counts
        self._turns = turns
        self._max_payload = max_payload
        self._has_room = has_room

    # -- delete ----------------------------------------------------------------------------------------------

    async def delete(self, request: DeadDeleteRequest) -> DeadDeleteAnswer:
        """Delete what a bounded look finds. Raises ValueError for a cursor that is none."""
        async with self._turns.turn(), self._dead_letters.leaving:
            if request.keys is None:
                ranges, wanted = self._ranges(request, read_cursor(request.after)), wanted_by(request)
                limit, is_short = self._turns.most(PAGE_LETTERS), self._turns.beside_intake
                scan = await self._store.browse(
                    lambda engine: look(engine, DEAD, ranges, limit, wanted, is_short=is_short)
                )
            else:
                keys = [bytes.fromhex(key) for key in request.keys]
                scan = await self._store.browse(lambda engine: _pick(engine, keys))
            deleted = await self._remove(scan.found)
        self._counts.dead_letters_deleted += deleted
        if deleted:
            said = request.model_dump(exclude_none=True, exclude={"keys", "after"})
            log.info("dead letters deleted", extra={"count": deleted, "request": said})
        return DeadDeleteAnswer(
            instance=self._instance_id, deleted=deleted, scanned=scan.scanned, next=scan.cursor
        )

    async def _remove(self, found: Iterable[tuple[bytes, bytes]]) -> int:
        by_queue: defaultdict[str, list[tuple[bytes, int]]] = defaultdict(list)
        for key, value in found:
            by_queue[queue_of(key)].append((key, decode(value).size))
        changes = [
            RemoveDead(
                self._registry.by_name[name],
                letters,
                self._dead_letters.still_kept if name == INVALID_QUEUE else None,
            )
            for name, letters in by_queue.items()
            if name in self._registry.by_name
        ]
        await asyncio.gather(*[self._committer.commit(change) for change in changes])
        return sum(len(change.letters) for change in changes)

    # -- export ----------------------------------------------------------------------------------------------

    async def export(self, payload: bytes) -> bytes:
        """A page of whole dead letters, as packed JSON. Raises ValueError for what is no request."""
        request = DeadExportRequest.model_validate_json(payload or b"{}")
        limit = self._max_payload()
        after = read_cursor(request.after)
        wanted = wanted_by(request)
        async with self._turns.turn():
            ranges = self._ranges(request, after)
            most, is_short = self._turns.most(PAGE_LETTERS), self._turns.beside_intake

            def read(engine: Engine) -> bytes:
                return self._page(look(engine, DEAD, ranges, most, wanted, is_short=is_short), limit)

            return await self._store.browse(read)

    def _page(self, scan: Scan, limit: int) -> bytes:
        """As many letters as fit one message; the first may need to be compressed for it."""
        letters: list[DeadLetter] = []
        keys: list[str] = []
        too_large: list[str] = []
        room, stopped = limit - ENVELOPE_BYTES, scan.stopped
        for number, (key, value) in enumerate(scan.found):
            letter = letter_of(key, value)
            line = letter.model_dump_json().encode()
            if not letters and len(line) > room and len(zlib.compress(line)) > room:
                too_large.append(letter.id)
                continue
            if letters and len(line) + 2 * len(key) > room:
                stopped = scan.found[number - 1][0]
                break
            letters.append(letter)
            keys.append(key.hex())
            room -= len(line) + 2 * len(key) + 8
        answer = DeadExportAnswer(
            instance=self._instance_id,
            letters=letters,
            keys=keys,
            too_large=too_large,
            next=None if stopped is None else stopped.hex(),
        )
        return pack(answer.model_dump_json().encode(), limit)

    # -- import ----------------------------------------------------------------------------------------------

    async def known(self, request: DeadKnownRequest) -> DeadKnownAnswer:
        """Which of these are there."""
        keys = [bytes.fromhex(key) for key in request.keys]
        present = await self._present(keys, [each.encode() for each in request.ids])
        return DeadKnownAnswer(instance=self._instance_id, keys=sorted(key.hex() for key in present))

    async def _present(self, keys: list[bytes], client_ids: list[bytes]) -> set[bytes]:
        """Those that are dead here, or pending again: for that the index of client ids is asked, and no queue walked."""
        dead, pending = await asyncio.gather(
            self._store.present(DEAD, keys), self._store.keys_of_ids(client_ids)
        )
        again = {id_of(key) for found in pending for key in found}
        return dead | {key for key in keys if id_of(key) in again}

    async def import_letters(self, payload: bytes) -> bytes:
        """Make dead letters of what is neither dead nor pending here. Raises ValueError for what is no request, DiskFull."""
        most = 2 * self._max_payload() + JSON_BYTES
        request = DeadImportRequest.model_validate_json(unpack(payload, most))
        if not self._has_room():
            raise DiskFull("the disk is full: import again when there is room")
        values: dict[bytes, bytes] = {}
        refused: list[RefusedLetter] = []
        for index, letter in enumerate(request.letters):
            try:
                self._check(letter)
                key = dead_key(letter.queue, letter.died_ns, bytes.fromhex(letter.id))
                values.setdefault(key, value_of(letter))
            except RefusedError as error:
                refused.append(RefusedLetter(index=index, error=str(error)))
        imported, items = 0, list(values.items())
        while items:
            async with self._turns.turn(), self._dead_letters.leaving:
                most = self._turns.most(PAGE_LETTERS)
                step, items = dict(items[:most]), items[most:]
                client_ids = [decode(value).client_id for value in step.values()]
                present = await self._present(list(step), [each for each in client_ids if each is not None])
                new = {key: value for key, value in step.items() if key not in present}
                if new:
                    await self._committer.commit(_AddDead(self._registry, self._dead_letters, new))
                    self._counts.dead_letters_imported += len(new)
                    imported += len(new)
        self._dead_letters.forget_retention()
        if imported:
            log.info("dead letters imported", extra={"count": imported})
        known = len(request.letters) - len(refused) - imported
        answer = DeadImportAnswer(instance=self._instance_id, imported=imported, known=known, refused=refused)
        return answer.model_dump_json().encode()

    def _check(self, letter: DeadLetter) -> None:
        """Raise RefusedError for what may not stand here: its subject, or its age."""
        if letter.queue == INVALID_QUEUE:
            return
        policy = self._registry.named(letter.queue, letter.subject.encode()).policy
        age_ns = self._clock() - letter.died_ns
        if age_ns > policy.dead_letter_retention_ns:
            kept = format_duration(policy.dead_letter_retention_ns)
            raise MalformedMessage(
                f"it died {format_duration(age_ns // 10**9 * 10**9)} ago and would be forgotten at once: queue "
                f"{letter.queue} keeps dead letters for {kept}; raise its dead_letter_retention first"
            )

    # -- where -----------------------------------------------------------------------------------------------

    def _ranges(self, request: DeadFilter, after: bytes) -> list[Range]:
        ranges = []
        for queue in self._registry:
            if not queue.dead or request.queue not in (None, queue.name):
                continue
            prefix, end = queue_prefix(queue.name), after_prefix(queue_prefix(queue.name))
            if request.died_before_ns is not None:
                end = prefix + TIME.pack(request.died_before_ns)
            start = max(prefix, after + b"\x00") if after else prefix
            if start < end:
                ranges.append((start, end))
        return sorted(ranges)


@dataclass(slots=True)
class _AddDead:
    """Edge n: dead letters of an export are dead letters here, under the keys that they had."""

    registry: QueueRegistry
    dead_letters: DeadLetters
    values: dict[bytes, bytes]
    by_queue: defaultdict[str, list[tuple[bytes, bytes]]] = field(default_factory=lambda: defaultdict(list))

    def apply(self, transaction: Transaction) -> None:
        """Write them; of refused messages the oldest may go for it."""
        for item in self.values.items():
            self.by_queue[queue_of(item[0])].append(item)
        for name, letters in self.by_queue.items():
            queue = self.registry.adopt(name)
            transaction.adopt_dead(queue, letters, sum(decode(value).size for _, value in letters))
            if name == INVALID_QUEUE:
                self.dead_letters.adopt_invalid(transaction, queue, letters)

    def durable(self) -> None:
        """Nothing waits for it."""


def _pick(engine: Engine, keys: list[bytes]) -> Scan:
    found = [(key, value) for key in dict.fromkeys(keys) if (value := engine.get(DEAD, key)) is not None]
    return Scan(found, len(keys), None)
