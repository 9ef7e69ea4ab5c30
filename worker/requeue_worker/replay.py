"""The bytes of a replay: the original payload and headers, plus what nats-requeue adds."""

from __future__ import annotations

import time
from binascii import hexlify
from functools import lru_cache

from requeue_protocol.headers import DEAD_REASON, DIED_AT, travelling_lines
from requeue_worker.record import (
    HAS_CLIENT_ID,
    HEAD,
    HEAD_TIMES,
    HEAD_TO_DELAY,
    RECORD_VERSION,
    UNLIMITED,
    Record,
)
from requeue_worker.retry import max_attempts
from requeue_worker.storage.keys import ID_LEN
from requeue_worker.storage.queues import QueueState


@lru_cache(maxsize=256)
def _second(seconds: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode()


@lru_cache(maxsize=4096)  # a batch committed together has one time, and is replayed together
def rfc3339(ns: int) -> bytes:
    """Unix ns as RFC 3339 with nine digits, UTC."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return b"%b.%09dZ" % (_second(seconds), rest)


@lru_cache(
    maxsize=16_384
)  # ten thousand queues have one each, mostly: with 4096 all of them were made for each message
def attempt_lines(attempt: int, limit: int, queue: str) -> bytes:
    """The lines that all messages of a queue share at the same attempt, up to the value of Requeue-Enqueued-At."""
    shown = "unlimited" if limit == UNLIMITED else limit
    return (
        f"Requeue-Attempt: {attempt}\r\nRequeue-Max-Attempts: {shown}\r\nRequeue-Queue: {queue}\r\nRequeue-Enqueued-At: "
    ).encode()


BARE_BLOCK_BYTES = (
    len(b"NATS/1.0\r\nRequeue-Id: ") + ID_LEN * 4 + len(b"\r\n\r\n")
)  #: of a message without an id, policy or history of its own, without what travels and the lines between the two ids


@lru_cache(maxsize=512)
def bare_middle(block_size: int, size: int, own: bytes) -> bytes:
    """Between reply subject and id of such a message: bytes of the header block and of all, and what travels."""
    return b" %d %d\r\nNATS/1.0\r\n%bRequeue-Id: " % (block_size, size, own)


_TRAVELLING_BYTES_KEPT = 1024
_OTHER_LINES = 2  #: the first and the empty one
_travelling = lru_cache(maxsize=512)(travelling_lines)


def travelling(headers: bytes) -> bytes:
    """The lines of a header block that go on to the replay; those of a short one are remembered, since it comes again."""
    if headers.count(b"\r\n") == headers.count(b"\r\nRequeue-") + _OTHER_LINES:
        return b""  # as mostly; a look-up would miss where all blocks have instants of their own
    return travelling_lines(headers) if len(headers) > _TRAVELLING_BYTES_KEPT else _travelling(headers)


@lru_cache(maxsize=4096)  # what was committed together shares it, in whatever queue it is
def read_times(times: bytes) -> tuple[int, bytes]:
    """What the HEAD's times say: the deadline in ns, and the lines from Requeue-Enqueued-At's value to Nats-Msg-Id's."""
    enqueued_ns, deadline_ns = HEAD_TIMES.unpack(times)
    deadline = b"Requeue-Deadline: %b\r\n" % rfc3339(deadline_ns) if deadline_ns else b""
    return deadline_ns, b"%b\r\n%bNats-Msg-Id: " % (rfc3339(enqueued_ns), deadline)


@lru_cache(
    maxsize=16_384
)  # as `attempt_lines`: with thousands of queues it is another one's head with each message
def read_head(head: bytes, queue: str, retries: int) -> tuple[bool, int, int, int, int, int, bytes]:
    """What a record's head up to its delay says of its replay; `retries` is what the queue's policy says.

    Whether the record is `BARE`, and if so where its headers end, subject and payload begin and end, and the lines from
    behind the first id up to the value of Requeue-Enqueued-At.
    """
    (
        version, flags, _backoff, attempts, subject_len, extras_len, headers_len, subject_at, payload_at, payload_len,
        limit,
    ) = HEAD_TO_DELAY.unpack(head)  # fmt: skip
    subject_at += HEAD.size
    payload_at += HEAD.size
    return (
        not extras_len and not flags & HAS_CLIENT_ID and version == RECORD_VERSION,
        HEAD.size + headers_len,
        subject_at,
        subject_at + subject_len,
        payload_at,
        payload_at + payload_len,
        b"\r\n" + attempt_lines(attempts + 1, limit or retries, queue),
    )


def block_for(record: Record, key: bytes, attempt: int, queue: QueueState, dead: bool = False) -> bytes:
    """The header block for any message: what travels, then what a replay (or the publishing of a dead letter) adds."""
    lines = [b"NATS/1.0\r\n", travelling_lines(record.headers) if record.headers_len else b""]
    message_id = hexlify(key[-ID_LEN:])
    limit = max_attempts(record, queue.policy)
    lines.append(b"Requeue-Id: %b\r\n" % message_id)
    lines.append(attempt_lines(attempt, limit, queue.name) + rfc3339(record.enqueued_ns) + b"\r\n")
    if record.deadline_ns:
        lines.append(b"Requeue-Deadline: %b\r\n" % rfc3339(record.deadline_ns))
    extras = record.extras
    if extras.last_error:
        lines.append(b"Requeue-Last-Error: %b\r\n" % extras.last_error.encode())
    if record.client_id is None:
        lines.append(b"Nats-Msg-Id: %b\r\n" % message_id)
    if dead:
        lines.append(b"Requeue-Subject: %b\r\n" % record.subject)  # so that it can be republished as it is
        lines.append(f"{DEAD_REASON}: {extras.reason}\r\n{DIED_AT}: ".encode())
        lines.append(rfc3339(extras.died_ns or 0) + b"\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)
