"""The bytes of a replay: the original payload and headers, plus what nats-requeue adds."""

from __future__ import annotations

import time
from binascii import hexlify
from functools import lru_cache

from requeue_protocol.headers import DEAD_REASON, DIED_AT, travelling_lines
from requeue_worker.record import UNLIMITED, Record
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


@lru_cache(maxsize=4096)
def attempt_lines(attempt: int, limit: int, queue: str) -> bytes:
    """The lines that all messages of a queue share at the same attempt, up to the value of Requeue-Enqueued-At."""
    shown = "unlimited" if limit == UNLIMITED else limit
    return (
        f"Requeue-Attempt: {attempt}\r\nRequeue-Max-Attempts: {shown}\r\nRequeue-Queue: {queue}\r\nRequeue-Enqueued-At: "
    ).encode()


#: a replay of a message without headers and history, the hot path: subject, inbox, token, bytes of the header block and
#: of block and payload, id, `common_lines`, id, payload
BARE = b"HPUB %b %b%b %d %d\r\nNATS/1.0\r\nRequeue-Id: %b\r\n%bNats-Msg-Id: %b\r\n\r\n%b\r\n"
BARE_BLOCK_BYTES = (
    len(b"NATS/1.0\r\nRequeue-Id: \r\nNats-Msg-Id: \r\n\r\n") + 4 * ID_LEN
)  #: without `common_lines`


@lru_cache(maxsize=4096)
def common_lines(attempt: int, limit: int, queue: str, enqueued_ns: int, deadline_ns: int) -> bytes:
    """The lines that messages committed together share when they are replayed."""
    lines = b"%b%b\r\n" % (attempt_lines(attempt, limit, queue), rfc3339(enqueued_ns))
    return lines + b"Requeue-Deadline: %b\r\n" % rfc3339(deadline_ns) if deadline_ns else lines


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
