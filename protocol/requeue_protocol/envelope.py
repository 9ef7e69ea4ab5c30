"""The envelope codec: FlatBuffers table `flatbuf.RequeueMessage`, compatible with the original's clients.

Reading is on the worker's hot path. All envelopes of one client start with the same bytes (root offset,
vtable, offset back to it), so what was learnt from checking them is kept per such prefix (`_layouts`) and
per vtable (`_shapes`), both bounded. What differs from message to message (scalars, offsets and lengths of
strings and payload) is checked each time. The generated code in `flatbuf/` is the oracle of the tests and
is not used here.
"""

from collections.abc import Callable
from enum import IntEnum
from operator import itemgetter
from struct import Struct, error
from typing import NamedTuple, TypeVar, cast

from requeue_protocol.errors import MalformedMessage
from requeue_protocol.subjects import check_publish_subject, check_queue_name
from requeue_protocol.tables import U32, root_table

_V = TypeVar("_V")

DEFAULT_QUEUE = "default"
MAX_U64 = 2**64 - 1


class Backoff(IntEnum):
    """How the delay grows from one attempt to the next. The envelope knows the first three alone."""

    UNDEFINED = 0
    EXPONENTIAL = 1
    FIXED = 2
    LINEAR = 3
    LIST = 4


class Envelope(NamedTuple):
    """What an envelope says. `subject_at` and `payload_at` are offsets into its bytes."""

    retries: int
    ttl_ns: int
    delay_ns: int
    backoff: Backoff
    queue: str
    subject: bytes
    subject_at: int
    payload_at: int
    payload_len: int


class _Shape(NamedTuple):
    """What a vtable says: `unpack` reads fields as they lie in the table, `pick` puts them in slot order."""

    unpack: Callable[[bytes, int], tuple[int, ...]]
    pick: Callable[[tuple[int, ...]], tuple[int, ...]]
    slots: tuple[int, ...]


class Layout(NamedTuple):
    """A shape at its place in the buffer: `*_from` are the positions of the offset fields, 0 when absent."""

    unpack: Callable[[bytes, int], tuple[int, ...]]
    pick: Callable[[tuple[int, ...]], tuple[int, ...]]
    root: int
    end: int
    queue_from: int
    subject_from: int
    payload_from: int
    delay_at: int  #: 0 when absent


_CODES = "QQQbIII"  # retries, ttl, delay, backoff_strategy, queue_name, original_subject, original_payload
_WIDTHS = (8, 8, 8, 1, 4, 4, 4)
_ABSENT = (0,)
_new_tuple = tuple.__new__
_WIRE_BACKOFFS = {kind.value: kind for kind in (Backoff.UNDEFINED, Backoff.EXPONENTIAL, Backoff.FIXED)}
_CACHED = 512

_shapes: dict[bytes, _Shape] = {}
_layouts: dict[bytes, Layout] = {}
_queues: dict[bytes, str] = {}


def read_envelope(data: bytes) -> Envelope:
    """The fields of an envelope. For any bytes that are none it raises MalformedMessage, and nothing else.

    Bytes after the table are ignored, as are slots of a newer schema. An absent or empty queue is `default`.
    """
    size = len(data)
    if size < 8:
        raise MalformedMessage(f"{size} bytes are too few for an envelope; send a FlatBuffers RequeueMessage")
    try:
        layout = _layouts.get(data[: data[0] + 4]) or _layout_of(data)
        unpack, pick, root, end, queue_from, subject_from, payload_from, _ = layout
        if end > size:
            root_table(data)  # raises: the first bytes are known, but the table is cut off
        retries, ttl_ns, delay_ns, strategy, queue_off, subject_off, payload_off = pick(
            unpack(data, root) + _ABSENT
        )
        backoff = _WIRE_BACKOFFS[strategy]
        subject_at = subject_from + subject_off + 4
        (subject_len,) = U32(data, subject_at - 4)
        subject = data[subject_at : subject_at + subject_len]
        if len(subject) != subject_len:
            raise _cut("original_subject", size)
        payload_at = payload_len = 0
        if payload_from:
            payload_at = payload_from + payload_off + 4
            (payload_len,) = U32(data, payload_at - 4)
            if payload_at + payload_len > size:
                raise _cut("original_payload", size)
        queue = DEFAULT_QUEUE
        if queue_from:
            queue_at = queue_from + queue_off + 4
            (queue_len,) = U32(data, queue_at - 4)
            name = data[queue_at : queue_at + queue_len]
            if len(name) != queue_len:
                raise _cut("queue_name", size)
            queue = _queues.get(name) or _queue_of(name)
    except error:  # no read goes beyond the data
        raise _cut("a string or the payload", size) from None
    except KeyError as unknown:
        raise MalformedMessage(
            f"backoff_strategy {unknown}; it is 0 (none), 1 (exponential) or 2 (fixed)"
        ) from None
    if not (subject and subject.isascii()):
        _check_subject(subject)
    fields = (retries, ttl_ns, delay_ns, backoff, queue, subject, subject_at, payload_at, payload_len)
    return _new_tuple(Envelope, fields)  # half the time of Envelope(...)


def known_layout(data: bytes) -> Layout | None:
    """The layout of data that `read_envelope` has read, if its first bytes alone tell it."""
    return _layouts.get(data[: data[0] + 4])


def _cut(what: str, size: int) -> MalformedMessage:
    return MalformedMessage(f"{what} reaches beyond the {size} bytes of the envelope; send the whole buffer")


def _layout_of(data: bytes) -> Layout:
    """Check root, vtable and table of an envelope whose first bytes are not known yet, and remember them."""
    table = root_table(data)
    shape = _shapes.get(table.vtable) or _shape_of(table.vtable, table.slots(_WIDTHS))
    slots, root = shape.slots, table.at
    delay_at, _, queue_from, subject_from, payload_from = (root + slot if slot else 0 for slot in slots[2:])
    if not subject_from:
        raise MalformedMessage("original_subject is absent; name the subject that the message belongs to")
    layout = Layout(
        shape.unpack,
        shape.pick,
        root,
        root + table.size,
        queue_from,
        subject_from,
        payload_from,
        delay_at,
    )
    # Only where the whole vtable lies inside the prefix do equal prefixes mean equal layouts.
    if root < 256 and table.vtable_at + len(table.vtable) <= root + 4:
        _remember(_layouts, data[: root + 4], layout)
    return layout


def _shape_of(vtable: bytes, slots: tuple[int, ...]) -> _Shape:
    """Compile a checked vtable into one struct. Raises MalformedMessage when fields overlap."""
    pattern, at = "<", 0
    order = sorted((offset, slot) for slot, offset in enumerate(slots) if offset)
    for offset, slot in order:
        if offset < at:
            raise MalformedMessage(
                "fields of the table overlap; send a FlatBuffers table as a builder makes it"
            )
        pattern += f"{offset - at}x{_CODES[slot]}"
        at = offset + _WIDTHS[slot]
    place = {slot: index for index, (_, slot) in enumerate(order)}
    pick = itemgetter(*(place.get(slot, -1) for slot in range(len(slots))))  # -1: the zero that is appended
    shape = _Shape(
        Struct(pattern).unpack_from, cast(Callable[[tuple[int, ...]], tuple[int, ...]], pick), slots
    )
    _remember(_shapes, vtable, shape)
    return shape


def _queue_of(name: bytes) -> str:
    """The queue name, checked and remembered."""
    if not name:
        return DEFAULT_QUEUE
    try:
        queue = name.decode("ascii")
    except UnicodeDecodeError:
        queue = name.decode(errors="backslashreplace")
    check_queue_name(queue)
    _remember(_queues, name, queue)
    return queue


def _remember(cache: dict[bytes, _V], key: bytes, value: _V) -> None:
    """Bounded: noise can empty a cache, which costs time, and never make it grow."""
    if len(cache) >= _CACHED:
        cache.clear()
    cache[key] = value


def _check_subject(subject: bytes) -> None:
    if not subject:
        raise MalformedMessage("original_subject is empty; name the subject that the message belongs to")
    try:
        subject.decode()
    except UnicodeDecodeError:
        raise MalformedMessage("original_subject is not UTF-8; encode it as UTF-8") from None


# Where build_envelope puts things: root offset, two bytes of padding, vtable, table, then the vectors.
_TABLE_AT = 24
_TABLE = Struct("<iIQQQIIb3x")  # offset to the vtable, queue, retries, ttl, delay, subject, payload, strategy
_HEAD = Struct("<I2x9H")
_HEAD_BYTES = _HEAD.pack(_TABLE_AT, 18, _TABLE.size, 8, 16, 24, 40, 4, 32, 36)
_HEAD_NO_QUEUE = _HEAD.pack(_TABLE_AT, 18, _TABLE.size, 8, 16, 24, 40, 0, 32, 36)
_LENGTH = Struct("<I").pack


def build_envelope(
    *,
    subject: str,
    payload: bytes,
    retries: int = 0,
    ttl_ns: int = 0,
    delay_ns: int = 0,
    backoff: Backoff = Backoff.UNDEFINED,
    queue: str | None = None,
) -> bytes:
    """An envelope as bytes. Raises ValueError, with what would be right, for what a worker would refuse.

    Packed by hand: the generated builder takes ten times as long. The tests read it back with generated code.
    """
    for name, number in (("retries", retries), ("ttl_ns", ttl_ns), ("delay_ns", delay_ns)):
        if not 0 <= number <= MAX_U64:
            raise ValueError(f"{name} {number}; it is 0 to 2^64-1")
    if backoff not in _WIRE_BACKOFFS:
        raise ValueError(
            f"backoff {backoff!r}; an envelope carries UNDEFINED, EXPONENTIAL or FIXED, others go by header"
        )
    try:
        raw_subject = subject.encode()
        check_publish_subject(raw_subject)
        if queue is not None:
            check_queue_name(queue)
    except (MalformedMessage, UnicodeEncodeError) as wrong:
        raise ValueError(str(wrong)) from None
    head, strings = (_HEAD_BYTES, [_string(queue.encode())]) if queue is not None else (_HEAD_NO_QUEUE, [b""])
    strings.append(_string(raw_subject))
    queue_at = _TABLE_AT + _TABLE.size
    subject_at = queue_at + len(strings[0])
    payload_at = subject_at + len(strings[1])
    # An offset counts from the field that holds it: queue at +4, subject at +32, payload at +36 of the table.
    table = _TABLE.pack(
        _TABLE_AT - 6,
        queue_at - _TABLE_AT - 4 if queue is not None else 0,
        retries,
        ttl_ns,
        delay_ns,
        subject_at - _TABLE_AT - 32,
        payload_at - _TABLE_AT - 36,
        backoff,
    )
    return b"".join((head, table, *strings, _LENGTH(len(payload)), payload))


def _string(text: bytes) -> bytes:
    """A FlatBuffers string: length, bytes, NUL, padded to four bytes."""
    return _LENGTH(len(text)) + text + b"\0" * (4 - len(text) % 4)
