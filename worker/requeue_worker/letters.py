"""Dead letters as lines of an export, and the stored value that a line becomes. Pure.

An envelope becomes a plain message on its way: its policy stands in the line, and in the HEAD again; its subject and
TTL in the headers that an import writes.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Final

from requeue_protocol.admin import AttemptEntry
from requeue_protocol.dead_letters import DeadLetter
from requeue_protocol.envelope import Backoff, read_envelope
from requeue_protocol.headers import NO_POLICY, SUBJECT, IntakePolicy, read_intake_headers
from requeue_worker.record import (
    HAS_CLIENT_ID,
    HEAD,
    PLAIN,
    RECORD_VERSION,
    UNSET_BACKOFF,
    UNSET_DELAY,
    UNSET_RETRIES,
    Attempt,
    Extras,
    Record,
    decode,
)
from requeue_worker.revival import addressed
from requeue_worker.storage.keys import id_of, queue_of, time_of
from requeue_worker.storage.queues import INVALID_QUEUE

_BACKOFFS: Final = {
    "exponential": Backoff.EXPONENTIAL,
    "fixed": Backoff.FIXED,
    "linear": Backoff.LINEAR,
    "list": Backoff.LIST,
}
_NAMES: Final = {int(backoff): name for name, backoff in _BACKOFFS.items()}


def letter_of(key: bytes, value: bytes) -> DeadLetter:
    """The line for a dead letter. What is stored is trusted: nothing is checked again."""
    record = decode(value)
    extras, (text, raw) = record.extras, _headers(record.headers)
    return DeadLetter.model_construct(
        format=1,
        queue=queue_of(key),
        id=id_of(key).hex(),
        died_ns=time_of(key),
        reason=extras.reason or "",
        subject=record.subject.decode(errors="replace"),
        attempts=record.attempts,
        enqueued_ns=record.enqueued_ns,
        deadline_ns=record.deadline_ns or None,
        retries=None if record.retries == UNSET_RETRIES else record.retries,
        delay_ns=None if record.delay_ns == UNSET_DELAY else record.delay_ns,
        ttl_ns=_ttl_ns(record, key),
        backoff=_NAMES.get(record.backoff),
        backoff_list_ns=list(extras.backoff_list_ns),
        min_backoff_ns=extras.min_backoff_ns,
        max_backoff_ns=extras.max_backoff_ns,
        ack_timeout_ns=extras.ack_timeout_ns,
        history=[
            AttemptEntry(number=each.number, at_ns=each.at_ns, error=each.error) for each in extras.history
        ],
        headers=text,
        headers_base64=raw,
        payload=b64encode(record.payload).decode(),
    )


def _headers(block: bytes) -> tuple[str | None, str | None]:
    """As text where that is all of it, else as base64."""
    if not block:
        return None, None
    first, last = b"NATS/1.0\r\n", b"\r\n\r\n"
    try:
        if block.startswith(first) and block.endswith(last) and len(block) >= len(first) + len(last):
            return block[len(first) : -len(last)].decode(), None
    except UnicodeDecodeError:
        pass
    return None, b64encode(block).decode()


def _ttl_ns(record: Record, key: bytes) -> int | None:
    if not record.flags & PLAIN:
        return read_envelope(record.wire[record.headers_len :]).ttl_ns
    if queue_of(key) == INVALID_QUEUE or not record.headers_len:
        return None
    return read_intake_headers(record.headers).ttl_ns


def value_of(letter: DeadLetter) -> bytes:
    """What is stored for a line. Raises MalformedMessage for headers that are none."""
    block, subject, payload = letter.headers_block, letter.subject.encode(), b64decode(letter.payload)
    refused = letter.queue == INVALID_QUEUE
    policy = NO_POLICY if refused or not block else read_intake_headers(block)
    subject_at = 0
    if not refused:
        block, subject_at = _block_of(block, policy, subject, letter.ttl_ns)
    extras = Extras(
        min_backoff_ns=letter.min_backoff_ns,
        max_backoff_ns=letter.max_backoff_ns,
        ack_timeout_ns=letter.ack_timeout_ns,
        backoff_list_ns=tuple(letter.backoff_list_ns),
        history=[Attempt(each.number, each.at_ns, each.error) for each in letter.history],
        reason=letter.reason,
        died_ns=letter.died_ns,
    ).encode()
    head = HEAD.pack(
        RECORD_VERSION,
        PLAIN if policy.msg_id is None else PLAIN | HAS_CLIENT_ID,
        UNSET_BACKOFF if letter.backoff is None else _BACKOFFS[letter.backoff],
        letter.attempts,
        0 if refused else len(subject),
        len(extras),
        len(block),
        subject_at,
        len(block),
        len(payload),
        UNSET_RETRIES if letter.retries is None else letter.retries,
        UNSET_DELAY if letter.delay_ns is None else letter.delay_ns,
        letter.enqueued_ns,
        letter.deadline_ns or 0,
    )
    return head + extras + block + payload


def _block_of(block: bytes, policy: IntakePolicy, subject: bytes, ttl_ns: int | None) -> tuple[bytes, int]:
    """The headers, and where the subject stands in them: as they came, unless the line says something else."""
    if policy.subject == subject and policy.ttl_ns == ttl_ns:
        line = b"\n" + SUBJECT.lower().encode() + b":"
        at = block.find(subject, block.lower().rfind(line) + len(line))
        if at > 0:
            return block, at
    return addressed(block, subject, ttl_ns)
