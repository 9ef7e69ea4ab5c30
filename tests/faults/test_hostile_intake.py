"""What a client can put into one message, and how many it can send: bounded, answered, and harmless to the others."""

from __future__ import annotations

import itertools

import nats
import psutil
import pytest
from nats.aio.client import Client
from requeue_protocol.envelope import build_envelope

from tests.integration.worker.support import (
    HOUR,
    INTAKE,
    Handler,
    StartWorker,
    headers_of,
    is_ack,
    raw_client,
    raw_listen,
    raw_message,
    refusal_of,
)
from tests.servers import NatsServer, WorkerFactory, settle, until

PLAIN = b"NATS/1.0\r\nRequeue-Subject: jobs.a\r\n"


@pytest.mark.parametrize("length", [513, 10_000, 500_000])
async def test_an_id_that_is_too_long_is_refused(start: StartWorker, length: int) -> None:
    worker = await start()

    code, text = refusal_of(await worker.ask(b"", {"Requeue-Subject": "jobs.a", "Nats-Msg-Id": "x" * length}))

    assert (code, "512" in text) == (400, True)
    assert worker.pending() == []


async def test_a_giant_header_and_twenty_thousand_small_ones_come_back_at_the_replay(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    many = {f"H{number}": str(number) for number in range(20_000)}

    await worker.publish_plain("jobs.a", b"", {"Giant": "x" * 900_000})
    await worker.publish_plain("jobs.a", b"", many)

    assert headers_of(await jobs.next())["Giant"] == "x" * 900_000
    assert many.items() <= headers_of(await jobs.next()).items()


@pytest.mark.parametrize(
    "line",
    [
        b"A: 1\nRequeue-Queue: other\r\n",
        b"A: 1\rRequeue-Queue: other\r\n",
        b"A: 1\r\n Requeue-Queue: other\r\n",
        b"no colon\r\n",
        b"Requeue-Subject : jobs.b\r\n",
        "Requeue-Qu\u00ebue: x\r\n".encode(),
    ],
)
async def test_a_header_block_that_two_readers_could_read_differently_is_refused(
    start: StartWorker, nats_server: NatsServer, line: bytes
) -> None:
    worker = await start()
    async with raw_client(nats_server) as client:
        answers = await raw_listen(client, "answers")
        client.send(raw_message(INTAKE, PLAIN + line + b"\r\n", b"", "answers"), 1)
        await until(lambda: answers)

    assert answers[0][3].startswith(b"-ERR 400 ")
    assert worker.pending() == []


async def test_headers_alone_are_no_message_and_a_message_may_be_headers_alone(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()

    assert refusal_of(await worker.ask(b"", {"Any": "header"}))[0] == 400
    await worker.publish_plain("jobs.a", b"", {"Requeue-Delay": "1h"})

    assert [stored.record.payload for stored in worker.pending()] == [b""]


async def test_a_flood_of_refused_messages_keeps_the_newest_alone(start: StartWorker, nc: Client) -> None:
    worker = await start(invalid_kept=10)

    for number in range(500):
        await nc.publish(INTAKE, b"nonsense %03d" % number)
    await settle(nc)
    await until(lambda: worker.worker.counts.refused[400] == 500)
    await worker.idle()

    kept = [stored.record.payload for stored in worker.invalid()]
    assert kept == [b"nonsense %03d" % number for number in range(490, 500)]


async def test_stats_of_strangers_and_of_handovers_mean_nothing_to_a_worker(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()

    for subject in ("_requeue._stats", "_requeue.handover.default.other", "_requeue.admin.nothing"):
        for payload in (b"", b"\xff" * 1000, build_envelope(subject="jobs.a", payload=b"")):
            await nc.publish(subject, payload)
    await worker.publish("jobs.later", delay_ns=HOUR)

    assert len(worker.pending()) == 1
    assert worker.invalid() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("names", [1, 1_000_000])
async def test_a_million_messages_without_a_pause_and_a_million_names_fit_into_memory(
    nats_server: NatsServer, worker_factory: WorkerFactory, names: int
) -> None:
    worker = worker_factory(nats_server)
    process = psutil.Process(worker.pid)
    flood = await nats.connect(nats_server.url)
    probe = await nats.connect(nats_server.url)
    most = 0
    for number in range(1_000_000):
        envelope = build_envelope(
            subject="jobs.a", payload=bytes(512), delay_ns=HOUR, queue=f"q{number % names}"
        )
        await flood.publish(INTAKE, envelope)
        if number % 10_000 == 0:
            await flood.flush()
            most = max(most, process.memory_info().rss)
    await flood.flush()

    most = max(most, process.memory_info().rss)
    answer = None
    for _ in itertools.repeat(None, 600):
        try:
            answer = await probe.request(
                INTAKE, build_envelope(subject="jobs.a", payload=b"", queue="q0", delay_ns=HOUR)
            )
        except nats.errors.TimeoutError:
            continue
        break
    assert answer is not None
    assert is_ack(answer)
    assert most < 400_000_000
    await flood.close()
    await probe.close()
