"""The wall clock is stepped: what is due goes by the new one, what waits for an answer by none, nothing is lost."""

from __future__ import annotations

import json
import random

import pytest
from nats.aio.client import Client
from requeue_protocol.envelope import build_envelope
from requeue_worker.storage.keys import time_of

from tests.integration.worker.support import (
    HOUR,
    MS,
    Clock,
    Handler,
    LiveWorker,
    S,
    StartWorker,
    ask,
    refusal_of,
)
from tests.servers import settle, until

SOON = "20ms"  #: stats interval: a step is noticed as soon
YEAR_2262 = 2**63 - 1


async def looked(worker: LiveWorker) -> None:
    """Return when the scheduler has looked at the clock as it is now."""
    ticks = worker.worker._scheduler.ticks
    await until(lambda: worker.worker._scheduler.ticks > ticks)


def payloads(worker: LiveWorker) -> list[bytes]:
    """What is pending, in due order."""
    return [stored.record.payload for stored in worker.pending()]


def note_early(worker: LiveWorker, early: list[bytes]) -> None:
    """Note what is sent before its time by the clock of that moment."""
    scheduler = worker.worker._scheduler
    observe = scheduler._observe_lateness

    def look(items: list[tuple[bytes, bytes]], now_ns: int) -> None:
        early.extend(key for key, _ in items if time_of(key) > min(now_ns, worker.clock()))
        observe(items, now_ns)

    scheduler._observe_lateness = look  # type: ignore[method-assign]


async def test_an_hour_forward_releases_by_the_new_clock_without_being_told(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(stats_interval=SOON)
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    await worker.publish("jobs.a", b"soon", delay_ns=HOUR // 2)
    await worker.publish("jobs.a", b"later", delay_ns=2 * HOUR)

    worker.clock.offset_ns += HOUR

    assert (await jobs.next()).data == b"soon"
    await until(lambda: payloads(worker) == [b"later"])


async def test_an_hour_back_delays_and_new_messages_go_out_before_old_ones(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(stats_interval=SOON)
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    await worker.publish("jobs.a", b"sent before")
    await jobs.next()
    await worker.publish("jobs.a", b"old", delay_ns=10 * S)

    worker.clock.offset_ns -= HOUR
    await looked(worker)
    await worker.publish("jobs.a", b"new")

    assert (await jobs.next()).data == b"new"
    await until(lambda: payloads(worker) == [b"old"])
    worker.clock.offset_ns += HOUR + 20 * S
    assert (await jobs.next()).data == b"old"


async def test_any_steps_also_while_it_is_down_lose_nothing_and_send_nothing_early(
    start: StartWorker, nc: Client
) -> None:
    luck, clock, sent = random.Random(7), Clock(), set()
    early: list[bytes] = []
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    for life in range(4):
        worker = await start(stats_interval=SOON, clock=clock)
        note_early(worker, early)
        for number in range(60):
            payload = f"{life}-{number}".encode()
            sent.add(payload)
            delay_ns = luck.choice((0, 50 * MS, S, HOUR // 2, HOUR))
            await worker.publish("jobs.a", payload, delay_ns=delay_ns, queue=f"q{number % 3}")
            if number % 6 == 0:
                clock.offset_ns += luck.choice((-HOUR, -S, 30 * S, HOUR))
        await worker.stop()
        clock.offset_ns += luck.choice((-2 * HOUR, 2 * HOUR))
    clock.offset_ns += 100 * HOUR
    await start(stats_interval=SOON, clock=clock)
    await until(lambda: set(jobs.payloads) == sent)

    assert early == []


async def test_ttls_end_by_the_wall_clock(start: StartWorker, nc: Client) -> None:
    worker = await start(stats_interval=SOON)
    await worker.publish("jobs.a", b"", delay_ns=10 * HOUR, ttl_ns=HOUR)

    worker.clock.offset_ns += HOUR

    assert (await worker.one_dead()).extras.reason == "expired"


async def test_an_ack_timeout_does_not_end_by_the_wall_clock(start: StartWorker, nc: Client) -> None:
    worker = await start(stats_interval=SOON, defaults={"ack_timeout": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.a")
    replay = await jobs.next()

    for step_ns in (5 * HOUR, -10 * HOUR):
        worker.clock.offset_ns += step_ns
        await looked(worker)
        assert worker.queue().in_flight == 1
    await replay.ack()
    await worker.until_empty()

    assert worker.queue().counts.retried == 0


async def test_a_rate_goes_on_after_a_step_back(start: StartWorker, nc: Client) -> None:
    worker = await start(stats_interval=SOON, defaults={"max_rate": 20})
    worker.clock.offset_ns = HOUR
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    for number in range(10):
        await worker.publish("jobs.a", b"%d" % number, delay_ns=0)
    await jobs.next()
    pending = worker.queue().pending
    worker.clock.offset_ns = 0
    assert pending > 0
    worker.clock.offset_ns = HOUR - S  # what was due is due again in a second
    await until(lambda: len(jobs.received) == 10)


async def test_a_pause_ends_by_the_wall_clock(start: StartWorker, nc: Client) -> None:
    worker = await start(stats_interval=SOON)
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    await worker.publish("jobs.other", b"", delay_ns=10 * HOUR)
    worker.queue().paused_until_ns = worker.clock() + HOUR
    await worker.publish("jobs.a", b"paused")
    await settle(nc)
    assert jobs.received == []

    worker.clock.offset_ns += 2 * HOUR

    assert (await jobs.next()).data == b"paused"


@pytest.mark.parametrize("now_ns", [-HOUR, -1, 0, 1, YEAR_2262 - HOUR, YEAR_2262, YEAR_2262 + HOUR])
async def test_a_clock_that_is_far_off_at_the_start_harms_nothing(
    start: StartWorker, nc: Client, now_ns: int
) -> None:
    clock = Clock()
    clock.offset_ns = now_ns - clock()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    worker = await start(stats_interval=SOON, clock=clock)

    await worker.publish("jobs.a", b"now")
    assert (await jobs.next()).data == b"now"
    await worker.until_empty()
    await worker.stop()
    clock.offset_ns = 0
    worker = await start(stats_interval=SOON, clock=clock)
    await worker.publish("jobs.a", b"right again")
    assert (await jobs.next()).data == b"right again"


FAR = 2**63 - 1


@pytest.mark.parametrize(
    ("payload", "headers"),
    [
        (build_envelope(subject="jobs.a", payload=b"", delay_ns=FAR), None),
        (build_envelope(subject="jobs.a", payload=b"", delay_ns=2**64 - 1), None),
        (build_envelope(subject="jobs.a", payload=b"", delay_ns=2**64 - 1), {"Requeue-Priority": "1"}),
        (b"", {"Requeue-Subject": "jobs.a", "Requeue-Delay": "2562047h47m16s"}),
        (b"", {"Requeue-Subject": "jobs.a", "Requeue-Delay": "2562048h"}),
        (b"", {"Requeue-Subject": "jobs.a", "Requeue-At": "2300-01-01T00:00:00Z"}),
        (b"", {"Requeue-Subject": "jobs.a", "Requeue-At": "1969-12-31T23:59:59Z"}),
        (b"", {"Requeue-Subject": "jobs.a", "Requeue-TTL": "9999999h"}),
    ],
)
async def test_what_would_be_due_beyond_2262_is_refused_with_that_text(
    start: StartWorker, payload: bytes, headers: dict[str, str] | None
) -> None:
    worker = await start()

    code, text = refusal_of(await worker.ask(payload, headers))

    assert code == 400
    assert "2262" in text or "292 years" in text
    assert worker.pending() == []


async def test_a_ttl_beyond_2262_is_a_deadline_in_2262(start: StartWorker) -> None:
    worker = await start()
    await worker.publish("jobs.a", delay_ns=HOUR, ttl_ns=2**64 - 1)

    assert (await worker.one_pending()).record.deadline_ns == YEAR_2262


async def test_a_reschedule_beyond_2262_is_refused(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await worker.publish_plain("jobs.a", b"", {"Nats-Msg-Id": "x", "Requeue-Delay": "1h"})
    before = worker.pending()

    answer = await ask(
        nc, "_requeue.admin.reschedule", json.dumps({"id": "x", "delay_ns": FAR - 1}).encode(), None
    )

    assert json.loads(answer.data)["code"] == 400
    assert "2262" in json.loads(answer.data)["error"]
    assert worker.pending() == before


@pytest.mark.parametrize("delay", [str(FAR), str(FAR + 1), "-1", "1e400", "NaN", '"2562047h"', "9" * 5000])
async def test_a_nak_that_asks_for_an_absurd_delay_is_retried_by_the_backoff_and_says_so(
    start: StartWorker, nc: Client, delay: str
) -> None:
    worker = await start(defaults={"min_backoff": "1h", "retries": 5})
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish_plain("jobs.a", b"")

    await (await jobs.next()).respond(f'-NAK {{"delay": {delay}}}'.encode())
    await worker.until_failed()
    stored = await worker.one_pending()

    assert stored.time_ns <= worker.clock() + 3 * HOUR
    assert "delay" in stored.errors[0]
