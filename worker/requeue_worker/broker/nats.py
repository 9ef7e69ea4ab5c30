"""The worker's connection to NATS: connect for ever, credentials read anew each time, hot subscriptions, chunked sends."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from nats import errors as nats_errors
from requeue_worker.broker.client import BulkClient
from requeue_worker.broker.parser import Consumer
from requeue_worker.settings import NatsSettings, TlsSettings

log = logging.getLogger(__name__)

PING_INTERVAL_S = 20
PENDING_BYTES = 64 << 20


class Listener(Protocol):
    """What the worker hears of its connection. All are called on the event loop and must not block."""

    def connected(self, reconnected: bool) -> None:
        """The connection stands, subscriptions included."""

    def disconnected(self) -> None:
        """The connection is gone; it is being made again."""

    def connection_error(self, error: Exception) -> None:
        """An asynchronous error: a failed attempt, a permission denied, a slow consumer."""


class Broker:
    """One NATS connection, made again for ever until `close`."""

    def __init__(self, settings: NatsSettings, listener: Listener) -> None:
        self._settings = settings
        self._listener = listener
        self._client = BulkClient(require_tls=settings.tls.in_use)
        self._intake: Any = None
        self._closing = False
        #: counts connections, so that a delivery knows whether its own still stands
        self.connection = 0
        self.inbox_prefix = b""
        #: permission errors seen since the last connect, newest last
        self.denied: list[str] = []

    async def connect(self) -> None:
        """Connect, trying for ever. Returns when connected; cancel it to give up."""
        options = self._connect_options()
        await self._client.connect(**options)
        self.connection += 1
        self.inbox_prefix = self._client.new_inbox().encode() + b"."
        log.info("connected to NATS", extra={"server": self.server})

    async def subscribe(self, subject: str, queue_group: str, intake: Consumer, replies: Consumer) -> None:
        """Subscribe the reply inbox, then the intake. Returns when the server has taken both."""
        await self._client.subscribe_hot(self.inbox_prefix.decode() + "*", replies)
        self._intake = await self._client.subscribe_hot(subject, intake, queue_group)
        await self._client.flush()
        self._listener.connected(False)

    async def respond(self, subject: str, answer: Callable[[bytes], Awaitable[bytes | None]]) -> None:
        """Answer requests on `subject`: `answer` gets the payload and returns the reply's, None for none."""

        async def handle(message: Any) -> None:
            reply = await answer(message.data)
            if reply is not None and message.reply:
                await self._client.publish(message.reply, reply)

        await self._client.subscribe(subject, cb=handle)

    async def stop_intake(self) -> None:
        """Unsubscribe the intake; on return everything the server had sent has been handed to its consumer."""
        if self._intake is not None and self.connected:
            try:
                await self._intake.unsubscribe()
                await self._client.flush()
            except (nats_errors.Error, OSError, TimeoutError) as error:
                log.warning("intake could not be drained", extra={"error": str(error)})
        self._intake = None

    def send(self, chunk: bytes, messages: int) -> None:
        """Send whole PUB/HPUB operations. Dropped while disconnected: no ack and no replay outlives its connection."""
        if self.connected:
            self._client.send(chunk, messages)

    def when_flushed(self, callback: Callable[[], None]) -> None:
        """Call back once the socket has taken what was sent so far; never when the connection breaks before."""
        self._client.when_flushed(callback)

    async def publish(self, subject: str, payload: bytes) -> None:
        """Publish one message (stats, dead letters); `flush` says whether the server has it."""
        await self._client.publish(subject, payload)

    async def flush(self) -> None:
        """Return when the server has everything sent so far. Raises OSError or a NATS error."""
        await self._client.flush()

    async def close(self) -> None:
        """Close for good, what is queued goes out first."""
        self._closing = True
        try:
            if self.connected:
                await self._client.flush(timeout=5)
            await self._client.close()
        except (nats_errors.Error, OSError, TimeoutError) as error:
            log.debug("error while closing", extra={"error": str(error)})

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        return bool(self._client.is_connected)

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

    async def _disconnected(self) -> None:
        self._client.forget_unsent()
        self.connection += 1  # what is in flight now went out on a connection that is no more
        if not self._closing:
            log.warning("disconnected from NATS")
            self._listener.disconnected()

    async def _reconnected(self) -> None:
        self.connection += 1
        self.denied.clear()
        log.info("reconnected to NATS", extra={"server": self.server})
        self._listener.connected(True)

    async def _error(self, error: Exception) -> None:
        if self._closing:
            return
        text = str(error) or type(error).__name__
        if "permissions violation" in text.lower():
            self.denied = [*self.denied[-9:], text]
        log.warning("NATS error", extra={"error": text})
        self._listener.connection_error(error)

    # -- options ---------------------------------------------------------------------------------------------

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
            "ping_interval": PING_INTERVAL_S,
            "pending_size": PENDING_BYTES,
            "flush_timeout": 10,
        }
        options.update(credentials(settings))
        if settings.tls.in_use:
            options["tls"] = tls_context(settings.tls)
            options["tls_handshake_first"] = settings.tls.handshake_first
            if settings.tls.hostname:
                options["tls_hostname"] = settings.tls.hostname
        return options


def credentials(settings: NatsSettings) -> dict[str, Any]:
    """Options for the one kind of credentials in use. Files are read at each connect, so a rotation needs no restart."""
    if settings.creds_file is not None:
        return {"user_credentials": str(settings.creds_file)}
    if settings.nkey_file is not None:
        return {"nkeys_seed": str(settings.nkey_file)}
    options: dict[str, Any] = {}
    if settings.token_file is not None:
        options["token"] = _reader(settings.token_file)
    elif settings.token is not None:
        options["token"] = settings.token.get_secret_value()
    if settings.user_file is not None:
        options["user"] = _reader(settings.user_file)
    elif settings.user is not None:
        options["user"] = settings.user
    if settings.password_file is not None:
        options["password"] = _reader(settings.password_file)
    elif settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    return options


def _reader(path: Path) -> Callable[[], str]:
    return lambda: path.read_text(encoding="utf-8").strip()


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """A client context with the CA, and the client certificate for mTLS."""
    context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    if tls.cert_file is not None:
        context.load_cert_chain(str(tls.cert_file), str(tls.key_file) if tls.key_file else None)
    return context
