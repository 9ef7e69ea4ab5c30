"""The client and a real worker: what is acknowledged is replayed, and what is refused is refused by type."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import (
    Message,
    MessageTooLarge,
    QueueFull,
    RequeueClient,
    Requeued,
    SubjectNotAllowed,
)

from tests.servers import NatsServer, NatsServerFactory, WorkerFactory, settle, until


@pytest.fixture
async def client(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> AsyncIterator[RequeueClient]:
    await asyncio.to_thread(worker_factory, nats_server)
    async with RequeueClient(nc) as client:
        yield client


async def _handle(nc: Client, subject: str) -> asyncio.Queue[Msg]:
    """Settle what comes to a subject."""
    handled: asyncio.Queue[Msg] = asyncio.Queue()

    async def on_message(msg: Msg) -> None:
        await msg.ack()
        handled.put_nowait(msg)

    await nc.subscribe(subject, cb=on_message)
    await settle(nc)
    return handled


@pytest.mark.parametrize("envelope", [False, True], ids=["plain", "envelope"])
async def test_a_published_message_is_replayed_as_it_came(client: RequeueClient, envelope: bool) -> None:
    handled = await _handle(client.nc, "orders.>")
    ack = await client.publish(
        "orders.created",
        b"payload \x00\xff",
        delay="50ms",
        retries=3,
        headers={"Trace": "ü"},
        envelope=envelope,
    )
    msg = await asyncio.wait_for(handled.get(), 20)
    headers = msg.headers or {}
    assert (msg.subject, msg.data) == ("orders.created", b"payload \x00\xff")
    assert (headers["Trace"], headers["Nats-Msg-Id"]) == ("ü", ack.msg_id)
    assert (headers["Requeue-Attempt"], headers["Requeue-Max-Attempts"]) == ("1", "3")


async def test_a_pending_id_is_taken_once(client: RequeueClient) -> None:
    first = await client.publish("orders.created", delay="1h", msg_id="order-7")
    second = await client.publish("orders.created", delay="1h", msg_id="order-7")
    assert (first.duplicate, second.duplicate) == (False, True)


async def test_a_request_nobody_answers_comes_when_somebody_does(client: RequeueClient) -> None:
    queued = await client.request_or_requeue("jobs.run", b"x", retries=1, delay="300ms")
    assert isinstance(queued, Requeued)
    handled = await _handle(client.nc, "jobs.run")
    assert (await asyncio.wait_for(handled.get(), 20)).data == b"x"


async def test_many_are_all_acknowledged_and_all_replayed(client: RequeueClient) -> None:
    handled = await _handle(client.nc, "many.>")
    messages = (Message(f"many.{i % 7}", str(i).encode(), queue=f"q{i % 3}") for i in range(3000))
    outcomes = [outcome async for outcome in client.publish_many(messages)]
    assert all(outcome.ok for outcome in outcomes)
    await until(lambda: handled.qsize() >= 3000)
    assert {int(handled.get_nowait().data) for _ in range(3000)} == set(range(3000))


async def test_a_subject_the_worker_may_not_write_to_is_refused(client: RequeueClient) -> None:
    with pytest.raises(SubjectNotAllowed, match="_INBOX"):
        await client.publish("_INBOX.somebody.else")
    with pytest.raises(SubjectNotAllowed):
        await client.publish("requeue.again", envelope=True)


async def test_what_a_replay_could_not_carry_is_refused(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory
) -> None:
    server = nats_server_factory(config="max_payload: 16384")
    await asyncio.to_thread(worker_factory, server)
    async with await RequeueClient.connect(server.url) as client:
        with pytest.raises(MessageTooLarge):
            await client.publish("a.b", b"x" * 14_000)  # fits the server, but not with a replay's headers
        await client.publish("a.b", b"x" * 11_000)


async def test_a_full_queue_is_transient_and_said(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    config = tmp_path / "worker.yaml"
    config.write_text("queues:\n- name: small\n  max_messages: 2\n")
    await asyncio.to_thread(worker_factory, nats_server, "--config", str(config))
    client = RequeueClient(nc)
    for _ in range(2):
        await client.publish("a.b", queue="small", delay="1h")
    with pytest.raises(QueueFull, match="small"):
        await client.publish("a.b", queue="small", delay="1h", attempts=2)
    await client.publish("a.b", queue="other", delay="1h")


async def test_a_publish_survives_a_worker_restart(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    worker = await asyncio.to_thread(worker_factory, nats_server)
    worker.kill()
    publishing = asyncio.ensure_future(RequeueClient(nc).publish("a.b", b"x", delay="200ms"))
    await asyncio.to_thread(worker.start)
    assert not (await publishing).duplicate
    handled = await _handle(nc, "a.b")
    assert (await asyncio.wait_for(handled.get(), 20)).data == b"x"


async def test_cancel_and_reschedule_reach_the_worker_that_holds_the_message(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> None:
    for name in ("one", "two"):
        await asyncio.to_thread(worker_factory, nats_server, "--instance-id", name)
    client = RequeueClient(nc)
    for number in range(6):
        await client.publish("a.b", str(number).encode(), delay="1h", msg_id=f"id-{number}")
    cancelled = [await client.cancel(f"id-{number}") for number in range(3)]
    assert [(result.changed, sorted(result.instances)) for result in cancelled] == [(1, ["one", "two"])] * 3
    assert (await client.cancel("id-0")).changed == 0
    handled = await _handle(nc, "a.b")
    for number in range(6):
        assert (await client.reschedule(f"id-{number}", delay="1ms")).changed == (0 if number < 3 else 1)
    assert {(await asyncio.wait_for(handled.get(), 20)).data for _ in range(3)} == {b"3", b"4", b"5"}
    assert handled.empty()
