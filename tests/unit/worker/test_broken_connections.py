"""What nats-py leaves undone when a connection breaks, stalls or ends by halves, against a server that the test plays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
from nats import errors
from requeue_worker.broker import client as module
from requeue_worker.broker.client import BulkClient
from requeue_worker.broker.parser import Raw

from tests.servers import until

WAIT_S = 20


class Played:
    """A NATS server of few words, one `Connection` for each client that came."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        #: how many PINGs of a connection are answered; None: all of them
        self.pongs: int | None = None
        #: the next connections get no INFO
        self.silent = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self.connections:
            connection.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(writer, self.pongs)
        self.connections.append(connection)
        if not self.silent:
            connection.inform()
        tail = b""
        while data := await reader.read(1 << 20):
            connection.first = connection.first or data
            connection.received += len(data)
            for _ in range((tail + data).count(b"PING\r\n")):
                connection.on_ping()
            tail = data[-5:]
        connection.ended.set()


class Connection:
    """One client's, from the server's side."""

    def __init__(self, writer: asyncio.StreamWriter, pongs: int | None) -> None:
        self.writer = writer
        self.pongs = pongs
        self.owed = self.received = 0
        self.first = b""
        self.ended = asyncio.Event()

    def on_ping(self) -> None:
        if self.pongs is None or self.pongs > 0:
            self.writer.write(b"PONG\r\n")
            self.pongs = None if self.pongs is None else self.pongs - 1
        else:
            self.owed += 1

    def answer_late(self) -> None:
        """Answer what was not answered, and everything from now on."""
        self.writer.write(b"PONG\r\n" * self.owed)
        self.owed, self.pongs = 0, None

    def inform(self, **more: object) -> None:
        info = {"server_id": "x", "version": "2.12.0", "max_payload": 1 << 20, "headers": True, **more}
        self.writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")

    def deliver(self, payload: bytes) -> None:
        self.writer.write(b"MSG hot 1 %d\r\n%b\r\n" % (len(payload), payload))


class Heard:
    """A client and what came in on its hot subscription."""

    def __init__(self) -> None:
        self.client = BulkClient()
        self.payloads: list[bytes] = []
        self.reconnects = 0
        self.consumer_fails = False

    async def connect(self, server: Played, **options: Any) -> Self:
        await self.client.connect(
            server.url,
            error_cb=self._on_error,
            reconnected_cb=self._on_reconnected,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.02,
            **options,
        )
        await self.client.subscribe_hot("hot", self._consume)
        await self.client.flush()
        return self

    def _consume(self, batch: list[Raw]) -> None:
        if self.consumer_fails:
            self.consumer_fails = False
            raise ValueError("a mistake in a consumer")
        self.payloads += [raw[3] for raw in batch]

    async def _on_error(self, _: Exception) -> None:
        """It goes on: that is the point."""

    async def _on_reconnected(self) -> None:
        self.reconnects += 1


@pytest.fixture
async def server() -> AsyncIterator[Played]:
    async with Played() as played:
        yield played


@pytest.fixture
async def heard(server: Played) -> AsyncIterator[Heard]:
    made = await Heard().connect(server)
    yield made
    await asyncio.wait_for(made.client.close(), WAIT_S)


async def test_an_answer_after_its_time_does_not_end_the_reading(server: Played, heard: Heard) -> None:
    [connection] = server.connections
    connection.pongs = 0
    with pytest.raises(errors.FlushTimeoutError):
        await heard.client.flush(0.05)
    connection.answer_late()
    connection.deliver(b"after it")
    await until(lambda: heard.payloads == [b"after it"])
    await heard.client.flush()


async def test_a_flush_that_was_cancelled_does_not_end_the_reading(server: Played, heard: Heard) -> None:
    [connection] = server.connections
    connection.pongs = 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await heard.client.flush()
    connection.answer_late()
    connection.deliver(b"after it")
    await until(lambda: heard.payloads == [b"after it"])


async def test_an_error_that_ends_the_reading_leads_to_a_new_connection(server: Played, heard: Heard) -> None:
    heard.consumer_fails = True
    server.connections[0].deliver(b"lost")
    await until(lambda: heard.reconnects)
    server.connections[1].deliver(b"next")
    await until(lambda: heard.payloads == [b"next"])


async def test_an_error_that_ends_the_writing_leads_to_a_new_connection(
    server: Played, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As uvloop's transport raises when the socket broke a moment ago."""

    def broken_at_once(_: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    def broken(_: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    transport = heard.client._transport
    monkeypatch.setattr(transport._io_writer.transport, "write", broken_at_once)
    monkeypatch.setattr(transport, "writelines", broken)
    heard.client.send(b"PUB out 0\r\n\r\n", 1)
    await until(lambda: heard.reconnects)
    await heard.client.flush()


async def test_a_round_trip_ends_with_its_connection(server: Played, heard: Heard) -> None:
    [connection] = server.connections
    connection.pongs = 0
    trip = asyncio.create_task(heard.client.flush(10 * WAIT_S))
    await until(lambda: connection.owed)
    connection.writer.transport.abort()
    with pytest.raises(errors.StaleConnectionError):
        await asyncio.wait_for(trip, WAIT_S)


async def test_a_connection_that_stalls_before_it_stands_is_ended_before_the_next(
    server: Played, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two readers feed one parser, and the server goes on delivering to the one that nobody reads."""
    monkeypatch.setattr(module, "FLUSH_S", 0.1)
    server.pongs = 1  # the greeting's, and no answer to the subscriptions
    server.connections[0].writer.transport.abort()
    await until(lambda: len(server.connections) == 2)
    server.pongs = None
    await until(lambda: heard.reconnects)

    await asyncio.wait_for(server.connections[1].ended.wait(), WAIT_S)
    server.connections[-1].deliver(b"once")
    await until(lambda: heard.payloads == [b"once"])


async def test_nothing_is_sent_before_a_new_connection_has_said_hello(server: Played, heard: Heard) -> None:
    server.silent = True
    server.connections[0].writer.transport.abort()
    await until(lambda: len(server.connections) == 2)
    for _ in range(10):
        heard.client.send(b"PUB out 0\r\n\r\n", 1)
        await asyncio.sleep(0.01)
    assert not server.connections[1].received

    server.connections[1].inform()
    await until(lambda: heard.reconnects)
    assert server.connections[1].first.startswith(b"CONNECT ")


async def test_what_a_dead_connection_still_holds_is_not_sent(server: Played, heard: Heard) -> None:
    """The server reads nothing for a while; by then the client has gone on to another connection."""
    [connection] = server.connections
    socket = connection.writer.transport
    assert isinstance(socket, asyncio.Transport)
    socket.pause_reading()
    size = 32 << 20
    heard.client.send(b"PUB out %d\r\n%b\r\n" % (size, bytes(size)), 1)
    await until(lambda: not heard.client.unsent_bytes)
    await heard.client.give_up()
    await until(lambda: heard.reconnects)
    socket.resume_reading()
    await asyncio.wait_for(connection.ended.wait(), WAIT_S)
    assert connection.received < size


async def test_closing_does_not_wait_for_a_server_that_does_not_read(server: Played) -> None:
    heard = await Heard().connect(server)
    server.connections[0].writer.transport.pause_reading()
    for _ in range(64):
        heard.client.send(b"PUB out %d\r\n%b\r\n" % (1 << 20, bytes(1 << 20)), 1)
        await asyncio.sleep(0)
    heard.client.abort()
    await asyncio.wait_for(heard.client.close(), WAIT_S)


async def test_a_new_limit_of_the_server_holds_at_once(server: Played, heard: Heard) -> None:
    server.connections[0].inform(max_payload=4321)
    await until(lambda: heard.client.max_payload == 4321)


async def test_servers_are_remembered_in_bounds_and_the_latest_are_kept(server: Played, heard: Heard) -> None:
    """Pods get a new address each time; one that tried them all would never come back."""
    for turn in range(20):
        server.connections[0].inform(connect_urls=[f"10.0.{turn}.{pod}:4222" for pod in range(3)])
    server.connections[0].inform(max_payload=1)
    await until(lambda: heard.client.max_payload == 1)

    known = [url.netloc for url in heard.client.servers]
    assert server.url.removeprefix("nats://") in known
    assert {f"10.0.19.{pod}:4222" for pod in range(3)} < set(known)
    assert len(known) <= module.MAX_SERVERS + 3
