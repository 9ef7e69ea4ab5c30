"""Queue names without end: what holds nothing leaves, what holds something stays, `max_queues` blocks nobody for ever."""

from __future__ import annotations

import pytest
from nats.aio.client import Client
from requeue_client.client import RequeueClient
from requeue_protocol.envelope import build_envelope
from requeue_worker.storage.keys import META_QUEUE
from requeue_worker.storage.rocksdb import META

from tests.integration.worker.support import (
    HOUR,
    INTAKE,
    Handler,
    LiveWorker,
    StartWorker,
    ask,
    ask_later,
    is_ack,
    refusal_of,
)
from tests.servers import until


def known(worker: LiveWorker) -> set[str]:
    """Queues in memory."""
    return set(worker.worker._registry.by_name)


def rows(worker: LiveWorker) -> set[str]:
    """Queues with a row in `meta`."""
    entries = worker._engine.items(META, META_QUEUE, META_QUEUE + b"\xff")
    return {key[len(META_QUEUE) :].decode() for key, _ in entries}


async def at_rest(worker: LiveWorker) -> None:
    """Return when all that was settled is on disk, and no queue waits for a turn."""
    await worker.idle()
    await until(lambda: not any(queue.in_ring for queue in worker.worker._registry))


async def use(worker: LiveWorker, *names: str) -> None:
    """Let a message go through each of these queues, whose handler settles it."""
    for name in names:
        await worker.publish("jobs.a", queue=name)
        await worker.until_empty(name)
    await at_rest(worker)


async def retire(worker: LiveWorker) -> None:
    """Let everything that is idle go now."""
    await at_rest(worker)
    await worker.worker._retirement.retire(at_once=True)


@pytest.mark.parametrize("plain", [False, True])
async def test_a_message_that_is_refused_for_its_subject_makes_no_queue(
    start: StartWorker, plain: bool
) -> None:
    worker = await start()

    for number, subject in enumerate(("$SYS.REQ.x", "_requeue._stats", "requeue.again")):
        headers = {"Requeue-Subject": subject, "Requeue-Queue": f"q{number}"} if plain else None
        payload = b"" if plain else build_envelope(subject=subject, payload=b"", queue=f"q{number}")
        assert refusal_of(await worker.ask(payload, headers))[0] in (400, 403)

    assert known(worker) == {"$invalid"}
    assert {name for name in worker.worker.counts.queues if name.startswith("q")} == set()


async def test_a_hundred_short_lived_names_pass_through_ten_places(start: StartWorker, nc: Client) -> None:
    worker = await start(max_queues=10)
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())

    for number in range(100):
        name = f"name-{number}"
        message = build_envelope(subject="jobs.a", payload=name.encode(), queue=name)
        while not is_ack(answer := await ask(nc, INTAKE, message, {"Any": "header"})):
            assert refusal_of(answer)[0] == 429
            await retire(worker)
    await until(lambda: len(jobs.received) == 100)
    await until(lambda: not any(worker.pending(f"name-{number}") for number in range(100)))
    await retire(worker)

    assert known(worker) == rows(worker) == set()
    assert not worker.worker.counts.queues


async def test_the_worker_frees_names_by_itself_when_it_gets_crowded(start: StartWorker, nc: Client) -> None:
    worker = await start(max_queues=10)
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())

    for number in range(30):
        message = build_envelope(subject="jobs.a", payload=b"", queue=f"name-{number}")
        while not is_ack(await ask(nc, INTAKE, message, {"Any": "header"})):
            pass

    await until(lambda: len(known(worker)) < 10)


async def test_queues_that_are_used_again_and_again_stay_when_it_gets_crowded(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    retirement = worker.worker._retirement

    await use(worker, "used", "used-too", "once")
    await retirement.retire(at_once=False)
    await use(worker, "used", "used-too", "short-lived")

    await retirement.retire(at_once=True, down_to=2)
    assert known(worker) == rows(worker) == {"used", "used-too"}
    await use(worker, "used", "used-too")
    await retirement.retire(at_once=True, down_to=1)
    assert len(known(worker)) == 1


async def test_queues_that_hold_something_or_are_configured_or_paused_stay(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(queues=[{"name": "configured"}])
    await Handler.listen(nc, "jobs.ack", answer=lambda msg: msg.ack())
    await Handler.listen(nc, "jobs.term", answer=lambda msg: msg.term())
    for name in ("gone", "configured", "paused"):
        await worker.publish("jobs.ack", queue=name)
        await worker.until_empty(name)
    await worker.publish("jobs.term", queue="dead")
    await worker.one_dead("dead")
    await worker.publish("jobs.later", queue="pending", delay_ns=HOUR)
    flying = await Handler.listen(nc, "jobs.slow")
    await worker.publish("jobs.slow", queue="flying")
    await flying.next()
    worker.queue("paused").paused_until_ns = worker.clock() + HOUR

    await retire(worker)

    assert known(worker) == rows(worker) == {"configured", "paused", "dead", "pending", "flying"}
    assert set(worker.worker.counts.queues) == known(worker)
    worker.clock.offset_ns += 2 * HOUR
    await retire(worker)
    assert "paused" not in known(worker)


async def test_an_idle_queue_stays_until_two_looks_saw_nothing_come_through(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    retirement = worker.worker._retirement
    await use(worker, "busy")
    await retirement.retire(at_once=False)
    await use(worker, "busy")

    await retirement.retire(at_once=False)
    assert known(worker) == {"busy"}
    await retirement.retire(at_once=False)
    assert known(worker) == rows(worker) == set()


async def test_a_queue_that_held_something_at_the_last_look_stays_for_another(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    retirement = worker.worker._retirement
    await use(worker, "held")
    worker.queue("held").paused_until_ns = worker.clock() + HOUR
    await retirement.retire(at_once=False)
    worker.queue("held").paused_until_ns = 0

    await retirement.retire(at_once=False)
    assert known(worker) == {"held"}
    await retirement.retire(at_once=False)
    assert known(worker) == rows(worker) == set()


async def test_messages_that_were_cancelled_came_through_their_queue_too(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    for _ in range(2):
        await worker.publish("jobs.a", queue="busy", delay_ns=HOUR, headers={"Nats-Msg-Id": "x"})
        assert (await RequeueClient(nc).cancel("x")).changed == 1
        await worker.worker._retirement.retire(at_once=False)
    assert known(worker) == {"busy"}


async def test_rows_of_empty_queues_are_gone_after_a_start(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    for number in range(5):
        await worker.publish("jobs.a", queue=f"name-{number}")
        await worker.until_empty(f"name-{number}")
    await worker.publish("later.a", queue="kept", delay_ns=HOUR)
    await worker.stop()

    again = await start()
    await until(lambda: rows(again) == {"kept"})

    assert known(again) == {"kept"}


async def test_a_name_that_comes_back_is_a_new_queue_that_loses_nothing(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())

    for number in range(20):
        await worker.publish("jobs.a", b"%d" % number, queue="again", delay_ns=number % 2)
        await until(lambda: len(jobs.received) > number)  # noqa: B023 - awaited in the same turn
        await worker.until_empty("again")
        await retire(worker)
        assert rows(worker) == set()

    assert jobs.payloads == [b"%d" % number for number in range(20)]


async def test_a_message_whose_id_is_looked_up_keeps_its_queue(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    headers = {"Requeue-Subject": "jobs.a", "Nats-Msg-Id": "x"}
    async with worker.held_disk() as writing:
        first = await ask_later(nc, INTAKE, b"", {**headers, "Requeue-Queue": "first", "Requeue-Delay": "1h"})
        await writing.wait()
        copy = await ask_later(nc, INTAKE, b"", {**headers, "Requeue-Queue": "copy"})
        await until(lambda: worker.worker._dedupe.holds(worker.queue("copy")))
        held = worker.worker._retirement._is_idle(worker.queue("copy"), worker.clock())
    assert is_ack(await first.answer())
    assert is_ack(await copy.answer())
    await retire(worker)

    assert not held
    assert known(worker) == rows(worker) == {"first"}
    assert jobs.received == []


async def test_queues_with_the_same_rules_share_what_they_remember_of_subjects(start: StartWorker) -> None:
    worker = await start(queues=[{"name": "strict", "allow_subjects": ["jobs.>"]}])
    for name in ("a", "b", "strict"):
        await worker.publish("jobs.later", queue=name, delay_ns=HOUR)

    assert worker.queue("a").rules is worker.queue("b").rules
    assert worker.queue("a").rules is not worker.queue("strict").rules
