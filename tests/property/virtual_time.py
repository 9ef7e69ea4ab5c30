"""Time that passes at once: an event loop that moves its clock instead of waiting, and a disk that takes virtual time."""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable
from typing import Any, TypeVar

from requeue_worker.storage.rocksdb import Batch
from requeue_worker.storage.store import Store

_IDLE_LIMIT = 200_000

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that moves its clock instead of waiting, and fails when it spins without moving it."""

    def __init__(self) -> None:
        super().__init__(_Selector(self))
        self.now_ns = 0
        self.spins = 0
        self.raised: BaseException | None = None
        self.set_exception_handler(self._note)

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback has raised: nothing else would tell the test."""
        self.raised = self.raised or context.get("exception")

    def run_until_complete(self, future: Any) -> Any:
        """As the base class, and raises what a callback has raised."""
        result = super().run_until_complete(future)
        if self.raised is not None:
            raised, self.raised = self.raised, None
            raise raised
        return result

    def time(self) -> float:
        return self.now_ns / 1e9


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)  # a thread will wake us
        if timeout > 0:
            self._loop.now_ns += math.ceil(timeout * 1e9)
            self._loop.spins = 0
        self._loop.spins += 1
        assert self._loop.spins < _IDLE_LIMIT, (
            "the loop spins: time stands still and something is always ready"
        )
        return super().select(0)


class VirtualTime:
    """Stands for the module `time` in what measures waits."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic_ns(self) -> int:
        return self._loop.now_ns

    def perf_counter(self) -> float:
        return self._loop.time()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class InlineStore(Store):
    """The store, on the loop's own thread. How long a read and a write take may be changed at any time."""

    read_ns = 0
    write_ns = 0

    async def write(self, batch: Batch) -> None:
        await asyncio.sleep(self.write_ns / 1e9)
        self._engine.write(batch)
        await asyncio.sleep(0)

    async def _read(self, function: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        result = function()
        await asyncio.sleep(self.read_ns / 1e9)
        return result
