"""Finds the ids that stand in several places, in bounded memory however many records there are.

First all ids go through a Bloom filter; the few that it knows already, nearly all of them by chance, are candidates. A
second walk collects where the candidates stand. Beyond eight million records that is done for one part of the ids after
the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from requeue_worker.storage.keys import ID_LEN

_BITS_EACH: Final = 32  #: with two bits set for each id, one id in three hundred is a candidate at the end
_MAX_BITS: Final = 1 << 28
_MIN_BITS: Final = 1 << 16
MAX_CANDIDATES: Final = 50_000  #: more would be real ones: what follows them is left out


def repeated_ids(
    keys: Callable[[], Iterable[bytes]], count: int, max_bits: int = _MAX_BITS
) -> Iterator[tuple[bytes, list[bytes]]]:
    """Each id that several of the `count` keys end in, with these keys. `keys` gives them anew with each call."""
    parts = -(-count * _BITS_EACH // max_bits) or 1
    bits = _MIN_BITS
    while bits < min(count * _BITS_EACH // parts, max_bits):
        bits <<= 1
    for part in range(parts):
        candidates = _candidates(keys(), bits, part, parts)
        if not candidates:
            continue
        places: dict[bytes, list[bytes]] = {}
        for key in keys():
            if key[-ID_LEN:] in candidates:
                places.setdefault(key[-ID_LEN:], []).append(key)
        for message_id, found in places.items():
            if len(found) > 1:
                yield message_id, found


def _candidates(keys: Iterable[bytes], bits: int, part: int, parts: int) -> set[bytes]:
    seen, mask = bytearray(bits // 8), bits - 1
    candidates: set[bytes] = set()
    for key in keys:
        message_id = key[-ID_LEN:]
        mixed = hash(message_id)
        if parts > 1 and mixed % parts != part:
            continue
        first, second = mixed & mask, mixed >> 32 & mask
        if seen[first >> 3] >> (first & 7) & 1 and seen[second >> 3] >> (second & 7) & 1:
            candidates.add(message_id)
            if len(candidates) >= MAX_CANDIDATES:
                break
        seen[first >> 3] |= 1 << (first & 7)
        seen[second >> 3] |= 1 << (second & 7)
    return candidates
