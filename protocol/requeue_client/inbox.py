"""Answers to what this client sends: one wildcard subscription for all of them.

`nc.request` would do for one message, but it keeps its map entry when the publish fails, cannot get past a
first `+WPI`, and costs a future and a timer each. Here an answer goes to the function that its reply subject
was given out with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from requeue_protocol.headers import build_headers


class Answer(NamedTuple):
    """One answer: its raw header block (None without headers) and its payload."""

    headers: bytes | None
    payload: bytes


class ReplyInbox:
    """Reply subjects, and who waits for what comes to them."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._prefix = nc.new_inbox() + "."
        self._waiting: dict[str, Callable[[Msg], None]] = {}
        self._subscription: Subscription | None = None
        self._opening = asyncio.Lock()
        self._given = 0

    @property
    def waiting(self) -> int:
        """How many reply subjects are given out."""
        return len(self._waiting)

    async def open(self) -> None:
        """Subscribe, once. The client's own reconnect keeps the subscription."""
        if self._subscription is not None:
            return
        async with self._opening:
            if self._subscription is None:
                # Bounded by what was sent and not answered: the limits of the library would only drop
                # answers.
                self._subscription = await self._nc.subscribe(
                    self._prefix + "*", cb=self._route, pending_msgs_limit=0, pending_bytes_limit=0
                )

    async def close(self) -> None:
        """Unsubscribe; nobody who still waits gets an answer."""
        subscription, self._subscription = self._subscription, None
        self._waiting.clear()
        if subscription is not None and self._nc.is_connected:
            await subscription.unsubscribe()

    def expect(self, on_answer: Callable[[Msg], None]) -> str:
        """Give a fresh reply subject; every answer to it is handed to `on_answer`, until `forget`."""
        self._given += 1
        subject = f"{self._prefix}{self._given:x}"
        self._waiting[subject] = on_answer
        return subject

    def forget(self, subject: str) -> None:
        """Hand on no more answers to `subject`."""
        self._waiting.pop(subject, None)

    async def _route(self, msg: Msg) -> None:
        on_answer = self._waiting.get(msg.subject)
        if on_answer is not None:
            on_answer(msg)


def answer_of(msg: Msg) -> Answer:
    """Give the raw form of a message: nats-py keeps a status line as headers Status and Description."""
    if not msg.headers:
        return Answer(None, msg.data)
    pairs = dict(msg.headers)
    code, text = pairs.pop("Status", None), pairs.pop("Description", "")
    status = (int(code), text) if code is not None and code.isdigit() else None
    return Answer(build_headers(pairs.items(), status), msg.data)
