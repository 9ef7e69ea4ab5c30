"""Intake: raw messages in, accepted messages to the committer, acks after the fsync, refusals with their reason.

    bulk reader ──list──> on_messages ──┬── no client id ──────────────> Committer ──fsync──> on_durable ──> acks
                                        ├── client id ──> Dedupe ──────────┘
                                        └── refused ──> permanent: kept as dead letter `invalid`, then answered
                                                        transient: answered or silent (protocol, section "Refusals")

What happens elsewhere: keys and times are made at commit (`storage.transaction`), bytes are read by the protocol package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from requeue_protocol.envelope import read_envelope
from requeue_protocol.errors import (
    Busy,
    CommitFailed,
    Draining,
    MalformedMessage,
    MessageTooLarge,
    QueueFull,
    RefusedError,
)
from requeue_protocol.replies import ack, refusal
from requeue_worker.broker.parser import Raw
from requeue_worker.counts import Counts
from requeue_worker.envelopes import Envelopes, Frame, heading_of
from requeue_worker.plain import PlainBlocks, PlainHeading, extras_of
from requeue_worker.record import MAX_TIME_NS
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.keys import DEFAULT_PRIORITY
from requeue_worker.storage.queues import Lane, QueueState
from requeue_worker.storage.transaction import Accepted, NewMessage, reply_of
from requeue_worker.wire import empty_pubs, hpub, pub

log = logging.getLogger(__name__)

REPLAY_HEADROOM_BYTES = 4096  #: a replay adds headers: this much must be left below `max_payload`

_DUPLICATE_HEADERS = ack(duplicate=True)[0] or b""


class Ingest:
    """The intake's consumer. All of it runs on the event loop and never blocks."""

    def __init__(
        self,
        registry: QueueRegistry,
        committer: Committer,
        counts: Counts,
        *,
        send: Callable[[bytes, int], None],
        max_payload: Callable[[], int],
        clock: Callable[[], int],
        keep_invalid: Callable[[Raw, RefusedError, Callable[[], None]], None],
        dedupe: Callable[[list[NewMessage]], None],
        buffer_bytes: int,
    ) -> None:
        self._registry = registry
        self._committer = committer
        self._counts = counts
        self._send = send
        self._max_payload = max_payload
        self._clock = clock
        self._keep_invalid = keep_invalid
        self._dedupe = dedupe
        self._buffer_bytes = buffer_bytes
        self._envelopes = Envelopes()
        self._as_of = registry.changes
        self._plain = PlainBlocks()
        #: bytes of messages with a client id that is being looked up, or whose first copy is on its way to disk
        self._looked_up_bytes = 0
        #: set while messages are refused for a reason that holds for all of them
        self.closed: RefusedError | None = None

    # -- in --------------------------------------------------------------------------------------------------

    def on_messages(self, batch: list[Raw]) -> None:
        """Take one socket read's messages."""
        self._counts.intake_messages += len(batch)
        if self.closed is not None:
            for raw in batch:
                self.refuse(raw, self.closed)
            return
        accepted: list[Accepted] = []
        with_ids: list[NewMessage] = []
        accepted_bytes = 0
        room = self._buffer_bytes - self._committer.waiting_bytes - self._looked_up_bytes
        limit = self._max_payload() - REPLAY_HEADROOM_BYTES
        read, full = self._envelopes.read, self._with_headers
        if self._as_of != self._registry.changes:
            self._as_of = self._registry.changes
            self._envelopes.forget_lanes()
        before = None  # the frame of the bare envelope before: mostly the next one has the same
        for raw in batch:
            _subject, reply, headers, payload = raw
            try:
                size = len(payload) if headers is None else len(headers) + len(payload)
                if size > limit or accepted_bytes + size > room:
                    raise _too_large(size, limit) if size > limit else Busy(_BUFFER_FULL)
                if headers is None:
                    head, delay_ns, frame = read(payload)
                    if frame is not before:
                        lane = self._lane(frame) if frame.lane is None else frame.lane
                        ttl_ns, limited, before = frame.ttl_ns, frame.limited, frame
                    if delay_ns > _FAR_NS:
                        self._check_far(delay_ns)
                    if limited:  # else its queue is not looked at: with ten thousand that takes a sixth
                        _take_room(lane.queue, size)
                    accepted.append(
                        (lane, delay_ns, None, ttl_ns, head, payload, size, None, reply, False, limited)
                    )
                else:
                    message = full(reply, headers, payload)
                    if message.client_id is None:
                        _take_room(message.lane.queue, size)
                    (accepted if message.client_id is None else with_ids).append(message)
            except RefusedError as error:
                self.refuse(raw, error)
                continue
            accepted_bytes += size
        self._counts.intake_bytes += accepted_bytes
        self._hand_on(accepted, with_ids)

    def _hand_on(self, accepted: list[Accepted], with_ids: list[NewMessage]) -> None:
        if accepted:
            self._committer.accept(accepted)
        if with_ids:
            self._looked_up_bytes += sum([message.size for message in with_ids])
            self._dedupe(with_ids)

    def on_fresh(self, messages: list[NewMessage]) -> list[NewMessage]:
        """These turned out to be no duplicates: accept them. Returns those refused because their queue is full.

        Only now, since a duplicate needs no room: refused, its publisher would think that nothing is stored.
        """
        accepted: list[Accepted] = []
        refused = []
        for message in messages:
            self._looked_up_bytes -= message.size
            try:
                _take_room(message.lane.queue, message.size)
            except RefusedError as error:
                self._counts.refused[error.code] += 1
                self._answer(message.reply, error, message.has_headers)
                refused.append(message)
            else:
                accepted.append(message)
        if accepted:
            self._committer.accept(accepted)
        return refused

    def prepare(self, headers: bytes, payload: bytes, *, limited: bool) -> NewMessage:
        """A plain message of the worker's own, checked as any other; its commit is the caller's. Raises RefusedError.

        It counts as waiting in its queue until then; `limited`: within `max_messages` and `max_bytes`.
        """
        if self.closed is not None:
            raise self.closed.with_traceback(None)
        size, limit = len(headers) + len(payload), self._max_payload() - REPLAY_HEADROOM_BYTES
        if size > limit:
            raise _too_large(size, limit)
        message = self._with_headers(b"", headers, payload)
        queue = message.lane.queue
        if limited:
            _take_room(queue, size)
        else:
            queue.waiting += 1
            queue.waiting_bytes += size
        return message

    def _with_headers(self, reply: bytes, headers: bytes, payload: bytes) -> NewMessage:
        said, at_ns = self._plain.read(headers)
        if isinstance(said, PlainHeading):
            return self._from_plain(reply, payload, headers, said, at_ns)
        extras, client_id = extras_of(said), said.msg_id
        envelope = read_envelope(payload)
        heading = heading_of(envelope, len(headers), extras, client_id, said.backoff)
        head, delay_ns, ttl_ns, name, subject = heading
        queue = self._registry.named(name, subject)
        self._check_far(delay_ns)
        lane = queue.lane(DEFAULT_PRIORITY if said.priority is None else said.priority)
        size, tail = len(headers) + len(payload), extras + headers + payload
        return NewMessage(lane, delay_ns, at_ns, ttl_ns, head, tail, size, client_id, reply, True)

    def _lane(self, frame: Frame) -> Lane:
        """The lane of a bare envelope, kept with its frame. Raises QueueFull, MalformedMessage or SubjectNotAllowed."""
        queue = self._registry.named(frame.queue, frame.subject)
        frame.limited = queue.policy.max_messages is not None or queue.policy.max_bytes is not None
        lane = frame.lane = queue.lane(DEFAULT_PRIORITY)
        return lane

    def _from_plain(
        self, reply: bytes, payload: bytes, headers: bytes, said: PlainHeading, at_ns: int | None
    ) -> NewMessage:
        """A plain message: the queue's policy stands in for what the headers don't say."""
        queue = self._registry.named(said.queue, said.subject)
        delay_ns = queue.policy.delay_ns if said.delay_ns is None else said.delay_ns
        ttl_ns = queue.policy.ttl_ns if said.ttl_ns is None else said.ttl_ns
        if delay_ns > _FAR_NS:
            self._check_far(delay_ns)
        return NewMessage(
            queue.lane(said.priority),
            delay_ns,
            at_ns,
            ttl_ns,
            said.head(len(payload)),
            said.extras + headers + payload,
            len(headers) + len(payload),
            said.client_id,
            reply,
            True,
        )

    def _check_far(self, delay_ns: int) -> None:
        """Refuse what would be due beyond 2262. A ttl beyond it is no deadline that anybody lives to see."""
        if self._clock() + delay_ns > MAX_TIME_NS:
            raise MalformedMessage(
                f"a delay of {delay_ns} ns is due after the year 2262, the end of 64-bit nanoseconds: use a shorter one"
            )

    # -- out -------------------------------------------------------------------------------------------------

    def on_durable(self, messages: Sequence[Accepted]) -> None:
        """The messages are on disk: ack them."""
        replies = list(filter(None, map(reply_of, messages)))
        if replies:
            self._send(empty_pubs(replies), len(replies))

    def on_duplicates(self, messages: list[NewMessage]) -> None:
        """The messages' first copies are on disk: ack, and say so."""
        self._looked_up_bytes -= sum([message.size for message in messages])
        self._counts.duplicates += len(messages)
        acks = [hpub(message.reply, _DUPLICATE_HEADERS, b"") for message in messages if message.reply]
        if acks:
            self._send(b"".join(acks), len(acks))

    def on_look_up_failed(self, messages: list[NewMessage]) -> None:
        """Whether the messages are duplicates could not be read: as if they could not be written."""
        self._looked_up_bytes -= sum([message.size for message in messages])
        self.on_failed(messages)

    def on_failed(self, messages: Sequence[Accepted]) -> None:
        """The messages are not on disk: say so to those who can tell that from an ack."""
        error = CommitFailed("the worker could not write to its disk: send again, to another worker")
        for message in map(NewMessage._make, messages):
            self._answer(message.reply, error, message.has_headers)

    def refuse(self, raw: Raw, error: RefusedError) -> None:
        """Refuse a message: for good it is kept and answered, else it is answered where that can be told from an ack."""
        _, reply, headers, payload = raw
        had_headers = headers is not None
        if error.permanent and self._committer.waiting_bytes + len(payload) > self._buffer_bytes:
            # No room to keep it now, and an answer would pass for an ack with old clients: let it come again.
            error = Busy(_BUFFER_FULL)
        self._counts.refused[error.code] += 1
        if error.permanent:
            log.info(
                "message refused", extra={"code": error.code, "error": str(error), "bytes": len(payload)}
            )
            self._keep_invalid(raw, error, lambda: self._answer(reply, error, had_headers))
        else:
            self._answer(reply, error, had_headers)

    def _answer(self, reply: bytes, error: RefusedError, had_headers: bool) -> None:
        answer = refusal(error, had_headers)
        if reply and answer is not None:
            headers, payload = answer
            self._send(pub(reply, payload) if headers is None else hpub(reply, headers, payload), 1)

    def refuse_all(self, error: RefusedError | None) -> None:
        """Refuse everything for this reason, until called with None."""
        if not isinstance(self.closed, Draining):
            self.closed = error

    def drain(self) -> None:
        """Refuse everything from now on."""
        self.closed = Draining("this worker is shutting down: send again, to another worker")


_BUFFER_FULL = "the worker's intake buffer is full: send again in a moment"
_FAR_NS = 10**18  # about 31 years: only beyond it is the sum with now worth checking


def _take_room(queue: QueueState, size: int) -> None:
    """Count a message towards the queue's limits until it is in a batch. Raises QueueFull."""
    _check_room(queue, size)
    queue.waiting += 1
    queue.waiting_bytes += size


def _check_room(queue: QueueState, size: int) -> None:
    """Raise QueueFull where the queue's limits leave no room for one more message."""
    policy = queue.policy
    if policy.max_messages is not None and queue.pending + queue.waiting >= policy.max_messages:
        raise QueueFull(
            f"queue {queue.name!r} holds its max_messages of {policy.max_messages}: send again later"
        )
    if policy.max_bytes is not None and queue.bytes + queue.waiting_bytes + size > policy.max_bytes:
        raise QueueFull(f"queue {queue.name!r} holds its max_bytes of {policy.max_bytes}: send again later")


def _too_large(size: int, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"headers and payload have {size} bytes; with the headers that a replay adds at most {limit} are possible "
        f"(max_payload less {REPLAY_HEADROOM_BYTES})"
    )
