"""The drain's connection to NATS: requests whose answers come to one inbox, as the worker's own replays do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass
from typing import NamedTuple

from requeue_protocol.subjects import handover_subject, survivors_subject
from requeue_worker.broker.nats import Broker
from requeue_worker.broker.parser import Raw
from requeue_worker.drain.messages import NOBODY, Answer, MalformedHandover, Request, Verb
from requeue_worker.settings import NatsSettings
from requeue_worker.supervisor import ended

ANSWER_S = 15.0  #: a worker that has not answered within this time is asked where it stands
PROBE_AFTER_S = 1.0  #: it is asked whether it is there at all
QUIET_S = 0.3  #: after an answer to all, others are waited for so long
FIRST_S = 1.0  #: and before the first one
CONNECT_S = 1.0


class Found(NamedTuple):
    """A worker's answer, and its clock less ours (Unix ns): so much at least, whatever the way took."""

    answer: Answer
    skew_ns: int


class Silence(Exception):
    """No answer: the connection broke, nobody listens, or the time is over."""


@dataclass(slots=True)
class _Asked:
    """A request under way. The last of its parts, or the first that is refused, is its answer."""

    future: asyncio.Future[Answer]
    many: asyncio.Queue[Found | None] | None = None
    sent_ns: int = 0


class Link:
    """One connection, made again for ever until `close`."""

    def __init__(self, settings: NatsSettings, fleet: str) -> None:
        self._broker = Broker(settings, self)
        self._fleet = fleet
        self._numbers = itertools.count(1)
        self._asked: dict[bytes, _Asked] = {}
        self._standing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="connect")

    async def _run(self) -> None:
        await self._broker.connect()
        await self._broker.subscribe_replies(self._on_replies)
        await self._broker.keep_subscribed()

    async def close(self) -> None:
        """Close for good."""
        await ended(self._task)
        await self._broker.close()

    @property
    def max_payload(self) -> int:
        """The server's limit for one message."""
        return self._broker.max_payload

    # -- asking ----------------------------------------------------------------------------------------------

    def ask(self, instance: str, request: Request) -> asyncio.Future[Answer]:
        """Send a request to one worker. What is asked first arrives first. The future fails with Silence."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_retrieved)
        if not self._broker.can_replay:
            future.set_exception(Silence("not connected to NATS"))
            return future
        asked = _Asked(future)
        subject = handover_subject(self._fleet, instance)
        for part in request.parts(self.max_payload):
            self._send(subject, part, asked)
        return future

    async def answer(self, instance: str, request: Request) -> Answer:
        """Ask and wait. Raises Silence."""
        return await self.wait(instance, self.ask(instance, request))

    async def wait(self, instance: str, future: asyncio.Future[Answer]) -> Answer:
        """The answer to what was asked. Raises Silence when it does not come.

        A worker answers in the order in which it was asked: once it has answered something later, an answer that is
        missing stays missing (the worker was killed and is back), and nobody has to wait for ANSWER_S.
        """
        await asyncio.wait({future}, timeout=PROBE_AFTER_S)
        if not future.done():
            probe = self.ask(instance, Request(Verb.WHO, NOBODY))
            await asyncio.wait(
                {future, probe}, timeout=ANSWER_S - PROBE_AFTER_S, return_when=asyncio.FIRST_COMPLETED
            )
        if not future.done():
            raise Silence("no answer in time")
        return future.result()

    async def ask_all(self, request: Request) -> list[Found]:
        """Ask the fleet: whoever answers within a moment."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._standing.wait(), CONNECT_S)
        if not self._broker.can_replay:
            return []
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_retrieved)
        asked = _Asked(future, asyncio.Queue(), time.time_ns())
        [part] = request.parts(self.max_payload)
        token = self._send(survivors_subject(self._fleet), part, asked)
        assert asked.many is not None
        answers: list[Found] = []
        try:
            while (
                found := await asyncio.wait_for(asked.many.get(), QUIET_S if answers else FIRST_S)
            ) is not None:
                answers.append(found)
        except TimeoutError:
            pass
        finally:
            self._asked.pop(token, None)
        return answers

    def _send(self, subject: str, part: bytes, asked: _Asked) -> bytes:
        token = b"%d" % next(self._numbers)
        self._asked[token] = asked
        reply = self._broker.inbox_prefix + token
        self._broker.send(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply, len(part), part), 1)
        return token

    # -- answers ---------------------------------------------------------------------------------------------

    def _on_replies(self, messages: list[Raw]) -> None:
        for subject, _, headers, payload in messages:
            token = subject.rpartition(b".")[2]
            asked = self._asked.get(token)
            if asked is None:
                continue
            if asked.many is None:
                del self._asked[token]
            self._on_answer(asked, headers, payload)

    def _on_answer(self, asked: _Asked, headers: bytes | None, payload: bytes) -> None:
        if headers is not None and headers.startswith(b"NATS/1.0 503"):
            if asked.many is not None:
                asked.many.put_nowait(None)
            _fail(asked, "nobody listens")
            return
        try:
            answer = Answer.parse(payload)
        except MalformedHandover as error:
            _fail(asked, str(error))
            return
        if asked.many is not None:
            asked.many.put_nowait(Found(answer, _skew_ns(answer, asked.sent_ns)))
        elif not answer.more and not asked.future.done():
            asked.future.set_result(answer)

    # -- what the broker tells (Listener) --------------------------------------------------------------------

    def connected(self, reconnected: bool) -> None:
        """Answers come in."""
        self._standing.set()

    def granted(self) -> None:
        """What was denied may be allowed now."""
        self._standing.set()

    def taking(self) -> None:
        """All subscriptions stand."""

    def disconnected(self) -> None:
        """No answer to anything comes any more."""
        asked, self._asked = self._asked, {}
        for each in asked.values():
            _fail(each, "the connection was lost")

    def connection_error(self, error: Exception) -> None:
        """It has been logged."""


def _skew_ns(answer: Answer, sent_ns: int) -> int:
    """What cannot be explained by the way there and back."""
    received_ns = time.time_ns()
    if answer.time_ns > received_ns:
        return answer.time_ns - received_ns
    return min(answer.time_ns - sent_ns, 0)


def _fail(asked: _Asked, why: str) -> None:
    if not asked.future.done():
        asked.future.set_exception(Silence(why))


def _retrieved(future: asyncio.Future[Answer]) -> None:
    """An answer that nobody waits for any more is no mistake."""
    if not future.cancelled():
        future.exception()
