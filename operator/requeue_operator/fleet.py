"""Who is reconciled when: one task a RequeueQueue, poked by events and by time.

    poke → reconcile now (at most `_AT_ONCE` of them at a time) → wait for the next poke, or until it is time again

Pokes that come while a reconcile runs, or within `_PAUSE_S` after it (`_LONG_PAUSE_S` while others wait for their first),
make one more, not many. A failure is tried again after 1 s, 2 s, ... 60 s, a success after `resync_s`, all of them spread
out. A reconcile that takes longer than `_LONGEST_RUN_S`, whose every request has a limit of its own, is a failure; one
that does not even end then is `stuck`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

log = logging.getLogger(__name__)

_AT_ONCE: Final = 8
_LONGEST_WAIT_S: Final = 60.0
_LONGEST_RUN_S: Final = 300.0
_PAUSE_S: Final = 0.5
_LONG_PAUSE_S: Final = 5.0

Key = tuple[str, str]
"""Namespace and name."""
Run = Callable[[str, str], Awaitable[float | None]]
"""Reconciles one. Seconds until it wants to be looked at again (inf: no hurry), None when it is gone. Whatever it
raises is a failure."""
Note = Callable[[float, bool], None]
"""Takes note of a reconcile that has ended: its seconds, and whether it failed."""


class Fleet:
    """All RequeueQueues that are known. Lives on one event loop."""

    def __init__(
        self, run: Run, note: Note = lambda _seconds, _failed: None, resync_s: float = 600.0
    ) -> None:
        self._run = run
        self._note = note
        self._resync_s = resync_s
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._pokes: dict[Key, asyncio.Event] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._running: dict[Key, float] = {}
        self._new: set[Key] = set()

    def poke(self, namespace: str, name: str) -> None:
        """Something happened to it, or to a child of it."""
        key = (namespace, name)
        if key not in self._tasks:
            self._pokes[key] = asyncio.Event()
            self._new.add(key)
            self._tasks[key] = asyncio.create_task(self._follow(key), name=f"reconcile {namespace}/{name}")
        self._pokes[key].set()

    @property
    def known(self) -> int:
        """How many there are."""
        return len(self._tasks)

    def stuck(self) -> str | None:
        """The heartbeat: None while every reconcile that began has ended in time, else a sentence."""
        now_s = time.monotonic()
        for (namespace, name), since_s in self._running.items():
            if now_s - since_s > 2 * _LONGEST_RUN_S:
                return f"the reconcile of {namespace}/{name} does not end, for {now_s - since_s:.0f} s now"
        return None

    async def close(self) -> None:
        """Stop; what was under way is done again at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, key: Key) -> None:
        failures, poked = 0, self._pokes[key]
        while True:
            poked.clear()
            try:
                again_s = await self._run_once(key)
            except Exception as error:
                failures += 1
                wait_s = min(_LONGEST_WAIT_S, 2.0 ** min(failures - 1, 10)) * random.uniform(0.8, 1.2)
                extra = {"namespace": key[0], "requeuequeue": key[1], "error": str(error)}
                log.warning(
                    "reconcile failed, trying again in %g s", wait_s, extra=extra, exc_info=failures == 1
                )
            else:
                if again_s is None and not poked.is_set():
                    del self._pokes[key], self._tasks[key]
                    return
                resync_s = self._resync_s * random.uniform(0.8, 1.2)
                failures, wait_s = 0, min(resync_s, again_s if again_s is not None else resync_s)
            await asyncio.sleep(min(_LONG_PAUSE_S if self._new else _PAUSE_S, wait_s))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(poked.wait(), wait_s)

    async def _run_once(self, key: Key) -> float | None:
        async with self._slots:
            failed, since_s = True, time.monotonic()
            self._running[key] = since_s
            try:
                async with asyncio.timeout(_LONGEST_RUN_S):
                    again_s = await self._run(*key)
                failed = False
                return again_s
            finally:
                del self._running[key]
                self._new.discard(key)
                self._note(time.monotonic() - since_s, failed)
