"""Many messages with a bounded number of them unanswered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass

from requeue_client.errors import RequeueError
from requeue_client.message import Message, encode
from requeue_client.publisher import Ack, Patience, Publisher


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
        for future in list(flight.on_the_way):
            future.cancel()


class _Flight:
    """What is on its way, and what has arrived but was not yielded: together at most a window."""

    def __init__(self, publisher: Publisher, patience: Patience, window: int) -> None:
        self._publisher = publisher
        self._patience = patience
        self._window = window
        self.on_the_way: set[asyncio.Future[Ack]] = set()
        self.settled: deque[Outcome] = deque()
        self.wake = asyncio.Event()
        self.room = asyncio.Event()

    async def feed(self, messages: Iterable[Message] | AsyncIterable[Message]) -> None:
        """Submit all messages, each as soon as there is room for it."""
        source = _enumerated(messages)
        while True:
            while len(self.on_the_way) + len(self.settled) >= self._window:
                self.room.clear()
                await self.room.wait()
            entry = await anext(source, None)
            if entry is None:
                return
            await self._submit(*entry)

    async def _submit(self, index: int, message: Message) -> None:
        try:
            future = await self._publisher.submit(encode(message), self._patience)
        except RequeueError as error:
            self._settle(Outcome(index, message, None, error))
            return

        def arrived(future: asyncio.Future[Ack]) -> None:
            self.on_the_way.discard(future)
            if not future.cancelled():
                self._settle(_outcome(index, message, future))

        self.on_the_way.add(future)
        future.add_done_callback(arrived)

    def _settle(self, outcome: Outcome) -> None:
        self.settled.append(outcome)
        self.wake.set()


def _outcome(index: int, message: Message, future: asyncio.Future[Ack]) -> Outcome:
    error = future.exception()
    if error is None:
        return Outcome(index, message, future.result(), None)
    if isinstance(error, RequeueError):
        return Outcome(index, message, None, error)
    raise error


async def _enumerated(
    messages: Iterable[Message] | AsyncIterable[Message],
) -> AsyncIterator[tuple[int, Message]]:
    index = 0
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield index, message
            index += 1
    else:
        for message in messages:
            yield index, message
            index += 1
