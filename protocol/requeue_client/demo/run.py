"""The order of events: publish, kill the worker half-way, start it again, wait for the last message's end, judge."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import nats
from nats.aio.client import Client

from requeue_client.client import RequeueClient
from requeue_client.demo.handler import Handler
from requeue_client.demo.ledger import Ledger, Report
from requeue_client.demo.parts import Gauges, Parts
from requeue_client.demo.show import Show
from requeue_client.message import Message

RATE_PER_S: Final = 330
LONGEST_S: Final = 50.0  #: what has not ended by then never will
AGREE_S: Final = 5.0  #: the worker's metrics are given so long to say the same as the ledger
_TICK_S: Final = 0.1
_ACK_WAIT: Final = "2s"


@contextlib.asynccontextmanager
async def handling(parts: Parts, ledger: Ledger, say: Callable[[str], None]) -> AsyncIterator[Client]:
    """A handler on a connection of its own, at work while inside."""
    nc = await nats.connect(parts.url, name="demo-handler", error_cb=_nothing, max_reconnect_attempts=-1)
    try:
        await Handler(nc, ledger, say).start()
        yield nc
    finally:
        with contextlib.suppress(Exception):
            await nc.close()


async def _nothing(_: Exception) -> None:
    """The server ends before the connection does when all is interrupted: no news."""


async def play(parts: Parts, ledger: Ledger, show: Show, longest_s: float = LONGEST_S) -> Report:
    """Run it all; a handler is at work already. Raises LocalProcessError when the worker does not start again."""
    try:
        await _publish_kill_and_wait(parts, ledger, show, longest_s)
    except ExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    gauges = await _agreed(parts, ledger)
    return ledger.report(pending=gauges.pending, dead_on_disk=gauges.dead)


async def _publish_kill_and_wait(parts: Parts, ledger: Ledger, show: Show, longest_s: float) -> None:
    deadline_s = time.monotonic() + longest_s
    async with asyncio.TaskGroup() as tasks:
        publishing = tasks.create_task(_publish(parts, ledger))
        killing = tasks.create_task(_kill_half_way(parts, ledger, show))
        while not (publishing.done() and killing.done() and not ledger.lost()):
            if time.monotonic() > deadline_s:
                show.say(f"{len(ledger.lost())} messages have no end after {longest_s:.0f} s")
                publishing.cancel()
                killing.cancel()
                break
            show.refresh()
            await asyncio.sleep(_TICK_S)


async def _publish(parts: Parts, ledger: Ledger) -> None:
    """Publish the plan at an even pace; the client sends again what the crash left unanswered."""
    async with await RequeueClient.connect(parts.url, ack_wait=_ACK_WAIT) as client:
        async for outcome in client.publish_many(_paced(ledger)):
            if outcome.ok:
                ledger.acknowledged(outcome.index)
            else:
                ledger.refused.append(str(outcome.error))


async def _paced(ledger: Ledger) -> AsyncIterator[Message]:
    began_s = time.monotonic()
    for planned in ledger.plan:
        wait_s = began_s + planned.number / RATE_PER_S - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        ledger.sending(planned.number)
        yield planned.message


async def _kill_half_way(parts: Parts, ledger: Ledger, show: Show) -> None:
    await ledger.half_acked.wait()
    open_messages = len(ledger.acked) - ledger.ended()
    began_ns = time.time_ns()
    parts.kill_worker()
    show.say(
        f"kill -9 of the worker: {len(ledger.acked)} messages acknowledged, {open_messages} of them not ended"
    )
    await parts.start_worker_again()
    ended_ns = time.time_ns()
    ledger.outages.append((began_ns, ended_ns))
    show.say(f"a new worker is ready on the same directory, {(ended_ns - began_ns) / 1e9:.1f} s later")


async def _agreed(parts: Parts, ledger: Ledger) -> Gauges:
    """The worker's gauges, once they say the same as the ledger; or what they say after AGREE_S."""
    deadline_s = time.monotonic() + AGREE_S
    while True:
        gauges = await parts.gauges()
        agrees = gauges == Gauges(0, 0, len(ledger.dead_ids))
        if agrees or time.monotonic() > deadline_s:
            return gauges
        await asyncio.sleep(_TICK_S)
