"""Handlers at work: their subscriptions, what runs and what waits, beats, and the end.

Each message is a task from its arrival to its reply. It waits for one of its handler's slots; the beats reach
it there too, so that a full house spends no attempts. At the stop nothing more comes in, and what is here is
handled within the grace; what is still open after that is given back as failed.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from requeue_protocol import headers, replies

from requeue_client.delivery import Delivery, read_delivery
from requeue_client.errors import NotConnected
from requeue_client.handler import Handler, Reject, Retry, reply_for, reply_to
from requeue_client.times import Duration, duration_s
from requeue_client.tracing import consumer_span

_GRACE = "30s"
_logger = logging.getLogger("requeue_client")


class Serving:
    """Handlers that take messages, until `stop`. Made by `RequeueClient.serve`; use it with `async with`."""

    def __init__(self, nc: Client, handlers: Sequence[Handler]) -> None:
        self._nc = nc
        self._houses = [_House(nc, each) for each in handlers]
        self._ended = asyncio.Event()

    async def start(self) -> Self:
        """Subscribe; returns once the server has the subscriptions.

        Raises:
            NotConnected: the connection was closed, or is away now.
        """
        try:
            for house in self._houses:
                await house.open()
            # The first PING of nats-py 2.16 may go out before the subscriptions do.
            await self._nc.flush()
            await self._nc.flush()
        except (nats.errors.Error, TimeoutError) as error:
            await self.stop("1s")
            raise NotConnected(f"the handlers could not subscribe: {error}") from error
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def open_messages(self) -> int:
        """Messages that are here without a reply: running, or waiting for a slot."""
        return sum(len(house.open_messages) for house in self._houses)

    async def wait(self) -> None:
        """Return when it was stopped."""
        await self._ended.wait()

    async def stop(self, grace: Duration = _GRACE) -> None:
        """Take no more messages, finish those that are here within `grace`, give the others back as failed."""
        await asyncio.gather(*[house.close(duration_s(grace, "grace")) for house in self._houses])
        self._ended.set()


class _House:
    """One handler: its subscription and its open messages."""

    def __init__(self, nc: Client, handler: Handler) -> None:
        self._nc = nc
        self._handler = handler
        self._slots = asyncio.Semaphore(handler.concurrency)
        self._threads = (
            None if handler.is_async else ThreadPoolExecutor(handler.concurrency, "requeue-handler")
        )
        self._subscription: Subscription | None = None
        self._beating: asyncio.Task[None] | None = None
        self.open_messages: dict[asyncio.Task[None], Msg] = {}

    async def open(self) -> None:
        self._subscription = await self._nc.subscribe(
            self._handler.subject, self._handler.queue_group, cb=self._take
        )
        if self._handler.beat_s is not None:
            self._beating = asyncio.get_running_loop().create_task(self._beat_forever(self._handler.beat_s))

    async def close(self, grace_s: float) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._nc.is_closed:
            try:
                await subscription.drain()  # type: ignore[no-untyped-call]
            except (nats.errors.Error, TimeoutError) as error:
                _logger.debug("%s: could not be drained: %s", self._handler.subject, error)
        if self.open_messages:
            await asyncio.wait(self.open_messages, timeout=grace_s)
        late = list(self.open_messages)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if self._beating is not None:
            self._beating.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if not self._nc.is_closed and self._nc.is_connected:
            await self._nc.flush()

    async def _take(self, msg: Msg) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(msg))
        self.open_messages[task] = msg
        task.add_done_callback(self.open_messages.pop)

    async def _handle(self, msg: Msg) -> None:
        delivery = read_delivery(msg)
        try:
            async with self._slots:
                reply = reply_to(await self._run(delivery))
        except asyncio.CancelledError:
            reply = replies.nak(None, "the handler was stopped")
        except Exception as error:
            self._log(delivery, error)
            reply = reply_for(error)
        if msg.reply:
            await self._answer(msg.reply, reply)

    async def _run(self, delivery: Delivery) -> object:
        limit_s = self._handler.timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                with consumer_span(delivery):
                    return await self._begin(delivery)
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(f"not done within {limit_s:g} s") from None
            raise

    def _begin(self, delivery: Delivery) -> Awaitable[object]:
        if self._threads is None:
            return cast("Awaitable[object]", self._handler.function(delivery))
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(
            self._threads, context.run, self._handler.function, delivery
        )

    def _log(self, delivery: Delivery, error: Exception) -> None:
        if isinstance(error, Retry | Reject):
            _logger.info("%s %s: %s: %s", delivery.subject, delivery.id, type(error).__name__, error)
            return
        lost = "" if delivery.is_replay else "; nobody will send it again"
        _logger.error("%s %s: the handler failed%s", delivery.subject, delivery.id, lost, exc_info=error)

    async def _beat_forever(self, beat_s: float) -> None:
        """Tell the worker of what was here a beat ago already; so none is silent for two beats."""
        earlier: set[asyncio.Task[None]] = set()
        while True:
            await asyncio.sleep(beat_s)
            for task in earlier & self.open_messages.keys():
                await self._beat(task)
            earlier = set(self.open_messages)

    async def _beat(self, task: asyncio.Task[None]) -> None:
        # One who asked directly, with a plain request, would take a beat for the answer.
        msg = self.open_messages.get(task)
        if msg is not None and msg.reply and msg.headers and headers.ID in msg.headers:
            await self._answer(msg.reply, replies.WPI)

    async def _answer(self, subject: str, payload: bytes) -> None:
        """Send a reply. Where it cannot go out the worker sends the message again, as it does without one."""
        try:
            await self._nc.publish(subject, payload)
        except (nats.errors.Error, ConnectionError) as error:
            _logger.warning("a reply did not go out: %s", error)
