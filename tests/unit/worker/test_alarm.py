"""The alarm, on the loops that a worker may run on, with the kernel's timer and without."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
import uvloop
from requeue_worker import alarm
from requeue_worker.alarm import Alarm

MS = 1_000_000
S = 1_000_000_000
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [uvloop.new_event_loop, asyncio.new_event_loop]


class Run:
    """Runs on one kind of loop, with the kernel's timer or without."""

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop], timer: bool) -> None:
        self._new_loop = new_loop
        self._timer = timer

    def __call__(self, main: Coroutine[None, None, None]) -> None:
        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            runner.run(main)

    def check_not_early(self, waited_ns: int, wait_ns: int) -> None:
        # uvloop counts from when its loop last came round: a wait may end early by as long as that was ago.
        assert not self._timer or waited_ns >= wait_ns


@pytest.fixture(params=[(loop, timer) for loop in LOOPS for timer in (True, False)])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    new_loop, timer = request.param
    if not timer:
        monkeypatch.setattr(alarm, "open_timer", lambda: None)
    return Run(new_loop, timer)


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Rings:
    """When it rang, and somebody who waits for that."""

    def __init__(self) -> None:
        self.at_ns: list[int] = []
        self._rang = asyncio.Event()

    def __call__(self) -> None:
        self.at_ns.append(time.monotonic_ns())
        self._rang.set()

    async def next(self) -> int:
        async with asyncio.timeout(30):
            await self._rang.wait()
        self._rang.clear()
        return self.at_ns[-1]


def test_it_rings_each_time_that_it_was_set_and_never_early(run: Run) -> None:
    async def main() -> None:
        rings = Rings()
        bell = Alarm(rings)
        for wait_ns in (1, 300_000, MS, 2_700_000, 20 * MS):
            set_ns = time.monotonic_ns()
            bell.set(wait_ns)
            run.check_not_early(await rings.next() - set_ns, wait_ns)
        assert len(rings.at_ns) == 5
        bell.close()

    run(main())


def test_it_rings_once_at_the_time_that_was_set_last(run: Run) -> None:
    async def main() -> None:
        rings = Rings()
        bell = Alarm(rings)
        bell.set(3600 * S)
        bell.set(5 * MS)
        await rings.next()
        bell.set(MS)
        set_ns = time.monotonic_ns()
        bell.set(30 * MS)
        run.check_not_early(await rings.next() - set_ns, 30 * MS)
        await asyncio.sleep(0.02)
        assert len(rings.at_ns) == 2
        bell.close()

    run(main())


def test_set_anew_after_its_time_has_come_it_keeps_the_new_time(run: Run) -> None:
    async def main() -> None:
        rings = Rings()
        bell = Alarm(rings)
        bell.set(MS)
        hold_the_loop(0.01)  # its time comes meanwhile
        set_ns = time.monotonic_ns()
        bell.set(20 * MS)
        run.check_not_early(await rings.next() - set_ns, 20 * MS)
        bell.close()

    run(main())


@pytest.mark.parametrize("silence", [Alarm.cancel, Alarm.close])
def test_cancelled_or_closed_it_does_not_ring(run: Run, silence: Callable[[Alarm], None]) -> None:
    async def main() -> None:
        rings = Rings()
        bell = Alarm(rings)
        bell.set(MS)
        hold_the_loop(0.005)
        silence(bell)
        await asyncio.sleep(0.02)
        assert rings.at_ns == []
        bell.close()

    run(main())


def test_closed_it_leaves_no_file_open(run: Run) -> None:
    async def main() -> None:
        before = open_files()
        bell = Alarm(lambda: None)
        bell.set(S)
        bell.close()
        bell.close()
        assert open_files() == before

    run(main())


def test_on_linux_it_has_a_timer_of_the_kernel() -> None:
    fd = alarm.open_timer()
    assert fd is not None
    assert "timerfd" in str(Path(f"/proc/self/fd/{fd}").readlink())
    os.close(fd)
