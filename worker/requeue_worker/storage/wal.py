"""The end of a log (the write-ahead log, the manifest): torn by a crash, or damaged.

RocksDB cuts off a last record that is longer than what is left of the file, since that is what a crash in the middle of a
write leaves. A flipped bit in the length of an older record looks the same to it, and would cost all that follows, without
a word. So the last block is looked at once more before a database is opened: a torn tail has nothing whole in or behind it.
One in a record's type, in any block, makes it one of a recycled log, at which RocksDB drops what follows, or hangs.

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
#: of logs that are used again, which ours never are: as the first, RocksDB drops all without a word; later, it hangs
_RECYCLED: Final = frozenset((5, 6, 7, 8, 11))
_MASK_DELTA: Final = 0xA282EAD8


def damaged_at(log: Path) -> int | None:
    """The place of a damaged record of which RocksDB would say nothing; None if there is none.

    Raises OSError.
    """
    start = 0
    with log.open("rb") as file:
        while block := file.read(_BLOCK):
            at = _damaged_in(block)
            if at is not None:
                return start + at
            start += _BLOCK
    return None


def mend_type(log: Path, at: int) -> None:
    """Give the damaged record at this place a type with which RocksDB reads on: its own, where the checksum tells it."""
    with log.open("r+b") as file:
        file.seek(at)
        raw = file.read(_BLOCK - at % _BLOCK)
        checksum, length, kind = _HEADER.unpack_from(raw)
        if kind in _TYPES:
            return
        payload = raw[_HEADER.size : _HEADER.size + length]
        kinds = [each for each in _TYPES if checksum == _checksum(bytes((each,)) + payload)]
        file.seek(at + _HEADER.size - 1)
        file.write(bytes((kinds[0] if kinds else 0,)))


def _damaged_in(block: bytes) -> int | None:
    at = 0
    while at + _HEADER.size <= len(block):
        _, length, kind = _HEADER.unpack_from(block, at)
        if length == kind == 0:
            return None
        if kind in _RECYCLED:
            return at
        end = at + _HEADER.size + length
        if end > len(block):
            return at if len(block) < _BLOCK and _has_whole_record(block, at) else None
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
