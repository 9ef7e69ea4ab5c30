"""The client: what an application calls. Each part does its own work elsewhere in this package."""

# ruff: noqa: ASYNC109 - a timeout here is how long to go on trying, in this library's own durations

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import nats.errors
from nats.aio.client import Client

from requeue_client import admin, pipeline, requests
from requeue_client.admin import AdminResult
from requeue_client.errors import InvalidMessage, NotConnected
from requeue_client.handler import Handler
from requeue_client.inbox import ReplyInbox
from requeue_client.message import Message, MessageOptions, encode
from requeue_client.pipeline import Outcome
from requeue_client.publisher import Ack, Patience, Publisher
from requeue_client.requests import Reply, Requeued
from requeue_client.serving import Serving
from requeue_client.times import Duration, Instant, duration_ns, duration_s, instant_ns

DEFAULT_SERVER = "nats://127.0.0.1:4222"
DEFAULT_INTAKE = "requeue.publish"
DEFAULT_TIMEOUT = "30s"
DEFAULT_ACK_WAIT = "5s"
_ADMIN_TIMEOUT = "2s"
_ADMIN_QUIET = "250ms"

_logger = logging.getLogger("requeue_client")
_logger.addHandler(logging.NullHandler())  # a library says nothing unless the application asks


class RequeueClient:
    """Publishes to nats-requeue workers over a nats-py connection.

        async with await RequeueClient.connect("nats://127.0.0.1:4222") as requeue:
            await requeue.publish("orders.created", b"...", delay="10m", retries=5)

    `intake` is any subject that the workers subscribe to (`--subject`, by default `requeue.>`). Durations are
    timedelta, Go text (`"1m30s"`) or int nanoseconds. A client is for one event loop.
    """

    def __init__(
        self, nc: Client, *, intake: str = DEFAULT_INTAKE, ack_wait: Duration = DEFAULT_ACK_WAIT
    ) -> None:
        """Use a connection that stays the caller's: `close` leaves it open.

        `ack_wait`: a message that was not answered for so long is sent again, as long as its timeout allows.
        """
        self.nc = nc
        self._inbox = ReplyInbox(nc)
        self._publisher = Publisher(nc, self._inbox, intake)
        self._servings: list[Serving] = []
        self._owns_connection = False
        self._ack_wait_s = duration_s(ack_wait, "ack_wait")

    @classmethod
    async def connect(
        cls,
        servers: str | list[str] = DEFAULT_SERVER,
        *,
        intake: str = DEFAULT_INTAKE,
        ack_wait: Duration = DEFAULT_ACK_WAIT,
        name: str = "requeue-client",
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        creds_file: Path | str | None = None,
        nkey_file: Path | str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: Duration = "5s",
        on_error: Callable[[Exception], None] | None = None,
    ) -> Self:
        """Connect, and reconnect for ever from then on. For other options connect with nats-py and pass `nc`.

        `on_error` hears what the connection complains of, from the first attempt on: denied permissions, too.

        Raises:
            NotConnected: no server could be reached, or it refused, within `timeout`.
        """
        seconds = duration_s(timeout, "timeout")
        _check_readable(creds_file, nkey_file)
        nc = Client()
        last: list[Exception] = []

        async def hear(error: Exception) -> None:
            # What the server says tells more than the reset that may follow it.
            if not last or isinstance(error, nats.errors.Error) or not isinstance(last[0], nats.errors.Error):
                last[:] = [error]
            _logger.warning("nats: %s", error)
            if on_error is not None:
                on_error(error)

        try:
            async with asyncio.timeout(seconds):
                await nc.connect(
                    servers,
                    error_cb=hear,
                    name=name,
                    user=user,
                    password=password,
                    token=token,
                    user_credentials=str(creds_file) if creds_file is not None else None,
                    nkeys_seed=str(nkey_file) if nkey_file is not None else None,
                    tls=tls,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.25,  # type: ignore[arg-type]  # seconds, floats work
                )
        except (TimeoutError, OSError, nats.errors.Error, ValueError) as error:
            with contextlib.suppress(Exception):
                await nc.close()
            why = last[0] if last else error
            raise NotConnected(f"cannot connect to {servers}: {str(why) or type(why).__name__}") from error
        client = cls(nc, intake=intake, ack_wait=ack_wait)
        client._owns_connection = True
        return client

    @property
    def inbox(self) -> ReplyInbox:
        """Where answers to this client come in; for other conversations on its connection."""
        return self._inbox

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the handlers, give up the reply inbox, and the connection where this client made it.

        What is unanswered stays so.
        """
        for serving in self._servings:
            await serving.stop()
        self._publisher.close()
        await self._inbox.close()
        if self._owns_connection and not self.nc.is_closed:
            await self.nc.close()

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout: Duration = DEFAULT_TIMEOUT,
        attempts: int | None = None,
        **options: Unpack[MessageOptions],
    ) -> Ack:
        """Hand a message to a worker, which replays it to `subject`; returns once it is fsynced there.

        Unanswered sends and transient refusals are repeated, with growing waits, until `timeout` or
        `attempts` sends. All sends bear one `Nats-Msg-Id`, so a repeat adds no second copy while the first is
        pending at the worker that took it; with several workers the repeat can reach another one, and then
        the handler sees the message twice.

        Raises:
            InvalidMessage: an argument is wrong (also a ValueError); nothing was sent.
            PermanentRefusal: MalformedMessage, SubjectNotAllowed, MessageTooLarge: repeating is useless.
            TransientRefusal: QueueFull, NoWorker, ...: refused until the end; nothing is stored.
            PublishTimeout: unanswered; it may be on disk. Repeat with the `msg_id` of the error.
            NotConnected: NATS could not be reached in all that time.
        """
        patience = self._patience(timeout, attempts)
        return await self._publisher.publish(encode(Message(subject, payload, **options)), patience)

    def publish_many(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        window: int = 1024,
        timeout: Duration = DEFAULT_TIMEOUT,
        attempts: int | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Publish many, at most `window` unanswered at a time; yields each one's Outcome as it comes, in any
        order.

            async for outcome in requeue.publish_many(Message("a.b", p, delay="1m") for p in payloads):
                if not outcome.ok: ...

        `timeout` and `attempts` are for each message, as in `publish`. A refused message stops nothing.
        """
        return pipeline.publish_many(
            self._publisher, messages, window=window, patience=self._patience(timeout, attempts)
        )

    async def request_or_requeue(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: Duration = "2s",
        *,
        publish_timeout: Duration = DEFAULT_TIMEOUT,
        attempts: int | None = None,
        **options: Unpack[MessageOptions],
    ) -> Reply | Requeued:
        """Request `subject`; when nobody answers within `timeout`, hand the message to a worker as `publish`
        does.

        Any answer is a Reply, whatever it says, but for JetStream's verbs: `+WPI` starts the timeout again,
        `-NAK` queues the message (with the delay that it asks for, unless `delay` or `at` is given). A
        handler that was only too slow sees the message again: both copies bear the same `Nats-Msg-Id`. Raises
        as `publish`.
        """
        timeout_s = duration_s(timeout, "timeout")
        patience = self._patience(publish_timeout, attempts)
        message = Message(subject, payload, **options)
        encoded = encode(message)
        direct = {name: value for name, value in encoded.headers.items() if not name.startswith("Requeue-")}
        outcome = await requests.request_once(
            self.nc, self._inbox, subject, payload, timeout_s=timeout_s, headers=direct
        )
        if isinstance(outcome, Reply):
            return outcome
        if outcome.retry_delay_ns is not None and message.delay is None and message.at is None:
            later = replace(message, delay=requests.delay_for(outcome), msg_id=encoded.msg_id)
            encoded = encode(later)._replace(own_id=encoded.own_id)
        return Requeued(await self._publisher.publish(encoded, patience), outcome.reason)

    async def serve(self, *handlers: Handler) -> Serving:
        """Let handlers take messages; returns once their subscriptions stand.

            async with await requeue.serve(charge, refund) as serving:
                await serving.wait()

        `close` stops them too.

        Raises:
            NotConnected: the connection is away or closed.
        """
        serving = Serving(self.nc, handlers)
        self._servings.append(serving)
        return await serving.start()

    async def cancel(self, msg_id: str, *, timeout: Duration = _ADMIN_TIMEOUT) -> AdminResult:
        """Remove the pending messages with this `Nats-Msg-Id`, at every worker instance.

        What a handler has at the moment cannot be cancelled: `in_flight` counts it. Returns once no further
        instance has answered for 250 ms.

        Raises:
            NoWorker: nobody answered within `timeout`. NotConnected: no connection. RefusedError: as the
            worker says.
        """
        return await self._admin(admin.CANCEL, {"id": _checked_id(msg_id)}, "cancelled", timeout)

    async def reschedule(
        self,
        msg_id: str,
        *,
        delay: Duration | None = None,
        at: Instant | None = None,
        timeout: Duration = _ADMIN_TIMEOUT,
    ) -> AdminResult:
        """Make the pending messages with this `Nats-Msg-Id` due after `delay` from now, or at `at`.

        As `cancel`.
        """
        if (delay is None) == (at is None):
            raise InvalidMessage("give one of delay and at")
        request: dict[str, str | int] = {"id": _checked_id(msg_id)}
        if delay is not None:
            request["delay_ns"] = duration_ns(delay, "delay")
        if at is not None:
            request["at_ns"] = instant_ns(at, "at")
        return await self._admin(admin.RESCHEDULE, request, "rescheduled", timeout)

    def _patience(self, timeout: Duration, attempts: int | None) -> Patience:
        return Patience(duration_s(timeout, "timeout"), attempts, self._ack_wait_s)

    async def _admin(
        self, subject: str, request: dict[str, str | int], changed_key: str, timeout: Duration
    ) -> AdminResult:
        return await admin.ask_all(
            self.nc,
            self._inbox,
            subject,
            request,
            changed_key,
            timeout_s=duration_s(timeout, "timeout"),
            quiet_s=duration_s(_ADMIN_QUIET, "quiet"),
        )


def _check_readable(*files: Path | str | None) -> None:
    for path in files:
        if path is not None and not Path(path).is_file():
            raise NotConnected(f"the credentials file {path} does not exist")


def _checked_id(msg_id: str) -> str:
    if not msg_id:
        raise InvalidMessage("msg_id is empty; give the Nats-Msg-Id that the message was published with")
    return msg_id
