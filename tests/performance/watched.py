"""`requeue-worker` with an eye on its event loop: how long each turn of it was, in a file.

    python -m tests.performance.watched TURNS run --server ... --data-dir ...

A beat every millisecond writes down the turns that took 5 ms and more: when they ended (CLOCK_MONOTONIC, which all
processes share), how long they were, and how much CPU the loop's thread used meanwhile. The rest of a turn it waited: for
a core of a busy machine, or for the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from requeue_worker import cli
from requeue_worker.app import Worker

BEAT_S = 0.001
LONG_S = 0.005


async def watch(out: TextIO) -> None:
    wall_s, cpu_s = time.monotonic(), time.thread_time()
    while True:
        await asyncio.sleep(BEAT_S)
        now_s, used_s = time.monotonic(), time.thread_time()
        if now_s - wall_s - BEAT_S >= LONG_S:
            out.write(f"{now_s:.6f} {now_s - wall_s - BEAT_S:.6f} {used_s - cpu_s:.6f}\n")
            out.flush()
        wall_s, cpu_s = time.monotonic(), time.thread_time()


def main() -> None:
    out = Path(sys.argv[1]).open("w")  # noqa: SIM115 - until the process ends
    start = Worker.start
    kept: list[asyncio.Task[Any]] = []

    async def start_watched(self: Worker) -> None:
        await start(self)
        kept.append(asyncio.create_task(watch(out)))

    Worker.start = start_watched  # type: ignore[method-assign]
    sys.argv = ["requeue-worker", *sys.argv[2:]]
    cli.main()


if __name__ == "__main__":
    main()
