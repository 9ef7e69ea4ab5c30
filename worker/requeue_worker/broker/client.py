"""nats-py's client with the bulk reader in, larger reads, batched writes, and errors that reconnect instead of close.

This is the one place that touches private attributes of nats-py. They are checked when a client is made; a contract
test checks their behaviour against a real server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from nats import errors
from nats.aio import client as nats_client
from nats.aio.client import Client
from requeue_worker.broker.login import Login
from requeue_worker.broker.parser import BulkParser, Consumer
from requeue_worker.broker.permissions import read_violation
from requeue_worker.broker.transport import READ_BYTES, WideTransport
from requeue_worker.errors import ClientLibraryChanged
from requeue_worker.supervisor import ended

FLUSH_S: Final = 10.0
MAX_SERVERS: Final = 32  #: beyond it those that a server told of once and tells of no more are forgotten

_USED = (
    "_ps",
    "_pending",
    "_pending_data_size",
    "_flush_queue",
    "_transport",
    "_subs",
    "_process_err",
    "_process_op_err",
    "_connect_to_server",
    "_attempt_reconnect",
    "_process_info",
    "_process_connect_init",
    "_process_pong",
    "_read_loop",
    "_flusher",
    "_send_ping",
    "_pongs",
    "_connect_command",
    "_current_server",
    "_server_pool",
    "_reading_task",
    "_ping_interval_task",
    "_flusher_task",
    "_auth_configured",
    "_signature_cb",
    "_user_jwt_cb",
    "_public_nkey",
)


class BulkClient(Client):  # type: ignore[misc, unused-ignore]
    """A NATS client whose hot subscriptions are read in bulk and whose publishes go out in chunks."""

    def __init__(self, login: Callable[[], Login] = Login, require_tls: bool = False) -> None:
        """`login` is asked before each attempt to connect; an error that it raises makes the attempt a failed one."""
        super().__init__()
        self._login = login
        self._require_tls = require_tls
        self._reconnecting: asyncio.Task[Any] | None = None
        #: round trips that are waited for; True when answered, False when their connection is gone
        self._round_trips: set[asyncio.Future[bool]] = set()
        missing = [name for name in _USED if not hasattr(self, name)]
        if missing:
            raise ClientLibraryChanged(
                f"nats-py {nats_client.__version__} has no {', '.join(missing)}: "
                "use a release in the range that nats-requeue asks for"
            )
        self._ps: BulkParser = BulkParser(self)

    async def _connect_to_server(self, s: Any) -> None:
        """As nats-py's, with our transport: its own takes a transport that is not connected for none."""
        await self._abandon()
        self._use(self._login())
        if s.uri.scheme in ("ws", "wss"):
            await super()._connect_to_server(s)
            return
        s.last_attempt = time.monotonic()
        if not isinstance(self._transport, WideTransport):
            self._transport = WideTransport()  # type: ignore[no-untyped-call]
        await self._transport.connect(s.uri, READ_BYTES, self.options["connect_timeout"])

    def _use(self, login: Login) -> None:
        self.options.update(user=login.user, password=login.password, token=login.token)
        self._signature_cb = login.sign
        jwt = login.jwt
        self._user_jwt_cb = None if jwt is None else lambda: jwt
        self._public_nkey = login.nkey
        if login.says_something:
            self._auth_configured = True  # else the server's URL may still hold a user
        if login.tls is not None:
            self.options["tls"] = login.tls

    async def _process_connect_init(self) -> None:
        """Say hello. Whatever goes wrong is an error that nats-py goes on trying after.

        It ends the client on errors that it does not expect, and takes a connection that the server closed without a
        word for one that stands.
        """
        try:
            await super()._process_connect_init()
        except (OSError, errors.Error, TimeoutError):
            raise
        except Exception as error:
            raise errors.Error(f"nats: {type(error).__name__}: {error}") from error
        if not self.is_connected:
            raise errors.Error("nats: the server closed the connection instead of taking it")

    def _connect_command(self) -> bytes:
        """Log in at a server that another one told of as at that one, where its URL holds the user; as nats.go does."""
        server = self._current_server
        users = [known.uri.netloc.rpartition("@")[0] for known in self._server_pool if known.uri.username]
        if not users or server is None or server.uri.username or not server.discovered:
            return super()._connect_command()
        url = server.uri
        server.uri = url._replace(netloc=f"{users[0]}@{url.netloc}")
        try:
            return super()._connect_command()
        finally:
            server.uri = url

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Refuse a server that offers no TLS where TLS was asked for, before any secret is sent.

        nats-py would go on in the clear.
        """
        wanted = self._require_tls or (self._current_server and self._current_server.uri.scheme == "tls")
        offered = info.get("tls_required") or self.options["tls_handshake_first"]
        if initial_connection and wanted and not offered:
            raise errors.Error(
                "nats: TLS is asked for and the server offers none: use nats:// without TLS settings, or "
                "set up TLS on the server"
            )
        await super()._process_info(info, initial_connection)
        self._max_payload = info.get("max_payload", self._max_payload)  # a reload of the server changes it
        if len(self._server_pool) > MAX_SERVERS:
            told = info.get("connect_urls") or ()
            self._server_pool[:] = [
                server
                for server in self._server_pool
                if not server.discovered or server is self._current_server or server.uri.netloc in told
            ]

    async def _process_err(self, err_msg: str) -> None:
        """Reconnect on any error that the server closes the connection for.

        nats-py closes the client for good on, for instance, expired credentials; a worker goes on with the
        rotated ones as soon as they are there.
        """
        as_it_came = self._ps.error_line.decode(errors="replace").strip()
        text = (as_it_came if as_it_came.lower() == err_msg else err_msg).strip("'")
        error = errors.Error(f"nats: {text}")
        await self._error_cb(error)
        if read_violation(text) is None:
            self._err = error
            await self._process_op_err(error)

    # -- round trips -----------------------------------------------------------------------------------------

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - nats-py's signature
        """A round trip behind everything that was sent before, in FLUSH_S unless told.

        Raises TimeoutError, or a NATS error, at once when the connection is lost.
        """
        if self.is_closed:
            raise errors.ConnectionClosedError
        if not self.is_connected:
            raise errors.ConnectionReconnectingError
        trip: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._round_trips.add(trip)
        try:
            await self._send_ping(trip)
            # Not wait_for: nats-py's reader dies of an answer to a round trip that was cancelled.
            await asyncio.wait([trip], timeout=FLUSH_S if timeout is None else timeout)
        finally:
            self._round_trips.discard(trip)
        if not trip.done():
            raise errors.FlushTimeoutError
        if not trip.result():
            raise errors.StaleConnectionError

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """Queue a PING. nats-py writes it past what still waits for its flusher task, so that it says nothing of that."""
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        self.send(nats_client.PING_PROTO, 0)

    # -- the end of a connection -----------------------------------------------------------------------------

    async def _read_loop(self) -> None:
        await super()._read_loop()
        await self._give_up_silent(errors.UnexpectedEOF())

    async def _flusher(self) -> None:
        await super()._flusher()
        await self._give_up_silent(errors.StaleConnectionError())

    async def _give_up_silent(self, error: errors.Error) -> None:
        """nats-py's loops end on an error that it doesn't expect, and leave a connection that is deaf or dumb."""
        if self.is_connected:
            await self._process_op_err(error)

    async def give_up(self) -> None:
        """The server does not answer on this connection: make another one."""
        await self._process_op_err(errors.StaleConnectionError())

    async def _abandon(self) -> None:
        """End what is left of a connection: its socket, its tasks, the round trips on it.

        nats-py leaves them to themselves. A reader of a connection that only stalled would go on beside the next one,
        and what the old socket still held would be sent.
        """
        self._pongs = []
        for trip in self._round_trips:
            if not trip.done():
                trip.set_result(False)
        if isinstance(self._transport, WideTransport):
            self._transport.abort()
        await ended(self._reading_task, self._ping_interval_task, self._flusher_task)

    async def _attempt_reconnect(self) -> None:
        """Reconnect for ever: an error that nats-py doesn't expect (an unreadable seed, say) must not end it.

        One at a time: nats-py cancels the one before, and that can miss it.
        """
        before, self._reconnecting = self._reconnecting, asyncio.current_task()
        await ended(before)
        await self._abandon()
        while True:
            try:
                await super()._attempt_reconnect()
            except Exception as error:
                self._status = self.RECONNECTING
                await self._error_cb(error)
                await asyncio.sleep(self.options["reconnect_time_wait"])
            else:
                return

    async def close(self) -> None:
        """Close for good; no reconnect is left behind that missed its cancellation."""
        await super().close()
        if self._reconnecting is not asyncio.current_task():
            await ended(self._reconnecting)
            if not self.is_closed:
                await super().close()

    def abort(self) -> None:
        """Drop what was not sent and end the socket, before `close`: else that waits for a server that doesn't read."""
        self.forget_unsent()
        if isinstance(self._transport, WideTransport):
            self._transport.abort()

    # -- hot paths -------------------------------------------------------------------------------------------

    async def subscribe_hot(self, subject: str, consumer: Consumer, queue: str = "") -> Any:
        """Subscribe with bulk delivery: `consumer` gets a list of raw messages for each socket read.

        Returns nats-py's subscription, for `unsubscribe`.
        """
        next_sid = b"%d" % (self._sid + 1)
        self._ps.hot[next_sid] = consumer
        subscription = await self.subscribe(subject, queue=queue, cb=_never_called)
        if b"%d" % subscription._id != next_sid:
            raise ClientLibraryChanged("nats-py numbers its subscriptions differently now")
        return subscription

    def send(self, chunk: bytes, messages: int) -> None:
        """Send protocol bytes (whole PUB and HPUB operations); never blocks.

        At once where nothing waits before them: through nats-py's flusher task they leave a turn of the loop later.
        """
        self.stats["out_msgs"] += messages
        transport, is_first = self._transport, self.is_connected and not self._pending
        if is_first and isinstance(transport, WideTransport) and transport.send_now(chunk):
            return
        self._pending.append(chunk)
        self._pending_data_size += len(chunk)
        if self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    def when_flushed(self, callback: Callable[[], None]) -> None:
        """Call back once the transport has taken what is queued now."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: callback())
        if self._flush_queue is not None and not self._flush_queue.full():
            self._flush_queue.put_nowait(future)

    def forget_unsent(self) -> int:
        """Drop what was queued and never sent (after a disconnect). Returns its bytes."""
        dropped: int = self._pending_data_size
        self._pending = []
        self._pending_data_size = 0
        return dropped

    @property
    def unsent_bytes(self) -> int:
        """Bytes queued that the transport has not taken yet."""
        size: int = self._pending_data_size
        return size


async def _never_called(_: Any) -> None:
    """Hot subscriptions bypass nats-py's callback."""
