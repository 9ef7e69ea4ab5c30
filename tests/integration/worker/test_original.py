"""A client of nickpoorman/nats-requeue works unchanged, and the defects of the original do not come back.

The client here knows nothing of this project but the original's schema: envelopes are built and stats are read with
code generated from it, and requests are repeated as the original's `RetryRequest` does.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import flatbuffers
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import retry_request
from requeue_protocol.flatbuf import requeue_msg_generated as fb
from requeue_protocol.flatbuf.stats_msg_generated import InstanceStatsMessage
from requeue_worker.errors import CommitError
from requeue_worker.storage.rocksdb import Batch

from tests.integration.worker.support import (
    HOUR,
    INSTANCE,
    INTAKE,
    MS,
    Handler,
    LiveWorker,
    S,
    StartWorker,
    ask,
    ask_later,
    attempt_of,
    headers_of,
)
from tests.servers import NatsServerFactory, settle, until


def original_envelope(
    subject: str,
    payload: bytes,
    *,
    retries: int = 0,
    ttl: int = 0,
    delay: int = 0,
    strategy: int = fb.BackoffStrategy.Undefined,
    queue: str | None = None,
) -> bytes:
    """An envelope as the original's client builds it."""
    builder = flatbuffers.Builder(0)
    queue_at = builder.CreateString(queue) if queue is not None else None
    subject_at = builder.CreateString(subject)
    payload_at = builder.CreateByteVector(payload)
    fb.RequeueMessageStart(builder)
    fb.RequeueMessageAddRetries(builder, retries)
    fb.RequeueMessageAddTtl(builder, ttl)
    fb.RequeueMessageAddDelay(builder, delay)
    fb.RequeueMessageAddBackoffStrategy(builder, strategy)
    if queue_at is not None:
        fb.RequeueMessageAddQueueName(builder, queue_at)
    fb.RequeueMessageAddOriginalSubject(builder, subject_at)
    fb.RequeueMessageAddOriginalPayload(builder, payload_at)
    builder.Finish(fb.RequeueMessageEnd(builder))
    return bytes(builder.Output())


async def respond_ok(msg: Msg) -> None:
    """As the original's examples answer: something, anything."""
    await msg.respond(b"ok")


# -- end to end ----------------------------------------------------------------------------------------------


async def test_100_messages_by_flatbuffers_are_delivered_once_each(start: StartWorker, nc: Client) -> None:
    """The original's own end-to-end case. The requests begin before there is a worker, and are repeated until it is."""
    number = 100
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    envelopes = [
        original_envelope("foo.bar", b"payload %d" % each, retries=10, ttl=HOUR, delay=50 * MS, queue="high")
        for each in range(number)
    ]

    requests = [asyncio.ensure_future(retry_request(nc, "requeue.foo", wire, "5s")) for wire in envelopes]
    await asyncio.sleep(0)
    worker = await start()
    acks = await asyncio.gather(*requests)
    await until(lambda: len(handler.received) >= number)
    await worker.until_empty("high")

    assert [ack.data for ack in acks] == [b""] * number
    assert Counter(handler.payloads) == Counter(b"payload %d" % each for each in range(number))


async def test_two_workers_in_the_queue_group_share_them_and_deliver_once_each(
    start: StartWorker, nc: Client
) -> None:
    number = 100
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    one, two = await start(), await start(instance_id="two")

    for each in range(number):
        assert (await ask(nc, "requeue.foo", original_envelope("foo.bar", b"%d" % each))).data == b""
    await until(lambda: len(handler.received) >= number)
    await one.until_empty()
    await two.until_empty()

    assert Counter(handler.payloads) == Counter(b"%d" % each for each in range(number))
    assert min(one.worker.counts.intake_messages, two.worker.counts.intake_messages) > 0


async def test_an_empty_payload_and_absent_fields_are_fine(start: StartWorker, nc: Client) -> None:
    await start()
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    builder = flatbuffers.Builder(0)
    subject_at = builder.CreateString("foo.bar")
    fb.RequeueMessageStart(builder)
    fb.RequeueMessageAddOriginalSubject(builder, subject_at)
    builder.Finish(fb.RequeueMessageEnd(builder))

    assert (await ask(nc, INTAKE, bytes(builder.Output()))).data == b""
    msg = await handler.next()

    assert msg.data == b""
    assert headers_of(msg)["Requeue-Queue"] == "default"


# -- the original's defects ----------------------------------------------------------------------------------


async def test_defect_it_acked_although_the_commit_failed(start: StartWorker, nc: Client) -> None:
    worker = await start()

    async def fail(batch: Batch) -> None:
        raise CommitError("no space left on device")

    worker.worker._store.write = fail  # type: ignore[method-assign]
    asked = [await ask_later(nc, INTAKE, original_envelope("foo.bar", b"p")) for _ in range(20)]
    with pytest.raises(CommitError, match="no space left"):
        await worker.worker.closed()
    await settle(nc)

    assert not any(each.answered for each in asked)


async def test_defect_a_message_without_ttl_counted_as_expired(start: StartWorker, nc: Client) -> None:
    worker = await start()
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)

    await ask(nc, INTAKE, original_envelope("foo.bar", b"now"))
    await ask(nc, INTAKE, original_envelope("foo.bar", b"in a year", delay=365 * 24 * HOUR))
    await handler.next()
    await worker.forward(366 * 24 * HOUR)
    await handler.next()
    await worker.until_empty()

    assert handler.payloads == [b"now", b"in a year"]
    assert worker.queue().dead == 0


async def test_defect_exponential_backoff_was_ignored(start: StartWorker, nc: Client) -> None:
    worker = await start()
    handler = await Handler.listen(nc, "foo.bar")
    strategy = fb.BackoffStrategy.Exponential
    await ask(nc, INTAKE, original_envelope("foo.bar", b"", retries=9, delay=10 * S, strategy=strategy))

    waits_s = []
    await worker.forward(10 * S)
    for failures in range(1, 5):
        await (await handler.next()).nak()
        await worker.until_failed(failures)
        stored = await worker.one_pending()
        waits_s.append((stored.time_ns - stored.extras.history[-1].at_ns) / S)
        await worker.forward(HOUR)

    assert waits_s == [10, 20, 40, 80]


async def test_defect_a_pass_that_found_nothing_due_crashed(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"max_rate": 1000})
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    await ask(nc, INTAKE, original_envelope("foo.bar", b"later", delay=HOUR, queue="waiting"))

    for _ in range(20):
        await worker.forward(S)
        await asyncio.sleep(0.005)
    await ask(nc, INTAKE, original_envelope("foo.bar", b"now"))
    await handler.next()

    assert handler.payloads == [b"now"]
    assert worker.worker.live() == (True, "alive")


async def test_defect_queue_names_with_a_dot_broke_the_keys(start: StartWorker, nc: Client) -> None:
    names = ["a", "a.b", "a.b.c", "a.", ".a", "a-b", "a_b", "A.B", "high.default", "0.1", "x" * 128]
    first = await start()
    for name in names:
        await ask(nc, INTAKE, original_envelope("foo.bar", name.encode(), delay=HOUR, queue=name))
    counted = {name: first.queue(name).pending for name in names}
    await first.stop()
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    second = await start()
    await second.forward(HOUR)
    for name in names:
        await second.until_empty(name)

    assert counted == dict.fromkeys(names, 1)
    assert sorted(handler.payloads) == sorted(name.encode() for name in names)
    assert {msg.data.decode(): headers_of(msg)["Requeue-Queue"] for msg in handler.received} == {
        name: name for name in names
    }


async def test_defect_queue_state_was_not_reloaded_after_a_restart(start: StartWorker, nc: Client) -> None:
    first = await start()
    for queue, number in (("one", 3), ("two", 5)):
        for _ in range(number):
            await ask(nc, INTAKE, original_envelope("foo.bar", b"p", delay=HOUR, queue=queue))
    await first.stop()

    second = await start()
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    counted = {queue: second.queue(queue).pending for queue in ("one", "two")}
    await second.forward(HOUR)
    await second.until_empty("one")
    await second.until_empty("two")

    assert counted == {"one": 3, "two": 5}
    assert len(handler.received) == 8


async def test_defect_exhausted_messages_were_dropped_silently(start: StartWorker, nc: Client) -> None:
    worker = await start()

    await ask(nc, INTAKE, original_envelope("nobody.there", b"kept", retries=2))
    letter = await worker.one_dead()

    assert (letter.record.payload, letter.extras.reason, len(letter.errors)) == (b"kept", "exhausted", 2)


async def test_defect_priority_was_promised_and_not_built(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"max_in_flight": 1})
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    for priority in "951":
        await ask(
            nc,
            INTAKE,
            original_envelope("foo.bar", priority.encode(), delay=HOUR),
            {"Requeue-Priority": priority},
        )

    await worker.forward(2 * HOUR)
    await worker.until_empty()

    assert handler.payloads == [b"1", b"5", b"9"]


async def test_defect_stats_were_never_published(start: StartWorker, nc: Client) -> None:
    stats = await Handler.listen(nc, "_requeue._stats")
    await start(stats_interval="20ms")

    assert instance_of(await stats.next()) == INSTANCE


async def test_defect_a_malformed_envelope_crashed_the_reader(start: StartWorker, nc: Client) -> None:
    worker = await start()
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    whole = original_envelope("foo.bar", b"p")

    for length in range(len(whole)):
        await nc.publish(INTAKE, whole[:length])
    await nc.publish(INTAKE, b"\xff" * len(whole))
    await ask(nc, INTAKE, whole)
    await handler.next()

    assert worker.worker.ready() == (True, "ready")
    assert worker.worker.counts.refused[400] >= 1


async def test_defect_a_bad_directory_beside_its_own_stopped_it(start: StartWorker, nc: Client) -> None:
    first = await start()
    beside = first.path.parent
    for name, files in (("empty", ()), ("noise", ("CURRENT", "MANIFEST-000001")), (".hidden", ("LOCK",))):
        (beside / name).mkdir()
        for file in files:
            (beside / name / file).write_bytes(b"\xff" * 100)
    (beside / "a-file").write_text("not a directory")
    await first.stop()

    await start()
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    await ask(nc, INTAKE, original_envelope("foo.bar", b"p"))

    assert (await handler.next()).data == b"p"
    assert (beside / "noise" / "CURRENT").read_bytes() == b"\xff" * 100


async def test_defect_it_polled_every_15_seconds(start: StartWorker, nc: Client) -> None:
    """Nothing to do is no work, and what is due in between waits for no round."""
    worker = await start()
    handler = await Handler.listen(nc, "foo.bar", answer=respond_ok)
    await ask(nc, INTAKE, original_envelope("foo.bar", b"in an hour", delay=HOUR, queue="waiting"))
    await worker.idle()
    await asyncio.sleep(0.05)

    ticks, commits = worker.worker._scheduler.ticks, worker.worker.counts.commits
    await asyncio.sleep(0.3)
    assert (worker.worker._scheduler.ticks, worker.worker.counts.commits) == (ticks, commits)

    await ask(nc, INTAKE, original_envelope("foo.bar", b"soon", delay=100 * MS))
    msg = await asyncio.wait_for(handler.next(), 10)
    assert (msg.data, attempt_of(msg)) == (b"soon", 1)


# -- stats ---------------------------------------------------------------------------------------------------


def root(msg: Msg) -> InstanceStatsMessage:
    return InstanceStatsMessage.GetRootAsInstanceStatsMessage(msg.data, 0)


def instance_of(msg: Msg) -> str:
    return root(msg).InstanceId().decode()


def queues_of(msg: Msg) -> dict[str, tuple[int, int]]:
    """Queue name to messages enqueued and in flight, read with the original's schema."""
    table = root(msg)
    return {
        queue.QueueName().decode(): (queue.Enqueued(), queue.InFlight())
        for queue in map(table.Queues, range(table.QueuesLength()))
    }


async def stats_of(stats: Handler, worker: LiveWorker) -> dict[str, tuple[int, int]]:
    """The queues of a stats message that was made after everything before is on disk."""
    await worker.idle()
    seen = len(stats.received)
    await until(lambda: len(stats.received) >= seen + 2)
    return queues_of(stats.received[-1])


async def test_stats_tell_pending_and_in_flight_of_every_queue(start: StartWorker, nc: Client) -> None:
    stats = await Handler.listen(nc, "_requeue._stats")
    worker = await start(stats_interval="20ms", defaults={"min_backoff": "1h"})
    jobs = await Handler.listen(nc, "jobs.>")
    empty = await stats_of(stats, worker)

    for number in range(3):
        await worker.publish("jobs.a", b"%d" % number, queue="busy", retries=5)
    await worker.publish("later.a", queue="later", delay_ns=HOUR)
    await worker.ask(b"malformed")
    messages = [await jobs.next() for _ in range(3)]
    busy = await stats_of(stats, worker)
    await messages[0].ack()
    await messages[1].nak()
    await until(lambda: worker.queue("busy").in_flight == 1)
    answered = await stats_of(stats, worker)
    await messages[2].term()
    await worker.one_dead("busy")
    buried = await stats_of(stats, worker)

    assert empty == {}
    assert busy == {"busy": (3, 3), "later": (1, 0)}
    assert answered == {"busy": (2, 1), "later": (1, 0)}
    assert buried == {"busy": (1, 0), "later": (1, 0)}


async def test_each_instance_tells_of_itself(start: StartWorker, nc: Client) -> None:
    stats = await Handler.listen(nc, "_requeue._stats")
    await start(stats_interval="20ms")
    await start(stats_interval="20ms", instance_id="two")

    await until(lambda: {instance_of(msg) for msg in stats.received} == {INSTANCE, "two"})


async def test_stats_of_many_queues_are_split_below_the_server_limit(
    start: StartWorker, nats_server_factory: NatsServerFactory
) -> None:
    limit = 8192
    server = nats_server_factory(config=f"max_payload: {limit}\n")
    worker = await start(nats={"servers": [server.url]}, stats_interval="50ms")
    worker.nc = nc = await nats.connect(server.url)
    names = [f"queue-{number:03d}-{'x' * 60}" for number in range(200)]
    for name in names:
        await nc.publish(INTAKE, original_envelope("foo.bar", b"", delay=HOUR, queue=name))
    await until(lambda: len(worker.worker._registry) == len(names))
    await worker.idle()

    stats = await Handler.listen(nc, "_requeue._stats")
    seen: dict[str, tuple[int, int]] = {}

    def complete() -> bool:
        for msg in stats.received:
            seen.update(queues_of(msg))
        return len(seen) == len(names)

    await until(complete)

    assert seen == dict.fromkeys(names, (1, 0))
    assert max(len(msg.data) for msg in stats.received) <= limit
    await nc.close()


async def test_stats_are_right_again_after_a_restart(start: StartWorker, nc: Client) -> None:
    first = await start()
    for _ in range(4):
        await first.publish("jobs.a", queue="kept", delay_ns=HOUR)
    await first.stop()

    stats = await Handler.listen(nc, "_requeue._stats")
    second = await start(stats_interval="20ms")

    assert await stats_of(stats, second) == {"kept": (4, 0)}
