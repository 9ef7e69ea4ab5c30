"""How a command's process runs: on the fastest event loop there is, seldom disturbed by threads and the cycle collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable, Coroutine
from typing import Final, TypeVar

T = TypeVar("T")

#: The loop waits so long at most for a thread that computes, or for its one call into RocksDB: scans keep the GIL. Beside
#: reads of 100 queues over a dozen tables a timer is 5 ms late in the median; by Python's default, 5 ms, it is 13 ms late.
SWITCH_S: Final = 0.0005


def run(main: Coroutine[None, None, T]) -> T:
    """Run it on uvloop, or on asyncio's own loop where that is missing."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):  # faster, but no wheel for every platform
        import uvloop  # noqa: PLC0415

        factory = uvloop.new_event_loop
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def calm_collector() -> None:
    """Let the cycle collector run seldom: for a process that is ours alone, once it has started.

    By default it runs every 700 new objects, looks at every message in flight again and again, and now and then at all
    that was ever imported: 27 ms at a time, 7 % of the CPU in all. The worker makes next to no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
