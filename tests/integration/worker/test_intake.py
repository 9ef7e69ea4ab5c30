"""What goes in: both intakes, headers byte for byte, acks after the fsync, refusals and silence, invalid messages kept."""

from __future__ import annotations

import asyncio
import random
import tracemalloc

import pytest
from nats import errors as nats_errors
from nats.aio.client import Client
from requeue_protocol.envelope import build_envelope
from requeue_protocol.headers import build_headers
from requeue_worker.broker.client import BulkClient
from requeue_worker.broker.parser import Raw
from requeue_worker.errors import CommitError
from requeue_worker.ingest import REPLAY_HEADROOM_BYTES
from requeue_worker.storage.rocksdb import Batch

from tests.integration.worker.support import (
    HOUR,
    INTAKE,
    Handler,
    LiveWorker,
    StartWorker,
    ask,
    ask_later,
    headers_of,
    is_ack,
    raw_client,
    raw_listen,
    raw_message,
    refusal_of,
)
from tests.servers import NatsServer, NatsServerFactory, settle, until

PLAIN = {"Requeue-Subject": "jobs.a", "Requeue-Delay": "1h"}
ADDED = ["Requeue-Id", "Requeue-Attempt", "Requeue-Max-Attempts", "Requeue-Queue", "Requeue-Enqueued-At"]


# -- acks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [None, {"Trace": "t"}, {"Requeue-Priority": "1"}], ids=str)
async def test_an_envelope_on_disk_is_acked_with_an_empty_reply(
    start: StartWorker, headers: dict[str, str] | None
) -> None:
    worker = await start()

    answer = await worker.ask(build_envelope(subject="jobs.a", payload=b"p", delay_ns=HOUR), headers)

    assert (answer.data, answer.headers) == (b"", None)
    assert [stored.record.payload for stored in worker.pending()] == [b"p"]


async def test_a_plain_message_on_disk_is_acked_with_an_empty_reply(start: StartWorker) -> None:
    worker = await start()

    answer = await worker.ask(b"p", PLAIN)

    assert (answer.data, answer.headers) == (b"", None)
    assert [stored.record.payload for stored in worker.pending()] == [b"p"]


async def test_no_ack_goes_out_before_the_fsync(start: StartWorker, nc: Client) -> None:
    worker = await start()

    async with worker.held_disk() as writing:
        by_envelope = await ask_later(
            nc, INTAKE, build_envelope(subject="jobs.a", payload=b"", delay_ns=HOUR)
        )
        by_header = await ask_later(nc, INTAKE, b"", PLAIN)
        await writing.wait()
        await settle(nc)
        answered_early = by_envelope.answered or by_header.answered

    assert not answered_early
    assert is_ack(await by_envelope.answer())
    assert is_ack(await by_header.answer())


async def test_a_message_that_asks_for_no_ack_is_stored_all_the_same(start: StartWorker, nc: Client) -> None:
    worker = await start()

    await nc.publish(INTAKE, build_envelope(subject="jobs.a", payload=b"fire and forget", delay_ns=HOUR))
    await nc.publish(INTAKE, b"and plain", headers=PLAIN)
    await until(lambda: len(worker.pending()) == 2)

    assert {stored.record.payload for stored in worker.pending()} == {b"fire and forget", b"and plain"}


@pytest.mark.parametrize("subject", ["requeue.x", "requeue.a.b.c.d", "requeue.publish.orders"])
async def test_every_subject_below_the_intake_is_taken(start: StartWorker, nc: Client, subject: str) -> None:
    await start()

    assert is_ack(await ask(nc, subject, b"", PLAIN))


async def test_another_intake_subject_and_queue_group_are_taken_where_settings_say_so(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(subject="later.*", queue_group="mine")
    await start(subject="later.*", queue_group="mine", instance_id="neighbour")

    answers = [await ask(nc, "later.x", b"", PLAIN) for _ in range(20)]

    assert all(map(is_ack, answers))
    assert 0 <= len(worker.pending()) <= 20
    assert refusal_of(await ask(nc, "later.x", b"", {"Requeue-Subject": "later.y"}))[0] == 403


# -- payloads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intake", ["envelope", "plain"])
async def test_payloads_of_any_bytes_come_back_as_they_went_in(
    start: StartWorker, nc: Client, intake: str
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    noise = random.Random(3)
    payloads = [b"", b"\x00", bytes(range(256)), b"+ACK", b"-NAK", b"\r\n", noise.randbytes(300_000)]

    for payload in payloads:
        if intake == "envelope":
            await worker.publish("jobs.a", payload)
        else:
            await worker.publish_plain("jobs.a", payload)
    await until(lambda: len(jobs.received) == len(payloads))

    assert jobs.payloads == payloads
    await worker.until_empty()


async def test_requeue_subject_always_means_plain_intake(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, ">", answer=None)
    envelope = build_envelope(subject="jobs.inner", payload=b"inner", queue="inner")

    await worker.publish_plain("jobs.outer", envelope)
    await until(lambda: any(msg.subject == "jobs.outer" for msg in jobs.received))

    assert [msg.data for msg in jobs.received if msg.subject.startswith("jobs.")] == [envelope]


# -- headers -------------------------------------------------------------------------------------------------

ODD_LINES = (
    b"trace-ID: abc\r\n"
    b"Trace-Id:no space\r\n"
    b"Trace-Id:   many spaces   \r\n"
    b"X-Empty:\r\n"
    b"X-Colons: a:b:c\r\n"
    b"X-Bytes: \xff\xfe caf\xc3\xa9\r\n"
    b"X-Requeue-Like: kept\r\n"
    b"Nats-Expected-Stream: S\r\n"
)


def with_lines(*parts: bytes) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(parts) + b"\r\n"


async def replay_of(worker: LiveWorker, client: BulkClient, block: bytes, payload: bytes) -> Raw:
    """Publish raw bytes and return the replay as raw bytes."""
    jobs = await raw_listen(client, "jobs.>")
    client.send(raw_message(INTAKE, block, payload), 1)
    await until(lambda: jobs)
    client.send(b"PUB %b 0\r\n\r\n" % jobs[0][1], 1)
    await worker.until_empty()
    return jobs[0]


@pytest.mark.parametrize("intake", ["envelope", "plain"])
async def test_headers_travel_byte_for_byte_and_policy_headers_do_not(
    start: StartWorker, nats_server: NatsServer, intake: str
) -> None:
    worker = await start()
    payload = build_envelope(subject="jobs.a", payload=b"p") if intake == "envelope" else b"p"
    policy = b"" if intake == "envelope" else b"requeue-SUBJECT: jobs.a\r\n"

    async with raw_client(nats_server) as client:
        block = with_lines(policy, ODD_LINES, b"REQUEUE-PRIORITY: 3\r\n", b"Requeue-Ack-Timeout:5s\r\n")
        _, _, headers, body = await replay_of(worker, client, block, payload)

    assert headers is not None
    assert headers.startswith(b"NATS/1.0\r\n" + ODD_LINES + b"Requeue-Id: ")
    lines = headers[len(b"NATS/1.0\r\n" + ODD_LINES) :].split(b"\r\n")
    assert [line.partition(b":")[0].decode() for line in lines] == [*ADDED, "Nats-Msg-Id", "", ""]
    assert body == b"p"


async def test_a_replay_says_what_it_is(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")

    await worker.publish("jobs.bare", b"1", retries=2, queue="a.queue", ttl_ns=HOUR)
    bare = headers_of(await jobs.next())
    await worker.publish_plain("jobs.plain", b"2", {"Nats-Msg-Id": "mine", "Trace": "t"})
    plain_msg = await jobs.next()
    plain = headers_of(plain_msg)
    await plain_msg.nak()
    second = headers_of(await jobs.next())

    assert list(bare) == [*ADDED, "Requeue-Deadline", "Nats-Msg-Id"]
    assert (bare["Requeue-Attempt"], bare["Requeue-Max-Attempts"], bare["Requeue-Queue"]) == (
        "1",
        "2",
        "a.queue",
    )
    assert bare["Nats-Msg-Id"] == bare["Requeue-Id"]
    assert len(bytes.fromhex(bare["Requeue-Id"])) == 16
    assert list(plain) == ["Nats-Msg-Id", "Trace", *ADDED]
    assert plain["Nats-Msg-Id"] == "mine"
    assert list(second) == ["Nats-Msg-Id", "Trace", *ADDED, "Requeue-Last-Error"]
    assert (second["Requeue-Attempt"], second["Requeue-Id"]) == ("2", plain["Requeue-Id"])


async def test_requeue_ids_are_unique_over_restarts(start: StartWorker) -> None:
    ids = []
    for _ in range(3):
        worker = await start()
        for _ in range(5):
            await worker.publish("jobs.a", delay_ns=HOUR)
        await worker.ask(b"malformed")
        ids = [stored.id for stored in (*worker.pending(), *worker.invalid())]
        await worker.stop()

    assert len(ids) == 18
    assert len({*ids}) == 18


async def test_the_last_error_is_one_line_of_512_bytes_at_most(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.a", retries=2)

    await nc.publish(
        (await jobs.next()).reply, b"-NAK out of\r\nRequeue-Id: forged\r\nstock " + b"\xc3\xa9" * 999
    )
    error = headers_of(await jobs.next())["Requeue-Last-Error"]

    assert error.startswith("out of  Requeue-Id: forged  stock é")
    assert 500 <= len(error.encode()) <= 512


async def test_what_a_replay_adds_is_stripped_at_intake(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"retries": 6})
    jobs = await Handler.listen(nc, "jobs.>")
    copied = {
        "Requeue-Id": "00" * 16,
        "Requeue-Attempt": "9",
        "Requeue-Max-Attempts": "9",
        "Requeue-Queue": "elsewhere",
        "Requeue-Enqueued-At": "2001-01-01T00:00:00Z",
        "Requeue-Deadline": "2001-01-01T00:00:00Z",
        "Requeue-Last-Error": "long ago",
        "Requeue-Dead-Reason": "exhausted",
        "Requeue-Died-At": "2001-01-01T00:00:00Z",
        "Requeue-Duplicate": "true",
    }

    await worker.publish_plain("jobs.a", b"", copied)
    headers = headers_of(await jobs.next())

    assert list(headers) == [*ADDED, "Nats-Msg-Id"]
    assert headers["Requeue-Id"] != copied["Requeue-Id"]
    assert [headers[name] for name in ADDED[1:4]] == ["1", "6", "default"]


async def test_a_handler_may_publish_again_with_the_headers_it_got(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish_plain("jobs.a", b"1", {"Requeue-Queue": "first", "Trace": "t"})
    msg = await jobs.next()

    answer = await worker.ask(b"2", {**headers_of(msg), "Requeue-Subject": "jobs.b"})
    again = headers_of(await jobs.next())

    assert is_ack(answer)
    assert again["Requeue-Id"] != headers_of(msg)["Requeue-Id"]
    assert (again["Requeue-Queue"], again["Trace"]) == ("default", "t")


# -- 400, 403, 413: for good ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "headers", "says"),
    [
        pytest.param(b"", None, "too few for an envelope", id="nothing"),
        pytest.param(b"\xff" * 64, None, "", id="noise"),
        pytest.param(
            b"hello", {"Trace": "t"}, "too few for an envelope", id="headers without Requeue-Subject"
        ),
        pytest.param(build_envelope(subject="a", payload=b"x" * 50)[:-20], None, "payload", id="cut"),
        pytest.param(b"", {"Requeue-Subject": ""}, "Requeue-Subject", id="empty subject"),
        pytest.param(b"", {**PLAIN, "Requeue-Priorty": "1"}, "did you mean Requeue-Priority", id="misspelt"),
        pytest.param(b"", {**PLAIN, "Requeue-Delay": "5"}, "Requeue-Delay", id="delay without unit"),
        pytest.param(b"", {**PLAIN, "Requeue-TTL": "-1s"}, "Requeue-TTL", id="negative ttl"),
        pytest.param(b"", {**PLAIN, "Requeue-At": "2030-01-01T00:00:00Z"}, "both", id="delay and at"),
        pytest.param(
            b"", {"Requeue-Subject": "a", "Requeue-At": "2300-01-01T00:00:00Z"}, "2262", id="far at"
        ),
        pytest.param(b"", {**PLAIN, "Requeue-Delay": "2500000h"}, "2262", id="far delay"),
        pytest.param(
            build_envelope(subject="a", payload=b"", delay_ns=2**63), None, "2262", id="far envelope"
        ),
        pytest.param(b"", {**PLAIN, "Requeue-Retries": "0"}, "Requeue-Retries", id="no retries"),
        pytest.param(b"", {**PLAIN, "Requeue-Queue": "a b"}, "queue name", id="queue name"),
        pytest.param(b"", {**PLAIN, "Requeue-Queue": "$invalid"}, "queue name", id="our own queue"),
        pytest.param(b"", {**PLAIN, "Requeue-Priority": "10"}, "Requeue-Priority", id="priority"),
        pytest.param(b"", {**PLAIN, "Requeue-Ack-Timeout": "13h"}, "12h", id="ack timeout"),
        pytest.param(b"", {**PLAIN, "Requeue-Backoff": "cubic"}, "Requeue-Backoff", id="backoff"),
        pytest.param(b"", {**PLAIN, "Nats-Msg-Id": "x" * 513}, "at most 512", id="long id"),
    ],
)
async def test_malformed_messages_are_refused_with_400_and_kept(
    start: StartWorker, payload: bytes, headers: dict[str, str] | None, says: str
) -> None:
    worker = await start()

    code, text = refusal_of(await worker.ask(payload, headers))

    assert code == 400
    assert says in text
    [letter] = worker.invalid()
    assert (letter.extras.reason, letter.errors) == ("invalid", [f"400 {text}"])
    assert letter.record.payload == payload
    assert letter.record.headers == (b"" if headers is None else build_headers(headers.items()))
    assert worker.worker.counts.refused[400] == 1


async def test_a_header_block_that_is_none_is_refused_with_400(
    start: StartWorker, nats_server: NatsServer
) -> None:
    worker = await start()

    async with raw_client(nats_server) as client:
        answers = await raw_listen(client, "answers")
        for block in (
            with_lines(b"no colon\r\n"),
            b"NATS/1.0\r\nA: b\r\n",
            b"HTTP/1.1\r\n\r\n",
            with_lines(b": x\r\n"),
        ):
            client.send(raw_message(INTAKE, block, b"p", reply="answers"), 1)
        await until(lambda: len(answers) == 4)

    assert all(payload.startswith(b"-ERR 400 ") for _, _, _, payload in answers)
    assert len(worker.invalid()) == 4


async def test_noise_of_any_kind_is_refused_and_the_worker_goes_on(start: StartWorker, nc: Client) -> None:
    worker = await start()
    noise = random.Random(7)
    sample = build_envelope(subject="jobs.a", payload=b"x" * 40, queue="q", retries=3, delay_ns=HOUR)

    for size in (1, 7, 8, 40, 1000, 900_000):
        refused = await worker.ask(noise.randbytes(size))
        assert refused.data.startswith(b"-ERR 400 ")
    for _ in range(300):
        damaged = bytearray(sample)
        for _ in range(3):
            damaged[noise.randrange(len(damaged))] = noise.randrange(256)
        await nc.publish(INTAKE, bytes(damaged))

    assert is_ack(await worker.publish("jobs.fine", delay_ns=HOUR))
    assert worker.worker.ready() == (True, "ready")


async def test_an_answer_about_a_refusal_goes_out_only_once_the_message_is_kept(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()

    async with worker.held_disk() as writing:
        asked = await ask_later(nc, INTAKE, b"noise")
        await writing.wait()
        await settle(nc)
        answered_early = asked.answered

    assert not answered_early
    assert refusal_of(await asked.answer())[0] == 400


async def test_a_subject_that_is_not_allowed_is_refused_with_403_and_kept(start: StartWorker) -> None:
    worker = await start()

    code, text = refusal_of(await worker.ask(build_envelope(subject="$JS.API.INFO", payload=b"p")))

    assert code == 403
    assert worker.invalid()[0].errors == [f"403 {text}"]


async def test_what_a_replay_could_not_carry_is_refused_with_413_and_kept(
    start: StartWorker, nats_server_factory: NatsServerFactory
) -> None:
    limit = 32_768
    server = nats_server_factory(config=f"max_payload: {limit}\n")
    worker = await start(nats={"servers": [server.url]})
    async with raw_client(server) as client:
        answers = await raw_listen(client, "answers")
        jobs = await raw_listen(client, "jobs.>")
        block = with_lines(b"Requeue-Subject: jobs.a\r\n")
        fits = limit - REPLAY_HEADROOM_BYTES - len(block)

        client.send(raw_message(INTAKE, block, b"x" * (fits + 1), reply="answers"), 1)
        await until(lambda: len(answers) == 1)
        client.send(raw_message(INTAKE, block, b"x" * fits, reply="answers"), 1)
        await until(lambda: len(answers) == 2 and jobs)

    assert answers[0][3].startswith(b"-ERR 413 ")
    assert (answers[1][2], answers[1][3]) == (None, b"")
    assert len(jobs[0][3]) == fits
    assert [letter.extras.reason for letter in worker.invalid()] == ["invalid"]


# -- kept, but not for ever ----------------------------------------------------------------------------------


async def test_invalid_messages_are_kept_up_to_a_bound_and_the_oldest_go(start: StartWorker) -> None:
    first = await start(invalid_kept=3)
    for number in range(5):
        await first.ask(b"bad %d" % number)
    kept = [letter.record.payload for letter in first.invalid()]
    await first.stop()
    second = await start(invalid_kept=3)
    await second.ask(b"bad 5")

    assert kept == [b"bad 2", b"bad 3", b"bad 4"]
    assert [letter.record.payload for letter in second.invalid()] == [b"bad 3", b"bad 4", b"bad 5"]


async def test_a_lower_bound_for_invalid_messages_holds_after_a_restart(start: StartWorker) -> None:
    first = await start(invalid_kept=30)
    for number in range(30):
        await first.ask(b"bad %02d" % number)
    await first.stop()

    second = await start(invalid_kept=2)
    await second.ask(b"bad 30")

    assert [letter.record.payload for letter in second.invalid()] == [b"bad 29", b"bad 30"]


async def test_no_invalid_message_is_kept_where_settings_say_0(start: StartWorker) -> None:
    worker = await start(invalid_kept=0)

    assert refusal_of(await worker.ask(b"bad"))[0] == 400
    assert worker.invalid() == []


# -- 429, 500, 503: for now ----------------------------------------------------------------------------------


async def test_a_transient_refusal_is_silence_to_a_request_without_headers(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(queues=[{"name": "full", "max_messages": 1}])
    await worker.publish("jobs.a", queue="full", delay_ns=HOUR)
    envelope = build_envelope(subject="jobs.b", payload=b"", queue="full", delay_ns=HOUR)

    silent = await ask_later(nc, INTAKE, envelope)
    told = await worker.ask(
        envelope, {"Any": "header"}
    )  # behind the silent one: its answer would have come first

    assert refusal_of(told)[0] == 429
    assert not silent.answered
    assert worker.worker.counts.refused[429] == 2


async def test_nats_py_reads_a_transient_refusal_as_an_error_and_a_silent_one_as_a_timeout(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"max_messages": 1})
    await worker.publish("jobs.a", delay_ns=HOUR)

    with pytest.raises(nats_errors.NoRespondersError):
        await nc.request(INTAKE, b"", headers=PLAIN)
    with pytest.raises(TimeoutError):
        await nc.request(INTAKE, build_envelope(subject="jobs.b", payload=b""), timeout=0.2)


async def test_beyond_its_buffer_the_worker_refuses_with_503_until_the_disk_keeps_up(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(intake_buffer_bytes="1MiB")
    envelope = build_envelope(subject="jobs.b", payload=b"x" * 100_000, delay_ns=HOUR)

    async with worker.held_disk():
        asked = [await ask_later(nc, INTAKE, b"x" * 100_000, PLAIN) for _ in range(30)]
        silent = [await ask_later(nc, INTAKE, envelope) for _ in range(5)]
        await until(lambda: worker.worker.counts.intake_messages == 35)
        await settle(nc)
        refused = [await each.answer() for each in asked if each.answered]
        waiting = [each for each in asked if not each.answered]
        assert not any(each.answered for each in silent)
    acked = [await each.answer() for each in waiting]
    later = await worker.ask(b"x" * 100_000, PLAIN)

    assert {refusal_of(answer)[0] for answer in refused} == {503}
    assert 20 <= len(refused) < 30
    assert all(map(is_ack, acked))
    assert is_ack(later)
    assert len(worker.pending()) == len(acked) + 1


async def test_refused_messages_leave_nothing_in_memory(start: StartWorker, nc: Client) -> None:
    worker = await start(intake_buffer_bytes="1MiB")

    async with worker.held_disk():
        for _ in range(15):
            await nc.publish(INTAKE, b"x" * 100_000, headers=PLAIN)
        await until(lambda: worker.worker.counts.refused[503] > 0)
        tracemalloc.start()
        try:
            for _ in range(100):
                await nc.publish(INTAKE, b"x" * 100_000, headers=PLAIN)
            await until(lambda: worker.worker.counts.intake_messages == 115)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert held < 5_000_000


async def test_a_commit_that_fails_is_refused_with_500_and_ends_the_worker(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await worker.publish("jobs.before", delay_ns=HOUR)

    begun, go_on = asyncio.Event(), asyncio.Event()

    async def fail(batch: Batch) -> None:
        begun.set()
        await go_on.wait()
        raise CommitError("the disk is gone")

    worker.worker._store.write = fail  # type: ignore[method-assign]
    in_the_batch = await ask_later(nc, INTAKE, b"", PLAIN)
    await begun.wait()
    silent = await ask_later(nc, INTAKE, build_envelope(subject="jobs.a", payload=b""))
    behind_it = await ask_later(nc, INTAKE, b"", PLAIN)
    await until(lambda: worker.worker.counts.intake_messages == 4)
    go_on.set()
    with pytest.raises(CommitError, match="the disk is gone"):
        await worker.worker.closed()
    await settle(nc)

    assert [refusal_of(await each.answer())[0] for each in (in_the_batch, behind_it)] == [500, 500]
    assert not silent.answered
    assert [str(error) for error in worker.write_errors] == ["the disk is gone"]
    await worker.stop()
    again = await start()
    assert [stored.record.subject for stored in again.pending()] == [b"jobs.before"]


async def test_what_comes_in_after_a_failed_commit_is_refused_until_the_worker_has_ended(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    ending, go_on = asyncio.Event(), asyncio.Event()
    stop_reaper = worker.worker._reaper.stop

    async def fail(batch: Batch) -> None:
        raise CommitError("the disk is gone")

    async def stop_later() -> None:
        ending.set()
        await go_on.wait()
        await stop_reaper()

    worker.worker._store.write = fail  # type: ignore[method-assign]
    worker.worker._reaper.stop = stop_later  # type: ignore[method-assign]
    await ask(nc, INTAKE, b"", PLAIN)
    await ending.wait()
    late = await ask_later(nc, INTAKE, b"", PLAIN)
    await until(lambda: worker.worker.counts.intake_messages == 2)
    go_on.set()
    with pytest.raises(CommitError, match="the disk is gone"):
        await worker.worker.closed()

    code, text = refusal_of(await late.answer())
    assert (code, "another worker" in text) == (503, True)


async def test_what_came_in_before_a_stop_is_committed_and_acked(start: StartWorker, nc: Client) -> None:
    worker = await start()
    asked = [await ask_later(nc, INTAKE, b"%d" % number, PLAIN) for number in range(200)]
    await settle(nc)

    await worker.worker.stop()
    await settle(nc)
    again = await start()
    stored = {stored.record.payload for stored in again.pending()}

    acked = {
        b"%d" % number for number, each in enumerate(asked) if each.answered and is_ack(await each.answer())
    }
    assert acked == stored
    assert len(acked) == 200
