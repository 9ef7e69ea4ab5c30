"""When messages go out, and which: delay, deadline, slots, rate, weight, priority.

Where a test says that something did not go out, a later message has: the scheduler had its chance.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from nats.aio.client import Client
from requeue_protocol.durations import ns_to_rfc3339, rfc3339_to_ns
from requeue_protocol.envelope import Backoff, build_envelope

from tests.integration.worker.support import (
    HOUR,
    INTAKE,
    MS,
    Clock,
    Handler,
    LiveWorker,
    S,
    StartWorker,
    attempt_of,
    headers_of,
)
from tests.servers import NatsServer, until

MINUTE = 60 * S


async def ack(msg: object) -> None:
    await msg.ack()  # type: ignore[attr-defined]


async def fence(worker: LiveWorker, nc: Client) -> None:
    """Return once a message of its own, in a queue of its own, has gone through the worker."""
    done = worker.queue("fence").counts.settled
    subscription = await nc.subscribe("fence.through", cb=ack)
    await nc.flush()
    await worker.publish("fence.through", queue="fence", retries=1000)
    await until(lambda: worker.queue("fence").counts.settled > done)
    await subscription.unsubscribe()


# -- delay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ns", [0, 1, 999, 5 * MS, HOUR, 10_000 * 24 * HOUR])
async def test_a_message_is_keyed_by_its_commit_plus_its_delay_to_the_nanosecond(
    start: StartWorker, delay_ns: int
) -> None:
    worker = await start(defaults={"max_rate": 0.001})
    await worker.publish("jobs.token")

    await worker.publish("jobs.a", delay_ns=delay_ns)
    await worker.publish_plain("jobs.b", headers={"Requeue-Delay": f"{delay_ns}ns"})

    stored = [stored for stored in worker.pending() if stored.record.subject != b"jobs.token"]
    assert len(stored) == 2
    assert all(each.time_ns == each.record.enqueued_ns + delay_ns for each in stored)


async def test_a_delayed_message_goes_out_when_it_is_due_and_not_before(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await worker.publish("jobs.a", delay_ns=HOUR)
    due_ns = worker.pending()[0].time_ns

    await worker.forward(HOUR - MINUTE)
    await fence(worker, nc)
    early = len(jobs.received)
    await worker.forward(MINUTE)
    await jobs.next()
    came_ns = worker.clock()

    assert early == 0
    assert came_ns >= due_ns


async def test_nothing_is_ever_early(start: StartWorker, nc: Client) -> None:
    worker = await start()
    came: dict[bytes, int] = {}

    async def note(msg: object) -> None:
        came[msg.data] = time.time_ns()  # type: ignore[attr-defined]
        await ack(msg)

    jobs = await Handler.listen(nc, "jobs.>", answer=note)
    delays_ns = [(number * 7919 % 400) * MS for number in range(200)]
    for number, delay_ns in enumerate(delays_ns):
        await nc.publish(INTAKE, build_envelope(subject="jobs.a", payload=b"%d" % number, delay_ns=delay_ns))
    await until(lambda: len(came) == 200)
    await worker.until_empty()

    for msg in jobs.received:
        enqueued_ns = rfc3339_to_ns(headers_of(msg)["Requeue-Enqueued-At"])
        assert came[msg.data] >= enqueued_ns + delays_ns[int(msg.data)]


async def test_requeue_at_is_the_due_time_itself(start: StartWorker) -> None:
    worker = await start()
    at_ns = worker.clock() + HOUR

    await worker.publish_plain("jobs.a", headers={"Requeue-At": ns_to_rfc3339(at_ns)})

    assert worker.pending()[0].time_ns == at_ns


async def test_requeue_at_in_the_past_is_due_at_once_and_goes_before_what_came_earlier(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.holds-the-slot")
    first = await jobs.next()
    await worker.publish("jobs.earlier")

    await worker.publish_plain("jobs.at", headers={"Requeue-At": "1970-01-01T00:00:00Z"})
    await first.ack()
    second = await jobs.next()
    await second.ack()
    third = await jobs.next()
    await third.ack()
    await worker.until_empty()

    assert {second.subject, third.subject} == {"jobs.earlier", "jobs.at"}


async def test_due_order_is_kept_within_a_queue(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    for minutes in (5, 1, 4, 2, 3):
        await worker.publish("jobs.a", b"%d" % minutes, delay_ns=minutes * MINUTE)

    await worker.forward(HOUR)
    await worker.until_empty()

    assert jobs.payloads == [b"1", b"2", b"3", b"4", b"5"]


# -- ttl -----------------------------------------------------------------------------------------------------


async def test_a_message_without_ttl_never_expires(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await worker.publish("jobs.a", delay_ns=HOUR, ttl_ns=0)

    await worker.forward(50 * 365 * 24 * HOUR)
    msg = await jobs.next()

    assert "Requeue-Deadline" not in headers_of(msg)


async def test_a_deadline_counts_from_the_commit_and_the_handler_is_told(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")

    await worker.publish("jobs.a", ttl_ns=HOUR)
    msg = await jobs.next()
    record = worker.pending()[0].record

    assert record.deadline_ns == record.enqueued_ns + HOUR
    assert headers_of(msg)["Requeue-Deadline"] == ns_to_rfc3339(record.deadline_ns)
    assert headers_of(msg)["Requeue-Enqueued-At"] == ns_to_rfc3339(record.enqueued_ns)


@pytest.mark.parametrize("intake", ["envelope", "plain"])
async def test_a_message_that_expires_before_it_is_due_becomes_a_dead_letter_undelivered(
    start: StartWorker, nc: Client, intake: str
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)

    if intake == "envelope":
        await worker.publish("jobs.a", b"late", delay_ns=HOUR, ttl_ns=20 * MS)
    else:
        headers = {"Requeue-Delay": "1h", "Requeue-TTL": "20ms"}
        await worker.publish_plain("jobs.a", b"late", headers)
    letter = await worker.one_dead()

    assert (letter.extras.reason, letter.record.attempts, letter.record.payload) == ("expired", 0, b"late")
    assert letter.time_ns >= letter.record.deadline_ns
    assert jobs.received == []
    assert worker.queue().counts.expired == 1


async def test_an_expired_message_is_dropped_where_the_queue_says_so(start: StartWorker) -> None:
    worker = await start(defaults={"on_expire": "drop"})

    await worker.publish("jobs.a", delay_ns=HOUR, ttl_ns=5 * MS)
    await worker.until_empty()

    assert (worker.dead(), worker.queue().counts.expired) == ([], 1)
    assert worker.queue().counts.dropped == {"expired": 1}


async def test_the_time_to_a_reply_is_counted_from_the_dispatch_over_all_signs_of_work(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    histogram = worker.worker.counts.reply_seconds
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.a", b"slow")
    slow = await jobs.next()
    for _ in range(3):
        await asyncio.sleep(0.1)
        await slow.in_progress()
    await slow.ack()
    await worker.until_empty()
    assert sum(histogram.counts) == 1
    assert histogram.sum >= 0.3  # never less than the handler took
    await worker.publish_plain("jobs.b", b"own timeout", {"Requeue-Ack-Timeout": "1h"})
    before_s = histogram.sum
    await (await jobs.next()).ack()
    await worker.until_empty()
    assert sum(histogram.counts) == 2
    assert 0 < histogram.sum - before_s < 3000  # counted by its own timeout, not by the queue's


async def test_lateness_is_that_of_what_was_sent(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await worker.publish("jobs.a", b"late", delay_ns=HOUR, ttl_ns=HOUR)
    for _ in range(3):
        await worker.publish("jobs.a", b"sent", delay_ns=HOUR)
    await worker.forward(2 * HOUR)
    await until(lambda: len(jobs.received) == 3)
    await worker.until_empty()

    assert worker.queue().counts.expired == 1
    assert sum(worker.worker.counts.lateness_seconds.counts) == 3


async def test_failures_never_restart_the_ttl(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"min_backoff": "25m"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.a", retries=9, ttl_ns=HOUR, backoff=Backoff.FIXED)
    deadline_ns = worker.pending()[0].record.deadline_ns

    for failures in (1, 2):
        await (await jobs.next()).nak()
        await worker.until_failed(failures)
        await worker.forward(25 * MINUTE)
    await (await jobs.next()).nak()
    await worker.until_failed(3)
    last = await worker.one_pending()
    await worker.forward(10 * MINUTE)
    letter = await worker.one_dead()

    assert last.time_ns == deadline_ns
    assert (letter.record.deadline_ns, letter.record.attempts) == (deadline_ns, 3)
    assert letter.extras.reason == "expired"
    assert len(jobs.received) == 3


async def test_a_message_waiting_for_a_slot_expires_without_one(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.holds-the-slot")
    first = await jobs.next()

    await worker.publish("jobs.waits", ttl_ns=30 * MS)
    letter = await worker.one_dead()

    assert letter.record.subject == b"jobs.waits"
    assert worker.queue().in_flight == 1
    await first.ack()
    await worker.until_empty()
    assert len(jobs.received) == 1


async def test_a_message_waiting_for_a_token_expires_without_one(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"max_rate": 0.001})
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await worker.publish("jobs.takes-the-token")
    await jobs.next()

    await worker.publish("jobs.waits", ttl_ns=30 * MS)

    assert (await worker.one_dead()).record.subject == b"jobs.waits"
    assert len(jobs.received) == 1


async def test_a_message_is_not_sent_after_its_deadline_when_its_slot_comes_free_too_late(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.holds-the-slot")
    first = await jobs.next()
    for _ in range(5):
        await worker.publish("jobs.waits", ttl_ns=HOUR)

    worker.clock.offset_ns += 2 * HOUR
    await first.ack()
    await until(lambda: worker.queue().dead == 5)
    await worker.idle()

    assert len(jobs.received) == 1


async def test_a_reply_after_the_deadline_still_settles_and_a_failure_after_it_expires(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.settles", ttl_ns=HOUR, retries=5)
    await worker.publish("jobs.fails", ttl_ns=HOUR, retries=5)
    settles, fails = [await jobs.next(), await jobs.next()]

    await worker.forward(2 * HOUR)
    await settles.ack()
    await fails.nak()
    letter = await worker.one_dead()
    await worker.until_empty()

    assert (letter.record.subject, letter.record.attempts) == (b"jobs.fails", 1)
    assert letter.extras.reason == "expired"
    assert worker.queue().counts.settled == 1


async def test_what_expired_while_the_worker_was_down_is_never_delivered(
    start: StartWorker, nc: Client
) -> None:
    first = await start()
    await first.publish("jobs.a", delay_ns=MINUTE, ttl_ns=HOUR)
    await first.publish("jobs.b", delay_ns=MINUTE)
    await first.stop()
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)

    later = Clock()
    later.offset_ns = 2 * HOUR
    second = await start(clock=later)
    letter = await second.one_dead()
    await second.until_empty()

    assert letter.record.subject == b"jobs.a"
    assert [msg.subject for msg in jobs.received] == ["jobs.b"]


async def test_what_expired_while_nats_was_down_is_never_delivered(
    start: StartWorker, nc: Client, nats_server: NatsServer
) -> None:
    worker = await start(reconnect_grace="10s")
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await worker.publish("jobs.a", delay_ns=MINUTE, ttl_ns=HOUR)
    await worker.publish("jobs.b", delay_ns=MINUTE)

    await asyncio.to_thread(nats_server.stop)
    await worker.forward(2 * HOUR)
    await asyncio.to_thread(nats_server.start)
    await worker.one_dead()
    await worker.until_empty()

    assert {msg.subject for msg in jobs.received} == {"jobs.b"}


# -- slots ---------------------------------------------------------------------------------------------------


async def test_no_more_than_max_in_flight_are_out_at_a_time(start: StartWorker, nc: Client) -> None:
    worker = await start(queues=[{"name": "narrow", "max_in_flight": 3}])
    jobs = await Handler.listen(nc, "jobs.>")
    for number in range(9):
        await worker.publish("jobs.a", b"%d" % number, queue="narrow")

    most = 0
    for _ in range(9):
        msg = await jobs.next()
        await fence(worker, nc)
        most = max(most, len(jobs.received) - worker.queue("narrow").counts.settled)
        assert worker.queue("narrow").in_flight <= 3
        settled = worker.queue("narrow").counts.settled
        await msg.ack()
        await until(lambda settled=settled: worker.queue("narrow").counts.settled > settled)
    await worker.until_empty("narrow")

    assert most == 3
    assert jobs.payloads == [b"%d" % number for number in range(9)]


async def test_a_delayed_nak_holds_no_slot(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.first", retries=5)
    await worker.publish("jobs.second", retries=5)

    first = await jobs.next()
    await first.nak(delay=3600)
    second = await jobs.next()
    await second.ack()
    await until(lambda: worker.queue().counts.settled == 1)
    await worker.idle()

    assert second.subject == "jobs.second"
    assert [stored.record.subject for stored in worker.pending()] == [b"jobs.first"]


async def test_a_timed_out_message_frees_its_slot(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"max_in_flight": 1, "ack_timeout": "100ms", "min_backoff": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.silent", retries=5)
    await worker.publish("jobs.second", retries=5)

    assert [(await jobs.next()).subject for _ in range(2)] == ["jobs.silent", "jobs.second"]


async def test_a_queue_whose_handlers_hang_does_not_keep_others_from_slots(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(max_in_flight_total=4)
    await Handler.listen(nc, "jobs.hang")
    quick = await Handler.listen(nc, "jobs.quick", answer=ack)
    for _ in range(20):
        await worker.publish("jobs.hang", queue="hangs")
    await worker.until_sent(4, "hangs")

    for _ in range(20):
        await worker.publish("jobs.quick", queue="quick")
    await worker.until_empty("quick")

    assert len(quick.received) == 20


# -- rate ----------------------------------------------------------------------------------------------------


async def test_max_rate_bounds_dispatches_per_second(start: StartWorker, nc: Client) -> None:
    rate, number = 50.0, 25
    burst = rate / 10  # the bucket holds a tenth of a second's worth
    worker = await start(queues=[{"name": "slow", "max_rate": rate}])
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)

    began = time.monotonic()
    for _ in range(number):
        await worker.publish("jobs.a", queue="slow")
    await worker.until_empty("slow")

    assert time.monotonic() - began >= (number - burst) / rate
    assert len(jobs.received) == number


async def test_a_rate_holds_nobody_else_up(start: StartWorker, nc: Client) -> None:
    worker = await start(queues=[{"name": "slow", "max_rate": 0.001}])
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    for _ in range(3):
        await worker.publish("jobs.slow", queue="slow")

    for _ in range(5):
        await worker.publish("jobs.free", queue="free")
    await worker.until_empty("free")

    assert [msg.subject for msg in jobs.received].count("jobs.slow") == 1


# -- weight --------------------------------------------------------------------------------------------------


async def fill(worker: LiveWorker, queue: str, number: int) -> None:
    """Publish messages of this queue that are due in an hour."""
    wire = build_envelope(subject=f"jobs.{queue}", payload=b"", queue=queue, delay_ns=HOUR)
    for _ in range(number):
        await worker.nc.publish(INTAKE, wire)
    await until(lambda: worker.queue(queue).pending == number)
    await worker.idle()


async def test_queues_share_by_weight_while_both_have_due_messages(start: StartWorker, nc: Client) -> None:
    worker = await start(queues=[{"name": "heavy", "weight": 300}, {"name": "light", "weight": 100}])
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await fill(worker, "heavy", 1500)
    await fill(worker, "light", 1500)

    await worker.forward(HOUR)
    await worker.until_empty("heavy")
    await worker.until_empty("light")

    first = [msg.subject for msg in jobs.received[:1024]]
    assert 3 * 0.7 <= first.count("jobs.heavy") / first.count("jobs.light") <= 3 * 1.4
    assert len(jobs.received) == 3000


async def test_a_light_queue_does_not_starve_beside_heavy_ones(start: StartWorker, nc: Client) -> None:
    worker = await start(
        max_in_flight_total=64,
        queues=[
            {"name": "heavy", "weight": 900},
            {"name": "heavier", "weight": 900},
            {"name": "light", "weight": 1},
        ],
    )
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await fill(worker, "heavy", 1500)
    await fill(worker, "heavier", 1500)
    await fill(worker, "light", 1)

    await worker.forward(HOUR)
    await until(lambda: len(jobs.received) == 3001)

    place = [msg.subject for msg in jobs.received].index("jobs.light")
    assert place < 2900
    for queue in ("heavy", "heavier", "light"):
        await worker.until_empty(queue)


# -- priority ------------------------------------------------------------------------------------------------


async def test_priority_is_strict_within_a_queue_and_due_order_within_a_priority(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    published = [(9, 1), (0, 3), (4, 2), (0, 1), (9, 2), (1, 9), (4, 1), (3, 5)]
    for priority, minutes in published:
        headers = {"Requeue-Priority": str(priority), "Requeue-Delay": f"{minutes}m"}
        await worker.publish_plain("jobs.a", b"%d %d" % (priority, minutes), headers)

    await worker.forward(HOUR)
    await worker.until_empty()

    assert jobs.payloads == [b"%d %d" % each for each in sorted(published)]


async def test_a_late_message_of_higher_priority_goes_before_a_waiting_backlog(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    jobs = await Handler.listen(nc, "jobs.>")
    for _ in range(20):
        await worker.publish("jobs.usual")
    first = await jobs.next()
    await fence(worker, nc)

    await worker.publish("jobs.urgent", headers={"Requeue-Priority": "0"})
    await first.ack()

    assert (await jobs.next()).subject == "jobs.urgent"


async def test_a_higher_priority_that_is_not_due_holds_nothing_back(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await worker.publish("jobs.urgent", delay_ns=HOUR, headers={"Requeue-Priority": "0"})

    await worker.publish("jobs.last", headers={"Requeue-Priority": "9"})

    assert (await jobs.next()).subject == "jobs.last"


async def test_priority_is_kept_over_retries(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"min_backoff": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.a", retries=3, headers={"Requeue-Priority": "7"})

    await (await jobs.next()).nak()
    await worker.until_failed()

    stored = await worker.one_pending()
    assert (stored.priority, stored.record.attempts) == (7, 1)
    await worker.forward(HOUR)
    assert attempt_of(await jobs.next()) == 2


async def test_every_priority_goes_out_after_a_restart_and_in_order(start: StartWorker, nc: Client) -> None:
    first = await start()
    for priority in (7, 0, 9, 4):
        headers = {"Requeue-Priority": str(priority), "Requeue-Delay": "1m"}
        await first.publish_plain("jobs.a", b"%d" % priority, headers)
    await first.stop()
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)

    second = await start(defaults={"max_in_flight": 1})
    await second.forward(HOUR)
    await second.until_empty()

    assert jobs.payloads == [b"0", b"4", b"7", b"9"]


# -- the clock -----------------------------------------------------------------------------------------------


async def test_an_hour_back_on_the_clock_delays_and_loses_nothing(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await worker.publish("jobs.before", delay_ns=MINUTE)

    await worker.forward(-HOUR)
    await worker.publish("jobs.after", delay_ns=MINUTE)
    await fence(worker, nc)
    early = len(jobs.received)
    await worker.forward(2 * MINUTE)
    first = await jobs.next()
    await worker.forward(HOUR)
    await worker.until_empty()

    assert early == 0
    assert [first.subject, jobs.received[1].subject] == ["jobs.after", "jobs.before"]


async def test_a_restart_after_the_clock_went_back_loses_nothing(start: StartWorker, nc: Client) -> None:
    first = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=ack)
    await first.publish("jobs.settled")
    await first.until_empty()
    await first.forward(-HOUR)
    await first.publish("jobs.kept", delay_ns=MINUTE)
    await first.stop()

    behind = Clock()
    behind.offset_ns = -HOUR + 2 * MINUTE
    second = await start(clock=behind)
    await second.until_empty()

    assert [msg.subject for msg in jobs.received] == ["jobs.settled", "jobs.kept"]


# -- the end -------------------------------------------------------------------------------------------------


async def test_a_stopped_worker_does_nothing_more_for_what_was_in_flight(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"ack_timeout": "100ms"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.a", retries=5)
    await jobs.next()

    await worker.stop()
    ticks = worker.worker._scheduler.ticks
    await asyncio.sleep(0.3)

    assert worker.worker._scheduler.ticks == ticks
    assert worker.write_errors == []


async def test_a_reply_that_comes_while_the_worker_closes_is_on_disk_when_it_has(
    start: StartWorker, nc: Client
) -> None:
    first = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await first.publish("jobs.a")
    msg = await jobs.next()
    broker = first.worker._broker
    close = broker.close

    async def close_behind_a_reply() -> None:
        await msg.ack()
        await until(lambda: first.queue().counts.settled == 1)
        await close()

    broker.close = close_behind_a_reply  # type: ignore[method-assign]
    await first.stop()
    second = await start()

    assert first.write_errors == []
    assert second.pending() == []
