"""The stored message: its states, its binary format (version 1), and the optional extras behind the header.

A value is ``HEAD | extras | headers | body``. Headers and body are the wire bytes as the publisher sent them; the
HEAD's offsets say where in the body (envelope) or headers (plain) the original subject stands, so that a replay
slices and never parses the envelope again. All integers are big endian; times are Unix nanoseconds.

States, with the edges of docs/architecture.md: *pending* (in the ``messages`` family, not in flight), *in flight*
(the same record, known to the replayer), *dead* (in the ``dead`` family). A settled message has no record.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from requeue_protocol.envelope import Backoff
from requeue_protocol.headers import MSG_ID

RECORD_VERSION = 1

# version, flags, backoff, attempts, subject_len, extras_len, headers_len, subject_at, payload_at, payload_len,
# retries, delay_ns | enqueued_ns, deadline_ns. The last two are known at commit time only, so they stand last.
HEAD = struct.Struct(">BBBxIHxxIIIIIQQQQ")
HEAD_STATIC = struct.Struct(">BBBxIHxxIIIIIQQ")
HEAD_TIMES = struct.Struct(">QQ")
DELAY = struct.Struct(">Q")  #: the last field of HEAD_STATIC
HEAD_TO_DELAY = struct.Struct(HEAD_STATIC.format[:-1])  #: all of it before that
PAYLOAD_LEN = struct.Struct(">I")  #: a field of HEAD_STATIC, with two of 8 bytes behind it
PAYLOAD_LEN_AT = HEAD_STATIC.size - 2 * DELAY.size - PAYLOAD_LEN.size

PLAIN = 1  #: body is the payload and the subject stands in the headers (else: body is an envelope)
HAS_CLIENT_ID = 2  #: the headers carry a Nats-Msg-Id, so `ids` has an entry

UNSET_RETRIES = 0  #: the queue's policy decides
UNSET_DELAY = 2**64 - 1
UNSET_BACKOFF = 255
UNLIMITED = 2**64 - 1
MAX_TIME_NS = 2**63 - 1  #: the year 2262: what a signed 64-bit nanosecond clock can say

HISTORY_KEPT = 32  #: attempts remembered, newest last

_CLIENT_ID = re.compile(rb"\n" + MSG_ID.encode() + rb":[ \t]*([^\r\n]*)", re.IGNORECASE)


class DeadReason(StrEnum):
    """Why a message is a dead letter."""

    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    TERMINATED = "terminated"
    INVALID = "invalid"
    TOO_LARGE = "too-large"


class Attempt(NamedTuple):
    """One dispatch that did not settle: its number from 1, when it ended (Unix ns), and what came of it."""

    number: int
    at_ns: int
    error: str


@dataclass(slots=True)
class Extras:
    """What few messages have: policy of their own beyond the HEAD, and the history of failed attempts."""

    min_backoff_ns: int | None = None
    max_backoff_ns: int | None = None
    ack_timeout_ns: int | None = None
    backoff_list_ns: tuple[int, ...] = ()
    history: list[Attempt] = field(default_factory=list)
    reason: str | None = None
    died_ns: int | None = None

    def remember(self, attempt: Attempt) -> None:
        """Append an attempt; the oldest beyond HISTORY_KEPT go."""
        self.history.append(attempt)
        del self.history[:-HISTORY_KEPT]

    @property
    def last_error(self) -> str | None:
        """The newest attempt's error text, if any."""
        return self.history[-1].error if self.history else None

    def encode(self) -> bytes:
        """Compact JSON, or nothing when there is nothing to say."""
        said: dict[str, Any] = {}
        for name in ("min_backoff_ns", "max_backoff_ns", "ack_timeout_ns", "reason", "died_ns"):
            value = getattr(self, name)
            if value is not None:
                said[name] = value
        if self.backoff_list_ns:
            said["backoff_list_ns"] = self.backoff_list_ns
        if self.history:
            said["history"] = self.history
        return json.dumps(said, separators=(",", ":")).encode() if said else b""

    @classmethod
    def decode(cls, raw: bytes) -> Extras:
        """The reverse of `encode`."""
        if not raw:
            return cls()
        said = json.loads(raw)
        said["history"] = [Attempt(*entry) for entry in said.get("history", ())]
        said["backoff_list_ns"] = tuple(said.get("backoff_list_ns", ()))
        return cls(**said)


class Record(NamedTuple):
    """A decoded HEAD beside the value that it came from."""

    value: bytes
    flags: int
    backoff: int
    attempts: int
    subject_len: int
    extras_len: int
    headers_len: int
    subject_at: int
    payload_at: int
    payload_len: int
    retries: int
    delay_ns: int
    enqueued_ns: int
    deadline_ns: int

    @property
    def extras(self) -> Extras:
        """The decoded extras."""
        return Extras.decode(self.value[HEAD.size : HEAD.size + self.extras_len])

    @property
    def headers(self) -> bytes:
        """The raw header block as it came, empty when there was none."""
        start = HEAD.size + self.extras_len
        return self.value[start : start + self.headers_len]

    @property
    def wire(self) -> bytes:
        """Headers and body, untouched."""
        return self.value[HEAD.size + self.extras_len :]

    @property
    def subject(self) -> bytes:
        """The original subject."""
        start = HEAD.size + self.extras_len + self.subject_at
        return self.value[start : start + self.subject_len]

    @property
    def payload(self) -> bytes:
        """The original payload."""
        start = HEAD.size + self.extras_len + self.payload_at
        return self.value[start : start + self.payload_len]

    @property
    def size(self) -> int:
        """Bytes that count for `max_bytes`: the wire bytes, the same for the message's whole life."""
        return len(self.value) - HEAD.size - self.extras_len

    @property
    def client_id(self) -> bytes | None:
        """The publisher's Nats-Msg-Id, if it sent one: the same bytes as at intake, since `ids` is keyed by them."""
        if not self.flags & HAS_CLIENT_ID:
            return None
        found = _CLIENT_ID.findall(self.headers)
        return found[-1].rstrip(b" \t") if found else None


def decode(value: bytes) -> Record:
    """Decode a stored value.

    Raises ValueError for a version that this release doesn't know: such a record is never rewritten.
    """
    version, *fields = HEAD.unpack_from(value)
    if version != RECORD_VERSION:
        raise ValueError(f"record version {version}; this release knows {RECORD_VERSION}")
    return Record(value, *fields)


def encode(record: Record, *, attempts: int, extras: Extras, deadline_ns: int | None = None) -> bytes:
    """The record's value with other attempts, extras or deadline; the wire bytes stay as they are."""
    raw = extras.encode()
    head = HEAD.pack(
        RECORD_VERSION,
        record.flags,
        record.backoff,
        attempts,
        record.subject_len,
        len(raw),
        record.headers_len,
        record.subject_at,
        record.payload_at,
        record.payload_len,
        record.retries,
        record.delay_ns,
        record.enqueued_ns,
        record.deadline_ns if deadline_ns is None else deadline_ns,
    )
    return head + raw + record.wire


def backoff_of(record: Record) -> Backoff | None:
    """The message's own backoff shape, or None when the queue decides."""
    return None if record.backoff == UNSET_BACKOFF else Backoff(record.backoff)
