"""Dead letters beyond the burial itself: refused messages kept, publishing to `dead_letter_subject`, retention.

A burial that is to be published carries a mark in the same transaction; the mark goes once the server has the message.
So a dead letter is published at least once, whatever crashes in between.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from requeue_protocol.errors import RefusedError
from requeue_worker.broker.nats import Broker
from requeue_worker.broker.parser import Raw
from requeue_worker.changes import RemoveDead
from requeue_worker.record import (
    HEAD,
    PLAIN,
    RECORD_VERSION,
    Attempt,
    DeadReason,
    Extras,
    decode,
)
from requeue_worker.registry import QueueRegistry
from requeue_worker.replay import block_for
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.keys import META_MARK, SUFFIX_LEN, time_of
from requeue_worker.storage.queues import INVALID_QUEUE, NEVER, QueueState
from requeue_worker.storage.store import Store
from requeue_worker.storage.transaction import Transaction
from requeue_worker.wire import hpub

log = logging.getLogger(__name__)

MARK = META_MARK
RETENTION_INTERVAL_S = 60.0
RETRY_S = 5.0
_PAGE = 512  #: letters handled at once, and
_PAGE_BYTES = 4 << 20  #: their bytes
INVALID_BYTES = 64 << 20  #: refused messages kept have no more bytes together, however few they are


class DeadLetters:
    """What happens to dead letters after (and, for refused messages, instead of) a life as pending ones."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        registry: QueueRegistry,
        broker: Broker,
        clock: Callable[[], int],
        invalid_kept: int,
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._broker = broker
        self._clock = clock
        self._invalid_kept = invalid_kept
        self._invalid: deque[tuple[bytes, int]] = deque()
        self._invalid_bytes = 0
        self._to_publish: deque[bytes] = deque()
        self._wake = asyncio.Event()
        #: held while dead letters are read and then removed, so that none is removed twice; refused messages, of which
        #: the oldest go in whatever batch is next, are looked up in `still_kept` besides
        self.leaving = asyncio.Lock()
        #: queue name -> when its oldest dead letter may go; absent = not known
        self._retention_due_ns: dict[str, int] = {}

    async def load(self) -> None:
        """Take over what an earlier run left: refused messages kept, and marks of unpublished dead letters."""
        await self._load_invalid()
        marks = await self._store.marks(MARK, 1_000_000)
        self._to_publish.extend(key[len(MARK) :] for key, _ in marks)

    # -- refused messages ------------------------------------------------------------------------------------

    async def _load_invalid(self) -> None:
        """Remember what is kept, and let the oldest go where that is more than may be."""
        queue = self._registry.by_name.get(INVALID_QUEUE)
        if queue is None:
            return
        last = b""
        while page := await self._store.dead_before(INVALID_QUEUE, NEVER, _PAGE, after=last):
            last = page[-1][0]
            self._remember([(key, decode(value).size) for key, value in page])
        if surplus := self._surplus():
            await self._committer.commit(RemoveDead(queue, surplus))

    def _remember(self, letters: Iterable[tuple[bytes, int]]) -> None:
        for letter in letters:
            self._invalid.append(letter)
            self._invalid_bytes += letter[1]

    def _surplus(self) -> list[tuple[bytes, int]]:
        """The oldest beyond what may be kept; they are forgotten here."""
        gone = []
        while len(self._invalid) > self._invalid_kept or self._invalid_bytes > INVALID_BYTES:
            gone.append(self._invalid.popleft())
            self._invalid_bytes -= gone[-1][1]
        return gone

    def keep_invalid(self, raw: Raw, error: RefusedError, answer: Callable[[], None]) -> None:
        """Edge i. Keep a refused message as dead letter `invalid` (the oldest goes beyond `invalid_kept`), then `answer`."""
        _, _, headers, payload = raw
        block = headers or b""
        now_ns = self._clock()
        extras = Extras(reason=str(DeadReason.INVALID), died_ns=now_ns)
        extras.remember(Attempt(0, now_ns, f"{error.code} {error}"[:512]))
        raw_extras = extras.encode()
        head = HEAD.pack(
            RECORD_VERSION,
            PLAIN,
            0,
            0,
            0,
            len(raw_extras),
            len(block),
            0,
            len(block),
            len(payload),
            1,
            0,
            now_ns,
            0,
        )
        value = head + raw_extras + block + payload
        queue = self._registry.get(INVALID_QUEUE)
        queue.counts.dead[str(DeadReason.INVALID)] += 1
        self._committer.waiting_bytes += len(value)
        self._committer.submit(_KeepInvalid(self, queue, value, len(block) + len(payload), answer))

    def add_invalid(self, transaction: Transaction, queue: QueueState, value: bytes, size: int) -> None:
        """Write a refused message, and let the oldest go (edge l)."""
        self._committer.waiting_bytes -= len(value)
        key = transaction.add_dead(queue, self._committer.mint_id(), value, size)
        self._remember([(key, size)])
        for oldest in self._surplus():
            transaction.remove_dead(queue, *oldest)

    def adopt_invalid(
        self, transaction: Transaction, queue: QueueState, letters: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """Refused messages of another instance were written: they count for `invalid_kept` here, the oldest go."""
        self._remember((key, decode(value).size) for key, value in letters)
        self._invalid = deque(sorted(self._invalid, key=lambda letter: time_of(letter[0])))
        for oldest in self._surplus():
            transaction.remove_dead(queue, *oldest)

    def still_kept(self, letters: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
        """Those of these refused messages that are there; they are forgotten here, since they are about to be removed."""
        known = {key for key, _ in self._invalid}
        gone = {key: size for key, size in letters if key in known}
        self._invalid = deque(letter for letter in self._invalid if letter[0] not in gone)
        self._invalid_bytes -= sum(gone.values())
        return list(gone.items())

    # -- publishing ------------------------------------------------------------------------------------------

    def announcer(
        self, queue: QueueState
    ) -> tuple[Callable[[bytes], None] | None, Callable[[Transaction, bytes], None] | None]:
        """For a burial in this queue: what to call when it is durable, and what to write with it."""
        if queue.policy.dead_letter_subject is None:
            return None, None
        return self._announce, _mark

    def mark_unpublished(self, transaction: Transaction, keys: Iterable[bytes]) -> None:
        """Write the marks of dead letters that another instance had not published yet."""
        for key in keys:
            _mark(transaction, key)

    def adopted(self, unpublished: Iterable[bytes]) -> None:
        """Dead letters of another instance are durable here; publish these, and look at every age again."""
        self._to_publish.extend(unpublished)
        self._wake.set()
        self.forget_retention()

    def _announce(self, key: bytes) -> None:
        self._to_publish.append(key)
        self._wake.set()

    def wake(self) -> None:
        """The connection stands again."""
        self._wake.set()

    async def publish_forever(self) -> None:
        """Publish marked dead letters whenever there are some and NATS is there."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            denied: list[bytes] = []
            while self._to_publish and self._broker.connected:
                page = [self._to_publish.popleft() for _ in range(min(_PAGE, len(self._to_publish)))]
                try:
                    denied += await self._publish(page)
                except Exception as error:
                    self._not_published(str(error), len(page))
                    self._to_publish.extendleft(reversed(page))
                    break
            if denied:
                self._not_published("NATS does not allow it", len(denied))
                self._to_publish.extend(denied)

    def _not_published(self, error: str, count: int) -> None:
        log.warning("dead letters not published yet", extra={"error": error, "count": count})
        asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)

    async def _publish(self, keys: list[bytes]) -> list[bytes]:
        """Publish the first of these, up to _PAGE_BYTES, and take their marks away.

        What is for later goes back to `_to_publish`. Returns those that the server denies; they keep their marks. Raises
        OSError or a NATS error when the server may not have them.
        """
        connection, mark = self._broker.connection, self._broker.denied_publishes
        sent: dict[bytes, bytes] = {}
        held = 0
        for number, key in enumerate(keys):
            if held >= _PAGE_BYTES:
                self._to_publish.extendleft(reversed(keys[number:]))
                del keys[number:]
                break
            value = await self._store.get_dead(key)
            queue = self._registry.by_name.get(_queue_of(key))
            if value is None or queue is None or queue.policy.dead_letter_subject is None:
                continue
            record = decode(value)
            block = block_for(record, key, record.attempts, queue, dead=True)
            size, limit = len(block) + len(record.payload), self._broker.max_payload
            if size > limit:
                # The server would close the connection, each time anew. The dead letter itself stays.
                log.error("dead letter too large to publish", extra={"bytes": size, "max_payload": limit})
                continue
            sent[key] = subject = queue.policy.dead_letter_subject.encode()
            self._broker.send(hpub(subject, block, record.payload), 1)
            held += size
        await self._broker.flush()
        if not self._broker.connected or self._broker.connection != connection:
            raise ConnectionError("the connection was lost meanwhile")
        refused = {subject for subject in set(sent.values()) if self._broker.denied_since(subject, mark)}
        denied = [key for key in keys if sent.get(key) in refused]
        self._committer.submit(_Unmark([key for key in keys if sent.get(key) not in refused]))
        return denied

    # -- retention -------------------------------------------------------------------------------------------

    def forget_retention(self) -> None:
        """Policies changed: look at every queue again."""
        self._retention_due_ns.clear()

    async def retain_forever(self) -> None:
        """Edge l. Remove dead letters beyond their queue's retention, once a minute and in small transactions."""
        while True:
            for queue in list(self._registry):
                if queue.dead and queue.name != INVALID_QUEUE:
                    await self._retain(queue)
            self._retention_due_ns = {
                name: due_ns
                for name, due_ns in self._retention_due_ns.items()
                if name in self._registry.by_name
            }
            await asyncio.sleep(RETENTION_INTERVAL_S)

    async def _retain(self, queue: QueueState) -> None:
        retention_ns = queue.policy.dead_letter_retention_ns
        while self._retention_due_ns.get(queue.name, 0) <= self._clock():
            async with self.leaving:
                expired = await self._store.dead_before(
                    queue.name, max(self._clock() - retention_ns, 0), _PAGE
                )
                if self._registry.by_name.get(queue.name) is not queue:
                    return
                if expired:
                    letters = [(key, decode(value).size) for key, value in expired]
                    await self._committer.commit(RemoveDead(queue, letters))
                    continue
            oldest = await self._store.dead_before(queue.name, NEVER, 1)
            due_ns = time_of(oldest[0][0]) + retention_ns if oldest else self._clock() + retention_ns
            self._retention_due_ns[queue.name] = due_ns


def _queue_of(key: bytes) -> str:
    return key[1 : len(key) - SUFFIX_LEN].decode("ascii")


def _mark(transaction: Transaction, key: bytes) -> None:
    transaction.batch.put_meta(MARK + key, b"")


@dataclass(slots=True)
class _KeepInvalid:
    owner: DeadLetters
    queue: QueueState
    value: bytes
    size: int
    answer: Callable[[], None]

    def apply(self, transaction: Transaction) -> None:
        self.owner.add_invalid(transaction, self.queue, self.value, self.size)

    def durable(self) -> None:
        self.answer()


@dataclass(slots=True)
class _Unmark:
    keys: list[bytes] = field(default_factory=list)

    def apply(self, transaction: Transaction) -> None:
        for key in self.keys:
            transaction.batch.delete_meta(MARK + key)

    def durable(self) -> None:
        """Nothing waits for it."""
