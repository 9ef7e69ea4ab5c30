"""From an advisory and the message that it is about to the header block of ours. Pure.

advisory {"stream": "ORDERS", "consumer": "billing", "stream_seq": 17, "deliveries": 5, ...}
stored   subject, headers, payload
block    the stored headers but those of its publication, then Nats-Stream, Nats-Sequence, Nats-Consumer,
         Nats-Bridge-Round, and what the intake reads: Requeue-Subject, Requeue-Queue, Nats-Msg-Id
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from requeue_protocol.headers import header_value
from requeue_worker.bridge.settings import BridgedConsumer

ROUND = "Nats-Bridge-Round"
ORIGINAL_ID = "Nats-Original-Msg-Id"
# What said something about one publication (the server would check it again, or drop the message as a duplicate), what
# a replay or an earlier round added, and what is said anew below.
_NOT_TAKEN = re.compile(
    rb"(?<=\n)(?:requeue-|nats-(?:msg-id|expected-|rollup|ttl|schedule|bridge-|original-msg-id|stream|sequence|consumer))"
    rb"[^\r\n]*\r\n",
    re.IGNORECASE,
)


class Advisory(NamedTuple):
    """A consumer has delivered a message as often as it may, and gives it up."""

    stream: str
    consumer: str
    sequence: int
    deliveries: int
    event: str = ""  #: the advisory's own id, the same whenever it comes again

    @property
    def mark(self) -> bytes:
        """What tells this advisory from all others, of a stream that was made anew under the same name too."""
        return f"{self.id}/{self.event}".encode()

    @property
    def id(self) -> str:
        """Of the message: the `Nats-Msg-Id` of what it becomes."""
        return f"{self.stream}.{self.consumer}.{self.sequence}"

    @property
    def text(self) -> str:
        """As the last error of a dead letter."""
        return f"JetStream: consumer {self.consumer} of stream {self.stream} gave up after {self.deliveries} deliveries"


class Stored(NamedTuple):
    """A message of a stream. `headers` is the raw block, empty when it has none."""

    subject: str
    headers: bytes
    payload: bytes


def read_advisory(payload: bytes) -> Advisory:
    """Read an advisory. Raises ValueError for what is none."""
    said = json.loads(payload)
    try:
        found = Advisory(
            said["stream"],
            said["consumer"],
            said["stream_seq"],
            said.get("deliveries", 0),
            said.get("id", ""),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no advisory about a message: {error!r}") from None
    if not all(type(value) is kind for value, kind in zip(found, (str, str, int, int, str), strict=True)):
        raise ValueError("no advisory about a message: stream and consumer are texts, the others are numbers")
    return found


def round_of(stored: Stored) -> int:
    """How often this message has come through the bridge, this time included."""
    text = header_value(stored.headers, ROUND) or ""
    return int(text) + 1 if text.isascii() and text.isdigit() and len(text) < 10 else 1


def block_for(advisory: Advisory, stored: Stored, wanted: BridgedConsumer) -> bytes:
    """The header block that the intake reads."""
    own = _NOT_TAKEN.sub(b"", stored.headers)[:-2] if stored.headers else b"NATS/1.0\r\n"
    lines = [
        ("Nats-Stream", advisory.stream),
        ("Nats-Sequence", str(advisory.sequence)),
        ("Nats-Consumer", advisory.consumer),
        (ROUND, str(round_of(stored))),
        ("Requeue-Subject", wanted.subject or stored.subject),
        ("Requeue-Queue", wanted.queue),
        ("Nats-Msg-Id", advisory.id),
    ]
    original = header_value(stored.headers, ORIGINAL_ID) or header_value(stored.headers, "Nats-Msg-Id")
    if original is not None:
        lines.insert(0, (ORIGINAL_ID, original))
    return own + "".join(f"{name}: {value}\r\n" for name, value in lines).encode() + b"\r\n"
