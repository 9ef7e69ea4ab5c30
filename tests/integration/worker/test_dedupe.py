"""A client's Nats-Msg-Id: deduplication while the message is pending, cancel and reschedule by it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.envelope import build_envelope
from requeue_worker.errors import CommitError
from requeue_worker.storage.keys import ids_prefix
from requeue_worker.storage.rocksdb import IDS, Batch

from tests.integration.worker.support import (
    HOUR,
    INSTANCE,
    INTAKE,
    MS,
    Handler,
    LiveWorker,
    StartWorker,
    ask,
    ask_later,
    attempt_of,
    headers_of,
    refusal_of,
)
from tests.servers import settle, until

CANCEL = "_requeue.admin.cancel"
RESCHEDULE = "_requeue.admin.reschedule"


def plain(message_id: str, **more: str) -> dict[str, str]:
    """Headers of a message with this id that is due in an hour unless `more` says otherwise."""
    said = {"Requeue-Subject": "jobs.a", "Nats-Msg-Id": message_id, "Requeue-Delay": "1h"}
    return {**said, **{f"Requeue-{name}": value for name, value in more.items()}}


def is_duplicate(answer: Msg) -> bool:
    return answer.data == b"" and answer.headers == {"Requeue-Duplicate": "true"}


def is_first(answer: Msg) -> bool:
    return answer.data == b"" and answer.headers is None


def entries(worker: LiveWorker, message_id: str) -> list[bytes]:
    """What the `ids` family says of this id."""
    prefix = ids_prefix(message_id.encode())
    return [key for key, _ in worker._engine.items(IDS, prefix, prefix + b"\xff" * 17)]


# -- duplicates ----------------------------------------------------------------------------------------------


async def test_a_pending_id_is_acked_as_duplicate_and_stored_once(start: StartWorker) -> None:
    worker = await start()

    first = await worker.ask(b"1", plain("x"))
    second = await worker.ask(b"2", plain("x"))

    assert (is_first(first), is_duplicate(second)) == (True, True)
    assert [stored.record.payload for stored in worker.pending()] == [b"1"]
    assert worker.worker.counts.duplicates == 1


async def test_both_intakes_and_all_queues_share_the_ids(start: StartWorker) -> None:
    worker = await start()
    envelope = build_envelope(subject="jobs.b", payload=b"2", queue="other", delay_ns=HOUR)

    await worker.ask(b"1", plain("x"))
    by_envelope = await worker.ask(envelope, {"nats-msg-id": "x"})
    by_priority = await worker.ask(b"3", plain("x", Queue="third", Priority="0"))

    assert (is_duplicate(by_envelope), is_duplicate(by_priority)) == (True, True)
    assert len(worker.pending()) == 1


@pytest.mark.parametrize(
    "ids", [("a", "ab"), ("a", "A"), ("é", "e"), ("x" * 511, "x" * 512), ("1", "01")], ids=repr
)
async def test_ids_that_differ_are_different(start: StartWorker, ids: tuple[str, str]) -> None:
    worker = await start()

    assert [is_first(await worker.ask(b"", plain(each))) for each in ids] == [True, True]
    assert [is_duplicate(await worker.ask(b"", plain(each))) for each in ids] == [True, True]


async def test_copies_that_arrive_at_once_are_stored_once(start: StartWorker, nc: Client) -> None:
    worker = await start()

    asked = [await ask_later(nc, INTAKE, b"%d" % number, plain(f"id-{number % 3}")) for number in range(30)]
    answers = [await each.answer() for each in asked]

    assert sum(map(is_first, answers)) == 3
    assert sum(map(is_duplicate, answers)) == 27
    assert sorted(stored.record.payload for stored in worker.pending()) == [b"0", b"1", b"2"]


async def test_a_duplicate_is_acked_only_after_the_fsync_of_the_first(start: StartWorker, nc: Client) -> None:
    worker = await start()

    async with worker.held_disk() as writing:
        first = await ask_later(nc, INTAKE, b"1", plain("x"))
        await writing.wait()
        second = await ask_later(nc, INTAKE, b"2", plain("x"))
        await until(lambda: worker.worker.counts.intake_messages == 2)
        await settle(nc)
        answered_early = first.answered or second.answered

    assert not answered_early
    assert is_first(await first.answer())
    assert is_duplicate(await second.answer())


async def test_copies_that_wait_for_the_first_count_towards_the_intake_buffer(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(intake_buffer_bytes="1MiB")

    async with worker.held_disk():
        asked = [await ask_later(nc, INTAKE, b"x" * 100_000, plain("x")) for _ in range(30)]
        await until(lambda: worker.worker.counts.intake_messages == 30)
        await settle(nc)
        refused = [await each.answer() for each in asked if each.answered]

    assert len(refused) >= 20
    assert {refusal_of(answer)[0] for answer in refused} == {503}
    assert is_duplicate(await worker.ask(b"", plain("x")))


async def test_copies_of_what_could_not_be_written_are_refused_as_it_is(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def fail(batch: Batch) -> None:
        begun.set()
        await go_on.wait()
        raise CommitError("the disk is gone")

    worker.worker._store.write = fail  # type: ignore[method-assign]
    first = await ask_later(nc, INTAKE, b"1", plain("x"))
    await begun.wait()
    copies = [await ask_later(nc, INTAKE, b"2", plain("x")) for _ in range(3)]
    await until(lambda: worker.worker.counts.intake_messages == 4)
    go_on.set()
    with pytest.raises(CommitError):
        await worker.worker.closed()
    await settle(nc)

    assert [refusal_of(await each.answer())[0] for each in (first, *copies)] == [500] * 4
    assert worker.worker._ingest._looked_up_bytes == 0


async def test_an_id_that_was_settled_is_free_again(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())

    for _ in range(2):
        assert is_first(await worker.ask(b"", plain("x", Delay="0s")))
        await worker.until_empty()

    assert len(jobs.received) == 2
    assert entries(worker, "x") == []


async def test_the_id_of_a_dead_letter_is_free_again(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.term())

    await worker.ask(b"", plain("x", Delay="0s"))
    await worker.one_dead()

    assert is_first(await worker.ask(b"", plain("x")))


async def test_the_id_of_a_message_that_waits_for_a_retry_deduplicates(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"min_backoff": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.ask(b"", plain("x", Delay="0s"))

    await (await jobs.next()).nak()
    await worker.until_failed()

    assert is_duplicate(await worker.ask(b"", plain("x")))
    assert len(worker.pending()) == 1


async def test_the_id_of_a_message_that_waits_for_a_slot_deduplicates(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.holds-the-slot")
    await jobs.next()
    await worker.ask(b"", plain("x", Delay="0s"))
    await until(lambda: worker.queue().lane().ready)

    assert is_duplicate(await worker.ask(b"", plain("x")))


async def test_ids_deduplicate_after_a_restart(start: StartWorker) -> None:
    first = await start()
    await first.ask(b"1", plain("x"))
    await first.stop()

    second = await start()

    assert is_duplicate(await second.ask(b"2", plain("x")))
    assert is_first(await second.ask(b"3", plain("y")))


async def test_a_duplicate_is_acked_although_its_queue_is_full(start: StartWorker) -> None:
    """The publisher's ack was lost: a refusal would say that nothing is stored."""
    worker = await start(defaults={"max_messages": 2})
    await worker.ask(b"1", plain("x"))
    await worker.ask(b"2", plain("y"))

    again = [await worker.ask(b"", plain(each)) for each in ("x", "y")]
    new = await worker.ask(b"3", plain("z"))

    assert [is_duplicate(answer) for answer in again] == [True, True]
    assert refusal_of(new)[0] == 429


async def test_copies_that_arrive_at_once_at_a_full_queue_are_all_refused(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"max_messages": 1})
    await worker.publish("jobs.a", delay_ns=HOUR)

    asked = [await ask_later(nc, INTAKE, b"", plain("x")) for _ in range(5)]
    answers = [await each.answer() for each in asked]

    assert [refusal_of(answer)[0] for answer in answers] == [429] * 5


async def test_many_copies_of_the_last_message_that_fits_do_not_crowd_it_out(
    start: StartWorker, nc: Client
) -> None:
    await start(defaults={"max_messages": 1})

    asked = [await ask_later(nc, INTAKE, b"", plain("x")) for _ in range(5)]
    answers = [await each.answer() for each in asked]

    assert [is_first(answer) for answer in answers] == [True, False, False, False, False]
    assert all(is_duplicate(answer) for answer in answers[1:])


# -- in flight -----------------------------------------------------------------------------------------------


async def test_an_id_in_flight_does_not_deduplicate(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.ask(b"1", plain("x", Delay="0s"))
    msg = await jobs.next()

    answer = await worker.ask(b"2", {**headers_of(msg), "Requeue-Subject": "jobs.next"})
    await msg.ack()
    second = await jobs.next()

    assert is_first(answer)
    assert (second.subject, second.data, headers_of(second)["Nats-Msg-Id"]) == ("jobs.next", b"2", "x")
    await second.ack()
    await worker.until_empty()


async def test_two_messages_may_share_an_id_when_the_one_in_flight_comes_back(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"min_backoff": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.ask(b"1", plain("x", Delay="0s"))
    msg = await jobs.next()
    await worker.ask(b"2", plain("x"))

    await msg.nak()
    await worker.until_failed()

    assert sorted(stored.record.payload for stored in worker.pending()) == [b"1", b"2"]
    assert len(entries(worker, "x")) == 2
    assert await cancel(worker, "x") == {"cancelled": 2, "in_flight": 0}


async def test_a_message_settled_while_its_id_is_looked_up_is_no_reason_to_drop_another(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    store = worker.worker._store
    look_up, looked, go_on = store.keys_of_ids, asyncio.Event(), asyncio.Event()
    await worker.ask(b"1", plain("x", Delay="0s"))
    msg = await jobs.next()

    async def slow(client_ids: Any) -> Any:
        found = await look_up(client_ids)
        looked.set()
        await go_on.wait()
        return found

    store.keys_of_ids = slow  # type: ignore[method-assign]
    asked = await ask_later(nc, INTAKE, b"2", plain("x", Delay="0s"))
    await looked.wait()
    await msg.ack()
    await worker.until_empty()
    go_on.set()

    assert is_first(await asked.answer())
    second = await jobs.next()
    assert second.data == b"2"
    await second.ack()
    await worker.until_empty()


async def test_a_message_retried_while_its_id_is_looked_up_is_still_found(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"min_backoff": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    store = worker.worker._store
    look_up, looked, go_on = store.keys_of_ids, asyncio.Event(), asyncio.Event()
    await worker.ask(b"1", plain("x", Delay="0s"))
    msg = await jobs.next()

    async def slow(client_ids: Any) -> Any:
        found = await look_up(client_ids)
        looked.set()
        await go_on.wait()
        return found

    store.keys_of_ids = slow  # type: ignore[method-assign]
    asked = await ask_later(nc, INTAKE, b"2", plain("x"))
    await looked.wait()
    await msg.nak()
    await worker.until_failed()
    go_on.set()

    assert is_duplicate(await asked.answer())
    assert [stored.record.payload for stored in worker.pending()] == [b"1"]


async def test_handlers_that_publish_again_with_the_same_id_lose_nothing_under_load(
    start: StartWorker, nc: Client
) -> None:
    number = 400
    worker = await start()
    acked = 0

    async def count(_: Msg) -> None:
        nonlocal acked
        acked += 1

    acks = nc.new_inbox()
    await nc.subscribe(acks, cb=count)

    async def again(msg: Msg) -> None:
        if msg.subject == "jobs.a":
            headers = {**headers_of(msg), "Requeue-Subject": "jobs.b"}
            await nc.publish(INTAKE, msg.data, reply=acks, headers=headers)
        await msg.ack()

    jobs = await Handler.listen(nc, "jobs.>", answer=again)
    for each in range(number):
        await nc.publish(INTAKE, b"%d" % each, reply=acks, headers=plain(f"id-{each}", Delay="0s"))
    await until(lambda: acked == 2 * number)
    await worker.until_empty()

    expected = sorted(b"%d" % each for each in range(number))
    for subject in ("jobs.a", "jobs.b"):
        assert sorted(msg.data for msg in jobs.received if msg.subject == subject) == expected


# -- cancel --------------------------------------------------------------------------------------------------


async def admin(worker: LiveWorker, subject: str, request: object) -> dict[str, Any]:
    payload = request if isinstance(request, bytes) else json.dumps(request).encode()
    answer: dict[str, Any] = json.loads((await ask(worker.nc, subject, payload)).data)
    assert answer.pop("instance") == INSTANCE
    return answer


async def cancel(worker: LiveWorker, message_id: str) -> dict[str, Any]:
    return await admin(worker, CANCEL, {"id": message_id})


async def test_a_pending_message_is_cancelled_by_its_id(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    await worker.ask(b"1", plain("x"))
    await worker.ask(b"2", plain("y"))

    assert await cancel(worker, "x") == {"cancelled": 1, "in_flight": 0}
    assert await cancel(worker, "x") == {"cancelled": 0, "in_flight": 0}
    assert [stored.record.payload for stored in worker.pending()] == [b"2"]
    await worker.forward(HOUR)
    await worker.until_empty()
    assert jobs.payloads == [b"2"]
    assert worker.dead() == []


async def test_a_cancelled_id_is_free_again(start: StartWorker) -> None:
    worker = await start()
    await worker.ask(b"1", plain("x"))
    await cancel(worker, "x")

    assert is_first(await worker.ask(b"2", plain("x")))
    assert [stored.record.payload for stored in worker.pending()] == [b"2"]


async def test_a_message_in_flight_is_not_cancelled(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.ask(b"1", plain("x", Delay="0s"))
    msg = await jobs.next()

    assert await cancel(worker, "x") == {"cancelled": 0, "in_flight": 1}
    await msg.ack()
    await worker.until_empty()
    assert await cancel(worker, "x") == {"cancelled": 0, "in_flight": 0}


async def test_a_message_that_waits_for_a_retry_or_a_slot_is_cancelled(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"max_in_flight": 1, "min_backoff": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.ask(b"1", plain("retried", Delay="0s"))
    await (await jobs.next()).nak()
    await worker.until_failed()
    await worker.publish("jobs.holds-the-slot")
    holds = await jobs.next()
    await worker.ask(b"2", plain("ready", Delay="0s"))
    await until(lambda: worker.queue().lane().ready)

    assert await cancel(worker, "retried") == {"cancelled": 1, "in_flight": 0}
    assert await cancel(worker, "ready") == {"cancelled": 1, "in_flight": 0}
    await holds.ack()
    await worker.until_empty()
    assert len(jobs.received) == 2


async def test_cancels_that_race_with_delivery_leave_each_message_either_delivered_or_cancelled(
    start: StartWorker, nc: Client
) -> None:
    number = 200
    worker = await start(defaults={"max_in_flight": 8})
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    for each in range(number):
        await nc.publish(INTAKE, b"%d" % each, headers=plain(f"id-{each}", Delay="1m"))
    await until(lambda: worker.queue().pending == number)
    await worker.idle()

    await worker.forward(HOUR)
    answers = await asyncio.gather(*[cancel(worker, f"id-{each}") for each in reversed(range(number))])
    await worker.until_empty()

    cancelled = {
        b"%d" % each for each, said in zip(reversed(range(number)), answers, strict=True) if said["cancelled"]
    }
    assert len(jobs.payloads) == len({*jobs.payloads})
    assert {*jobs.payloads} | cancelled == {b"%d" % each for each in range(number)}
    assert {*jobs.payloads} & cancelled == set()


async def test_each_instance_answers_for_itself(start: StartWorker, nc: Client) -> None:
    await start()
    await start(instance_id="neighbour")
    answers: list[dict[str, Any]] = []

    async def collect(msg: Msg) -> None:
        answers.append(json.loads(msg.data))

    await nc.subscribe("answers", cb=collect)
    await ask(nc, INTAKE, b"", plain("x"))
    await nc.publish(CANCEL, b'{"id": "x"}', reply="answers")
    await until(lambda: len(answers) == 2)

    assert {answer["instance"] for answer in answers} == {INSTANCE, "neighbour"}
    assert sorted(answer["cancelled"] for answer in answers) == [0, 1]


# -- reschedule ----------------------------------------------------------------------------------------------


async def test_a_pending_message_is_rescheduled_to_now(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.ask(b"1", plain("x"))

    assert await admin(worker, RESCHEDULE, {"id": "x", "delay_ns": 0}) == {"rescheduled": 1, "in_flight": 0}
    msg = await jobs.next()

    assert attempt_of(msg) == 1
    await msg.ack()
    await worker.until_empty()


async def test_a_pending_message_is_rescheduled_to_an_instant_or_after_a_delay(start: StartWorker) -> None:
    worker = await start()
    await worker.ask(b"1", plain("x"))
    at_ns = worker.clock() + 5 * HOUR

    await admin(worker, RESCHEDULE, {"id": "x", "at_ns": at_ns})
    by_instant_ns = worker.pending()[0].time_ns
    before_ns = worker.clock()
    await admin(worker, RESCHEDULE, {"id": "x", "delay_ns": 2 * HOUR})
    by_delay_ns = worker.pending()[0].time_ns

    assert by_instant_ns == at_ns
    assert before_ns + 2 * HOUR <= by_delay_ns <= worker.clock() + 2 * HOUR


async def test_a_message_that_waits_for_a_slot_can_be_put_off(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.holds-the-slot")
    holds = await jobs.next()
    await worker.ask(b"1", plain("x", Delay="0s"))
    await worker.publish("jobs.last")
    await until(lambda: len(worker.queue().lane().ready) == 2)

    await admin(worker, RESCHEDULE, {"id": "x", "delay_ns": HOUR})
    await holds.ack()

    assert (await jobs.next()).subject == "jobs.last"
    await worker.idle()
    assert len(worker.pending()) == 2


async def test_rescheduling_keeps_attempts_history_deadline_and_id(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"min_backoff": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.ask(b"1", plain("x", Delay="0s", TTL="10h"))
    first = await jobs.next()
    await nc.publish(first.reply, b"-NAK why")
    await worker.until_failed()

    await admin(worker, RESCHEDULE, {"id": "x", "delay_ns": 0})
    again = await jobs.next()

    assert (attempt_of(again), headers_of(again)["Requeue-Last-Error"]) == (2, "why")
    for name in ("Requeue-Id", "Requeue-Deadline", "Requeue-Enqueued-At"):
        assert headers_of(again)[name] == headers_of(first)[name]


async def test_rescheduling_never_moves_a_message_past_its_deadline(start: StartWorker) -> None:
    worker = await start()
    await worker.ask(b"1", plain("x", TTL="2h"))
    deadline_ns = worker.pending()[0].record.deadline_ns

    await admin(worker, RESCHEDULE, {"id": "x", "delay_ns": 50 * HOUR})

    assert worker.pending()[0].time_ns == deadline_ns
    await worker.forward(3 * HOUR)
    assert (await worker.one_dead()).extras.reason == "expired"


async def test_a_message_in_flight_is_not_rescheduled(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.ask(b"1", plain("x", Delay="0s"))
    msg = await jobs.next()

    answer = await admin(worker, RESCHEDULE, {"id": "x", "delay_ns": HOUR})

    assert answer == {"rescheduled": 0, "in_flight": 1}
    await msg.ack()
    await worker.until_empty()


async def test_reschedules_that_race_with_delivery_lose_and_repeat_nothing(
    start: StartWorker, nc: Client
) -> None:
    number = 150
    worker = await start(defaults={"max_in_flight": 8})
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    for each in range(number):
        await nc.publish(INTAKE, b"%d" % each, headers=plain(f"id-{each}", Delay="1m"))
    await until(lambda: worker.queue().pending == number)
    await worker.idle()

    await worker.forward(HOUR)
    requests = [
        {"id": f"id-{each}", "delay_ns": delay_ns}
        for each in reversed(range(number))
        for delay_ns in (30 * MS, 0)
    ]
    answers = await asyncio.gather(*[admin(worker, RESCHEDULE, request) for request in requests])
    await worker.until_empty()

    assert sum(answer["rescheduled"] for answer in answers) > 0
    assert sorted(jobs.payloads) == sorted(b"%d" % each for each in range(number))


@pytest.mark.parametrize(
    ("subject", "request_", "says"),
    [
        (CANCEL, b"", "Expecting value"),
        (CANCEL, b"[]", '{"id": "<Nats-Msg-Id>"}'),
        (CANCEL, b'{"id": ""}', '{"id": "<Nats-Msg-Id>"}'),
        (CANCEL, b'{"id": 7}', '{"id": "<Nats-Msg-Id>"}'),
        (CANCEL, b"\xff\xfe\x00", "decode"),
        (CANCEL, b"[" * 100_000, ""),
        (CANCEL, b'{"id": "\\ud800"}', "surrogates"),
        (CANCEL, {"id": "x" * 600}, "at most 512"),
        (CANCEL, {"id": "x" * 70_000}, "at most 512"),
        (CANCEL, b'{"id": "x", "more": [' + b"[]," * 300_000 + b"0]}", "4096 are enough"),
        (RESCHEDULE, {"id": "x"}, "either delay_ns or at_ns"),
        (RESCHEDULE, {"id": "x", "delay_ns": 1, "at_ns": 1}, "either delay_ns or at_ns"),
        (RESCHEDULE, {"id": "x", "delay_ns": -1}, "whole nanoseconds"),
        (RESCHEDULE, {"id": "x", "delay_ns": True}, "whole nanoseconds"),
        (RESCHEDULE, {"id": "x", "delay_ns": "1h"}, "whole nanoseconds"),
        (RESCHEDULE, {"id": "x", "delay_ns": 2**63}, "2262"),
        (RESCHEDULE, {"id": "x", "at_ns": 2**63}, "2262"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_request_that_makes_no_sense_is_answered_with_what_is_wrong(
    start: StartWorker, subject: str, request_: object, says: str
) -> None:
    worker = await start()
    await worker.ask(b"1", plain("x"))
    before = worker.pending()

    answer = await admin(worker, subject, request_)

    assert set(answer) == {"error", "code"}
    assert (answer["code"], says in answer["error"]) == (400, True)
    assert worker.pending() == before
