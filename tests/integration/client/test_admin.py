"""Cancel and reschedule: every instance is asked, the answers are summed. Instances are stand-ins here."""

from __future__ import annotations

import json

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import (
    AdminResult,
    Busy,
    InvalidMessage,
    MalformedMessage,
    NotConnected,
    NoWorker,
    RequeueClient,
    UnexpectedReply,
)

from tests.servers import settle


async def _instance(
    nc: Client, name: str, verb: str, changed: int, in_flight: int
) -> list[dict[str, object]]:
    asked: list[dict[str, object]] = []
    key = {"cancel": "cancelled", "reschedule": "rescheduled"}[verb]

    async def answer(msg: Msg) -> None:
        asked.append(json.loads(msg.data))
        body = {"instance": name, key: changed, "in_flight": in_flight}
        await nc.publish(msg.reply, json.dumps(body).encode())

    await nc.subscribe(f"_requeue.admin.{verb}", cb=answer)
    await settle(nc)
    return asked


async def test_cancel_sums_what_all_instances_did(nc: Client) -> None:
    asked = await _instance(nc, "worker-0", "cancel", 2, 0)
    await _instance(nc, "worker-1", "cancel", 1, 1)
    result = await RequeueClient(nc).cancel("order-1")
    assert (result.changed, result.in_flight, sorted(result.instances)) == (3, 1, ["worker-0", "worker-1"])
    assert asked == [{"id": "order-1"}]


async def test_reschedule_sends_nanoseconds(nc: Client) -> None:
    asked = await _instance(nc, "worker-0", "reschedule", 1, 0)
    client = RequeueClient(nc)
    assert await client.reschedule("order-1", delay="1m") == AdminResult(1, 0, ("worker-0",))
    await client.reschedule("order-1", at="2030-01-01T00:00:00Z")
    assert asked == [
        {"id": "order-1", "delay_ns": 60 * 10**9},
        {"id": "order-1", "at_ns": 1_893_456_000 * 10**9},
    ]


async def test_nobody_there_is_no_worker(nc: Client) -> None:
    with pytest.raises(NoWorker, match=r"_requeue\.admin\.cancel"):
        await RequeueClient(nc).cancel("order-1")


async def test_silent_instances_are_no_worker(nc: Client) -> None:
    async def ignore(msg: Msg) -> None: ...

    await nc.subscribe("_requeue.admin.cancel", cb=ignore)
    await settle(nc)
    with pytest.raises(NoWorker):
        await RequeueClient(nc).cancel("order-1", timeout="100ms")


async def test_a_refusal_is_raised_by_its_type(nc: Client) -> None:
    async def refuse(msg: Msg) -> None:
        headers = {"Nats-Service-Error-Code": "400", "Nats-Service-Error": "what id is this"}
        await nc.publish(msg.reply, b"", headers=headers)

    await nc.subscribe("_requeue.admin.cancel", cb=refuse)
    await settle(nc)
    with pytest.raises(MalformedMessage, match="what id is this"):
        await RequeueClient(nc).cancel("order-1")


async def test_an_error_of_an_instance_is_raised_and_says_which(nc: Client) -> None:
    async def fail(msg: Msg) -> None:
        await nc.publish(msg.reply, json.dumps({"instance": "worker-0", "error": "too busy"}).encode())

    await nc.subscribe("_requeue.admin.cancel", cb=fail)
    await settle(nc)
    with pytest.raises(Busy, match="worker-0: too busy"):
        await RequeueClient(nc).cancel("order-1")


async def test_an_answer_of_somebody_else_is_said(nc: Client) -> None:
    async def answer(msg: Msg) -> None:
        await nc.publish(msg.reply, b"hello")

    await nc.subscribe("_requeue.admin.cancel", cb=answer)
    await settle(nc)
    with pytest.raises(UnexpectedReply, match="hello"):
        await RequeueClient(nc).cancel("order-1")


async def test_wrong_arguments_ask_nobody(nc: Client) -> None:
    client = RequeueClient(nc)
    with pytest.raises(InvalidMessage):
        await client.cancel("")
    with pytest.raises(InvalidMessage):
        await client.reschedule("order-1")
    with pytest.raises(InvalidMessage):
        await client.reschedule("order-1", delay="1s", at="2030-01-01T00:00:00Z")


async def test_a_closed_connection_is_said(nc: Client) -> None:
    await nc.close()
    with pytest.raises(NotConnected):
        await RequeueClient(nc).cancel("order-1")
