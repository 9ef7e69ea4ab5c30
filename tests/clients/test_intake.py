"""The intake as each NATS library sees it: an ack is an empty reply, a permanent refusal can be read, a transient one
is an error of the library's request and nothing that a program could take for an ack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from requeue_protocol.envelope import Backoff, read_envelope
from requeue_protocol.errors import Draining

from tests.clients.drivers import Driver, Failure, Received
from tests.integration.worker.support import HOUR, INTAKE, LiveWorker, StartWorker

GARBAGE = b"not an envelope"
#: waited for an answer that never comes
SILENCE_S = 0.3


async def publish(driver: Driver, payload: bytes, headers: dict[str, str] | None = None) -> Received:
    """A request to the intake that is answered."""
    answer = await driver.request(INTAKE, payload, headers)
    assert isinstance(answer, Received), answer
    return answer


def plain(subject: str, **headers: str) -> dict[str, str]:
    return {"Requeue-Subject": subject, **{name.replace("_", "-"): value for name, value in headers.items()}}


async def test_an_envelope_of_its_flatbuffers_runtime_reads_as_written(driver: Driver) -> None:
    data = await driver.envelope(
        subject="jobs.a", payload=b"\x00\xff", retries=2**53, ttl_ns=HOUR, delay_ns=1, backoff=1, queue="mail"
    )
    retries, ttl_ns, delay_ns, backoff, queue, subject, _, payload_at, payload_len = read_envelope(data)
    assert (retries, ttl_ns, delay_ns, backoff) == (2**53, HOUR, 1, Backoff.EXPONENTIAL)
    assert (queue, subject, data[payload_at : payload_at + payload_len]) == ("mail", b"jobs.a", b"\x00\xff")

    bare = read_envelope(await driver.envelope(subject="jobs.a", payload=b""))
    assert (bare.retries, bare.ttl_ns, bare.delay_ns, bare.queue) == (0, 0, 0, "default")


async def test_an_envelope_is_acked_by_an_empty_reply_when_it_is_on_disk(
    driver: Driver, start: StartWorker
) -> None:
    worker = await start()
    envelope = await driver.envelope(
        subject="jobs.a", payload=b"work", retries=3, ttl_ns=2 * HOUR, delay_ns=HOUR, backoff=1, queue="mail"
    )

    ack = await publish(driver, envelope)

    assert (ack.payload, ack.headers) == (b"", {})
    [stored] = worker.pending("mail")
    assert (stored.record.subject, stored.record.payload) == (b"jobs.a", b"work")


async def test_a_plain_message_is_acked_by_an_empty_reply_when_it_is_on_disk(
    driver: Driver, start: StartWorker
) -> None:
    worker = await start()

    ack = await publish(driver, b"work", plain("jobs.a", Requeue_Queue="mail", Requeue_Delay="1h"))

    assert (ack.payload, ack.headers) == (b"", {})
    [stored] = worker.pending("mail")
    assert (stored.record.subject, stored.record.payload) == (b"jobs.a", b"work")


async def test_a_second_message_with_a_pending_id_is_acked_as_a_duplicate(
    driver: Driver, start: StartWorker
) -> None:
    worker = await start()
    headers = plain("jobs.a", Requeue_Delay="1h", Nats_Msg_Id="order-1")

    first = await publish(driver, b"work", headers)
    second = await publish(driver, b"work", headers)

    assert (first.payload, first.headers) == (b"", {})
    assert (second.payload, second.header("Requeue-Duplicate")) == (b"", "true")
    assert len(worker.pending()) == 1


async def test_a_permanent_refusal_can_be_read(driver: Driver, start: StartWorker) -> None:
    worker = await start()
    refused = {
        "400": GARBAGE,
        "403": await driver.envelope(subject="$JS.API.STREAM.DELETE.ORDERS", payload=b"work"),
        "413": await driver.envelope(subject="jobs.a", payload=bytes(worker.nc.max_payload - 1000)),
    }

    for code, payload in refused.items():
        for headers in (None, {"Trace": "t-1"}):
            answer = await publish(driver, payload, headers)

            text = answer.header("Nats-Service-Error")
            assert answer.payload.decode() == f"-ERR {code} {text}"
            assert answer.header("Nats-Service-Error-Code") == code
    assert worker.pending() == []
    assert len(worker.invalid()) == 2 * len(refused)


async def full(start: StartWorker) -> LiveWorker:
    worker = await start(defaults={"max_messages": 1})
    await worker.publish("jobs.first", delay_ns=HOUR)
    return worker


async def draining(start: StartWorker) -> LiveWorker:
    # Between the last message of the subscription and its end: held open here, a moment in a worker that stops.
    worker = await start()
    worker.worker._ingest.closed = Draining("this worker is shutting down: send again, to another worker")
    return worker


@pytest.mark.parametrize("refuse", [full, draining], ids=["429", "503"])
async def test_a_transient_refusal_is_an_error_of_the_request(
    driver: Driver, library: str, start: StartWorker, refuse: Callable[[StartWorker], Awaitable[LiveWorker]]
) -> None:
    worker = await refuse(start)
    before = worker.pending()
    headers = plain("jobs.second", Requeue_Delay="1h")
    # nats-py drops the headers of a request with an inbox each.
    for one_by_one in (False,) if library == "python" else (False, True):
        answer = await driver.request(INTAKE, b"work", headers, one_by_one=one_by_one)

        assert isinstance(answer, Failure), answer
        assert answer.kind == "no responders", answer
    assert worker.pending() == before


@pytest.mark.parametrize("refuse", [full, draining], ids=["429", "503"])
async def test_a_transient_refusal_without_headers_is_silence(
    driver: Driver, start: StartWorker, refuse: Callable[[StartWorker], Awaitable[LiveWorker]]
) -> None:
    worker = await refuse(start)
    before = worker.pending()
    envelope = await driver.envelope(subject="jobs.second", payload=b"work", delay_ns=HOUR)
    for one_by_one in (False, True):
        answer = await driver.request(INTAKE, envelope, timeout_s=SILENCE_S, one_by_one=one_by_one)

        assert isinstance(answer, Failure), answer
        assert answer.kind == "timeout", answer
    assert sum(worker.worker.counts.refused.values()) == 2  # so both were seen
    assert worker.pending() == before
