"""The generated FlatBuffers code as the truth that the strict readers are held against.

`check_envelope` and `check_stats` take any bytes: a reader either refuses them with MalformedMessage, or says what the
generated accessors say. The fuzzers call the same two functions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from requeue_protocol import envelope as envelope_module
from requeue_protocol.envelope import Envelope, read_envelope
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.stats import InstanceStats, QueueStats, read_stats

# Neither is typed: as Any they can be called from typed tests.
flatbuffers: Any = import_module("flatbuffers")
requeue_msg: Any = import_module("requeue_protocol.flatbuf.requeue_msg_generated")
stats_msg: Any = import_module("requeue_protocol.flatbuf.stats_msg_generated")

SLOTS = ("retries", "ttl", "delay", "backoff_strategy", "queue_name", "original_subject", "original_payload")


@dataclass(frozen=True)
class Fields:
    """An envelope's fields in slot order; None is absent."""

    retries: int | None = None
    ttl: int | None = None
    delay: int | None = None
    backoff_strategy: int | None = None
    queue_name: bytes | None = None
    original_subject: bytes | None = b"orders.created"
    original_payload: bytes | None = None


FULL = Fields(5, 86_400_000_000_000, 1_000_000_000, 2, b"default", b"orders.created", bytes(range(256)))


def as_read(fields: Fields) -> tuple[object, ...]:
    """What a reader must say of these fields: defaults filled in."""
    return (
        fields.retries or 0,
        fields.ttl or 0,
        fields.delay or 0,
        fields.backoff_strategy or 0,
        fields.queue_name or b"default",
        fields.original_subject,
        fields.original_payload or b"",
    )


def as_said(data: bytes, envelope: Envelope) -> tuple[object, ...]:
    """What `read_envelope` said, in the shape of `as_read`; subject and payload are taken at their offsets."""
    subject = data[envelope.subject_at : envelope.subject_at + len(envelope.subject)]
    assert subject == envelope.subject
    return (
        envelope.retries,
        envelope.ttl_ns,
        envelope.delay_ns,
        int(envelope.backoff),
        envelope.queue.encode(),
        subject,
        data[envelope.payload_at : envelope.payload_at + envelope.payload_len],
    )


def generated_fields(data: bytes) -> Fields:
    """What the generated accessors read. Raises whatever they raise."""
    message = requeue_msg.RequeueMessage.GetRootAs(data, 0)
    table = message._tab
    payload = None
    if at := table.Offset(16):
        start = table.Vector(at)
        payload = bytes(data[start : start + table.VectorLen(at)])
    return Fields(
        message.Retries(),
        message.Ttl(),
        message.Delay(),
        message.BackoffStrategy(),
        message.QueueName(),
        message.OriginalSubject(),
        payload,
    )


def build_generated(
    fields: Fields, *, force_defaults: bool = False, order: tuple[int, ...] = tuple(range(7))
) -> bytes:
    """An envelope by the generated builder. `order`: in which order the client adds the fields."""
    builder = flatbuffers.Builder(0)
    builder.ForceDefaults(force_defaults)
    strings = {
        4: builder.CreateString(fields.queue_name) if fields.queue_name is not None else None,
        5: builder.CreateString(fields.original_subject) if fields.original_subject is not None else None,
        6: builder.CreateByteVector(fields.original_payload) if fields.original_payload is not None else None,
    }
    values: tuple[Any, ...] = (fields.retries, fields.ttl, fields.delay, fields.backoff_strategy)
    add: tuple[Callable[[Any, Any], None], ...] = (
        requeue_msg.RequeueMessageAddRetries,
        requeue_msg.RequeueMessageAddTtl,
        requeue_msg.RequeueMessageAddDelay,
        requeue_msg.RequeueMessageAddBackoffStrategy,
        requeue_msg.RequeueMessageAddQueueName,
        requeue_msg.RequeueMessageAddOriginalSubject,
        requeue_msg.RequeueMessageAddOriginalPayload,
    )
    requeue_msg.RequeueMessageStart(builder)
    for slot in order:
        value = values[slot] if slot < 4 else strings[slot]
        if value is not None:
            add[slot](builder, value)
    builder.Finish(requeue_msg.RequeueMessageEnd(builder))
    return bytes(builder.Output())


@dataclass(frozen=True)
class Arrangement:
    """How a builder of another language may lay out the same table."""

    order: tuple[int, ...] = tuple(range(7))  # of the fields in the table
    vtable_first: bool = True
    vtable_gap: int = 0  # bytes between vtable and table
    extra_slots: tuple[int, ...] = ()  # of a newer schema: each a field of so many bytes
    cut_vtable: bool = True  # leave out the slots after the last present one
    trailing: bytes = b""


def arrange(fields: Fields, how: Arrangement = Arrangement()) -> bytes:
    """An envelope by hand, laid out as `how` says."""
    values = [getattr(fields, name) for name in SLOTS]
    widths = (8, 8, 8, 1, 4, 4, 4)
    offsets = [0] * 7
    size = 4
    for slot in how.order:
        if values[slot] is not None:
            size += -size % widths[slot]
            offsets[slot] = size
            size += widths[slot]
    for width in how.extra_slots:
        size += -size % width
        offsets.append(size)
        size += width
    if how.cut_vtable:
        while offsets and not offsets[-1]:
            offsets.pop()
    vtable = struct.pack(f"<{2 + len(offsets)}H", 4 + 2 * len(offsets), size, *offsets)
    if how.vtable_first:
        vtable_at = 4
        table_at = vtable_at + len(vtable) + how.vtable_gap
        table_at += -table_at % 8
        tail_at = table_at + size
    else:
        table_at = 8
        vtable_at = table_at + size + how.vtable_gap
        vtable_at += -vtable_at % 2
        tail_at = vtable_at + len(vtable)
    tail_at += -tail_at % 4
    out = bytearray(tail_at)
    struct.pack_into("<I", out, 0, table_at)
    out[vtable_at : vtable_at + len(vtable)] = vtable
    struct.pack_into("<i", out, table_at, table_at - vtable_at)
    offsets += [0] * (7 - len(offsets))
    for slot, code in enumerate("QQQb"):
        if values[slot] is not None:
            struct.pack_into("<" + code, out, table_at + offsets[slot], values[slot])
    for slot in (4, 5, 6):
        if values[slot] is not None:
            struct.pack_into("<I", out, table_at + offsets[slot], len(out) - table_at - offsets[slot])
            out += struct.pack("<I", len(values[slot])) + values[slot] + b"\0"
            out += b"\0" * (-len(out) % 4)
    return bytes(out) + how.trailing


def forget() -> None:
    """Empty the caches of the reader: its verdict must never depend on what it read before."""
    envelope_module._layouts.clear()
    envelope_module._shapes.clear()
    envelope_module._queues.clear()


def check_envelope(data: bytes) -> Envelope | None:
    """Read `data`, with warm and with empty caches, against the oracle. None when it was refused, rightly or not."""
    warm = _verdict(data)
    forget()
    assert _verdict(data) == warm, "the verdict depends on what was read before"
    if isinstance(warm, str):
        return None
    expected = generated_fields(data)
    assert as_said(data, warm) == as_read(expected)
    assert warm.subject.decode()
    assert warm.payload_at + warm.payload_len <= len(data)
    return warm


def _verdict(data: bytes) -> Envelope | str:
    try:
        return read_envelope(data)
    except MalformedMessage as refused:
        return str(refused)


def check_stats(data: bytes) -> InstanceStats | None:
    """Read `data` as stats against the oracle. None when it was refused."""
    try:
        stats = read_stats(data)
    except MalformedMessage:
        return None
    message = stats_msg.InstanceStatsMessage.GetRootAs(data, 0)
    queues = [message.Queues(i) for i in range(message.QueuesLength())]
    expected = InstanceStats(
        (message.InstanceId() or b"").decode(),
        tuple(QueueStats((q.QueueName() or b"").decode(), q.Enqueued(), q.InFlight()) for q in queues),
    )
    assert stats == expected
    return stats


def without(fields: Fields, *names: str) -> Fields:
    """`fields` with some of them absent."""
    return replace(fields, **dict.fromkeys(names))
