"""Asking the workers' admin API: every instance, or one; pages followed to their end.

How many instances there are nobody knows: answers are collected until none has come for a short while.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from nats.aio.msg import Msg
from pydantic import BaseModel
from requeue_protocol.admin import (
    COUNT,
    AdminAnswer,
    AdminRequest,
    AdminSubject,
    CountAnswer,
    CountRequest,
)
from requeue_protocol.changes import PAUSE, RESUME, PauseAnswer, PauseRequest, ResumeRequest
from requeue_protocol.dead_letters import pack, unpack

from requeue_client.admin import refusal_of
from requeue_client.client import RequeueClient
from requeue_client.errors import NotConnected, NoWorker, UnexpectedReply

QUIET_S: Final = 0.25  #: after the last answer; a worker that is slower than this is asked by its id
_MOST_BYTES: Final = 256 << 20  #: of an answer, decompressed

A = TypeVar("A", bound=AdminAnswer)


class AdminClient:
    """The admin API over a client's connection. Each call may take `timeout_s` for its first answer."""

    def __init__(self, client: RequeueClient, *, instance: str | None = None, timeout_s: float = 5.0) -> None:
        self._client = client
        self._instance = instance
        self._timeout_s = timeout_s

    @property
    def instance(self) -> str | None:
        """The one that is asked; None: all."""
        return self._instance

    @property
    def everybody(self) -> AdminClient:
        """The same, asking all instances."""
        return AdminClient(self._client, timeout_s=self._timeout_s)

    @property
    def max_payload(self) -> int:
        """Bytes that a message may have on this server."""
        return int(self._client.nc.max_payload)

    async def ask(self, subject: AdminSubject, request: AdminRequest, answer: type[A]) -> list[A]:
        """One answer of each instance (of the one that was named), by instance.

        Raises:
            NoWorker: nobody answered. NotConnected: no connection. RefusedError: an instance refused, as it says.
        """
        whom = subject.everybody if self._instance is None else subject.one(self._instance)
        answers = await self._collect(whom, request, 1 if self._instance is not None else None)
        read = [_read(whom, msg, answer) for msg in answers]
        return sorted(read, key=lambda each: each.instance)

    async def pages(self, subject: AdminSubject, request: AdminRequest, answer: type[A]) -> AsyncIterator[A]:
        """All pages of all instances, one instance after another. Raises as `ask`."""
        for first in await self.ask(subject, request, answer):
            page = first
            yield page
            whom = subject.one(first.instance)
            while following := getattr(page, "next", None):
                [msg] = await self._collect(whom, request.model_copy(update={"after": following}), 1)
                page = _read(whom, msg, answer)
                yield page

    async def ask_one(
        self, instance: str, subject: AdminSubject, request: AdminRequest, answer: type[A]
    ) -> A:
        """The answer of this instance. Raises as `ask`."""
        [msg] = await self._collect(subject.one(instance), request, 1)
        return _read(subject.one(instance), msg, answer)

    async def pages_of(
        self, instance: str, subject: AdminSubject, request: AdminRequest, answer: type[A]
    ) -> AsyncIterator[A]:
        """All pages of this instance. Raises as `ask`."""
        following: str | None = ""
        while following is not None:
            page = await self.ask_one(
                instance, subject, request.model_copy(update={"after": following}), answer
            )
            yield page
            following = getattr(page, "next", None)

    async def count(self, request: CountRequest) -> dict[str, int]:
        """How many messages each instance has that the filter means. Raises as `ask`."""
        counts: Counter[str] = Counter()
        async for page in self.pages(COUNT, request, CountAnswer):
            counts[page.instance] += page.messages
        return dict(counts)

    async def pause(self, queue: str, for_ns: int | None = None, by: str | None = None) -> list[PauseAnswer]:
        """Have each instance send nothing of this queue for so long, or until `resume`. `by` is for their logs.

        An instance that is not there now is not paused. Raises as `ask`; some may be paused by then.
        """
        return await self.ask(PAUSE, PauseRequest(queue=queue, for_ns=for_ns, by=by), PauseAnswer)

    async def resume(self, queue: str, by: str | None = None) -> list[PauseAnswer]:
        """Have each instance send what this queue has. Raises as `pause`."""
        return await self.ask(RESUME, ResumeRequest(queue=queue, by=by), PauseAnswer)

    async def _collect(self, subject: str, request: AdminRequest, most: int | None) -> list[Msg]:
        if not self._client.nc.is_connected:
            raise NotConnected("there is no connection to NATS; nothing was asked")
        inbox = self._client.inbox
        await inbox.open()
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        reply = inbox.expect(arrived.put_nowait)
        answers: list[Msg] = []
        deadline_s = time.monotonic() + self._timeout_s
        try:
            body = pack(_body(request), self.max_payload)
            await self._client.nc.publish(subject, body, reply)
            while (left_s := deadline_s - time.monotonic()) > 0 and len(answers) != most:
                wait_s = min(left_s, QUIET_S) if answers else left_s
                answers.append(await asyncio.wait_for(arrived.get(), wait_s))
                if (answers[-1].headers or {}).get("Status") == "503":
                    raise NoWorker(
                        f"no worker listens on {subject}; start one, or check server and permissions"
                    )
        except TimeoutError:
            pass
        finally:
            inbox.forget(reply)
        if not answers:
            raise NoWorker(
                f"no worker answered on {subject} within {self._timeout_s:g} s; start one, or check server and permissions"
            )
        return answers


def _body(request: BaseModel) -> bytes:
    return request.model_dump_json(exclude_defaults=True).encode()


def _read(subject: str, msg: Msg, answer: type[A]) -> A:
    refusal = refusal_of(msg)
    if refusal is not None:
        raise refusal
    try:
        return answer.model_validate_json(unpack(msg.data, _MOST_BYTES))
    except ValueError:
        raise UnexpectedReply(
            f"{msg.data[:80]!r} is no answer of a worker; see who else listens on {subject}"
        ) from None
