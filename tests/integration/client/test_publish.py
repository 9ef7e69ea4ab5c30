"""Publishing over a real nats-server: acks, refusals, repeats, and what is left when all fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import (
    DiskFull,
    InvalidMessage,
    MalformedMessage,
    Message,
    MessageTooLarge,
    NotConnected,
    NoWorker,
    PublishTimeout,
    QueueFull,
    RequeueClient,
    SubjectNotAllowed,
    UnexpectedReply,
)
from requeue_protocol.envelope import read_envelope

from tests.integration.client.intake import scripted_intake
from tests.servers import NatsServer, NatsServerFactory, settle, until


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[RequeueClient]:
    async with await RequeueClient.connect(nats_server.url) as client:
        yield client


async def test_an_ack_ends_the_wait(nats_server: NatsServer, client: RequeueClient) -> None:
    async with scripted_intake(nats_server.url) as intake:
        ack = await client.publish("orders.created", b"payload", delay="10m", headers={"Trace": "t1"})
    assert (ack.duplicate, ack.attempts, [ack.msg_id]) == (False, 1, intake.ids())
    (msg,) = intake.received
    assert msg.data == b"payload"
    assert msg.headers == {
        "Requeue-Subject": "orders.created",
        "Requeue-Delay": "10m0s",
        "Trace": "t1",
        "Nats-Msg-Id": ack.msg_id,
    }


async def test_an_envelope_bears_an_id_header_too(nats_server: NatsServer, client: RequeueClient) -> None:
    async with scripted_intake(nats_server.url) as intake:
        await client.publish(
            "orders.created", b"payload", delay="1s", retries=3, priority=2, msg_id="x", envelope=True
        )
    (msg,) = intake.received
    envelope = read_envelope(msg.data)
    assert (envelope.subject, envelope.delay_ns, envelope.retries) == (b"orders.created", 10**9, 3)
    assert msg.headers == {"Requeue-Priority": "2", "Nats-Msg-Id": "x"}


async def test_a_pending_id_is_reported_as_duplicate(nats_server: NatsServer, client: RequeueClient) -> None:
    async with scripted_intake(nats_server.url, True):
        assert (await client.publish("a.b", msg_id="order-1")).duplicate


async def test_an_own_earlier_copy_is_no_duplicate(nats_server: NatsServer, client: RequeueClient) -> None:
    async with scripted_intake(nats_server.url, QueueFull("full"), True) as intake:
        ack = await client.publish("a.b")
    assert (ack.duplicate, ack.attempts) == (False, 2)
    assert len(set(intake.ids())) == 1


async def test_transient_refusals_are_repeated_with_one_id(
    nats_server: NatsServer, client: RequeueClient
) -> None:
    async with scripted_intake(nats_server.url, QueueFull("full"), DiskFull("no space")) as intake:
        ack = await client.publish("a.b", timeout="20s")
    assert ack.attempts == 3
    assert set(intake.ids()) == {ack.msg_id}


async def test_a_permanent_refusal_is_raised_at_once(nats_server: NatsServer, client: RequeueClient) -> None:
    async with scripted_intake(nats_server.url, SubjectNotAllowed("a.b is not allowed here")) as intake:
        with pytest.raises(SubjectNotAllowed, match=r"a\.b is not allowed here"):
            await client.publish("a.b")
    assert len(intake.received) == 1


async def test_a_persisting_refusal_is_raised_after_the_attempts(
    nats_server: NatsServer, client: RequeueClient
) -> None:
    async with scripted_intake(nats_server.url, *[QueueFull("queue default is full")] * 5) as intake:
        with pytest.raises(QueueFull, match="queue default is full"):
            await client.publish("a.b", attempts=3)
    assert len(intake.received) == 3


async def test_silence_ends_as_publish_timeout_that_names_the_id(
    nats_server: NatsServer, client: RequeueClient
) -> None:
    async with scripted_intake(nats_server.url, *[None] * 9):
        with pytest.raises(PublishTimeout, match="may be on disk") as caught:
            await client.publish("a.b", timeout="300ms", msg_id="order-7")
    assert caught.value.msg_id == "order-7"


async def test_silence_then_refusal_is_still_a_timeout(nats_server: NatsServer, nc: Client) -> None:
    # The unanswered send may have reached the disk, so "refused, nothing stored" would be untrue.
    client = RequeueClient(nc, ack_wait="100ms")
    async with scripted_intake(nats_server.url, None, *[QueueFull("full")] * 20):
        with pytest.raises(PublishTimeout, match="last refusal was: full"):
            await client.publish("a.b", timeout="1s")


async def test_a_late_ack_counts(nats_server: NatsServer, nc: Client) -> None:
    client = RequeueClient(nc, ack_wait="100ms")
    async with scripted_intake(nats_server.url, None, *[QueueFull("full")] * 99) as intake:
        publishing = asyncio.ensure_future(client.publish("a.b"))
        await until(lambda: len(intake.received) == 2)
        await intake.respond_raw(intake.received[0].reply, None, b"")
        assert not (await publishing).duplicate


async def test_nobody_listening_is_no_worker(client: RequeueClient) -> None:
    with pytest.raises(NoWorker, match="start a worker"):
        await client.publish("a.b", timeout="500ms")


async def test_a_worker_that_comes_in_time_gets_the_message(
    nats_server: NatsServer, client: RequeueClient
) -> None:
    publishing = asyncio.ensure_future(client.publish("a.b"))
    await client.nc.flush()
    async with scripted_intake(nats_server.url):
        assert (await publishing).attempts > 1


async def test_an_answer_of_somebody_else_is_no_ack(nats_server: NatsServer, client: RequeueClient) -> None:
    async def answer(msg: Msg) -> None:
        await msg.respond(b"hello")

    await client.nc.subscribe("requeue.>", cb=answer)
    await settle(client.nc)
    with pytest.raises(UnexpectedReply, match="'hello' is no answer of a worker"):
        await client.publish("a.b", attempts=2)


async def test_nothing_is_sent_while_disconnected_and_all_after_it(
    nats_server: NatsServer, client: RequeueClient
) -> None:
    nats_server.kill()
    await until(lambda: not client.nc.is_connected)
    with pytest.raises(NotConnected, match="nothing was sent"):
        await client.publish("a.b", timeout="200ms")
    publishing = asyncio.ensure_future(client.publish("a.b", timeout="60s"))
    await asyncio.to_thread(nats_server.start)
    async with scripted_intake(nats_server.url) as intake:
        ack = await publishing
    assert intake.ids() == [ack.msg_id]


async def test_a_closed_connection_fails_at_once(nats_server: NatsServer) -> None:
    client = await RequeueClient.connect(nats_server.url)
    await client.close()
    with pytest.raises(NotConnected, match="closed"):
        await client.publish("a.b", timeout="1h")


async def test_connecting_to_nowhere_is_not_connected(nats_server: NatsServer) -> None:
    nats_server.kill()
    with pytest.raises(NotConnected, match="cannot connect"):
        await RequeueClient.connect(nats_server.url, timeout="500ms")


async def test_a_missing_credentials_file_is_named() -> None:
    with pytest.raises(NotConnected, match=r"/nowhere/u\.creds does not exist"):
        await RequeueClient.connect(creds_file="/nowhere/u.creds")


async def test_wrong_credentials_are_said(nats_server_factory: NatsServerFactory) -> None:
    server = nats_server_factory(config="authorization { user: u, password: p }")
    with pytest.raises(NotConnected, match="Authorization Violation"):
        await RequeueClient.connect(server.url, user="u", password="wrong", timeout="1s")
    async with await RequeueClient.connect(server.url, user="u", password="p"):
        pass


async def test_headers_count_against_max_payload_and_the_connection_lives(
    nats_server_factory: NatsServerFactory,
) -> None:
    server = nats_server_factory(config="max_payload: 8192")
    async with await RequeueClient.connect(server.url) as client, scripted_intake(server.url):
        with pytest.raises(MessageTooLarge, match="at most 4096 fit"):
            await client.publish("a.b", b"x" * 8000, headers={"Big": "y" * 500})
        await client.publish("a.b", b"x" * 4000)


async def test_a_wrong_argument_is_raised_before_anything_is_sent(client: RequeueClient) -> None:
    with pytest.raises(InvalidMessage, match="wildcard"):
        await client.publish("orders.*")
    with pytest.raises(ValueError, match="unknown unit"):
        await client.publish("a.b", delay="3 fortnights")


async def test_a_cancelled_publish_leaves_nothing_behind(
    nats_server: NatsServer, client: RequeueClient
) -> None:
    async with scripted_intake(nats_server.url, None):
        publishing = asyncio.ensure_future(client.publish("a.b"))
        await asyncio.sleep(0.05)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
    assert client._inbox.waiting == 0


async def test_many_messages_keep_to_their_window(nats_server: NatsServer, client: RequeueClient) -> None:
    async with scripted_intake(nats_server.url) as intake:
        intake.hold = asyncio.Event()
        messages = (Message("a.b", str(i).encode()) for i in range(500))
        outcomes = [outcome async for outcome in client.publish_many(messages, window=50)]
        assert intake.most_unanswered <= 50
    assert sorted(outcome.index for outcome in outcomes) == list(range(500))
    assert all(outcome.ok for outcome in outcomes)
    assert client._inbox.waiting == 0


async def test_one_bad_message_of_many_stops_nothing(nats_server: NatsServer, client: RequeueClient) -> None:
    messages = [Message("a.b"), Message("a.*"), Message("a.c"), Message("a.d", delay="nonsense")]
    script = (False, MalformedMessage("what is this"))
    async with scripted_intake(nats_server.url, *script):
        outcomes = [outcome async for outcome in client.publish_many(messages)]
    by_index = {outcome.index: outcome for outcome in outcomes}
    assert [by_index[i].ok for i in range(4)] == [True, False, False, False]
    assert isinstance(by_index[1].error, InvalidMessage)
    assert str(by_index[2].error) == "what is this"


async def test_many_can_come_from_a_slow_async_source(nats_server: NatsServer, client: RequeueClient) -> None:
    first_is_out = asyncio.Event()

    async def source() -> AsyncIterator[Message]:
        yield Message("a.b")
        await (
            first_is_out.wait()
        )  # would wait for ever if the first outcome came only with the second message
        yield Message("a.c")

    async with scripted_intake(nats_server.url):
        indexes = []
        async for outcome in client.publish_many(source()):
            indexes.append(outcome.index)
            first_is_out.set()
    assert indexes == [0, 1]


async def test_an_error_of_the_source_reaches_the_caller(
    nats_server: NatsServer, client: RequeueClient
) -> None:
    def source() -> object:
        yield Message("a.b")
        raise RuntimeError("the source broke")

    async with scripted_intake(nats_server.url):
        with pytest.raises(RuntimeError, match="the source broke"):
            async for _ in client.publish_many(source()):  # type: ignore[arg-type]
                pass


async def test_leaving_early_forgets_what_is_on_its_way(
    nats_server: NatsServer, client: RequeueClient
) -> None:
    async with scripted_intake(nats_server.url, *[None] * 3):
        outcomes = client.publish_many((Message("a.b") for _ in range(10)), window=10)
        async for _ in outcomes:
            break
        await outcomes.aclose()
    assert client._inbox.waiting == 0


async def test_a_client_on_a_foreign_connection_leaves_it_open(nats_server: NatsServer, nc: Client) -> None:
    async with scripted_intake(nats_server.url), RequeueClient(nc) as client:
        await client.publish("a.b")
    assert nc.is_connected
