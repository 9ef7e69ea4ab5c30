"""The bytes of a replay: the original payload and headers, plus what nats-requeue adds."""

from __future__ import annotations

import time
from functools import lru_cache

from requeue_protocol.headers import DEAD_REASON, DIED_AT, travelling_lines
from requeue_worker.record import UNLIMITED, Record
from requeue_worker.retry import max_attempts
from requeue_worker.storage.keys import ID_LEN
from requeue_worker.storage.queues import QueueState


@lru_cache(maxsize=256)
def _second(seconds: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode()


def rfc3339(ns: int) -> bytes:
    """Unix ns as RFC 3339 with nine digits, UTC."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return b"%b.%09dZ" % (_second(seconds), rest)


def replay_lines(record: Record, key: bytes, attempt: int, queue: QueueState, has_client_id: bool) -> bytes:
    """Header lines of a replay: those that travel, and those that it adds."""
    limit = max_attempts(record, queue.policy)
    message_id = key[-ID_LEN:].hex().encode()
    lines = b"Requeue-Id: %b\r\nRequeue-Attempt: %d\r\nRequeue-Max-Attempts: %b\r\n%bRequeue-Enqueued-At: %b\r\n" % (
        message_id,
        attempt,
        b"unlimited" if limit == UNLIMITED else b"%d" % limit,
        queue.replay_headers,
        rfc3339(record.enqueued_ns),
    )
    if record.deadline_ns:
        lines += b"Requeue-Deadline: %b\r\n" % rfc3339(record.deadline_ns)
    if record.extras_len:
        last_error = record.extras.last_error
        if last_error:
            lines += b"Requeue-Last-Error: %b\r\n" % last_error.encode()
    if not has_client_id:
        lines += b"Nats-Msg-Id: %b\r\n" % message_id
    if record.headers_len:
        lines = travelling_lines(record.headers) + lines
    return lines


def encode_replay(
    record: Record, key: bytes, attempt: int, queue: QueueState, reply: bytes, has_client_id: bool
) -> tuple[bytes, int]:
    """The HPUB operation of a replay with its reply subject, and the bytes of it that count for `max_payload`."""
    headers = b"NATS/1.0\r\n%b\r\n" % replay_lines(record, key, attempt, queue, has_client_id)
    payload = record.payload
    size = len(headers) + len(payload)
    line = b"HPUB %b %b %d %d\r\n%b%b\r\n" % (record.subject, reply, len(headers), size, headers, payload)
    return line, size


def dead_letter_block(record: Record, key: bytes, queue: QueueState) -> bytes:
    """The header block of a dead letter published to `dead_letter_subject`: a replay's, plus reason and time of death."""
    extras = record.extras
    lines = replay_lines(record, key, record.attempts, queue, record.client_id is not None)
    reason = f"{DEAD_REASON}: {extras.reason}\r\n{DIED_AT}: ".encode()
    return b"NATS/1.0\r\n%b%b%b\r\n\r\n" % (lines, reason, rfc3339(extras.died_ns or 0))


