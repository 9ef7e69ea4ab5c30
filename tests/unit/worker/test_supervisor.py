"""The guarded background tasks."""

import asyncio

from requeue_worker.supervisor import Supervisor


async def test_a_task_whose_cancellation_gets_lost_is_stopped_all_the_same() -> None:
    """nats-py's publish swallows a cancellation that comes while it flushes; the reporter's loop then went on."""
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.sleep(3600)

    supervisor = Supervisor(lambda error: None)
    supervisor.start("stubborn", stubborn())
    await asyncio.sleep(0)

    await asyncio.wait_for(supervisor.stop(), 10)

    assert swallowed.is_set()


async def test_a_task_that_fails_is_fatal_and_none_dies_silently() -> None:
    fatal: list[BaseException] = []

    async def fail() -> None:
        raise RuntimeError("broken")

    supervisor = Supervisor(fatal.append)
    supervisor.start("failing", fail())
    await asyncio.sleep(0.01)
    await supervisor.stop()

    assert [str(error) for error in fatal] == ["broken"]
