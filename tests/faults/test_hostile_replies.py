"""Reply subjects that lead back: into the intake, to the worker's own subjects, or into the NATS system."""

from __future__ import annotations

import pytest
from nats.aio.client import Client
from requeue_protocol.envelope import build_envelope
from requeue_worker.answers import Answers

from tests.integration.worker.support import HOUR, INTAKE, Handler, StartWorker, is_ack
from tests.servers import settle, until

LATER = build_envelope(subject="jobs.later", payload=b"", delay_ns=HOUR)


@pytest.mark.parametrize(
    "reply",
    [
        "requeue.x",
        "requeue.publish.reply",
        "_requeue._stats",
        "_requeue.admin.cancel",
        "_requeue.handover.default.tested",
        "$JS.API.STREAM.DELETE.ORDERS",
        "$KV.prices.tea",
        "$SYS.REQ.USER.INFO",
    ],
)
@pytest.mark.parametrize("payload", [LATER, b"nonsense"], ids=["good", "malformed"])
async def test_no_answer_goes_where_it_would_do_something(
    start: StartWorker, nc: Client, reply: str, payload: bytes
) -> None:
    worker = await start(stats_interval="1h")
    seen = await Handler.listen(nc, reply)

    await nc.publish(INTAKE, payload, reply=reply)
    await until(lambda: worker.worker.counts.refused[403] == 1)
    await worker.publish("jobs.later", delay_ns=HOUR)
    await settle(nc)

    assert len(worker.pending()) == 1
    assert len(worker.invalid()) == 1
    assert worker.worker.counts.intake_messages == 1, "nothing came back"
    assert seen.payloads == []


async def test_an_answer_cannot_settle_what_somebody_else_handles(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.slow")
    await worker.publish("jobs.slow", b"work")
    replay = await jobs.next()

    await nc.publish(INTAKE, LATER, reply=replay.reply)
    await until(lambda: worker.worker.counts.refused[403] == 1)
    await settle(nc)

    assert [stored.record.payload for stored in worker.pending()] == [b"work"]
    await replay.ack()
    await worker.until_empty()


async def test_noise_on_the_workers_inbox_changes_nothing(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.slow")
    await worker.publish("jobs.slow", b"work")
    replay = await jobs.next()
    inbox = replay.reply.rpartition(".")[0]

    for token in ("0", "2", "-1", "1e0", "01", "+1", "9" * 1000, "x", "\u0661", "$", "a-b"):
        for payload in (b"", b"+TERM", b'-NAK {"delay": 1}', b"+WPI", b"\xff" * 1000):
            await nc.publish(f"{inbox}.{token}", payload)
    await settle(nc)
    await worker.publish("jobs.later", delay_ns=HOUR)

    assert worker.queue().in_flight == 1
    assert worker.dead() == []
    await replay.ack()
    await until(lambda: len(worker.pending()) == 1)


def test_a_jetstream_consumer_that_delivers_to_the_intake_gets_its_ack() -> None:
    """Only a server sets such a reply: it denies a client that tries."""
    answers = Answers("requeue.>", lambda raw, error: None)
    answers.inbox = b"_INBOX.own."

    assert answers.allows(b"$JS.ACK.ORDERS.c.1.2.3.4.5")
    assert answers.allows(b"_INBOX.other.1")
    assert not answers.allows(b"_INBOX.own.1")


async def test_any_other_subject_gets_its_ack(start: StartWorker, nc: Client) -> None:
    worker = await start()
    for reply in ("my.own.inbox.7", "requeue", "_INBOXES.x"):
        acks = await Handler.listen(nc, reply)
        await nc.publish(INTAKE, LATER, reply=reply)
        assert is_ack(await acks.next())

    assert len(worker.pending()) == 3


async def test_a_reply_subject_too_long_to_answer_does_not_cost_the_connection(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()

    await nc.publish(INTAKE, LATER, reply="_INBOX." + "x" * 4000)
    await until(lambda: worker.worker.counts.refused[403] == 1)
    await worker.publish("jobs.later", delay_ns=HOUR)

    assert worker.worker._broker.connection == 1
    assert len(worker.pending()) == 1
