"""Requests that others answer: several of them, each with answers of its own, over one wildcard inbox."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from requeue_worker.wire import pub

Subscribe = Callable[[str, Callable[[Any], Awaitable[None]]], Awaitable[None]]
_NO_RESPONDERS: Final = "503"


class Asking:
    """Asks on the worker's connection. The inbox is subscribed with the first question."""

    def __init__(self, inbox: str, subscribe: Subscribe, send: Callable[[bytes, int], None]) -> None:
        self._inbox = inbox
        self._subscribe = subscribe
        self._send = send
        self._numbers = itertools.count()
        self._open: dict[str, asyncio.Queue[bytes | None]] = {}
        self._subscribed: asyncio.Task[None] | None = None

    async def ask(
        self, subjects: list[str], payload: bytes, *, timeout_s: float, quiet_s: float | None = None
    ) -> list[bytes]:
        """Answers to one request on each of these subjects, in the order in which they came.

        With `quiet_s` the number of answers is open: they are collected until none has come for so long. Else one
        answer for each subject is waited for, or its no-responders, for `timeout_s` in all.
        """
        if self._subscribed is None:
            self._subscribed = asyncio.ensure_future(self._subscribe(f"{self._inbox}.*", self._on_answer))
        await asyncio.shield(self._subscribed)
        number = str(next(self._numbers))
        arrived = self._open[number] = asyncio.Queue()
        reply = f"{self._inbox}.{number}".encode()
        for subject in subjects:
            self._send(pub(b"%b %b" % (subject.encode(), reply), payload), 1)
        answers: list[bytes] = []
        missing = len(subjects)
        try:
            async with asyncio.timeout(timeout_s):
                while missing or quiet_s is not None:
                    answer = await asyncio.wait_for(arrived.get(), quiet_s if answers else timeout_s)
                    missing -= 1
                    if answer is not None:
                        answers.append(answer)
                    elif not missing:
                        break
        except TimeoutError:
            pass
        finally:
            del self._open[number]
        return answers

    async def _on_answer(self, message: Any) -> None:
        waiting = self._open.get(message.subject.rpartition(".")[2])
        if waiting is not None:
            nobody = not message.data and (message.headers or {}).get("Status") == _NO_RESPONDERS
            waiting.put_nowait(None if nobody else message.data)
