"""The NATS libraries of three languages behind one interface, so that one test says what holds for all of them.

    python   nats-py, in this process              node    nats.js 3 (`@nats-io/transport-node`), a child process
    go       nats.go, a child process              node2   nats.js 2 (`nats`), a child process

A child reads commands and writes answers as lines of JSON (go/main.go has the format). Every driver sends requests by
the library's own request function, settles by its own verbs where a message has some, and builds envelopes by the
official FlatBuffers runtime of its language.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import flatbuffers
import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.flatbuf import requeue_msg_generated as generated

WAIT_S = 20.0
LINE_BYTES = 8 << 20


class Failure(NamedTuple):
    """An error that the library reported. `kind`: `no responders`, `timeout` or `other`; `name`: the library's own."""

    kind: str
    name: str
    text: str


class Received(NamedTuple):
    """A message or reply as the library shows it. `settling`: what went wrong when the handler answered it."""

    subject: str
    payload: bytes
    headers: Mapping[str, Sequence[str]]
    settling: Failure | None = None

    def header(self, name: str) -> str:
        """The one value of a header."""
        [value] = self.headers[name]
        return value


class Answer(NamedTuple):
    """How a handler answers one message: a verb of the library, or bytes (and headers) by its plain respond."""

    verb: str
    payload: bytes = b""
    headers: Mapping[str, str] | None = None
    delay_ms: int = 0


EMPTY = Answer("respond")


class Driver(Protocol):
    """One library."""

    #: whether a message of core NATS has `ack`, `nak`, ... of its own in this library
    has_verbs: bool

    async def envelope(self, **fields: Any) -> bytes:
        """The bytes that this language's FlatBuffers runtime makes: subject, payload, retries, ttl_ns, ..."""

    async def request(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = WAIT_S,
        one_by_one: bool = False,
    ) -> Received | Failure:
        """The library's request. `one_by_one`: its style with a subscription for each request."""

    async def handle(self, subject: str, *answers: Answer) -> Callable[[], Any]:
        """Answer the first message with the first answer, and so on, the last one for all that follow.

        Returns a coroutine function for the next message that was handled.
        """


class PythonDriver:
    """nats-py."""

    has_verbs = True

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def envelope(self, *, subject: str, payload: bytes, **fields: Any) -> bytes:
        builder = flatbuffers.Builder(0)
        queue = builder.CreateString(fields["queue"]) if fields.get("queue") else None
        original_subject = builder.CreateString(subject)
        original_payload = builder.CreateByteVector(payload)
        generated.RequeueMessageStart(builder)
        generated.RequeueMessageAddRetries(builder, fields.get("retries", 0))
        generated.RequeueMessageAddTtl(builder, fields.get("ttl_ns", 0))
        generated.RequeueMessageAddDelay(builder, fields.get("delay_ns", 0))
        generated.RequeueMessageAddBackoffStrategy(builder, fields.get("backoff", 0))
        if queue is not None:
            generated.RequeueMessageAddQueueName(builder, queue)
        generated.RequeueMessageAddOriginalSubject(builder, original_subject)
        generated.RequeueMessageAddOriginalPayload(builder, original_payload)
        builder.Finish(generated.RequeueMessageEnd(builder))
        return bytes(builder.Output())

    async def request(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = WAIT_S,
        one_by_one: bool = False,
    ) -> Received | Failure:
        own_headers = dict(headers) if headers is not None else None
        try:
            reply = await self._nc.request(subject, payload, timeout_s, one_by_one, own_headers)
        except nats.errors.Error as error:
            return _failure(error)
        return _received(reply)

    async def handle(self, subject: str, *answers: Answer) -> Callable[[], Any]:
        told: asyncio.Queue[Received] = asyncio.Queue()
        left = list(answers)

        async def on_message(msg: Msg) -> None:
            settling = None
            try:
                await _give(left.pop(0) if len(left) > 1 else left[0], msg)
            except nats.errors.Error as error:
                settling = _failure(error)
            told.put_nowait(_received(msg)._replace(settling=settling))

        await self._nc.subscribe(subject, cb=on_message)
        await self._nc.flush()
        return lambda: asyncio.wait_for(told.get(), WAIT_S)


async def _give(answer: Answer, msg: Msg) -> None:
    verbs: dict[str, Callable[[], Any]] = {
        "ack": msg.ack,
        "ack sync": lambda: msg.ack_sync(answer.delay_ms / 1e3),
        "nak": msg.nak,
        "nak delay": lambda: msg.nak(answer.delay_ms / 1e3),
        "working": msg.in_progress,
        "term": msg.term,
    }
    if answer.verb in verbs:
        await verbs[answer.verb]()
    elif answer.headers is None:
        await msg.respond(answer.payload)
    else:
        await msg._client.publish(msg.reply, answer.payload, headers=dict(answer.headers))


def _received(msg: Msg) -> Received:
    return Received(msg.subject, msg.data, {name: [value] for name, value in (msg.headers or {}).items()})


def _failure(error: nats.errors.Error) -> Failure:
    kind = "other"
    if isinstance(error, nats.errors.NoRespondersError):
        kind = "no responders"
    elif isinstance(error, nats.errors.TimeoutError):
        kind = "timeout"
    return Failure(kind, type(error).__name__, str(error))


class ChildDriver:
    """A library in a child process."""

    def __init__(self, child: asyncio.subprocess.Process, *, has_verbs: bool) -> None:
        self.has_verbs = has_verbs
        self._child = child
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._told: dict[str, asyncio.Queue[Received]] = {}
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def start(cls, argv: Sequence[str], log: Path, *, has_verbs: bool) -> ChildDriver:
        """Start `argv`, its standard error into `log`."""
        with log.open("ab") as errors:
            child = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=LINE_BYTES,
            )
        return cls(child, has_verbs=has_verbs)

    async def close(self) -> None:
        """End of input ends the child; one that stays is killed."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            await asyncio.wait_for(self._child.wait(), WAIT_S)
        except TimeoutError:
            self._child.kill()
            await self._child.wait()
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    async def envelope(self, **fields: Any) -> bytes:
        fields["payload"] = _encoded(fields["payload"])
        return base64.b64decode((await self._ask("envelope", envelope=fields))["bytes"])

    async def request(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = WAIT_S,
        one_by_one: bool = False,
    ) -> Received | Failure:
        said = await self._ask(
            "request",
            subject=subject,
            payload=_encoded(payload),
            headers=None if headers is None else {name: [value] for name, value in headers.items()},
            timeout_ms=round(timeout_s * 1e3),
            one_by_one=one_by_one,
        )
        return Failure(**said["error"]) if "error" in said else _received_line(said["reply"], None)

    async def handle(self, subject: str, *answers: Answer) -> Callable[[], Any]:
        told = self._told[subject] = asyncio.Queue()
        plain = [{**answer._asdict(), "payload": _encoded(answer.payload)} for answer in answers]
        await self._ask("handle", subject=subject, answers=plain)
        return lambda: self._unless_it_ends(told.get())

    async def _ask(self, op: str, **command: Any) -> dict[str, Any]:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"id": number, "op": op, **command}).encode() + b"\n")
        await self._child.stdin.drain()
        said: dict[str, Any] = await self._unless_it_ends(answer)
        return said

    async def _unless_it_ends(self, wanted: Any) -> Any:
        task = asyncio.ensure_future(wanted)
        await asyncio.wait({task, self._reading}, timeout=2 * WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            ended = self._child.returncode
            raise AssertionError("the driver said nothing" if ended is None else f"the driver ended: {ended}")
        return task.result()

    async def _read(self) -> None:
        assert self._child.stdout is not None
        async for line in self._child.stdout:
            said = json.loads(line)
            if "event" in said:
                failure = Failure(**said["error"]) if "error" in said else None
                received = _received_line(said["message"], failure)
                self._told[_subscription(self._told, received.subject)].put_nowait(received)
            else:
                self._answers.pop(said["id"]).set_result(said)


def _subscription(subjects: Mapping[str, object], subject: str) -> str:
    return next(name for name in subjects if subject.startswith(name.removesuffix(">")))


def _received_line(line: dict[str, Any], settling: Failure | None) -> Received:
    payload = base64.b64decode(line["payload"] or "")
    return Received(line["subject"], payload, line["headers"] or {}, settling)


def _encoded(payload: bytes) -> str:
    return base64.b64encode(payload).decode()
