"""Many timeouts, nearly all of which are never needed.

A timer of the event loop for each message costs more than the message's encoding, since it is made and cancelled each
time. Here a timeout is one entry in the list of its 10 ms tick, the loop has one timer for the earliest tick, and an
entry whose owner has been answered meanwhile is passed over.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Protocol

_TICK_S = 0.01


class Sleeper(Protocol):
    """Who can be woken. `wake_tick` is the tick of its one valid entry, 0 when it waits for nothing."""

    wake_tick: int

    def wake(self) -> None:
        """Its time has come."""


class Alarms:
    """Wakes sleepers, each at most 10 ms after its time and never before it."""

    def __init__(self, find: Callable[[str], Sleeper | None]) -> None:
        """`find` gives the sleeper of a name, None when it is gone: so an entry keeps nothing alive."""
        self._find = find
        self._loop = asyncio.get_running_loop()
        self._names: dict[int, list[str]] = {}
        self._ticks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def set(self, name: str, sleeper: Sleeper, wait_s: float) -> None:
        """Wake a sleeper after `wait_s`, in place of what was set for it before."""
        tick = int((self._loop.time() + wait_s) / _TICK_S) + 1
        sleeper.wake_tick = tick
        names = self._names.get(tick)
        if names is not None:
            names.append(name)
            return
        self._names[tick] = [name]
        heapq.heappush(self._ticks, tick)
        if self._ticks[0] == tick:
            self._arm()

    def close(self) -> None:
        """Wake nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._names.clear()
        self._ticks.clear()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ticks:
            self._timer = self._loop.call_at(self._ticks[0] * _TICK_S, self._ring)

    def _ring(self) -> None:
        now_s = self._loop.time()
        while self._ticks and self._ticks[0] * _TICK_S <= now_s:
            tick = heapq.heappop(self._ticks)
            for name in self._names.pop(tick):
                sleeper = self._find(name)
                if sleeper is not None and sleeper.wake_tick == tick:
                    sleeper.wake_tick = 0
                    sleeper.wake()
        self._arm()
