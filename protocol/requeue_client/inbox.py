"""Answers to what this client sends: one wildcard subscription for all of them.

`nc.request` would do for one message, but it keeps its map entry when the publish fails, cannot get past a
first `+WPI`, and costs a future and a timer each. Here an answer goes to the function that its reply subject
was given out with.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from requeue_client.errors import NotConnected

_LINE_BREAK = re.compile(r"[\r\n]")


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
        """Subscribe, once; the client's own reconnect keeps the subscription.

        Raises NotConnected when closed.
        """
        if self._subscription is not None:
            return
        async with self._opening:
            if self._subscription is None:
                # Bounded by what was sent and not answered: the limits of the library would only drop
                # answers.
                try:
                    self._subscription = await self._nc.subscribe(
                        self._prefix + "*", cb=self._route, pending_msgs_limit=0, pending_bytes_limit=0
                    )
                except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError):
                    raise NotConnected("the connection to NATS is closed; make a new one") from None

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
    """Give the raw form of a message. Never raises.

    nats-py 2.16 keeps a status line as headers Status and Description, and takes what follows a status
    without a text (`NATS/1.0 503`, then `Nats-Subject: ...`) for its description: only a description's first
    line is one.
    """
    if not msg.headers:
        return Answer(None, msg.data)
    headers = dict(msg.headers)
    status, text = headers.pop("Status", None), headers.pop("Description", "")
    first = "NATS/1.0" if status is None else f"NATS/1.0 {status} {text.splitlines()[0] if text else ''}"
    lines = (first, *(f"{name}: {_LINE_BREAK.sub(' ', value)}" for name, value in headers.items()), "", "")
    return Answer("\r\n".join(lines).encode(errors="replace"), msg.data)
