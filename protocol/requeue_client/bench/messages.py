"""Protocol lines of the load, prebuilt: one format operation per message.

Every payload starts with its number and the instant at which it is due (two big-endian uint64, ns), so that a
delivery tells which message it is and how late. The rest is noise, which no disk format can compress.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from requeue_protocol import headers as h
from requeue_protocol.durations import ns_to_rfc3339
from requeue_protocol.envelope import Backoff, build_envelope

STAMP = struct.Struct(">QQ")
MIN_SIZE = STAMP.size
ORIGINAL_SUBJECT = "requeue-bench.deliver"
INTAKE_SUBJECT = "requeue.bench"
_RETRIES = 5
_DAY_NS = 86_400 * 10**9
_MARK = 0x1122334455667788
_NOISE_BYTES = 1 << 20
_NOISE_STEP = 7919  #: messages that share noise are further apart than a block of a table

Compose = Callable[[int, int], bytes]
"""Protocol bytes of the messages `[first, last)`, one batch."""

DueAt = Callable[[int], int]
"""The instant at which a message is due, in ns since 1970."""

_GOLDEN = 0x9E3779B97F4A7C15  #: 2**64 by the golden ratio: its multiples are spread evenly over 64 bits


def due_within(start_ns: int, spread_ns: int) -> DueAt:
    """Instants from `start_ns` on, evenly spread over `spread_ns`, in no order (Knuth's multiplicative hashing)."""
    if not spread_ns:
        return lambda _: start_ns
    return lambda number: start_ns + ((number * _GOLDEN & 0xFFFFFFFFFFFFFFFF) * spread_ns >> 64)


@dataclass(frozen=True, slots=True)
class Load:
    """What is published: `n` messages of `size` payload bytes over `queues` queues."""

    n: int
    size: int = 256
    window: int = 1024
    queues: int = 1
    intake: str = INTAKE_SUBJECT
    subject: str = ORIGINAL_SUBJECT
    prefix: str = ""

    def queue(self, number: int) -> str:
        """Name of a queue; messages are dealt to the queues in turn."""
        if self.prefix:
            return f"{self.prefix}-{number}"
        return f"bench-{number}" if self.queues > 1 else "default"


def noise(size: int) -> Callable[[int], bytes]:
    """`size` bytes of noise for each number, cheaply: slices of one piece."""
    piece = random.Random(0).randbytes(_NOISE_BYTES + size)

    def slice_of(number: int) -> bytes:
        start = number * _NOISE_STEP % _NOISE_BYTES
        return piece[start : start + size]

    return slice_of


def _escape(raw: bytes) -> bytes:
    return raw.replace(b"%", b"%%")


def _envelope_format(inbox: str, load: Load, queue: str) -> bytes:
    """A PUB of an envelope with holes for number, delay (8 bytes), stamp (16 bytes) and the rest of the payload."""
    rest_of_payload = bytes(load.size - STAMP.size)
    envelope = build_envelope(
        subject=load.subject,
        payload=STAMP.pack(_MARK, _MARK) + rest_of_payload,
        retries=_RETRIES,
        ttl_ns=_DAY_NS,
        delay_ns=_MARK,
        backoff=Backoff.FIXED,
        queue=queue,
    )
    delay, stamp = struct.pack("<Q", _MARK), STAMP.pack(_MARK, _MARK) + rest_of_payload
    before, rest = envelope.split(delay, 1)
    between, after = rest.split(stamp, 1)
    head = f"PUB {load.intake} {inbox}.".encode()
    size = f" {len(envelope)}\r\n".encode()
    parts = (head, b"%d", size, before, b"%b", between, b"%b", after, b"\r\n")
    return b"".join(part if part in (b"%d", b"%b") else _escape(part) for part in parts)


def envelopes(inbox: str, load: Load, due_at: DueAt) -> Compose:
    """Envelopes, as clients of the original send them. The delay is counted when a batch is made."""
    formats = [_envelope_format(inbox, load, load.queue(number)) for number in range(load.queues)]
    queues, fill = load.queues, noise(load.size - STAMP.size)

    def compose(first: int, last: int) -> bytes:
        now_ns = time.time_ns()
        due_ns = due_at(first)
        if due_at(last - 1) == due_ns:  # all due at once: the delay is the same for the batch
            delay = max(0, due_ns - now_ns).to_bytes(8, "little")
            return b"".join(
                [
                    formats[i % queues] % (i, delay, STAMP.pack(i, due_ns) + fill(i))
                    for i in range(first, last)
                ]
            )
        lines = []
        for i in range(first, last):
            due_ns = due_at(i)
            delay = max(0, due_ns - now_ns).to_bytes(8, "little")
            lines.append(formats[i % queues] % (i, delay, STAMP.pack(i, due_ns) + fill(i)))
        return b"".join(lines)

    return compose


def plain(inbox: str, load: Load, due_at: DueAt) -> Compose:
    """Plain intake with `Requeue-At`: due at an exact instant, however long the way to the disk takes."""
    formats = []
    for number in range(load.queues):
        block = (
            f"NATS/1.0\r\n{h.SUBJECT}: {load.subject}\r\n{h.QUEUE}: {load.queue(number)}\r\n"
            f"{h.RETRIES}: {_RETRIES}\r\n{h.AT}: {ns_to_rfc3339(0)}\r\n\r\n"
        )
        sizes = f"{len(block)} {len(block) + load.size}"
        before, after = block.split(ns_to_rfc3339(0))
        head = f"HPUB {load.intake} {inbox}.%d {sizes}\r\n{before}%b{after}%b\r\n"
        formats.append(head.encode())
    queues, fill = load.queues, noise(load.size - STAMP.size)

    def compose(first: int, last: int) -> bytes:
        lines = []
        for i in range(first, last):
            due_ns = due_at(i)
            at = ns_to_rfc3339(due_ns).encode()
            lines.append(formats[i % queues] % (i, at, STAMP.pack(i, due_ns) + fill(i)))
        return b"".join(lines)

    return compose


def bare(subject: str, inbox: str, load: Load) -> Compose:
    """The payload alone, to any subject: what a JetStream stream takes in."""
    frame = f"PUB {subject} {inbox}.%d {load.size}\r\n%b\r\n".encode()
    fill = noise(load.size - STAMP.size)

    def compose(first: int, last: int) -> bytes:
        now_ns = time.time_ns()
        return b"".join([frame % (i, STAMP.pack(i, now_ns) + fill(i)) for i in range(first, last)])

    return compose
