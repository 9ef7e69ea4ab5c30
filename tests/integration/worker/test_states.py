"""Each edge of the state diagram in docs/architecture.md, once, by its letter. The details have files of their own."""

from __future__ import annotations

import json

import pytest
from nats.aio.client import Client
from requeue_client.client import RequeueClient

from tests.integration.worker.support import HOUR, MS, Handler, S, StartWorker, attempt_of, refusal_of
from tests.servers import until

DAY = 24 * HOUR


async def test_edge_a_an_accepted_message_is_pending_from_its_ack_on(start: StartWorker) -> None:
    worker = await start()
    await worker.publish("jobs.a", b"payload", delay_ns=HOUR)
    [stored] = worker.pending()
    assert stored.time_ns == stored.record.enqueued_ns + HOUR


async def test_edge_b_a_due_message_goes_out_and_stays_on_disk(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.b", b"payload")
    assert (await jobs.next()).data == b"payload"
    assert len(worker.pending()) == worker.queue().in_flight == 1


async def test_edge_c_a_settled_message_is_gone(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.c")
    await (await jobs.next()).ack()
    await worker.until_empty()
    assert (worker.queue().in_flight, worker.dead()) == (0, [])


async def test_edge_d_a_failed_message_is_pending_again_with_one_attempt_spent(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.d", retries=5)
    await (await jobs.next()).nak(delay=3600)
    await worker.until_failed()
    stored = await worker.one_pending()
    assert (stored.record.attempts, worker.queue().in_flight) == (1, 0)
    assert stored.time_ns >= stored.extras.history[-1].at_ns + HOUR


async def test_edge_e_a_held_message_is_pending_again_with_no_attempt_spent(start: StartWorker) -> None:
    worker = await start(defaults={"count_no_responders": False, "min_backoff": "1h"})
    await worker.publish("nobody.home", retries=1)
    await until(lambda: worker.queue().counts.held)
    stored = await worker.one_pending()
    assert (stored.record.attempts, stored.errors, worker.queue().in_flight) == (0, [], 0)


async def test_edge_f_an_exhausted_message_is_dead(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.f", retries=1)
    await (await jobs.next()).nak()
    letter = await worker.one_dead()
    assert (letter.extras.reason, letter.record.attempts, worker.pending()) == ("exhausted", 1, [])


async def test_edge_f_a_terminated_message_is_dead(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.f", retries=5)
    await (await jobs.next()).term()
    assert (await worker.one_dead()).extras.reason == "terminated"


async def test_edge_g_a_message_expires_while_it_is_pending(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.g", delay_ns=HOUR, ttl_ns=20 * MS)
    letter = await worker.one_dead()
    assert (letter.extras.reason, letter.record.attempts, worker.pending()) == ("expired", 0, [])
    assert jobs.received == []


async def test_edge_h_a_queue_that_drops_keeps_no_dead_letter(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"on_exhausted": "drop", "on_expire": "drop"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.h", retries=1)
    await (await jobs.next()).nak()
    await worker.until_empty()
    await worker.publish("jobs.h", delay_ns=HOUR, ttl_ns=20 * MS)
    await worker.until_empty()
    assert worker.dead() == []


async def test_edge_i_what_is_refused_for_good_is_dead_before_the_client_hears_of_it(
    start: StartWorker,
) -> None:
    worker = await start()
    assert refusal_of(await worker.ask(b"no envelope"))[0] == 400
    [kept] = worker.invalid()
    assert kept.extras.reason == "invalid"


async def test_edge_j_a_rescheduled_message_is_pending_at_its_new_time(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await worker.publish("jobs.j", delay_ns=HOUR, headers={"Nats-Msg-Id": "j"})
    before = await worker.one_pending()
    assert (await RequeueClient(nc).reschedule("j", delay="2h")).changed == 1
    after = await worker.one_pending()
    assert after.id == before.id
    assert after.time_ns - before.time_ns >= HOUR


async def test_edge_k_a_cancelled_message_is_gone(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await worker.publish("jobs.k", delay_ns=HOUR, headers={"Nats-Msg-Id": "k"})
    assert (await RequeueClient(nc).cancel("k")).changed == 1
    assert (worker.pending(), worker.dead()) == ([], [])


async def test_edge_l_a_refused_message_is_forgotten_when_newer_ones_need_its_place(
    start: StartWorker,
) -> None:
    worker = await start(invalid_kept=2)
    for number in range(3):
        await worker.ask(b"no envelope %d" % number)
    assert [letter.record.payload for letter in worker.invalid()] == [b"no envelope 1", b"no envelope 2"]


async def test_edge_l_a_dead_letter_is_forgotten_after_its_retention(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.deadletters.RETENTION_INTERVAL_S", 0.05)
    worker = await start(defaults={"dead_letter_retention": "1d"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.l", retries=1)
    await (await jobs.next()).term()
    await worker.one_dead()
    await worker.forward(DAY - S)
    await worker.publish("jobs.l", retries=1)
    assert attempt_of(await jobs.next()) == 1
    assert len(worker.dead()) == 1
    await worker.forward(2 * S)
    await until(lambda: not worker.dead())


async def test_edge_m_a_redriven_dead_letter_is_pending_under_its_id(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await worker.publish("jobs.m", retries=1)
    letter = await worker.one_dead()
    await Handler.listen(nc, "jobs.>")
    await nc.request("_requeue.admin.redrive", b"", timeout=20)
    await until(worker.pending)
    [pending] = worker.pending()
    assert (pending.id, pending.record.attempts, worker.dead()) == (letter.id, 0, [])


async def test_edge_n_an_imported_dead_letter_is_dead_as_it_was(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await worker.publish_plain("jobs.n", b"payload", {"Requeue-Retries": "1"})
    before = await worker.one_dead()
    page = json.loads((await nc.request("_requeue.admin.dead-export", b"", timeout=20)).data)
    await nc.request("_requeue.admin.dead-delete", b'{"queue": "default"}', timeout=20)
    assert worker.dead() == []
    letters = json.dumps({"letters": page["letters"]}).encode()
    await nc.request("_requeue.admin.dead-import", letters, timeout=20)
    assert worker.dead() == [before]
