"""The stats message on `_requeue._stats`: FlatBuffers table `flatbuf.InstanceStatsMessage`.

A worker with many queues sends several messages with the same instance id, each small enough for the
server; a reader adds them up per interval. Packed by hand: 10,000 queues must not hold up the worker's
event loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from requeue_protocol.errors import MalformedMessage
from requeue_protocol.tables import I64, U32, Table, root_table, table_at, text_at, vector_at

_MIN_I64, _MAX_I64 = -(2**63), 2**63 - 1
# The buffer: root offset, vtable of a queue, of the instance, instance table, vector of queues, id, queues.
_HEAD = Struct("<I5H4H2xiII")
_QUEUE_VTABLE_AT = 4
_INSTANCE_VTABLE_AT = 14
_INSTANCE_AT = 24
_QUEUE = Struct("<iIqqI")  # offset to the vtable, queue_name, enqueued, in_flight; then the name's length
_U32 = Struct("<I").pack
_INSTANCE_WIDTHS = (4, 4)
_QUEUE_WIDTHS = (4, 8, 8)


@dataclass(frozen=True, slots=True)
class QueueStats:
    """One queue of one instance: messages pending (in flight included), and messages in flight."""

    queue_name: str
    enqueued: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class InstanceStats:
    """What one stats message says."""

    instance_id: str
    queues: tuple[QueueStats, ...]


def build_stats(instance_id: str, queues: Sequence[QueueStats], max_bytes: int) -> list[bytes]:
    """The stats of an instance as messages of at most `max_bytes` each, and always one at least.

    A single queue that does not fit is sent all the same: no server has a `max_payload` that small.
    Raises ValueError for counts outside int64.
    """
    raw_id = instance_id.encode()
    return [_build(raw_id, part) for part in _split(raw_id, queues, max_bytes)]


def _split(
    raw_id: bytes, queues: Sequence[QueueStats], max_bytes: int
) -> Iterator[list[tuple[bytes, int, int]]]:
    """Parts that fit. A queue takes 4 bytes in the vector, 28 of table and length, and its padded name."""
    empty = _INSTANCE_AT + 12 + 4 + 4 + len(raw_id) + 1 + 7  # 7: the most that aligns the first queue
    part: list[tuple[bytes, int, int]] = []
    size = empty
    for queue in queues:
        for count in (queue.enqueued, queue.in_flight):
            if not _MIN_I64 <= count <= _MAX_I64:
                raise ValueError(f"{count} messages in queue {queue.queue_name!r} do not fit int64")
        name = queue.queue_name.encode()
        needed = 4 + 28 + len(name) + _padding(name)
        if part and size + needed > max_bytes:
            yield part
            part, size = [], empty
        part.append((name, queue.enqueued, queue.in_flight))
        size += needed
    if part or not queues:
        yield part


def _padding(name: bytes) -> int:
    """NUL bytes after a queue's name: one ends it, the others align the next table to 8."""
    return 1 + -(28 + len(name) + 1) % 8


def _build(raw_id: bytes, queues: list[tuple[bytes, int, int]]) -> bytes:
    vector_at_ = _INSTANCE_AT + 12
    id_at = vector_at_ + 4 + 4 * len(queues)
    head = _HEAD.pack(
        _INSTANCE_AT,
        *(10, 24, 4, 8, 16),  # vtable of a queue: its size, the table's size, where the three fields are
        *(8, 12, 4, 8),  # vtable of the instance
        _INSTANCE_AT - _INSTANCE_VTABLE_AT,
        id_at - (_INSTANCE_AT + 4),
        vector_at_ - (_INSTANCE_AT + 8),
    )
    id_text = _U32(len(raw_id)) + raw_id + b"\0"
    at = id_at + len(id_text)
    padding = b"\0" * (-at % 8)
    at += len(padding)
    offsets, tables = [_U32(len(queues))], []
    for index, (name, enqueued, in_flight) in enumerate(queues):
        offsets.append(_U32(at - (vector_at_ + 4 + 4 * index)))
        # int64 fields lie at multiples of 8: so do the tables, 28 bytes and a padded name after one another.
        text = name + b"\0" * _padding(name)
        tables.append(_QUEUE.pack(at - _QUEUE_VTABLE_AT, 20, enqueued, in_flight, len(name)) + text)
        at += 28 + len(text)
    return b"".join((head, *offsets, id_text, padding, *tables))


def read_stats(data: bytes) -> InstanceStats:
    """What a stats message says. For any bytes that are none it raises MalformedMessage, and nothing else."""
    root = root_table(data)
    id_slot, queues_slot = root.slots(_INSTANCE_WIDTHS)
    instance_id = text_at(data, root.at + id_slot, "instance_id") if id_slot else ""
    if not queues_slot:
        return InstanceStats(instance_id, ())
    first, count = vector_at(data, root.at + queues_slot, 4, "queues")
    if count * 8 > len(data):  # a queue takes 8 bytes at least; a vector of pointers to one table is noise
        raise MalformedMessage(f"{count} queues in {len(data)} bytes; send each queue's own table")
    entries = range(first, first + 4 * count, 4)
    return InstanceStats(
        instance_id, tuple(_read_queue(data, table_at(data, at + U32(data, at)[0])) for at in entries)
    )


def _read_queue(data: bytes, table: Table) -> QueueStats:
    name_slot, enqueued_slot, in_flight_slot = table.slots(_QUEUE_WIDTHS)
    return QueueStats(
        text_at(data, table.at + name_slot, "queue_name") if name_slot else "",
        I64(data, table.at + enqueued_slot)[0] if enqueued_slot else 0,
        I64(data, table.at + in_flight_slot)[0] if in_flight_slot else 0,
    )
