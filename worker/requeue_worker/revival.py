"""What a dead letter becomes when it is redriven: a pending message with its life before it again. Pure.

The attempts are counted from zero and the history stays. TTL and priority are those that it was sent with, or its
queue's; the TTL counts from now, since the old deadline may be why it died. Headers and body stay the bytes that they
were, unless it gets another subject: then it becomes a plain message that says in its headers what its envelope said.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from requeue_protocol.durations import format_duration
from requeue_protocol.envelope import read_envelope
from requeue_protocol.headers import NO_POLICY, SUBJECT, TTL, read_intake_headers
from requeue_worker.record import HEAD, MAX_TIME_NS, PLAIN, RECORD_VERSION, Extras, Record, decode, encode
from requeue_worker.storage.keys import DEFAULT_PRIORITY

_READDRESSED: Final = re.compile(rb"(?<=\n)requeue-(?:subject|ttl):[^\r\n]*\r\n", re.IGNORECASE)


class Revived(NamedTuple):
    """A dead letter, and the pending message that it becomes."""

    dead_key: bytes
    dead_size: int
    value: bytes
    size: int
    priority: int
    client_id: bytes | None
    deadline_ns: int


def revive(key: bytes, value: bytes, *, queue_ttl_ns: int, now_ns: int, subject: bytes | None) -> Revived:
    """The message that this dead letter becomes, due now. `subject`: where it goes instead of its own.

    Raises MalformedMessage for what is no message: refused messages are kept as dead letters, too.
    """
    record = decode(value)
    policy = read_intake_headers(record.headers) if record.headers_len else NO_POLICY
    if record.flags & PLAIN:
        ttl_ns = queue_ttl_ns if policy.ttl_ns is None else policy.ttl_ns
    else:
        ttl_ns = read_envelope(record.wire[record.headers_len :]).ttl_ns
    extras, deadline_ns = record.extras, min(now_ns + ttl_ns, MAX_TIME_NS) if ttl_ns else 0
    extras.reason = extras.died_ns = None
    if subject is None:
        revived = encode(record, attempts=0, extras=extras, deadline_ns=deadline_ns)
    else:
        revived = _readdressed(record, extras, subject, ttl_ns, deadline_ns)
    return Revived(
        dead_key=key,
        dead_size=record.size,
        value=revived,
        size=decode(revived).size,
        priority=DEFAULT_PRIORITY if policy.priority is None else policy.priority,
        client_id=record.client_id,
        deadline_ns=deadline_ns,
    )


def _readdressed(record: Record, extras: Extras, subject: bytes, ttl_ns: int, deadline_ns: int) -> bytes:
    """A plain message to another subject. Retries, delay and backoff stand in the HEAD, whatever its headers say."""
    headers, subject_at = addressed(record.headers, subject, ttl_ns)
    raw_extras = extras.encode()
    head = HEAD.pack(
        RECORD_VERSION,
        record.flags | PLAIN,
        record.backoff,
        0,
        len(subject),
        len(raw_extras),
        len(headers),
        subject_at,
        len(headers),
        record.payload_len,
        record.retries,
        record.delay_ns,
        record.enqueued_ns,
        deadline_ns,
    )
    return head + raw_extras + headers + record.payload


def addressed(block: bytes, subject: bytes, ttl_ns: int | None) -> tuple[bytes, int]:
    """A header block with this subject and TTL instead of what it says of them, and where the subject stands in it."""
    kept = _READDRESSED.sub(b"", block)[:-2] if block else b"NATS/1.0\r\n"
    lines = b"%b: %b\r\n" % (SUBJECT.encode(), subject)
    if ttl_ns is not None:
        lines += b"%b: %b\r\n" % (TTL.encode(), format_duration(min(ttl_ns, MAX_TIME_NS)).encode())
    return kept + lines + b"\r\n", len(kept) + len(SUBJECT) + 2
