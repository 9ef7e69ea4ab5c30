"""Reading over damage: every record of a family that can still be read, and a note on each stretch that can't be.

RocksDB reads nothing at all from a block whose checksum does not agree, and does not say where the next one begins. So
that is searched for: in growing steps behind the last good key, then back by halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from requeue_worker.errors import DataDamaged
from requeue_worker.storage.rocksdb import Engine

_KEY_LEN: Final = 192  #: no key is longer
_BEYOND: Final = b"\xff" * _KEY_LEN
_PROBES: Final = 64


class Gap(NamedTuple):
    """Nothing can be read in ``start <= key < end``; `end` None: up to the end of the family."""

    family: str
    start: bytes
    end: bytes | None
    error: str


def readable(engine: Engine, family: str) -> Iterator[tuple[bytes, bytes] | Gap]:
    """Key and value of everything in this family that can be read, in key order, and the gaps in between. Blocks."""
    at = b""
    while True:
        try:
            for item in engine.items(family, at, _BEYOND):
                at = item[0] + b"\x00"
                yield item
        except DataDamaged as error:
            end = _beyond(engine, family, at)
            yield Gap(family, at, end, str(error))
            if end is None:
                return
            at = end
        else:
            return


def _beyond(engine: Engine, family: str, at: bytes) -> bytes | None:
    """The first key behind the damage at `at`; None when there is none."""
    low = _number(at)
    high = low
    for power in range(8 * _KEY_LEN):
        high = min(low + (1 << power), _number(_BEYOND))
        if _reads(engine, family, high) or high == _number(_BEYOND):
            break
    # The steps grow: a good stretch between two damaged ones may lie between the last two of them.
    for probe in range(1, _PROBES):
        place = low + (high - low) * probe // _PROBES
        if _reads(engine, family, place):
            high = place
            break
    while high - low > 1:
        middle = (low + high) // 2
        if _reads(engine, family, middle):
            high = middle
        else:
            low = middle
    try:
        end = engine.first_key(family, high.to_bytes(_KEY_LEN, "big"))
    except DataDamaged:
        return None  # up to the end of the family
    return end if end is None or end > at else at + b"\x00"


def _reads(engine: Engine, family: str, place: int) -> bool:
    try:
        engine.first_key(family, place.to_bytes(_KEY_LEN, "big"))
    except DataDamaged:
        return False
    return True


def _number(key: bytes) -> int:
    return int.from_bytes(key.ljust(_KEY_LEN, b"\x00"), "big")
