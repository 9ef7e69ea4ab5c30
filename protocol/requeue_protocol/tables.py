"""Strict reading of FlatBuffers tables: no offset and no length is followed before it was checked.

Python's flatbuffers package has no verifier: its accessors trust the buffer. Here every position must lie
inside the data, and the only exception is MalformedMessage. The format: a table starts with a signed offset
back to its vtable; the vtable holds its own size, the table's size, and per slot the field's place in the
table (0 = absent); strings, vectors and tables hang on unsigned offsets that count forward from the field,
and so cannot run in circles.
"""

from struct import Struct, error
from typing import NamedTuple

from requeue_protocol.errors import MalformedMessage

MAX_TEXT_BYTES = 1024

U32 = Struct("<I").unpack_from
U64 = Struct("<Q").unpack_from
I64 = Struct("<q").unpack_from
_I32 = Struct("<i").unpack_from
_U16_PAIR = Struct("<HH").unpack_from


class Table(NamedTuple):
    """A checked table: where it starts, its own size in bytes, and its vtable."""

    at: int
    size: int
    vtable_at: int
    vtable: bytes

    def slots(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        """Per slot the field's offset from the table's start, 0 when absent. `widths`: the fields' bytes."""
        known = Struct(f"<{(len(self.vtable) - 4) // 2}H").unpack_from(self.vtable, 4)
        offsets = (known + (0,) * len(widths))[: len(widths)]
        for slot, (offset, width) in enumerate(zip(offsets, widths, strict=True)):
            if offset and not 4 <= offset <= self.size - width:
                raise MalformedMessage(
                    f"field {slot} lies outside its table; send a FlatBuffers table as a builder makes it"
                )
        return offsets


def root_table(data: bytes) -> Table:
    """The table that the first four bytes point to. Raises MalformedMessage."""
    try:
        (at,) = U32(data, 0)
    except error:
        raise MalformedMessage(
            f"{len(data)} bytes are too few for an envelope; send a FlatBuffers table"
        ) from None
    return table_at(data, at)


def table_at(data: bytes, at: int) -> Table:
    """The table at `at`, with its vtable inside the data. Raises MalformedMessage."""
    if not 4 <= at <= len(data) - 4:
        raise MalformedMessage(
            f"a table at byte {at} is outside of {len(data)} bytes; send the buffer as it was built"
        )
    (back,) = _I32(data, at)
    vtable_at = at - back
    if not 0 <= vtable_at <= len(data) - 4:
        raise MalformedMessage(
            f"a vtable at byte {vtable_at} is outside of {len(data)} bytes; send the whole buffer"
        )
    vtable_size, size = _U16_PAIR(data, vtable_at)
    if vtable_size < 4 or vtable_size % 2 or vtable_at + vtable_size > len(data):
        raise MalformedMessage(f"a vtable of {vtable_size} bytes cannot be; send a FlatBuffers table")
    if size < 4 or at + size > len(data):
        raise MalformedMessage(
            f"a table of {size} bytes ends outside of {len(data)} bytes; send the whole buffer"
        )
    return Table(at, size, vtable_at, data[vtable_at : vtable_at + vtable_size])


def vector_at(data: bytes, field_at: int, item_size: int, name: str) -> tuple[int, int]:
    """First byte and item count of the vector or string that hangs on a field. Raises MalformedMessage."""
    try:
        (offset,) = U32(data, field_at)
        (count,) = U32(data, field_at + offset)
    except error:
        raise MalformedMessage(f"{name} starts outside of {len(data)} bytes; send the whole buffer") from None
    at: int = field_at + offset + 4
    if at + count * item_size > len(data):
        raise MalformedMessage(f"{name} ends outside of {len(data)} bytes; send the whole buffer")
    return at, count


def text_at(data: bytes, field_at: int, name: str) -> str:
    """The string that hangs on a field. Raises MalformedMessage, also when it is too long or not UTF-8."""
    at, count = vector_at(data, field_at, 1, name)
    if count > MAX_TEXT_BYTES:  # many fields may hang on one string: each costs a copy
        raise MalformedMessage(f"{name} has {count} bytes; at most {MAX_TEXT_BYTES} are allowed")
    try:
        return data[at : at + count].decode()
    except UnicodeDecodeError:
        raise MalformedMessage(f"{name} is not UTF-8; encode it as UTF-8") from None
