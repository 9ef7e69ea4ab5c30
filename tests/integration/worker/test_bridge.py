"""The JetStream bridge, on a real JetStream: what a consumer gave up is a message or a dead letter here, once."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError
from requeue_client import RequeueClient
from requeue_worker.broker.jetstream import JetStreamTrouble
from requeue_worker.storage.keys import META_BRIDGED
from requeue_worker.storage.rocksdb import META

from tests.integration.worker.support import Handler, LiveWorker, StartWorker, headers_of
from tests.servers import NatsServer, NatsServerFactory, until

ADVISORIES = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"
CAPTURED = {"advisory_stream": "GIVEN_UP"}
MODES = pytest.mark.parametrize("mode", [{}, CAPTURED], ids=["heard", "captured"])


@pytest.fixture
def nats_server(nats_server_factory: NatsServerFactory) -> NatsServer:
    return nats_server_factory(jetstream=True)


RIGHTS = """
jetstream {{ store_dir: "{directory}" }}
authorization {{ users: [
  {{ user: all, password: p }}
  {{ user: worker, password: p, permissions: {{
    publish: {{ allow: ["_requeue._stats", "retry.>", "$JS.API.STREAM.MSG.GET.ORDERS", "$JS.API.STREAM.MSG.DELETE.ORDERS",
      "$JS.API.CONSUMER.CREATE.GIVEN_UP.requeue-bridge", "$JS.API.CONSUMER.MSG.NEXT.GIVEN_UP.requeue-bridge",
      "$JS.ACK.GIVEN_UP.requeue-bridge.>"] }}
    subscribe: {{ allow: ["requeue.> requeue-workers", "_INBOX.>", "_requeue.admin.>", "$SRV.>",
      "_requeue.handover.default.>",
      "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ORDERS.billing"] }}
    allow_responses: true
  }} }}
] }}
"""


@MODES
async def test_the_rights_that_the_page_names_are_enough(
    start: StartWorker, nats_server_factory: NatsServerFactory, tmp_path: Path, mode: dict[str, Any]
) -> None:
    page = (Path(__file__).parents[3] / "docs/jetstream.md").read_text().replace("\n  ", " ")
    for right in re.findall(r'"(\$JS[^"]+)"', RIGHTS):
        assert f"`{right}`" in page
    server = nats_server_factory(config=RIGHTS.format(directory=tmp_path / "js"))
    nc = await nats.connect(server.url, user="all", password="p")
    js = await streams_of(nc)
    login = {"servers": [server.url], "user": "worker", "password": "p"}
    worker = await start(nats=login, bridge=bridged(mode, delete=True))
    await ready_for_advisories(worker, js, mode)
    await js.publish("orders.created", b"17 EUR")
    await give_up(js)
    await until(lambda: worker.dead("orders"))
    if mode:
        await until_acked(js, worker)
    while (await js.stream_info("ORDERS")).state.messages:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.02)
    assert worker.worker.ready() == (True, "ready")
    await nc.close()


@pytest.fixture
async def js(nc: Client) -> JetStreamContext:
    """JetStream with a stream ORDERS, a consumer `billing` that delivers once, and a stream of advisories."""
    return await streams_of(nc)


async def streams_of(nc: Client) -> JetStreamContext:
    js = nc.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    await js.add_stream(name="GIVEN_UP", subjects=[f"{ADVISORIES}.>"])
    await add_consumer(js, "billing")
    return js


async def add_consumer(js: JetStreamContext, name: str) -> None:
    config = ConsumerConfig(durable_name=name, ack_policy=AckPolicy.EXPLICIT, max_deliver=1, ack_wait=30)
    await js.add_consumer("ORDERS", config)


async def give_up(js: JetStreamContext, count: int = 1, consumer: str = "billing") -> None:
    """Let a consumer refuse so many messages as often as it delivers them."""
    before = (await js.stream_info("GIVEN_UP")).state.messages
    pull = await js.pull_subscribe_bind(consumer, stream="ORDERS")
    for _ in range(count):
        [msg] = await pull.fetch(1, timeout=10)
        await msg.nak()
    while (await js.stream_info("GIVEN_UP")).state.messages < before + count:
        with pytest.raises(TimeoutError):  # the server gives messages up when somebody asks for the next one
            await pull.fetch(1, timeout=0.1)
    await pull.unsubscribe()


async def refuse_forever(js: JetStreamContext) -> None:
    pull = await js.pull_subscribe_bind("billing", stream="ORDERS")
    while True:
        try:
            for msg in await pull.fetch(1, timeout=0.2):
                await msg.nak()
        except TimeoutError:
            pass


def bridged(mode: dict[str, Any], **said: Any) -> dict[str, Any]:
    return {**mode, "consumers": [{"stream": "ORDERS", "consumer": "billing", "queue": "orders", **said}]}


def results(worker: LiveWorker) -> dict[str, int]:
    return {result: count for (_, _, result), count in worker.worker.counts.bridged.items()}


async def until_acked(js: JetStreamContext, worker: LiveWorker) -> None:
    """Wait until every advisory is acked, and no mark is left."""
    while True:
        try:
            info = await js.consumer_info("GIVEN_UP", "requeue-bridge")
            if not info.num_pending and not info.num_ack_pending:
                break
        except NotFoundError:
            pass  # the worker makes it
        await asyncio.sleep(0.02)
    await until(lambda: not marks_of(worker))


def marks_of(worker: LiveWorker) -> list[bytes]:
    return [key for key, _ in worker._engine.items(META, META_BRIDGED, META_BRIDGED + b"\xff")]


@MODES
async def test_what_a_consumer_gave_up_is_a_dead_letter_with_its_reason_and_is_published(
    start: StartWorker, js: JetStreamContext, nc: Client, mode: dict[str, Any]
) -> None:
    dead = await Handler.listen(nc, "dead.orders")
    worker = await start(
        queues=[{"name": "orders", "dead_letter_subject": "dead.orders"}], bridge=bridged(mode)
    )
    await ready_for_advisories(worker, js, mode)
    headers = {"Trace": "7", "Nats-Msg-Id": "order-7", "Nats-Expected-Last-Sequence": "0"}
    await js.publish("orders.created", b"17 EUR", headers=headers)
    await give_up(js)
    letter = await worker.one_dead("orders")
    assert (letter.record.subject, letter.record.payload) == (b"orders.created", b"17 EUR")
    assert (letter.extras.reason, letter.record.attempts) == ("exhausted", 1)
    assert letter.errors == ["JetStream: consumer billing of stream ORDERS gave up after 1 deliveries"]
    said = headers_of(await dead.next())
    assert (said["Requeue-Subject"], said["Requeue-Dead-Reason"]) == ("orders.created", "exhausted")
    assert (said["Trace"], said["Nats-Original-Msg-Id"]) == ("7", "order-7")
    assert (said["Nats-Stream"], said["Nats-Sequence"], said["Nats-Consumer"]) == ("ORDERS", "1", "billing")
    assert "Nats-Expected-Last-Sequence" not in said
    assert worker.queue("orders").counts.dead == {"exhausted": 1}
    assert results(worker) == {"dead": 1}


async def ready_for_advisories(worker: LiveWorker, js: JetStreamContext, mode: dict[str, Any]) -> None:
    """Without a stream that captures them, an advisory counts only when the worker listens already."""
    if not mode:
        await until(lambda: worker.worker._broker._subscriptions._others[-1].subject.startswith("$JS"))
        await worker.worker._broker.flush()


@MODES
async def test_what_a_consumer_gave_up_is_sent_again_by_the_policy_of_its_queue(
    start: StartWorker, js: JetStreamContext, nc: Client, mode: dict[str, Any]
) -> None:
    handler = await Handler.listen(nc, "retry.orders")
    worker = await start(
        queues=[{"name": "orders", "retries": 2}],
        bridge=bridged(mode, action="requeue", subject="retry.orders"),
    )
    await ready_for_advisories(worker, js, mode)
    await js.publish("orders.created", b"17 EUR", headers={"Nats-Msg-Id": "order-7"})
    await give_up(js)
    first = await handler.next()
    assert (first.data, headers_of(first)["Requeue-Attempt"]) == (b"17 EUR", "1")
    assert headers_of(first)["Nats-Msg-Id"] == "ORDERS.billing.1"
    await first.nak()
    second = await handler.next()
    assert headers_of(second)["Requeue-Max-Attempts"] == "2"
    await second.ack()
    await worker.until_empty("orders")
    assert results(worker) == {"requeued": 1}


async def test_advisories_that_were_captured_while_no_worker_ran_are_dealt_with_at_its_start(
    start: StartWorker, js: JetStreamContext
) -> None:
    for number in range(40):
        await js.publish("orders.created", str(number).encode())
    await give_up(js, 40)
    worker = await start(bridge=bridged(CAPTURED))
    await until(lambda: len(worker.dead("orders")) == 40)
    await until_acked(js, worker)
    assert {int(each.record.payload) for each in worker.dead("orders")} == set(range(40))


@MODES
async def test_each_advisory_goes_to_one_worker_alone(
    start: StartWorker, js: JetStreamContext, mode: dict[str, Any]
) -> None:
    workers = [await start(instance_id=name, bridge=bridged(mode)) for name in ("one", "two")]
    for worker in workers:
        await ready_for_advisories(worker, js, mode)
    for number in range(30):
        await js.publish("orders.created", str(number).encode())
    await give_up(js, 30)
    await until(lambda: sum(len(worker.dead("orders")) for worker in workers) >= 30)
    if mode:
        await until_acked(js, workers[0])
    taken = [int(each.record.payload) for worker in workers for each in worker.dead("orders")]
    assert sorted(taken) == list(range(30))
    assert sum(results(worker)["dead"] for worker in workers) == 30


@pytest.mark.parametrize("action", ["dead-letter", "requeue"])
async def test_an_advisory_that_comes_again_after_a_crash_before_its_ack_makes_no_second_copy(
    start: StartWorker, js: JetStreamContext, tmp_path: Path, action: str
) -> None:
    said = bridged(CAPTURED, action=action, delete=True)
    queues = [{"name": "orders", "delay": "1h"}]
    worker = await start(bridge=said, queues=queues)

    async def crash(*_: object) -> None:  # its call lies between the commit and the ack
        if not (tmp_path / "crashed").exists():
            worker.crash_image(tmp_path / "crashed")
        raise JetStreamTrouble("the worker is gone")

    bridge = worker.worker._bridge
    assert bridge is not None
    bridge._messages.delete = crash  # type: ignore[method-assign]
    await js.publish("orders.created", b"17 EUR")
    await give_up(js)
    await until((tmp_path / "crashed").exists)
    await worker.stop()

    after = await start(bridge=said, queues=queues, data_dir=tmp_path / "crashed")
    [mark] = marks_of(after)
    assert mark.startswith(META_BRIDGED + b"ORDERS.billing.1/")
    await until_acked(js, after)
    copies = after.pending("orders") + after.dead("orders")
    assert [each.record.payload for each in copies] == [b"17 EUR"]
    assert (await js.stream_info("ORDERS")).state.messages == 0


async def test_a_message_that_came_from_a_merged_directory_is_known_by_its_id(
    start: StartWorker, js: JetStreamContext, tmp_path: Path
) -> None:
    said = bridged(CAPTURED, action="requeue", delete=True)
    queues = [{"name": "orders", "delay": "1h"}]
    worker = await start(instance_id="first", bridge=said, queues=queues)

    async def crash(*_: object) -> None:
        if not (tmp_path / "crashed").exists():
            worker.crash_image(tmp_path / "crashed")
        raise JetStreamTrouble("the worker is gone")

    bridge = worker.worker._bridge
    assert bridge is not None
    bridge._messages.delete = crash  # type: ignore[method-assign]
    await js.publish("orders.created", b"17 EUR")
    await give_up(js)
    await until((tmp_path / "crashed").exists)
    await worker.stop()

    reaper = {"interval": "50ms", "live": ["heir"]}
    heir = await start(
        instance_id="heir", data_dir=tmp_path / "crashed", queues=queues, reaper=reaper, intake=False
    )
    await until(lambda: heir.pending("orders"))
    await heir.stop()
    after = await start(instance_id="heir", data_dir=tmp_path / "crashed", queues=queues, bridge=said)
    await until_acked(js, after)
    assert [each.record.payload for each in after.pending("orders")] == [b"17 EUR"]
    assert results(after) == {"known": 1}
    assert (await js.stream_info("ORDERS")).state.messages == 0


async def test_an_id_that_a_client_used_for_something_else_hides_no_message(
    start: StartWorker, js: JetStreamContext
) -> None:
    worker = await start(
        queues=[{"name": "orders", "delay": "1h"}], bridge=bridged(CAPTURED, action="requeue")
    )
    await worker.publish_plain(
        "jobs.a", b"other", {"Nats-Msg-Id": "ORDERS.billing.1", "Requeue-Queue": "orders"}
    )
    await js.publish("orders.created", b"17 EUR")
    await give_up(js)
    await until_acked(js, worker)
    assert {each.record.payload for each in worker.pending("orders")} == {b"other", b"17 EUR"}


async def test_nothing_is_acked_before_the_fsync(start: StartWorker, js: JetStreamContext) -> None:
    worker = await start(bridge=bridged(CAPTURED))
    await js.publish("orders.created", b"17 EUR")
    async with worker.held_disk() as writing:
        await give_up(js)
        await asyncio.wait_for(writing.wait(), 20)
        info = await js.consumer_info("GIVEN_UP", "requeue-bridge")
        assert (info.num_ack_pending, info.ack_floor.stream_seq) == (1, 0)
    await until_acked(js, worker)
    assert len(worker.dead("orders")) == 1


async def test_a_message_that_is_requeued_into_its_own_stream_ends_after_its_rounds(
    start: StartWorker, js: JetStreamContext
) -> None:
    worker = await start(bridge=bridged(CAPTURED, action="requeue", rounds=2))
    await js.publish("orders.created", b"17 EUR", headers={"Nats-Msg-Id": "order-7"})
    refusing = asyncio.ensure_future(refuse_forever(js))
    await until(lambda: worker.dead("orders"))
    await until_acked(js, worker)
    refusing.cancel()
    assert (await js.stream_info("ORDERS")).state.messages == 3  # published once, and twice by the worker
    letter = await worker.one_dead("orders")
    assert letter.record.client_id == b"ORDERS.billing.3"
    assert b"Nats-Original-Msg-Id: order-7" in letter.record.headers
    assert results(worker) == {"requeued": 2, "dead": 1}


async def test_a_message_that_is_gone_from_its_stream_ends_its_advisory(
    start: StartWorker, js: JetStreamContext
) -> None:
    await js.publish("orders.created", b"17 EUR")
    await give_up(js)
    await js.delete_msg("ORDERS", 1)
    worker = await start(bridge=bridged(CAPTURED))
    await until(lambda: results(worker) == {"gone": 1})
    await until_acked(js, worker)


async def test_what_finds_no_room_comes_again_when_there_is_some(
    start: StartWorker, js: JetStreamContext
) -> None:
    worker = await start(
        queues=[{"name": "orders", "max_messages": 1, "delay": "1h"}],
        bridge=bridged(CAPTURED, action="requeue"),
    )
    for number in range(2):
        await js.publish("orders.created", str(number).encode())
    await give_up(js, 2)
    await until(lambda: results(worker).get("again"))
    [first] = worker.pending("orders")
    await worker.ask(b"")  # anything: the loop goes on
    assert await cancel(worker, first.record.client_id) == 1
    await until(lambda: results(worker).get("requeued") == 2)
    await until_acked(js, worker)
    [second] = worker.pending("orders")
    assert second.record.payload != first.record.payload


async def cancel(worker: LiveWorker, client_id: bytes | None) -> int:
    assert client_id is not None
    return (await RequeueClient(worker.nc).cancel(client_id.decode())).changed


async def test_what_is_refused_for_good_is_kept_as_invalid(start: StartWorker, js: JetStreamContext) -> None:
    worker = await start(queues=[{"name": "orders", "deny_subjects": ["orders.>"]}], bridge=bridged(CAPTURED))
    await js.publish("orders.created", b"17 EUR")
    await give_up(js)
    await until_acked(js, worker)
    [letter] = worker.invalid()
    assert letter.record.payload == b"17 EUR"
    assert "orders.> is denied here" in letter.errors[0]
    assert results(worker) == {"invalid": 1}


async def test_consumers_that_are_not_named_are_left_alone(start: StartWorker, js: JetStreamContext) -> None:
    await add_consumer(js, "shipping")
    await js.publish("orders.created", b"17 EUR")
    await give_up(js, consumer="shipping")
    await give_up(js, consumer="billing")
    worker = await start(bridge=bridged(CAPTURED))
    await until_acked(js, worker)
    [letter] = worker.dead("orders")
    assert letter.errors == ["JetStream: consumer billing of stream ORDERS gave up after 1 deliveries"]


async def test_a_bridge_without_its_stream_of_advisories_waits_for_it(start: StartWorker, nc: Client) -> None:
    worker = await start(bridge=bridged(CAPTURED))
    await worker.publish("jobs.a", b"x", delay_ns=10**12)  # all else goes on
    js = await streams_of(nc)
    await js.publish("orders.created", b"17 EUR")
    await give_up(js)
    await until(lambda: len(worker.dead("orders")) == 1)


async def test_the_bridge_goes_on_after_a_restart_of_the_server(
    start: StartWorker, js: JetStreamContext, nats_server: NatsServer
) -> None:
    worker = await start(bridge=bridged(CAPTURED))
    await asyncio.to_thread(nats_server.restart)
    while True:
        try:
            await js.publish("orders.created", b"17 EUR")
            break
        except Exception:
            await asyncio.sleep(0.1)
    await give_up(js)
    await until(lambda: worker.dead("orders"), 60)
    await until_acked(js, worker)
    assert len({each.record.payload for each in worker.dead("orders")}) == 1
