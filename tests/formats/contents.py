"""What an instance directory says, as plain data: to compare with what it said when it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from requeue_worker.record import Record, decode
from requeue_worker.storage.keys import META_MARK, id_of, parse_message_key, time_of
from requeue_worker.storage.rocksdb import DEAD, IDS, MESSAGES, META, Engine

_BEYOND = b"\xff" * 256


def contents(path: Path) -> dict[str, Any]:
    """Everything that matters to a user, read without changing anything."""
    engine = Engine(path, read_only=True)
    try:
        return {
            "pending": [
                {
                    "queue": queue,
                    "priority": priority,
                    "time_ns": time_ns,
                    "id": message_id.hex(),
                    **_said(decode(value)),
                }
                for key, value in engine.items(MESSAGES, b"", _BEYOND)
                for queue, priority, time_ns, message_id in [parse_message_key(key)]
            ],
            "dead": [
                {
                    "queue": _queue(key),
                    "died_ns": time_of(key),
                    "id": id_of(key).hex(),
                    **_said(decode(value)),
                }
                for key, value in engine.items(DEAD, b"", _BEYOND)
            ],
            "client_ids": [
                {"client_id": key[2:-16].decode(), "id": id_of(message_key).hex()}
                for key, message_key in engine.items(IDS, b"", _BEYOND)
            ],
            "unpublished": [id_of(key).hex() for key in engine.keys(META, META_MARK, META_MARK + b"\xff")],
        }
    finally:
        engine.close()


def _queue(dead_key: bytes) -> str:
    return dead_key[1 : 1 + dead_key[0]].decode()


def _said(record: Record) -> dict[str, Any]:
    extras = record.extras
    return {
        "subject": record.subject.decode(),
        "payload": record.payload.hex(),
        "headers": record.headers.decode(),
        "attempts": record.attempts,
        "retries": record.retries,
        "delay_ns": record.delay_ns,
        "backoff": record.backoff,
        "enqueued_ns": record.enqueued_ns,
        "deadline_ns": record.deadline_ns,
        "reason": extras.reason,
        "errors": [attempt.error for attempt in extras.history],
        "own_policy": [
            extras.min_backoff_ns,
            extras.max_backoff_ns,
            extras.ack_timeout_ns,
            *extras.backoff_list_ns,
        ],
    }
