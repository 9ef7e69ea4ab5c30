"""The end of a log (the write-ahead log, the manifest): torn by a crash, or damaged.

RocksDB cuts off a last record that is longer than what is left of the file, since that is what a crash in the middle of a
write leaves. A flipped bit in the length of an older record looks the same to it, and would cost all that follows, without
a word. So the last block is looked at once more before a database is opened: a torn tail has nothing whole in or behind it.

Format: blocks of 32 KiB with records of CRC-32C (masked), length, type and payload; none crosses the end of a block, and
what is wrong in any but the last, unfinished block RocksDB itself reports.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import Final

_BLOCK: Final = 32 * 1024
_HEADER: Final = Struct("<IHB")
_TYPES: Final = frozenset((1, 2, 3, 4))  # full, first, middle, last
#: of logs that are used again, which ours never are: an open that meets one does not return
_RECYCLED: Final = frozenset((5, 6, 7, 8))
_MASK_DELTA: Final = 0xA282EAD8


def damaged_at(log: Path) -> int | None:
    """The place of a damaged record in the last block, which RocksDB would take for a torn tail; None if there is none.

    Raises OSError.
    """
    size = log.stat().st_size
    start = size - size % _BLOCK
    with log.open("rb") as file:
        file.seek(start)
        block = file.read()
    at = 0
    while at + _HEADER.size <= len(block):
        _, length, kind = _HEADER.unpack_from(block, at)
        if length == kind == 0:
            return None
        if kind in _RECYCLED:
            return start + at
        end = at + _HEADER.size + length
        if end > len(block):
            return start + at if _has_whole_record(block, at) else None
        at = end
    return None


def _has_whole_record(block: bytes, at: int) -> bool:
    """Whether the bytes from here are a record with another length than it says, or have a whole record in them."""
    checksum, _, kind = _HEADER.unpack_from(block, at)
    if kind in _TYPES and checksum == _checksum(block[at + 6 :]):
        return True
    for place in range(at + 1, len(block) - _HEADER.size):
        checksum, length, kind = _HEADER.unpack_from(block, place)
        end = place + _HEADER.size + length
        if kind in _TYPES and length and end <= len(block) and checksum == _checksum(block[place + 6 : end]):
            return True
    return False


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901 - eight steps of one value
        table.append(value)
    return table


_CRC32C: Final = _table()


def _checksum(raw: bytes) -> int:
    """CRC-32C of type and payload, masked as LevelDB does."""
    crc = 0xFFFFFFFF
    for byte in raw:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
