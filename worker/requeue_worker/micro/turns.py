"""Bulk changes (redrive, purge, move, dead letters out and in) take turns and give way to the intake; so do looks at disk.

    lock ──> rest that the turn before left ──> one bounded step ──> rest, if clients' messages come in

Changes share one lock, looks another. All that share one have together one step in REST + 1 of the time while messages
come in, however many of them there are, and all of it while none does. Nobody sets anything: a step that takes long, since
the disk or the cores are busy, is followed by a longer rest. So is one in which many messages came: the less of its time
the worker has left, the less it can give to what a change brings after the step (replays, deaths).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from requeue_protocol.errors import Busy

BESIDE_INTAKE: Final = 128  #: messages of a step while others come in: no ack waits for more
REST: Final = 4  #: a rest is so many times as long as the step before it
MESSAGE_S: Final = 20e-6  #: and a step counts so much longer for each message that came in it
MOST_REST_S: Final = (
    1.0  #: and never longer, so that a change goes on under any load, and its caller waits for it
)


class Turns:
    """Who goes over many messages does it in steps, each in its turn. On the event loop alone."""

    def __init__(
        self,
        taken_in: Callable[[], int],
        *,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`taken_in` says how many messages have come from clients up to now."""
        self._taken_in = taken_in
        self._clock_s = clock_s
        self._sleep = sleep
        self._one = asyncio.Lock()
        self._free_s = 0.0
        self._before = 0
        #: whether messages have come since the step before the one under way began, a rest included
        self.beside_intake = False
        self._stopped = False

    def stop(self) -> None:
        """Nobody gets a turn any more."""
        self._stopped = True

    def most(self, limit: int) -> int:
        """How many messages the step under way may take, of `limit` that it would take alone."""
        return min(limit, BESIDE_INTAKE) if self.beside_intake else limit

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One step, once the others have had theirs. Raises Busy when the worker stops."""
        async with self._one:
            # Even without a rest: whoever takes step after step must not be alone with the loop.
            await self._sleep(max(self._free_s - self._clock_s(), 0))
            if self._stopped:
                raise Busy("this worker is shutting down: ask again when it is back")
            begun_s, begun_at = self._clock_s(), self._taken_in()
            self.beside_intake = begun_at != self._before
            self._before = begun_at
            try:
                yield
            finally:
                ended_s, came = self._clock_s(), self._taken_in() - begun_at
                # A step may lie between two bursts: messages come all the same.
                gives_way = self.beside_intake or came
                rest_s = min(REST * (ended_s - begun_s + came * MESSAGE_S), MOST_REST_S)
                self._free_s = ended_s + (rest_s if gives_way else 0)
