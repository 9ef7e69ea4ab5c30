"""The worker's connection to NATS: made again for ever, secrets read anew each time, chunked sends.

Broker ── login: who we are          ── BulkClient ── BulkParser: hot subscriptions in bulk
       ├─ subscriptions: do ours stand? ── permissions: what the server denies
       └─ confirming: does it still answer?
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from nats import errors as nats_errors
from requeue_worker.broker.asking import Asking
from requeue_worker.broker.client import BulkClient
from requeue_worker.broker.confirming import Confirming
from requeue_worker.broker.jetstream import Captured, Heard, Messages
from requeue_worker.broker.login import read_login, way_of
from requeue_worker.broker.parser import Consumer
from requeue_worker.broker.permissions import Denials, Permissions, read_violation
from requeue_worker.broker.subscriptions import Subscriptions
from requeue_worker.settings import NatsSettings
from requeue_worker.wire import hpub, pub

log = logging.getLogger(__name__)

MAX_PINGS_OUT = 2  #: a connection that leaves so many PINGs unanswered is dead when the next one is due
PENDING_BYTES = 64 << 20
LAST_WORD_S = 3.0  #: at shutdown, for each round trip
LOGGED_EVERY_S = 60.0  #: the same failure to connect is logged so often
MAX_REASONS = 100


class Answer(NamedTuple):
    """A reply with headers: its payload, and the whole header block."""

    payload: bytes
    block: bytes


class Listener(Protocol):
    """What the worker hears of its connection. All are called on the event loop and must not block."""

    def connected(self, reconnected: bool) -> None:
        """The connection stands, and replies come in."""

    def granted(self) -> None:
        """A subscription that was denied stands now."""

    def taking(self) -> None:
        """The intake stands, for the first time."""

    def disconnected(self) -> None:
        """The connection is gone; it is being made again."""

    def connection_error(self, error: Exception) -> None:
        """An asynchronous error: a failed attempt, a permission denied, a slow consumer."""


class Broker:
    """One NATS connection, made again for ever until `close`."""

    def __init__(self, settings: NatsSettings, listener: Listener) -> None:
        self._settings = settings
        self._listener = listener
        self._client = BulkClient(lambda: read_login(settings), require_tls=settings.tls.in_use)
        self._permissions = Permissions()
        self._subscriptions = Subscriptions(
            self._client, self._permissions, self._tell_news, settings.reconnect_wait_ns / 1e9
        )
        self._started = self._closing = False
        self._told_connected = self._told_taking = False
        self._trouble = "no server has answered yet"
        self._logged_s: dict[str, float] = {}
        self._number = 0
        self._confirming = Confirming(self._client, lambda: self.connection)
        self.inbox_prefix = b""

    async def connect(self) -> None:
        """Connect, trying for ever. Returns when connected; cancel it to give up."""
        self._started = True
        await self._client.connect(**self._connect_options())
        self._number += 1
        self.inbox_prefix = self._client.new_inbox().encode() + b"."
        log.info("connected to NATS", extra={"server": self.server, "login": way_of(self._settings)})

    async def subscribe_intake(self, subject: str, queue_group: str, intake: Consumer) -> None:
        """Subscribe the intake. The listener hears when it stands."""
        await self._subscriptions.add_intake(subject, queue_group, intake)

    async def subscribe_replies(self, replies: Consumer) -> None:
        """Subscribe the reply inbox, all that one needs who only asks."""
        await self._subscriptions.add_replies(self.inbox_prefix.decode() + "*", replies)

    async def respond(
        self, subject: str, answer: Callable[[bytes], Awaitable[Answer | bytes | None]]
    ) -> None:
        """Answer requests on `subject`: `answer` gets the payload and returns the reply, None for none."""

        async def handle(message: Any) -> None:
            reply = await answer(message.data)
            if reply is None or not message.reply:
                return
            if isinstance(reply, bytes):
                await self.publish(message.reply, reply)
            elif len(reply.block) + len(reply.payload) <= self.max_payload:
                self.send(hpub(message.reply.encode(), reply.block, reply.payload), 1)

        await self._subscriptions.add_other(subject, handle)

    def asking(self) -> Asking:
        """For requests that others answer. Nothing is sent while there is no connection."""
        return Asking(self._client.new_inbox(), self._subscriptions.add_other, self.send)

    def messages_of_streams(self) -> Messages:
        """JetStream's messages by their sequence."""
        return Messages(self._client)

    def captured(self, stream: str, durable: str, subjects: Sequence[str]) -> Captured:
        """What a stream captures of these subjects, through a consumer that all workers share."""
        return Captured(self._client, stream, durable, subjects)

    def heard(self, subjects: Sequence[str], queue_group: str) -> Heard:
        """What is published to these subjects, each message to one worker of the group."""

        async def subscribe(take: Callable[[Any], Awaitable[None]]) -> None:
            for subject in subjects:
                await self._subscriptions.add_other(subject, take, queue_group)

        return Heard(subscribe)

    async def keep_subscribed(self) -> None:
        """See to it that the subscriptions stand, for ever."""
        await self._subscriptions.keep()

    async def stop_intake(self) -> None:
        """Unsubscribe the intake; on return everything the server had sent has been handed to its consumer.

        A server that does not answer any more is not waited for: what still comes is refused by `Ingest.drain`.
        """
        try:
            await self._subscriptions.end_intake(LAST_WORD_S)
        except (nats_errors.Error, OSError, TimeoutError) as error:
            log.warning("intake could not be drained", extra={"error": _sentence(error)})

    def send(self, chunk: bytes, messages: int) -> None:
        """Send whole PUB/HPUB operations. Dropped while disconnected: no ack and no replay outlives its connection."""
        if self.connected:
            self._client.send(chunk, messages)

    def when_flushed(self, callback: Callable[[], None]) -> None:
        """Call back once the socket has taken what was sent so far; never when the connection breaks before."""
        self._client.when_flushed(callback)

    async def publish(self, subject: str, payload: bytes) -> None:
        """Publish one message that may get lost: stats, an answer. Not sent when the server would hang up for its size."""
        if len(payload) <= self.max_payload:
            self.send(pub(subject.encode(), payload), 1)

    async def flush(self) -> None:
        """Return when the server has everything sent so far. Raises OSError or a NATS error."""
        await self._client.flush()

    def confirm(self, callback: Callable[[], None]) -> None:
        """Call back once all that the server had for the worker by now is here, or the connection is known to be lost.

        So a reply that is missing then is missing; a half-open connection looks the same until it is asked.
        """
        self._confirming.ask(callback)

    async def close(self) -> None:
        """Close for good, what is queued goes out first; a server that does not read is not waited for."""
        self._closing = True
        await self._confirming.stop()
        if not self._started:
            return
        try:
            if self.connected:
                await self._client.flush(LAST_WORD_S)
        except (nats_errors.Error, OSError, TimeoutError) as error:
            log.debug("the last messages may not have gone out", extra={"error": _sentence(error)})
            self._client.abort()
        try:
            await self._client.close()
        except (nats_errors.Error, OSError, TimeoutError) as error:
            log.debug("error while closing", extra={"error": str(error)})

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        return bool(self._client.is_connected)

    @property
    def connection(self) -> int:
        """Number of the connection that stands, so that a delivery knows whether its own still does; 0 when none does."""
        return self._number if self.connected else 0

    @property
    def can_replay(self) -> bool:
        """Whether a replay can go out and its reply come in."""
        return self.connected and self._subscriptions.replies_stand

    def ready(self) -> tuple[bool, str]:
        """Whether messages come in and can be replayed; if not, why; if so, what is denied all the same."""
        if not self.connected:
            return False, f"not connected to NATS: {self._trouble}"
        if vital := self._subscriptions.vital_trouble:
            return False, vital
        if denied := self._subscriptions.other_trouble or self._permissions.lately():
            return True, f"ready, but not all is allowed: {denied}"
        return True, "ready"

    def denied(self, subject: bytes) -> Denials | None:
        """What the server said against publishing to this subject on this connection; None when nothing."""
        return self._permissions.publish(subject)

    @property
    def denied_publishes(self) -> int:
        """Publishes denied so far: a mark for `denied_since`."""
        return self._permissions.denied

    def denied_since(self, subject: bytes, mark: int) -> bool:
        """Whether the server denied a publish to this subject since then."""
        return self._permissions.denied_since(subject, mark)

    @property
    def unsent_bytes(self) -> int:
        """Bytes queued that the socket has not taken."""
        return self._client.unsent_bytes

    @property
    def max_payload(self) -> int:
        """The server's limit for headers and payload together."""
        return int(self._client.max_payload)

    @property
    def server(self) -> str:
        """Host and port of the server in use, without credentials."""
        url = self._client.connected_url
        return f"{url.hostname}:{url.port}" if url is not None else ""

    # -- events ----------------------------------------------------------------------------------------------

    def _tell_news(self) -> None:
        """Subscriptions were answered: tell the listener what that means for it."""
        if self._told_connected:
            self._listener.granted()
        elif self.can_replay:
            self._told_connected = True
            self._listener.connected(False)
        if self.ready()[0] and not self._told_taking:
            self._told_taking = True
            self._listener.taking()

    async def _disconnected(self) -> None:
        self._client.forget_unsent()
        self._number += 1  # what is in flight now went out on a connection that is no more
        self._subscriptions.disconnected()
        self._trouble = "the connection was lost"
        if not self._closing:
            log.warning("disconnected from NATS")
            self._listener.disconnected()

    async def _reconnected(self) -> None:
        self._number += 1
        self._subscriptions.reconnected()
        self._logged_s.clear()
        log.info("reconnected to NATS", extra={"server": self.server, "login": way_of(self._settings)})
        if self._told_connected:
            self._listener.connected(True)

    async def _leaving(self) -> None:
        log.warning("the NATS server is about to stop", extra={"server": self.server})

    async def _error(self, error: Exception) -> None:
        if self._closing:
            return
        text = _sentence(error)
        violation = read_violation(text)
        if violation is not None:
            if self._permissions.note(violation):
                log.warning("NATS denies a permission", extra={"error": text})
            if violation.is_subscription:
                self._subscriptions.violated()
        elif self.connected:
            log.warning("NATS error", extra={"error": text})
        else:
            self._not_connected(text)
        self._listener.connection_error(error)

    def _not_connected(self, text: str) -> None:
        """An attempt to connect failed. The same reason is logged once a minute, the attempts go on much faster."""
        self._trouble = text
        now_s = time.monotonic()
        if now_s - self._logged_s.get(text, -LOGGED_EVERY_S) >= LOGGED_EVERY_S:
            if len(self._logged_s) >= MAX_REASONS:
                self._logged_s.clear()
            self._logged_s[text] = now_s
            log.warning(
                "cannot connect to NATS, trying on",
                extra={
                    "error": text,
                    "servers": self._settings.redacted_servers,
                    "login": way_of(self._settings),
                },
            )

    def _connect_options(self) -> dict[str, Any]:
        settings = self._settings
        options: dict[str, Any] = {
            "servers": list(settings.servers),
            "name": settings.name,
            "error_cb": self._error,
            "disconnected_cb": self._disconnected,
            "reconnected_cb": self._reconnected,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": settings.reconnect_wait_ns / 1e9,
            "connect_timeout": settings.connect_timeout_ns / 1e9,
            "lame_duck_mode_cb": self._leaving,
            "ping_interval": settings.ping_interval_ns / 1e9,
            "max_outstanding_pings": MAX_PINGS_OUT,
            "pending_size": PENDING_BYTES,
            "flush_timeout": 10,
            "tls_handshake_first": settings.tls.handshake_first,
        }
        if settings.tls.hostname:
            options["tls_hostname"] = settings.tls.hostname
        return options


def _sentence(error: Exception) -> str:
    """What an error says, without nats-py's decoration."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error).removeprefix("nats: ").strip("'") or type(error).__name__
