"""Tasks of the worker end when they are told to, and none dies silently."""

from __future__ import annotations

import asyncio

from requeue_worker.supervisor import Supervisor


async def test_an_error_in_a_task_is_fatal() -> None:
    fatal: list[BaseException] = []
    supervisor = Supervisor(fatal.append)
    error = ValueError("broken")

    async def fail() -> None:
        raise error

    supervisor.start("fails", fail())
    await asyncio.sleep(0.01)
    await supervisor.stop()

    assert fatal == [error]


async def test_stop_ends_tasks_and_is_not_fatal() -> None:
    fatal: list[BaseException] = []
    supervisor = Supervisor(fatal.append)
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    supervisor.start("works", work())
    await asyncio.sleep(0)
    await supervisor.stop()

    assert ended.is_set()
    assert fatal == []


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    """asyncio.wait_for of Python 3.11 loses one that comes in the same turn as its result."""
    supervisor = Supervisor(lambda error: None)
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while lost < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
        await asyncio.Event().wait()

    supervisor.start("deaf", deaf())
    await asyncio.sleep(0)
    await asyncio.wait_for(supervisor.stop(), 10)

    assert lost == 3
