"""Named, guarded tasks: the first that fails ends the worker, with its name and error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

CANCEL_AGAIN_S = 0.2

CANCEL_AGAIN_S = 0.1


class Supervisor:
    """Runs background tasks until `stop`. A task that ends by an error calls `fatal`; none dies silently."""

    def __init__(self, fatal: Callable[[BaseException], None]) -> None:
        self._fatal = fatal
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Start a task under this name."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("task failed", extra={"task": task.get_name()}, exc_info=error)
            self._fatal(error)

    async def stop(self) -> None:
        """Cancel all tasks and wait for their end."""
        await ended(*self._tasks.values())
        self._tasks.clear()


async def ended(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait for their end, whatever it is.

    A cancellation can get lost: `asyncio.wait_for` of Python 3.11 drops one that comes together with what it waited
    for. So a task that goes on is cancelled again.
    """
    left = {task for task in tasks if task is not None and not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
