"""Wake-ups: for each owner the earliest time at which somebody has to look at it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Final, Generic, TypeVar

_SWEEP_BEYOND: Final = 64  #: replaced entries are swept out when they outnumber the live ones by so many

T = TypeVar("T")


class WakeUps(Generic[T]):
    """A heap of (time in ns, owner). An earlier time replaces a later one, whose entry goes with a sweep."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, T]] = []
        self._at_ns: dict[T, int] = {}
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def wake(self, owner: T, at_ns: int) -> None:
        """Wake the owner at this time, or at the earlier one that stands already."""
        standing_ns = self._at_ns.get(owner)
        if standing_ns is not None and standing_ns <= at_ns:
            return
        self._at_ns[owner] = at_ns
        heapq.heappush(self._heap, (at_ns, next(self._order), owner))
        if len(self._heap) > 2 * len(self._at_ns) + _SWEEP_BEYOND:
            self._heap = [(at_ns, next(self._order), owner) for owner, at_ns in self._at_ns.items()]
            heapq.heapify(self._heap)

    def forget(self, owner: T) -> None:
        """Nobody has to look at this owner any more."""
        self._at_ns.pop(owner, None)

    def due(self, now_ns: int) -> Iterator[T]:
        """Owners whose time has come, each once; they have no wake-up any more."""
        heap = self._heap
        while heap and heap[0][0] <= now_ns:
            at_ns, _, owner = heapq.heappop(heap)
            if self._at_ns.get(owner) == at_ns:
                del self._at_ns[owner]
                yield owner

    def next_ns(self) -> int | None:
        """The earliest time that stands, None when there is none."""
        heap = self._heap
        while heap and self._at_ns.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None
