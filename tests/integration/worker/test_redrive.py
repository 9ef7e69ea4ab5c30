"""Redriving: dead letters are pending again, each of them once, and only those that were meant."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from requeue_worker import deadletters
from requeue_worker.storage.rocksdb import META

from tests.integration.worker.support import (
    HOUR,
    Handler,
    LiveWorker,
    StartWorker,
    attempt_of,
    headers_of,
)
from tests.integration.worker.test_micro import ask, asked
from tests.servers import until


async def redrive(nc: Client, **request: Any) -> dict[str, Any]:
    """Run a job to its end."""
    job = (await ask(nc, "redrive", **request))["job"]
    return await ended(nc, job["job"])


async def ended(nc: Client, name: str) -> dict[str, Any]:
    while True:
        [job] = (await ask(nc, "jobs", job=name))["jobs"]
        if job["state"] != "running":
            return dict(job)


async def kill(worker: LiveWorker, number: int, queue: str = "default", subject: str = "nobody.here") -> None:
    """So many dead letters more."""
    before = worker.queue(queue).dead
    for each in range(number):
        await worker.publish(subject, b"%d" % each, queue=queue, retries=1)
    await until(lambda: worker.queue(queue).dead == before + number)
    await worker.idle()
    await worker.idle()


# -- one message ---------------------------------------------------------------------------------------------------


async def test_a_redriven_message_is_the_same_with_its_attempts_before_it_and_its_history_kept(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    headers = {"Requeue-Retries": "2", "Trace": "t-1", "Nats-Msg-Id": "mine"}
    await worker.publish_plain("jobs.a", b"\x00payload", headers)
    letter = await worker.one_dead()
    jobs = await Handler.listen(nc, "jobs.>")

    job = await redrive(nc)
    msg = await jobs.next()

    assert (job["state"], job["redriven"], job["skipped"], job["error"]) == ("done", 1, 0, None)
    assert (msg.data, attempt_of(msg)) == (b"\x00payload", 1)
    said = headers_of(msg)
    assert (said["Requeue-Id"], said["Trace"], said["Nats-Msg-Id"]) == (letter.id, "t-1", "mine")
    assert said["Requeue-Last-Error"] == "no responders"
    pending = await worker.one_pending()
    assert (pending.record.attempts, pending.extras.reason, pending.extras.died_ns) == (0, None, None)
    assert pending.extras.history == letter.extras.history
    assert pending.record.headers == letter.record.headers
    assert pending.record.enqueued_ns == letter.record.enqueued_ns
    assert worker.dead() == []
    await msg.ack()
    await worker.until_empty()


async def test_a_redriven_message_may_fail_as_often_as_before_and_then_is_dead_again(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.nak())
    await worker.publish("jobs.a", retries=3)
    await worker.one_dead()
    await redrive(nc)
    await until(lambda: [stored.record.attempts for stored in worker.dead()] == [3])
    [again] = worker.dead()
    assert [attempt.number for attempt in again.extras.history] == [1, 2, 3, 1, 2, 3]


async def test_a_ttl_starts_again_and_the_priority_is_the_one_that_was_sent(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    headers = {"Requeue-TTL": "1h", "Requeue-Priority": "7", "Requeue-Delay": "2h"}
    await worker.publish_plain("jobs.plain", headers=headers)
    await worker.publish("jobs.envelope", ttl_ns=HOUR, delay_ns=2 * HOUR, headers={"Requeue-Priority": "2"})
    await worker.publish("jobs.without", retries=1)
    await until(lambda: len(worker.dead()) == 1)
    await worker.forward(3 * HOUR)
    await until(lambda: len(worker.dead()) == 3)
    await Handler.listen(nc, "jobs.>")
    began_ns = worker.clock()

    await redrive(nc)

    by_subject = {stored.record.subject: stored for stored in worker.pending()}
    assert {subject: stored.priority for subject, stored in by_subject.items()} == {
        b"jobs.plain": 7,
        b"jobs.envelope": 2,
        b"jobs.without": 4,
    }
    for subject in (b"jobs.plain", b"jobs.envelope"):
        record = by_subject[subject].record
        assert began_ns + HOUR <= record.deadline_ns <= worker.clock() + HOUR
        assert record.enqueued_ns < began_ns
    assert by_subject[b"jobs.without"].record.deadline_ns == 0


@pytest.mark.parametrize("kind", ["envelope", "envelope with headers", "plain"])
async def test_a_message_redriven_to_another_subject_keeps_everything_else(
    start: StartWorker, nc: Client, kind: str
) -> None:
    worker = await start(defaults={"retries": 1, "ttl": "9h"})
    headers = {"Trace": "t-1", "Nats-Msg-Id": "mine", "Requeue-Priority": "2"}
    if kind == "plain":
        policy = {"Requeue-Retries": "2", "Requeue-TTL": "5h", "Requeue-Backoff": "fixed"}
        await worker.publish_plain("jobs.old", b"\x00payload", {**headers, **policy})
    else:
        said = None if kind == "envelope" else headers
        await worker.publish("jobs.old", b"\x00payload", headers=said, retries=2, ttl_ns=5 * HOUR)
    letter = await worker.one_dead()

    for subject in ("jobs.new", "jobs.newer"):
        jobs = await Handler.listen(nc, subject)
        await redrive(nc, to_subject=subject)
        msg = await jobs.next()
        assert (msg.data, attempt_of(msg), headers_of(msg)["Requeue-Id"]) == (b"\x00payload", 1, letter.id)
        pending = await worker.one_pending()
        assert pending.record.subject == subject.encode()
        assert (pending.record.retries, pending.record.backoff) == (2, letter.record.backoff)
        began_ns = pending.time_ns
        assert pending.record.deadline_ns - began_ns == 5 * HOUR
        if kind != "envelope":
            assert (pending.priority, headers_of(msg)["Trace"]) == (2, "t-1")
            assert pending.record.client_id == b"mine"
        await msg.term()
        await until(worker.dead)


# -- which ---------------------------------------------------------------------------------------------------------


async def test_only_what_the_filter_means_is_redriven(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await kill(worker, 2, queue="mail", subject="mail.out")
    await kill(worker, 2, queue="orders", subject="orders.new")
    await kill(worker, 1, queue="orders", subject="orders.old")
    [old] = [stored for stored in worker.dead("orders") if stored.record.subject == b"orders.old"]
    assert (await redrive(nc, queue="orders", reason="expired"))["redriven"] == 0
    assert (await redrive(nc, queue="nothing"))["redriven"] == 0
    await Handler.listen(nc, "orders.>", answer=lambda msg: msg.ack())
    assert (await redrive(nc, id=old.id))["redriven"] == 1
    assert (await redrive(nc, subject="orders.*", enqueued_before_ns=old.record.enqueued_ns))["redriven"] == 2
    assert (len(worker.dead("mail")), worker.dead("orders")) == (2, [])


async def test_what_dies_again_meanwhile_is_not_redriven_again(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.micro.redrive.STEP_MESSAGES", 3)
    worker = await start()
    await kill(worker, 40)
    first = {stored.id for stored in worker.dead()}
    job = await redrive(nc)
    assert job["redriven"] == 40
    await until(lambda: len(worker.dead()) == 40)
    assert {stored.id for stored in worker.dead()} == first
    assert {len(stored.extras.history) for stored in worker.dead()} == {2}


async def test_refused_messages_stay_and_the_request_for_them_says_why(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await worker.ask(b"no envelope")
    await until(worker.invalid)
    await kill(worker, 1)
    assert (await redrive(nc))["redriven"] == 1
    assert len(worker.invalid()) == 1
    for request in (b'{"reason": "invalid"}', b'{"queue": "$invalid"}'):
        answer = await asked(nc, "redrive", request)
        assert b"publish them mended" in answer.data


async def test_a_dead_letter_that_was_to_be_published_leaves_no_mark_behind(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"dead_letter_subject": "dead.letters"})
    worker.worker._dead_letters._wake.clear()
    worker.worker._dead_letters._announce = lambda _: None  # type: ignore[method-assign]
    await kill(worker, 3)

    def marks() -> int:
        return len(list(worker._engine.items(META, deadletters.MARK, deadletters.MARK + b"\xff")))

    assert marks() == 3
    await Handler.listen(nc, "nobody.here", answer=lambda msg: msg.ack())
    await redrive(nc)
    assert marks() == 0


# -- jobs ----------------------------------------------------------------------------------------------------------


async def test_a_job_with_a_rate_is_cancelled_half_way_and_the_rest_stays_dead(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await kill(worker, 60)
    letters = {stored.id for stored in worker.dead()}
    jobs = await Handler.listen(nc, "nobody.here", answer=lambda msg: msg.ack())
    started = (await ask(nc, "redrive", job="mine", rate=20))["job"]
    assert (started["job"], started["state"]) == ("mine", "running")
    await jobs.next()

    [job] = (await ask(nc, "cancel-job", job="mine"))["jobs"]
    assert job["state"] == "cancelled"
    assert 0 < job["redriven"] < 60
    assert job["ended_ns"] >= job["started_ns"]
    assert len(worker.dead()) == 60 - job["redriven"]
    await worker.until_empty()
    delivered = [headers_of(msg)["Requeue-Id"] for msg in jobs.received]
    assert sorted(delivered + [stored.id for stored in worker.dead()]) == sorted(letters)
    assert (await ask(nc, "cancel-job", job="mine"))["jobs"] == [job]


async def test_a_job_that_was_held_up_keeps_to_its_rate_afterwards(start: StartWorker, nc: Client) -> None:
    worker, rate, wanted = await start(), 100, 40
    await kill(worker, 2 * wanted)
    async with worker.worker._dead_letters.leaving:
        await ask(nc, "redrive", job="slow", rate=rate)
        await asyncio.sleep(0.6)
    begun_s = time.monotonic()
    while (redriven := (await ask(nc, "jobs", job="slow"))["jobs"][0]["redriven"]) < wanted:
        pass
    assert redriven <= rate * (time.monotonic() - begun_s + 0.3)
    await ask(nc, "cancel-job", job="slow")


async def test_a_job_is_begun_once_under_one_name_and_told_of_when_it_has_ended(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await kill(worker, 2)
    await Handler.listen(nc, "nobody.here", answer=lambda msg: msg.ack())
    first = await redrive(nc, job="mine", queue="default")
    assert (await ask(nc, "redrive", job="mine"))["job"] == first
    assert first["request"] == {"job": "mine", "queue": "default"}
    second = await redrive(nc)
    assert [job["job"] for job in (await ask(nc, "jobs"))["jobs"]] == ["mine", second["job"]]
    assert (await ask(nc, "jobs", job="nothing"))["jobs"] == []


async def test_so_many_jobs_run_at_a_time_and_ended_ones_are_forgotten_in_the_end(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.micro.redrive.MOST_RUNNING", 2)
    monkeypatch.setattr("requeue_worker.micro.redrive.ENDED_KEPT", 3)
    worker = await start()
    await kill(worker, 30)
    for name in "ab":
        await ask(nc, "redrive", job=name, rate=0.001)
    answer = await asked(nc, "redrive", b"{}")
    assert headers_of(answer)["Nats-Service-Error-Code"] == "503"
    for name in "ab":
        await ask(nc, "cancel-job", job=name)
    for _ in range(4):
        await redrive(nc, id="nothing")
    assert len((await ask(nc, "jobs"))["jobs"]) == 4


async def test_a_worker_that_stops_ends_its_jobs_and_knows_the_rest_at_its_next_start(
    start: StartWorker, nc: Client, tmp_path: Path
) -> None:
    worker = await start()
    await kill(worker, 20)
    await ask(nc, "redrive", rate=0.01)
    # By its count: it dies again at once, so that fewer are dead for a moment only.
    await until(lambda: worker.worker.counts.redriven)
    await worker.stop()
    again = await start()
    await until(lambda: len(again.dead()) == 20)  # the one that was redriven has died again
    assert (await ask(nc, "jobs"))["jobs"] == []


async def test_on_a_full_disk_no_job_begins_and_one_under_way_fails(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await kill(worker, 5)
    await Handler.listen(nc, "nobody.here", answer=lambda msg: msg.ack())
    await ask(nc, "redrive", job="early", rate=10)
    await until(lambda: worker.queue().dead < 5)
    await worker.idle()
    worker.worker._api.redrives._has_room = lambda: False
    job = await ended(nc, "early")
    assert (job["state"], job["error"]) == ("failed", "the disk is full: redrive again when there is room")
    answer = await asked(nc, "redrive", b"{}")
    assert headers_of(answer)["Nats-Service-Error-Code"] == "503"


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b'{"rate": 0}', "rate"),
        (b'{"to_subject": "a.*"}', "wildcard"),
        (b'{"to_subject": "_INBOX.a"}', "not allowed"),
        (b'{"job": "a b"}', "job"),
        (b'{"state": "dead"}', "state"),
    ],
)
async def test_a_redrive_that_makes_no_sense_is_refused_with_what_is_wrong(
    start: StartWorker, nc: Client, payload: bytes, text: str
) -> None:
    worker = await start()
    await kill(worker, 1)
    answer = await asked(nc, "redrive", payload)
    assert headers_of(answer)["Nats-Service-Error-Code"] == "400"
    assert text in headers_of(answer)["Nats-Service-Error"]
    assert len(worker.dead()) == 1
