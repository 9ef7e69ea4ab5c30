"""Requests that are repeated, and requests that are queued when nobody answers, on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import NotConnected, Reply, RequestTimeout, RequeueClient, Requeued, retry_request
from requeue_client.backoff import BackoffShape

from tests.integration.client.intake import scripted_intake
from tests.servers import NatsServer, settle

FAST = BackoffShape(initial_s=0.01)


async def _serve(
    nc: Client, handler: Callable[[Msg], Awaitable[None]], subject: str = "jobs.run"
) -> list[Msg]:
    received: list[Msg] = []

    async def on_message(msg: Msg) -> None:
        received.append(msg)
        await handler(msg)

    await nc.subscribe(subject, cb=on_message)
    await settle(nc)
    return received


async def test_a_request_that_is_answered_is_not_queued(nats_server: NatsServer, nc: Client) -> None:
    async def answer(msg: Msg) -> None:
        await msg.respond(b"done: " + msg.data)

    received = await _serve(nc, answer)
    async with scripted_intake(nats_server.url) as intake:
        reply = await RequeueClient(nc).request_or_requeue("jobs.run", b"x", headers={"Trace": "t"})
    assert isinstance(reply, Reply)
    assert reply.payload == b"done: x"
    assert intake.received == []
    assert set(received[0].headers or {}) == {"Trace", "Nats-Msg-Id"}


async def test_a_request_that_nobody_listens_to_is_queued_at_once(
    nats_server: NatsServer, nc: Client
) -> None:
    async with scripted_intake(nats_server.url) as intake:
        queued = await RequeueClient(nc).request_or_requeue("jobs.run", b"x", "1h", delay="5s", queue="jobs")
    assert isinstance(queued, Requeued)
    assert queued.reason == "no responders"
    headers = intake.received[0].headers or {}
    assert (headers["Requeue-Subject"], headers["Requeue-Delay"]) == ("jobs.run", "5s")
    assert headers["Nats-Msg-Id"] == queued.ack.msg_id


async def test_a_slow_handler_sees_the_same_id_again(nats_server: NatsServer, nc: Client) -> None:
    async def ignore(msg: Msg) -> None: ...

    received = await _serve(nc, ignore)
    async with scripted_intake(nats_server.url) as intake:
        queued = await RequeueClient(nc).request_or_requeue("jobs.run", b"x", "100ms")
    assert isinstance(queued, Requeued)
    assert queued.reason == "timeout"
    assert [(received[0].headers or {})["Nats-Msg-Id"]] == intake.ids()


async def test_a_nak_queues_the_request_with_its_delay(nats_server: NatsServer, nc: Client) -> None:
    await _serve(nc, lambda msg: msg.nak(delay=90))
    async with scripted_intake(nats_server.url) as intake:
        client = RequeueClient(nc)
        queued = await client.request_or_requeue("jobs.run")
        later = await client.request_or_requeue("jobs.run", delay="1h")
    assert isinstance(queued, Requeued)
    assert isinstance(later, Requeued)
    assert queued.reason == "nak"
    delays = [(msg.headers or {})["Requeue-Delay"] for msg in intake.received]
    assert delays == ["1m30s", "1h0m0s"]


async def test_work_in_progress_keeps_the_request_alive(nats_server: NatsServer, nc: Client) -> None:
    async def work(msg: Msg) -> None:
        for _ in range(4):
            await asyncio.sleep(0.15)
            await msg.in_progress()
        await msg.respond(b"done")

    await _serve(nc, work)
    reply = await RequeueClient(nc).request_or_requeue("jobs.run", b"", "300ms")
    assert isinstance(reply, Reply)
    assert reply.payload == b"done"


async def test_an_error_of_the_handler_is_a_reply(nats_server: NatsServer, nc: Client) -> None:
    async def refuse(msg: Msg) -> None:
        await nc.publish(msg.reply, b"no", headers={"Nats-Service-Error-Code": "404"})

    await _serve(nc, refuse)
    reply = await RequeueClient(nc).request_or_requeue("jobs.run")
    assert isinstance(reply, Reply)
    assert reply.headers == {"Nats-Service-Error-Code": "404"}


async def test_retry_request_goes_on_until_somebody_answers(nats_server: NatsServer, nc: Client) -> None:
    asking = asyncio.ensure_future(retry_request(nc, "jobs.run", b"x", "1s", 1000, shape=FAST))
    await nc.flush()

    async def answer(msg: Msg) -> None:
        await msg.respond(b"late but here")

    await _serve(nc, answer)
    assert (await asking).data == b"late but here"


async def test_retry_request_heeds_times(nc: Client) -> None:
    received = await _serve(nc, lambda msg: asyncio.sleep(0))
    with pytest.raises(RequestTimeout, match="in 3 attempts"):
        await retry_request(nc, "jobs.run", b"x", "20ms", 3, shape=FAST)
    assert len(received) == 3


async def test_retry_request_stops_after_its_elapsed_time(nc: Client) -> None:
    shape = BackoffShape(initial_s=0.01, max_elapsed_s=0.1)
    with pytest.raises(RequestTimeout):
        await retry_request(nc, "jobs.run", b"", "1s", 10**6, shape=shape)


async def test_retry_request_on_a_closed_connection_fails_at_once(nc: Client) -> None:
    await nc.close()
    with pytest.raises(NotConnected):
        await retry_request(nc, "jobs.run")


async def test_retry_request_survives_a_server_restart(nats_server: NatsServer, nc: Client) -> None:
    async def answer(msg: Msg) -> None:
        await msg.respond(b"here")

    await _serve(nc, answer)
    nats_server.kill()
    asking = asyncio.ensure_future(retry_request(nc, "jobs.run", b"", "1s", 10**6, shape=FAST))
    await asyncio.to_thread(nats_server.start)
    assert (await asking).data == b"here"


async def test_the_library_own_request_would_give_up(nc: Client) -> None:
    with pytest.raises(nats.errors.NoRespondersError):
        await nc.request("jobs.run", b"", timeout=1)
