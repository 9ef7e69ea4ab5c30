"""What the bridge needs of JetStream: messages by their sequence, and advisories, with acks or without.

advisory stream ──pull consumer, shared by all workers──▶ Captured   acked, or asked for again
no such stream  ──subscription in a queue group─────────▶ Heard      whoever gets it is the only one
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api
from nats.js.client import JetStreamContext
from requeue_worker.bridge.message import Stored
from requeue_worker.errors import WorkerError

log = logging.getLogger(__name__)

ASK_S: Final = 5.0
FETCH_S: Final = 30.0
MORE_S: Final = 0.02
ACK_WAIT_S: Final = 60.0
BATCH: Final = 32
HEARD: Final = 10_000  #: advisories kept in memory that nobody would send again
_API: Final = "$JS.API.STREAM.MSG"
_GONE: Final = (10037, 10043, 10057, 10059)  #: no such message, or sequence to delete, or stream


class JetStreamTrouble(WorkerError):
    """JetStream did not do what it was asked for: try again later."""


class Notice(Protocol):
    """One advisory that has come."""

    payload: bytes
    comes_again: bool  #: until it is acked, over crashes too

    async def ack(self) -> None:
        """It is dealt with. Raises JetStreamTrouble when that may not have been taken."""

    async def again(self, delay_s: float) -> None:
        """It is to come again."""


class Source(Protocol):
    """Where advisories come from."""

    async def fetch(self) -> Sequence[Notice]:
        """The next ones; returns with none now and then. Raises JetStreamTrouble."""


class Messages:
    """Messages of streams."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def get(self, stream: str, sequence: int) -> Stored | None:
        """Read a message from the stream's leader; None when it is gone. Raises JetStreamTrouble."""
        said = await self._ask(f"{_API}.GET.{stream}", {"seq": sequence})
        if said is None:
            return None
        try:
            message = said["message"]
            headers = base64.b64decode(message.get("hdrs", ""))
            return Stored(message["subject"], headers, base64.b64decode(message.get("data", "")))
        except (KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise JetStreamTrouble(f"message {sequence} of {stream} can't be read: {error!r}") from error

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete a message; one that is gone already is fine. Raises JetStreamTrouble."""
        await self._ask(f"{_API}.DELETE.{stream}", {"seq": sequence, "no_erase": True})

    async def _ask(self, subject: str, request: dict[str, Any]) -> dict[str, Any] | None:
        try:
            reply = await self._client.request(subject, json.dumps(request).encode(), ASK_S)
        except (errors.Error, OSError, TimeoutError) as error:
            raise JetStreamTrouble(f"{subject}: {_sentence(error)}") from error
        try:
            said: dict[str, Any] = json.loads(reply.data)
            problem = said.get("error")
            if problem is None:
                return said
            if problem["err_code"] in _GONE:
                return None
            raise JetStreamTrouble(f"{subject}: {problem['description']}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JetStreamTrouble(f"{subject}: an answer that can't be read") from error


class Captured:
    """Advisories in a stream, through one pull consumer for all workers."""

    def __init__(self, client: Client, stream: str, durable: str, subjects: Sequence[str]) -> None:
        self._client = client
        self._stream = stream
        self._durable = durable
        self._subjects = list(subjects)
        self._pull: JetStreamContext.PullSubscription | None = None

    async def fetch(self) -> Sequence[Notice]:
        """Take the next ones, for FETCH_S at most. Raises JetStreamTrouble."""
        try:
            if self._pull is None:
                self._pull = await self._bind()
            found = await self._pull.fetch(1, timeout=FETCH_S)
            # A request for more than one waits for all of them, or for its timeout.
            with contextlib.suppress(TimeoutError):
                found += await self._pull.fetch(BATCH - 1, timeout=MORE_S)
            return [_Captured(msg) for msg in found]
        except TimeoutError:  # nats-py's own is one
            return []
        except (errors.Error, OSError) as error:
            raise JetStreamTrouble(f"stream {self._stream}: {_sentence(error)}") from error

    async def _bind(self) -> JetStreamContext.PullSubscription:
        context = self._client.jetstream(timeout=ASK_S)
        config = api.ConsumerConfig(
            name=self._durable,
            durable_name=self._durable,
            description="nats-requeue: bridge of exhausted messages",
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=1000,
            filter_subjects=self._subjects,
        )
        await context.add_consumer(self._stream, config)
        log.info("bridge reads advisories", extra={"stream": self._stream, "consumer": self._durable})
        return await context.pull_subscribe_bind(self._durable, stream=self._stream)


class _Captured:
    comes_again = True

    def __init__(self, msg: Msg) -> None:
        self._msg = msg
        self.payload = msg.data

    async def ack(self) -> None:
        try:
            await self._msg.ack_sync(ASK_S)
        except (errors.Error, OSError, TimeoutError) as error:
            raise JetStreamTrouble(f"an ack was not confirmed: {_sentence(error)}") from error

    async def again(self, delay_s: float) -> None:
        try:
            await self._msg.nak(delay_s)
        except (errors.Error, OSError, TimeoutError) as error:
            log.debug("an advisory comes again later", extra={"error": _sentence(error)})


class Heard:
    """Advisories as they are published; one that nobody hears is lost."""

    def __init__(self, subscribe: Callable[[Callable[[Any], Awaitable[None]]], Awaitable[None]]) -> None:
        self._subscribe = subscribe
        self._notices: asyncio.Queue[Notice] = asyncio.Queue(HEARD)
        self._subscribed = False

    async def fetch(self) -> Sequence[Notice]:
        """Wait for the next one, and take what came with it."""
        if not self._subscribed:
            self._subscribed = True
            await self._subscribe(self._take)
        found = [await self._notices.get()]
        while len(found) < BATCH and not self._notices.empty():
            found.append(self._notices.get_nowait())
        return found

    async def _take(self, msg: Msg) -> None:
        self.put(_Heard(self, msg.data))

    def put(self, notice: Notice) -> None:
        """Keep it for the next fetch."""
        if self._notices.full():
            log.error("an advisory is lost: too many wait", extra={"waiting": HEARD})
        else:
            self._notices.put_nowait(notice)


class _Heard:
    comes_again = False

    def __init__(self, heard: Heard, payload: bytes) -> None:
        self._heard = heard
        self.payload = payload

    async def ack(self) -> None:
        """Nobody waits for it."""

    async def again(self, delay_s: float) -> None:
        asyncio.get_running_loop().call_later(delay_s, self._heard.put, self)


def _sentence(error: Exception) -> str:
    return str(error).removeprefix("nats: ") or type(error).__name__
