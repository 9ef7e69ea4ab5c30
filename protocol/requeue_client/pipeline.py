"""Many messages with a bounded number of them unanswered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from dataclasses import dataclass

from requeue_client.errors import RequeueError
from requeue_client.message import Message, encode
from requeue_client.publisher import Ack, Delivery, Patience, Publisher


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one message of `publish_many`: exactly one of `ack` and `error` is set."""

    index: int  # place in the input, from 0
    message: Message
    ack: Ack | None
    error: RequeueError | None

    @property
    def ok(self) -> bool:
        """Whether the message is on disk."""
        return self.ack is not None


async def publish_many(
    publisher: Publisher,
    messages: Iterable[Message] | AsyncIterable[Message],
    *,
    window: int,
    patience: Patience,
) -> AsyncGenerator[Outcome, None]:
    """Publish all, at most `window` of them unanswered at a time, and yield outcomes as they come (in any
    order).

    One bad or refused message stops nothing. Nothing is read from `messages` ahead of the window, and not
    while the consumer is busy. Leaving the loop early forgets what is on its way (it may still reach the
    disk).
    """
    if window < 1:
        raise ValueError(f"window={window}; it is the number of unanswered messages allowed, 1 or more")
    flight = _Flight(publisher, patience, window)
    feeder = asyncio.create_task(flight.feed(messages))
    feeder.add_done_callback(lambda _: flight.wake.set())
    try:
        while True:
            while flight.settled:
                yield flight.settled.popleft()
                flight.room.set()
            if feeder.done() and not flight.on_the_way and not flight.settled:
                feeder.result()  # raises what reading `messages` raised
                return
            if not flight.settled:
                flight.wake.clear()
                await flight.wake.wait()
    finally:
        feeder.cancel()
        for delivery in flight.on_the_way.values():
            delivery.forget()


class _Flight:
    """What is on its way, and what has arrived but was not yielded: together at most a window."""

    def __init__(self, publisher: Publisher, patience: Patience, window: int) -> None:
        self._publisher = publisher
        self._patience = patience
        self._window = window
        self.on_the_way: dict[int, Delivery] = {}
        self.settled: deque[Outcome] = deque()
        self.wake = asyncio.Event()
        self.room = asyncio.Event()
        self._read = 0

    async def feed(self, messages: Iterable[Message] | AsyncIterable[Message]) -> None:
        """Submit all messages, each as soon as there is room for it."""
        if isinstance(messages, AsyncIterable):
            source = aiter(messages)
            while True:
                await self._wait_for_room()
                message = await anext(source, None)
                if message is None:
                    return
                await self._submit(message)
        for message in messages:
            await self._submit(message)
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while len(self.on_the_way) + len(self.settled) >= self._window:
            self.room.clear()
            await self.room.wait()

    async def _submit(self, message: Message) -> None:
        index = self._read
        self._read += 1

        def settle(result: Ack | RequeueError) -> None:
            self.on_the_way.pop(index, None)
            if isinstance(result, RequeueError):
                self.settled.append(Outcome(index, message, None, result))
            else:
                self.settled.append(Outcome(index, message, result, None))
            self.wake.set()

        try:
            delivery = await self._publisher.deliver(encode(message), self._patience, settle)
        except RequeueError as error:
            settle(error)
            return
        if delivery.pending:
            self.on_the_way[index] = delivery
