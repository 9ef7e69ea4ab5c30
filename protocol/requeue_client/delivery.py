"""A message as a handler sees it: what was published, and what the worker says about this attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from nats.aio.msg import Msg
from requeue_protocol import headers as h


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt. A message that came straight from a publisher, not from a worker, has `attempt` 0 and no id.

    `headers` are all that came; names are compared as they are written. Instants are aware, in UTC.
    """

    subject: str
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    id: str = ""  # the worker's own, 32 hexadecimal digits, the same at each attempt
    queue: str = ""
    attempt: int = 0  # 1 for the first; a worker that crashed may use a number again
    max_attempts: int | None = None  # None: unlimited, or not from a worker
    enqueued_at: datetime | None = None
    deadline: datetime | None = None  # it is not sent again after that; None: never
    last_error: str = ""  # why the last attempt failed, one line

    @property
    def is_replay(self) -> bool:
        """Whether a worker sent it: then a failure is tried again."""
        return self.attempt > 0

    @property
    def is_last(self) -> bool:
        """Whether a failure now makes it a dead letter."""
        return self.max_attempts is not None and self.attempt >= self.max_attempts

    @property
    def text(self) -> str:
        """The payload as UTF-8. Raises UnicodeDecodeError."""
        return self.payload.decode()


def read_delivery(msg: Msg) -> Delivery:
    """Read a message. Never raises: what a header says wrong, it does not say."""
    headers = dict(msg.headers or {})
    message_id = headers.get(h.ID, "")
    if not message_id:
        return Delivery(msg.subject, msg.data, headers)
    return Delivery(
        msg.subject,
        msg.data,
        headers,
        id=message_id,
        queue=headers.get(h.QUEUE, ""),
        attempt=_number(headers.get(h.ATTEMPT, "")) or 1,
        max_attempts=_number(headers.get(h.MAX_ATTEMPTS, "")),
        enqueued_at=_instant(headers.get(h.ENQUEUED_AT)),
        deadline=_instant(headers.get(h.DEADLINE)),
        last_error=headers.get(h.LAST_ERROR, ""),
    )


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def _instant(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
