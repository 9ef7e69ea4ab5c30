"""What the worker relies on in nats-py's private parts, against a real nats-server.

When one of these fails after an upgrade of nats-py, broker/client.py and broker/parser.py have to follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from nats import errors
from nats.aio.client import Client
from requeue_worker.broker import client as bulk
from requeue_worker.broker.client import BulkClient
from requeue_worker.broker.login import Login
from requeue_worker.broker.parser import Raw
from requeue_worker.errors import ClientLibraryChanged

from tests.servers import NatsServer, NatsServerFactory, settle, until

Connect = Callable[..., Awaitable["Connected"]]
NOBODY = Login()
WORKER = Login(user="worker", password="secret")
_RELOADABLE = """
authorization {{ users: [ {{
  user: {user}, password: secret, permissions: {{ publish: ">", subscribe: {{ deny: "denied.>" }} }}
}} ] }}
"""


class Connected:
    """A BulkClient and what it heard."""

    def __init__(self, login: Login) -> None:
        self.client = BulkClient(lambda: login)
        self.errors: list[str] = []
        self.disconnects = self.reconnects = self.closes = 0

    async def connect(self, server: NatsServer, **options: Any) -> Connected:
        await self.client.connect(
            server.url,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,
            **options,
        )
        return self

    async def listen(self, subject: str, queue: str = "") -> list[list[Raw]]:
        """Hot subscription; the batches as they come."""
        batches: list[list[Raw]] = []
        await self.client.subscribe_hot(subject, batches.append, queue)
        await self.client.flush()
        return batches

    async def _on_error(self, error: Exception) -> None:
        self.errors.append(str(error))

    async def _on_disconnected(self) -> None:
        self.disconnects += 1

    async def _on_reconnected(self) -> None:
        self.reconnects += 1

    async def _on_closed(self) -> None:
        self.closes += 1


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connect BulkClients, closed at teardown."""
    made: list[Connected] = []

    async def make(server: NatsServer, login: Login = NOBODY, **options: Any) -> Connected:
        made.append(Connected(login))
        return await made[-1].connect(server, **options)

    yield make
    for connected in made:
        await connected.client.close()


def messages(batches: list[list[Raw]]) -> list[Raw]:
    return [raw for batch in batches for raw in batch]


def test_a_client_library_without_the_parts_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_USED", (*bulk._USED, "_no_longer_there"))
    with pytest.raises(ClientLibraryChanged, match="_no_longer_there"):
        BulkClient()


async def test_hot_subscriptions_get_raw_messages_in_order(
    connect: Connect, nats_server: NatsServer, nc: Client
) -> None:
    worker = await connect(nats_server)
    batches = await worker.listen("hot.>")
    cold: list[bytes] = []

    async def on_cold(message: Any) -> None:
        cold.append(message.data)

    await worker.client.subscribe("cold", cb=on_cold)
    await worker.client.flush()

    await nc.publish("hot.a", b"1")
    await nc.publish("hot.b", b"2", reply="back.here")
    await nc.publish("cold", b"3")
    await nc.publish("hot.c", b"4", headers={"A": "b"})
    await nc.publish("hot.d", b"")
    await until(lambda: len(messages(batches)) == 4 and cold)

    assert messages(batches) == [
        (b"hot.a", b"", None, b"1"),
        (b"hot.b", b"back.here", None, b"2"),
        (b"hot.c", b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"4"),
        (b"hot.d", b"", None, b""),
    ]
    assert cold == [b"3"]


async def test_messages_that_come_together_are_handed_over_together(
    connect: Connect, nats_server: NatsServer, nc: Client
) -> None:
    worker = await connect(nats_server)
    batches = await worker.listen("hot")
    for number in range(20_000):
        await nc.publish("hot", b"%d" % number)
    await until(lambda: len(messages(batches)) == 20_000)
    assert [int(raw[3]) for raw in messages(batches)] == list(range(20_000))
    assert len(batches) < 5_000


async def test_a_message_of_max_payload_arrives_whole(
    connect: Connect, nats_server: NatsServer, nc: Client
) -> None:
    worker = await connect(nats_server)
    batches = await worker.listen("hot")
    payload = bytes(range(256)) * (nc.max_payload // 256)
    await nc.publish("hot", payload)
    await until(lambda: batches)
    assert messages(batches) == [(b"hot", b"", None, payload)]


async def test_sent_chunks_arrive_in_order_with_published_messages(
    connect: Connect, nats_server: NatsServer, nc: Client
) -> None:
    worker = await connect(nats_server)
    received: list[bytes] = []

    async def on_message(message: Any) -> None:
        received.append(message.data)

    await nc.subscribe("out.>", cb=on_message)
    await settle(nc)

    worker.client.send(b"PUB out.a 1\r\n1\r\nPUB out.b 1\r\n2\r\n", 2)
    await worker.client.publish("out.c", b"3")
    worker.client.send(b"HPUB out.d 12 13\r\nNATS/1.0\r\n\r\n4\r\n", 1)
    await until(lambda: len(received) == 4)

    assert received == [b"1", b"2", b"3", b"4"]
    assert worker.client.stats["out_msgs"] == 4


async def test_a_chunk_leaves_in_the_turn_in_which_it_is_sent(
    connect: Connect, nats_server: NatsServer
) -> None:
    worker = await connect(nats_server)
    worker.client.send(b"PUB out 0\r\n\r\n", 1)
    assert worker.client.unsent_bytes == 0
    await worker.client.publish("out", b"x")
    assert worker.client.unsent_bytes
    worker.client.send(b"PUB out 0\r\n\r\n", 1)
    assert worker.client.unsent_bytes > len(b"PUB out 0\r\n\r\n"), "behind what waits"


async def test_chunks_larger_than_the_socket_takes_arrive_whole_and_in_order(
    connect: Connect, nats_server: NatsServer
) -> None:
    worker, reader = await connect(nats_server), await connect(nats_server)
    received: list[bytes] = []
    await reader.client.subscribe_hot("out", lambda batch: received.extend(raw[3] for raw in batch))
    await reader.client.flush()
    payloads = [b"%04d" % number * 200_000 for number in range(40)]
    for payload in payloads:
        worker.client.send(b"PUB out %d\r\n%b\r\n" % (len(payload), payload), 1)
        await asyncio.sleep(0)
    await until(lambda: len(received) == 40)
    assert received == payloads


async def test_unsent_bytes_go_to_zero_and_when_flushed_calls_back(
    connect: Connect, nats_server: NatsServer
) -> None:
    worker = await connect(nats_server)
    flushed = asyncio.Event()
    chunk = b"PUB out 4\r\nabcd\r\n" * 100_000
    for _ in range(20):
        worker.client.send(chunk, 100_000)
    assert worker.client.unsent_bytes >= 10 * len(chunk), "more than sockets take at once"
    worker.client.when_flushed(flushed.set)
    await asyncio.wait_for(flushed.wait(), 20)
    assert worker.client.unsent_bytes == 0


async def test_a_flush_is_behind_everything_that_was_sent_before_it(
    connect: Connect, nats_server: NatsServer, nc: Client
) -> None:
    worker = await connect(nats_server)
    received: list[bytes] = []

    async def on_message(message: Any) -> None:
        received.append(message.data)

    await nc.subscribe("out", cb=on_message)
    await settle(nc)
    worker.client.send(b"PUB out 1\r\n1\r\n" * 5000, 5000)
    await worker.client.flush()
    await nc.flush()
    await until(lambda: len(received) == 5000)


async def test_after_a_reconnect_the_hot_subscriptions_stand(
    connect: Connect, nats_server: NatsServer, nc: Client
) -> None:
    worker = await connect(nats_server)
    batches = await worker.listen("hot.>", "group")
    await nc.publish("hot.before", b"")
    await until(lambda: batches)

    await asyncio.to_thread(nats_server.restart)
    await until(lambda: worker.reconnects and nc.is_connected)
    await settle(nc)
    await nc.publish("hot.after", b"")

    await until(lambda: len(messages(batches)) == 2)
    assert [raw[0] for raw in messages(batches)] == [b"hot.before", b"hot.after"]


async def test_half_a_message_on_a_lost_connection_leaves_nothing_behind(connect: Connect) -> None:
    """A server of our own cuts the connection in the middle of a message."""
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"headers":true}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = type("", (), {"url": f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
    worker = await connect(address)
    batches = await worker.listen("hot")

    connections[0].write(b"MSG hot 1 1\r\na\r\nMSG hot 1 1000\r\nhalf of it")
    await until(lambda: batches)
    connections[0].close()
    await until(lambda: worker.reconnects == 1)
    connections[1].write(b"MSG hot 1 1\r\nb\r\n")
    await until(lambda: len(messages(batches)) == 2)

    assert [raw[3] for raw in messages(batches)] == [b"a", b"b"]
    await worker.client.close()
    server.close()


async def test_what_was_not_sent_before_a_disconnect_can_be_forgotten(
    connect: Connect, nats_server: NatsServer
) -> None:
    worker = await connect(nats_server)
    await asyncio.to_thread(nats_server.stop)
    await until(lambda: worker.disconnects)
    worker.client.send(b"PUB out 1\r\n1\r\n", 1)
    assert worker.client.forget_unsent() >= len(b"PUB out 1\r\n1\r\n")
    assert worker.client.unsent_bytes == 0
    await asyncio.to_thread(nats_server.start)
    await until(lambda: worker.reconnects)


async def test_an_error_that_the_server_hangs_up_for_leads_to_a_new_connection(
    connect: Connect, nats_server: NatsServer, nc: Client
) -> None:
    """nats-py closes the client for good; a worker has to go on."""
    worker = await connect(nats_server)
    batches = await worker.listen("hot")
    too_large = nc.max_payload + 1
    worker.client.send(b"PUB out %d\r\n%b\r\n" % (too_large, b"x" * too_large), 1)
    await until(lambda: worker.reconnects)

    assert any("Maximum Payload Violation" in text for text in worker.errors)
    assert not worker.closes
    await nc.publish("hot", b"again")
    await until(lambda: batches)


async def test_credentials_that_expire_and_come_back_lead_to_a_new_connection(
    connect: Connect, nats_server_factory: NatsServerFactory
) -> None:
    server = nats_server_factory(config=_RELOADABLE.format(user="worker"))
    worker = await connect(server, WORKER)
    batches = await worker.listen("hot")

    config = server._directory / "nats-server.conf"
    config.write_text(_RELOADABLE.format(user="other"))
    server._child.send_signal(1)  # type: ignore[union-attr]
    await until(lambda: worker.disconnects)
    config.write_text(_RELOADABLE.format(user="worker"))
    server._child.send_signal(1)  # type: ignore[union-attr]
    await until(lambda: worker.reconnects)

    assert not worker.closes
    worker.client.send(b"PUB hot 1\r\n1\r\n", 1)
    await until(lambda: batches)


async def test_a_denied_permission_is_reported_and_the_connection_stays(
    connect: Connect, nats_server_factory: NatsServerFactory
) -> None:
    server = nats_server_factory(config=_RELOADABLE.format(user="worker"))
    worker = await connect(server, WORKER)
    await worker.client.subscribe_hot("denied.x", lambda _: None)
    await until(lambda: worker.errors)
    assert "permissions violation" in worker.errors[0].lower()
    assert (worker.disconnects, worker.closes) == (0, 0)


async def test_reconnecting_goes_on_after_an_error_that_nats_py_does_not_expect(
    connect: Connect, nats_server: NatsServer
) -> None:
    worker = await connect(nats_server)
    select = worker.client._select_next_server
    tries = 0

    async def fail_twice() -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise ValueError("an unreadable seed, say")
        await select()

    worker.client._select_next_server = fail_twice  # type: ignore[method-assign]
    await asyncio.to_thread(nats_server.restart)
    await until(lambda: worker.reconnects)
    assert worker.errors.count("an unreadable seed, say") == 2


async def test_the_first_flush_raises_when_the_connection_is_gone(
    connect: Connect, nats_server: NatsServer
) -> None:
    worker = await connect(nats_server)
    await worker.client.close()
    with pytest.raises(errors.ConnectionClosedError):
        await worker.client.flush()


async def test_the_transport_reads_more_than_the_default_at_once(
    connect: Connect, nats_server: NatsServer
) -> None:
    worker = await connect(nats_server)
    assert isinstance(worker.client._transport, bulk.WideTransport)
    assert worker.client._transport._io_reader._limit >= bulk.READ_BYTES  # type: ignore[attr-defined]
