"""What each reply to a replayed message does to it: the table of docs/protocol.md, row by row."""

from __future__ import annotations

import asyncio
import json
import time

import nats.micro
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_worker import dispatch, replayer

from tests.integration.worker.support import (
    HOUR,
    MS,
    Handler,
    LiveWorker,
    S,
    StartWorker,
    attempt_of,
    headers_of,
)
from tests.servers import NatsServer, NatsServerFactory, settle, until

NAK_DELAY_NS = 3600 * S


async def replayed(start: StartWorker, nc: Client, **policy: object) -> tuple[LiveWorker, Handler, Msg]:
    """A worker, a handler, and the first delivery of a message that waits for its reply."""
    worker = await start(defaults=policy)
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.a", b"payload", retries=3)
    return worker, jobs, await jobs.next()


# -- settled -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"+ACK",
        b"done",
        b"\x00\xff\x00",
        b"-NAKED",
        b"+WPIX",
        b'{"stream":"ORDERS","seq":1}',
        b'{"error":"not found"}',
        b'{"error":{"code":404,"message":"a handler\'s own words"}}',
        b'{"error":',
    ],
    ids=repr,
)
async def test_an_empty_reply_and_any_payload_that_says_nothing_else_settles(
    start: StartWorker, nc: Client, payload: bytes
) -> None:
    worker, _, msg = await replayed(start, nc)

    await nc.publish(msg.reply, payload)

    await worker.until_empty()
    assert (worker.queue().counts.settled, worker.queue().dead) == (1, 0)


async def test_ack_of_nats_py_settles(start: StartWorker, nc: Client) -> None:
    worker, _, msg = await replayed(start, nc)

    await msg.ack()

    await worker.until_empty()
    assert worker.queue().counts.settled == 1


async def test_a_reply_that_echoes_the_headers_settles(start: StartWorker, nc: Client) -> None:
    worker, jobs, _ = await replayed(start, nc)
    await worker.publish_plain("jobs.b", b"plain", {"Nats-Msg-Id": "mine", "Trace": "t-1"})
    plain = await jobs.next()

    for msg in jobs.received:
        await msg.respond(b"")
    await worker.until_empty()

    assert headers_of(plain)["Trace"] == "t-1"
    assert worker.queue().counts.settled == 2


async def test_a_stream_as_target_settles_by_its_pub_ack_and_deduplicates_by_the_id(
    start: StartWorker, nats_server_factory: NatsServerFactory
) -> None:
    server = nats_server_factory(jetstream=True)
    nc = await nats.connect(server.url)
    js = nc.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    worker = await start(nats={"servers": [server.url]})
    worker.nc = nc

    await worker.publish("orders.a", b"one")
    await worker.until_empty()
    stored = await js.get_msg("ORDERS", 1)
    again = await js.publish(
        "orders.a", b"one", headers={"Nats-Msg-Id": (stored.headers or {})["Requeue-Id"]}
    )

    assert stored.data == b"one"
    assert again.duplicate
    assert worker.queue().counts.settled == 1
    await nc.close()


# -- failed --------------------------------------------------------------------------------------------------


async def test_nak_of_nats_py_retries_by_backoff(start: StartWorker, nc: Client) -> None:
    worker, jobs, msg = await replayed(start, nc, min_backoff="20ms")

    await msg.nak()
    again = await jobs.next()
    await again.ack()
    await worker.until_empty()

    assert [attempt_of(msg), attempt_of(again)] == [1, 2]
    assert "-NAK" in headers_of(again)["Requeue-Last-Error"]
    assert headers_of(again)["Requeue-Id"] == headers_of(msg)["Requeue-Id"]
    assert again.data == msg.data


async def test_nak_with_delay_of_nats_py_retries_after_that_delay(start: StartWorker, nc: Client) -> None:
    worker, _, msg = await replayed(start, nc)

    await msg.nak(delay=NAK_DELAY_NS / S)
    await worker.until_failed()

    stored = await worker.one_pending()
    assert stored.record.attempts == 1
    assert stored.time_ns == stored.extras.history[0].at_ns + NAK_DELAY_NS


@pytest.mark.parametrize(
    ("payload", "delay_ns", "error"),
    [
        (b"-NAK", HOUR, "refused by its handler (-NAK)"),
        (b"-NAK no stock", HOUR, "no stock"),
        (b'-NAK {"delay": 90000000000}', 90 * S, "refused by its handler (-NAK)"),
        (b'-NAK {"delay": 0}', 0, "refused by its handler (-NAK)"),
        (b'-NAK {"delay": -5}', HOUR, 'an unreadable delay: {"delay": -5}'),
        (b'-NAK {"delay": 1e30}', HOUR, 'an unreadable delay: {"delay": 1e30}'),
        (b"-NAK {", HOUR, "an unreadable delay: {"),
    ],
    ids=repr,
)
async def test_nak_in_all_its_spellings(
    start: StartWorker, nc: Client, payload: bytes, delay_ns: int, error: str
) -> None:
    worker, jobs, msg = await replayed(start, nc, min_backoff="1h")

    await nc.publish(msg.reply, payload)
    await worker.until_failed()
    if delay_ns == 0:
        await jobs.next()

    stored = await worker.one_pending()
    assert stored.errors[0].endswith(error)
    assert stored.time_ns == stored.extras.history[0].at_ns + delay_ns


async def test_a_service_error_fails_with_its_code_and_text(start: StartWorker, nc: Client) -> None:
    async def refuse(request: nats.micro.Request) -> None:
        await request.respond_error("409", "already shipped")

    service = await nats.micro.add_service(nc, name="shop", version="1.0.0")
    await service.add_endpoint(name="ship", subject="jobs.ship", handler=refuse)
    await settle(nc)
    worker = await start(defaults={"min_backoff": "1h"})

    await worker.publish("jobs.ship", b"", retries=2)
    await worker.until_failed()

    assert (await worker.one_pending()).errors == ["409 already shipped"]


async def test_a_pub_ack_with_an_error_fails_with_its_text(start: StartWorker, nc: Client) -> None:
    worker, _, msg = await replayed(start, nc, min_backoff="1h")
    answer = {"error": {"code": 503, "err_code": 10077, "description": "maximum messages exceeded"}}

    await nc.publish(msg.reply, json.dumps(answer).encode())
    await worker.until_failed()

    assert (await worker.one_pending()).errors == ["10077 maximum messages exceeded"]


async def test_a_full_stream_as_target_fails_until_it_has_room(
    start: StartWorker, nats_server_factory: NatsServerFactory
) -> None:
    server = nats_server_factory(jetstream=True)
    nc = await nats.connect(server.url)
    js = nc.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"], max_msgs=1, discard="new")
    await js.publish("orders.first", b"")
    worker = await start(nats={"servers": [server.url]}, defaults={"min_backoff": "20ms"})
    worker.nc = nc

    await worker.publish("orders.second", b"waits", retries=1000)
    await worker.until_failed(times=2)
    error = (worker.pending())[0].errors[0]
    await js.delete_msg("ORDERS", 1)
    await worker.until_empty()

    assert error == "10077 maximum messages exceeded"
    assert (await js.get_last_msg("ORDERS", "orders.second")).data == b"waits"
    await nc.close()


async def test_no_reply_within_the_ack_timeout_fails(start: StartWorker, nc: Client) -> None:
    worker, jobs, msg = await replayed(start, nc, ack_timeout="200ms")

    again = await jobs.next()
    await again.ack()
    await worker.until_empty()

    assert [attempt_of(msg), attempt_of(again)] == [1, 2]
    assert headers_of(again)["Requeue-Last-Error"] == "no reply within the ack timeout"


# -- terminated ----------------------------------------------------------------------------------------------


async def test_term_of_nats_py_makes_a_dead_letter_whatever_attempts_are_left(
    start: StartWorker, nc: Client
) -> None:
    worker, _, msg = await replayed(start, nc, on_exhausted="drop")

    await msg.term()

    letter = await worker.one_dead()
    assert (letter.extras.reason, letter.record.attempts, letter.record.payload) == (
        "terminated",
        1,
        b"payload",
    )
    assert letter.id == headers_of(msg)["Requeue-Id"]
    await worker.until_empty()


async def test_term_keeps_the_reason_that_it_gives_on_one_line(start: StartWorker, nc: Client) -> None:
    worker, _, msg = await replayed(start, nc)

    await nc.publish(msg.reply, b"+TERM no such\r\ncustomer " + b"x" * 1000)

    letter = await worker.one_dead()
    assert letter.errors[0].startswith("no such  customer xxx")
    assert len(letter.errors[0]) == 512


# -- still working -------------------------------------------------------------------------------------------


async def test_in_progress_of_nats_py_starts_the_ack_timeout_again(start: StartWorker, nc: Client) -> None:
    worker, _, msg = await replayed(start, nc, ack_timeout="5s")
    [delivery] = worker.worker._replayer.in_flight._by_token.values()
    before_ns = delivery.ack_deadline_ns

    sent_ns = time.monotonic_ns()
    await msg.in_progress()
    await until(lambda: delivery.ack_deadline_ns > before_ns)
    await msg.ack()
    await worker.until_empty()

    assert delivery.ack_deadline_ns >= sent_ns + 5 * S
    assert worker.queue().counts.settled == 1


async def test_a_job_longer_than_the_ack_timeout_is_delivered_once_while_it_reports_progress(
    start: StartWorker, nc: Client
) -> None:
    worker, jobs, msg = await replayed(start, nc, ack_timeout="1s")

    for _ in range(2):
        await asyncio.sleep(0.6)
        await msg.in_progress()
    await msg.ack()
    await worker.until_empty()

    assert len(jobs.received) == 1
    assert worker.queue().counts.retried == 0


async def test_progress_extends_a_dispatch_up_to_a_limit_in_all(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replayer, "WORK_LIMIT_NS", 300 * MS)
    worker, jobs, msg = await replayed(start, nc, ack_timeout="200ms", min_backoff="1h")

    while not worker.queue().counts.retried:
        await msg.in_progress()
        await asyncio.sleep(0.02)

    assert (await worker.one_pending()).errors == ["no reply within the ack timeout"]
    assert len(jobs.received) == 1


async def test_a_long_job_moves_to_its_ack_deadline_on_disk_and_settles_from_there(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (dispatch, replayer):
        monkeypatch.setattr(module, "REKEY_AFTER_NS", 100 * MS)
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.long", b"", headers={"Nats-Msg-Id": "long"})
    first_key_ns = worker.pending()[0].time_ns

    msg = await jobs.next()
    await until(lambda: worker.pending()[0].time_ns > first_key_ns + 5 * S)
    await msg.in_progress()
    moved_ns = worker.pending()[0].time_ns
    await until(lambda: worker.pending()[0].time_ns > moved_ns)
    await msg.ack()
    await worker.until_empty()

    assert len(jobs.received) == 1


# -- nobody there --------------------------------------------------------------------------------------------


async def test_no_responders_spends_attempts_up_to_a_dead_letter(start: StartWorker) -> None:
    worker = await start(defaults={"min_backoff": "10ms"})

    await worker.publish("jobs.nobody", b"", retries=3)

    letter = await worker.one_dead()
    assert (letter.extras.reason, letter.record.attempts) == ("exhausted", 3)
    assert letter.errors == ["no responders"] * 3


async def test_no_responders_holds_without_an_attempt_where_they_do_not_count(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"min_backoff": "10ms", "count_no_responders": False})

    await worker.publish("jobs.later", b"", retries=1)
    await until(lambda: worker.queue().counts.held >= 3)
    jobs = await Handler.listen(nc, "jobs.>")
    msg = await jobs.next()
    await msg.ack()
    await worker.until_empty()

    assert attempt_of(msg) == 1
    assert (worker.queue().dead, worker.queue().counts.retried) == (0, 0)


async def test_a_hold_waits_for_min_backoff_and_leaves_no_history(start: StartWorker) -> None:
    worker = await start(defaults={"min_backoff": "1h", "count_no_responders": False})

    sent_ns = worker.clock()
    await worker.publish("jobs.later", b"", retries=1, delay_ns=5 * MS)
    await until(lambda: worker.queue().counts.held)

    stored = await worker.one_pending()
    assert stored.time_ns >= sent_ns + 5 * MS + HOUR
    assert (stored.record.attempts, stored.errors) == (0, [])


async def test_within_the_grace_after_a_connect_no_responders_holds(start: StartWorker) -> None:
    worker = await start(defaults={"min_backoff": "10ms"}, reconnect_grace="1h")

    await worker.publish("jobs.nobody", b"", retries=1)
    await until(lambda: worker.queue().counts.held >= 2)

    assert (worker.queue().dead, worker.pending()[0].record.attempts) == (0, 0)


async def test_a_message_in_flight_when_nats_goes_down_comes_again_without_an_attempt_spent(
    start: StartWorker, nc: Client, nats_server: NatsServer
) -> None:
    worker, jobs, msg = await replayed(start, nc, ack_timeout="500ms", min_backoff="10ms")

    await asyncio.to_thread(nats_server.restart)
    again = await jobs.next()
    await again.ack()
    await worker.until_empty()

    assert [attempt_of(msg), attempt_of(again)] == [1, 1]
    assert worker.queue().counts.retried == 0


async def test_a_reply_that_comes_after_nats_came_back_settles(
    start: StartWorker, nc: Client, nats_server: NatsServer
) -> None:
    worker, jobs, msg = await replayed(start, nc)

    await asyncio.to_thread(nats_server.restart)
    await until(lambda: nc.is_connected and worker.worker.nats_connected)
    await settle(nc)
    await msg.ack()
    await worker.until_empty()

    assert len(jobs.received) == 1
    assert worker.queue().counts.settled == 1


# -- one reply decides ---------------------------------------------------------------------------------------


async def test_the_first_reply_decides_and_later_ones_are_ignored(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"min_backoff": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.acked", b"", retries=2)
    await worker.publish("jobs.refused", b"", retries=2)
    acked, refused = [await jobs.next(), await jobs.next()]

    for payload in (b"", b"-NAK", b"+TERM", b""):
        await nc.publish(acked.reply, payload)
    for payload in (b"-NAK", b"", b"+TERM", b"+WPI", b"-NAK"):
        await nc.publish(refused.reply, payload)
    await worker.publish("jobs.fence", b"")
    await (await jobs.next()).ack()
    await until(lambda: worker.queue().counts.settled == 2)

    stored = await worker.one_pending()
    assert (stored.record.subject, stored.record.attempts) == (b"jobs.refused", 1)
    assert worker.queue().dead == 0


async def test_a_reply_after_the_ack_timeout_is_ignored(start: StartWorker, nc: Client) -> None:
    worker, jobs, msg = await replayed(start, nc, ack_timeout="200ms")
    again = await jobs.next()

    await msg.ack()
    third = await jobs.next()
    await third.ack()
    await worker.until_empty()

    assert [attempt_of(again), attempt_of(third)] == [2, 3]
    assert worker.queue().counts.settled == 1


async def test_a_reply_to_nothing_known_changes_nothing(start: StartWorker, nc: Client) -> None:
    worker, _, msg = await replayed(start, nc)
    inbox = msg.reply.rpartition(".")[0]

    for token in ("0", "999999", "x", "-1"):
        await nc.publish(f"{inbox}.{token}", b"")
        await nc.publish(f"{inbox}.{token}", b"-NAK")
    await msg.ack()
    await worker.until_empty()

    assert (worker.queue().counts.settled, worker.queue().counts.retried) == (1, 0)


# -- ack_mode any --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload", [b"", b"-NAK", b"+TERM", b"+WPI", b'{"error":{"err_code":10077}}'], ids=repr
)
async def test_any_reply_settles_as_with_the_original_where_the_queue_says_so(
    start: StartWorker, nc: Client, payload: bytes
) -> None:
    worker, _, msg = await replayed(start, nc, ack_mode="any")

    await nc.publish(msg.reply, payload, headers={"Nats-Service-Error-Code": "500"})

    await worker.until_empty()
    assert (worker.queue().counts.settled, worker.queue().dead) == (1, 0)


async def test_no_responders_is_no_reply_even_where_any_settles(start: StartWorker) -> None:
    worker = await start(defaults={"ack_mode": "any", "min_backoff": "10ms"})

    await worker.publish("jobs.nobody", b"", retries=2)

    assert (await worker.one_dead()).errors == ["no responders"] * 2
