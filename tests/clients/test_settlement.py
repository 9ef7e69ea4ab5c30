"""Replays in the hands of each NATS library: what its own verbs on a message of core NATS do, and what their bytes do.

nats.go (`msg.Ack()`, ...) and nats-py (`await msg.ack()`, ...) have JetStream's verbs on every message, and send them to
whoever asked. nats.js has them on messages of a JetStream consumer alone: there a handler responds with their bytes.
"""

from __future__ import annotations

import pytest

from tests.clients.drivers import EMPTY, Answer, Driver, Received
from tests.integration.worker.support import HOUR, INTAKE, LiveWorker, StartWorker

HOUR_MS = 3_600_000
#: a verb as bytes
BYTES = {
    "ack": Answer("respond", b"+ACK"),
    "nak": Answer("respond", b"-NAK"),
    "nak delay": Answer("respond", b'-NAK {"delay": %d}' % HOUR),
    "working": Answer("respond", b"+WPI"),
    "term": Answer("respond", b"+TERM"),
}
#: the library's own, where it has them
VERBS = {name: Answer(name, delay_ms=HOUR_MS) for name in BYTES}


WITH_VERBS, WITHOUT_VERBS = ["go", "python"], ["node", "node2"]


@pytest.fixture
def answers(driver: Driver) -> dict[str, Answer]:
    return VERBS if driver.has_verbs else BYTES


async def replay(driver: Driver, worker: LiveWorker, *answers: Answer) -> list[Received]:
    """Publish one message with the library, and return its deliveries, one for each answer."""
    told = await driver.handle("jobs.a", *answers)
    headers = {"Requeue-Subject": "jobs.a", "Requeue-Retries": "3", "Trace": "t-1"}
    ack = await driver.request(INTAKE, b"work", headers)
    assert isinstance(ack, Received), ack
    deliveries = [await told() for _ in answers]
    assert [delivery.settling for delivery in deliveries] == [None] * len(answers)
    assert [delivery.header("Requeue-Attempt") for delivery in deliveries] == [
        str(number) for number, _ in enumerate(answers, 1)
    ]
    return deliveries


async def test_both_intakes_reach_a_handler_with_payload_and_headers(
    driver: Driver, start: StartWorker
) -> None:
    worker = await start()
    told = await driver.handle("jobs.>", EMPTY)
    envelope = await driver.envelope(subject="jobs.enveloped", payload=b"\x00\xff", retries=2)

    await driver.request(INTAKE, envelope, {"Trace": "t-1"})
    enveloped = await told()
    await driver.request(INTAKE, b"\xff\x00", {"Requeue-Subject": "jobs.plain", "Trace": "t-2"})
    plain = await told()

    assert (enveloped.subject, enveloped.payload, enveloped.header("Trace")) == (
        "jobs.enveloped", b"\x00\xff", "t-1",
    )  # fmt: skip
    assert (enveloped.header("Requeue-Attempt"), enveloped.header("Requeue-Max-Attempts")) == ("1", "2")
    assert (plain.subject, plain.payload, plain.header("Trace")) == ("jobs.plain", b"\xff\x00", "t-2")
    await worker.until_empty()
    assert (worker.queue().counts.settled, worker.queue().dead) == (2, 0)


async def test_ack_settles(driver: Driver, start: StartWorker, answers: dict[str, Answer]) -> None:
    worker = await start()

    await replay(driver, worker, answers["ack"])

    await worker.until_empty()
    assert (worker.queue().counts.settled, worker.queue().dead) == (1, 0)


async def test_nak_brings_the_message_again(
    driver: Driver, start: StartWorker, answers: dict[str, Answer]
) -> None:
    worker = await start()

    first, second = await replay(driver, worker, answers["nak"], answers["ack"])

    assert "-NAK" in second.header("Requeue-Last-Error")
    assert (first.payload, first.header("Requeue-Id")) == (second.payload, second.header("Requeue-Id"))
    await worker.until_empty()
    assert (worker.queue().counts.retried, worker.queue().counts.settled) == (1, 1)


async def test_nak_with_delay_brings_it_after_that_delay(
    driver: Driver, start: StartWorker, answers: dict[str, Answer]
) -> None:
    worker = await start()

    await replay(driver, worker, answers["nak delay"])

    await worker.until_failed()
    stored = await worker.one_pending()
    assert stored.time_ns == stored.extras.history[0].at_ns + HOUR


async def test_working_does_not_settle(
    driver: Driver, start: StartWorker, answers: dict[str, Answer]
) -> None:
    worker = await start(defaults={"ack_timeout": "200ms"})

    _, second = await replay(driver, worker, answers["working"], answers["ack"])

    assert second.header("Requeue-Last-Error") == "no reply within the ack timeout"
    await worker.until_empty()
    assert (worker.queue().counts.retried, worker.queue().counts.settled) == (1, 1)


async def test_term_makes_it_a_dead_letter(
    driver: Driver, start: StartWorker, answers: dict[str, Answer]
) -> None:
    worker = await start()

    await replay(driver, worker, answers["term"])

    dead = await worker.one_dead()
    assert dead.extras.reason == "terminated"
    assert worker.pending() == []


async def test_an_error_in_the_manner_of_nats_services_fails_the_attempt(
    driver: Driver, start: StartWorker
) -> None:
    worker = await start()
    error = Answer("respond", b"", {"Nats-Service-Error": "no stock", "Nats-Service-Error-Code": "500"})

    _, second = await replay(driver, worker, error, EMPTY)

    assert second.header("Requeue-Last-Error") == "500 no stock"
    await worker.until_empty()


@pytest.mark.parametrize("library", WITHOUT_VERBS)
async def test_a_message_of_core_nats_has_no_verbs_in_nats_js(driver: Driver, start: StartWorker) -> None:
    worker = await start(defaults={"ack_timeout": "200ms"})
    told = await driver.handle("jobs.a", Answer("ack"), EMPTY)

    await worker.publish("jobs.a", retries=2)

    refused = await told()
    assert refused.settling is not None
    assert refused.settling.text == "a message has no ack; respond with +ACK"
    assert (await told()).settling is None
    await worker.until_empty()


@pytest.mark.parametrize("library", WITH_VERBS)
async def test_a_double_ack_settles_though_nobody_confirms_it(driver: Driver, start: StartWorker) -> None:
    worker = await start()
    told = await driver.handle("jobs.a", Answer("ack sync", delay_ms=200))

    await worker.publish("jobs.a", retries=2)

    delivery = await told()
    assert delivery.settling is not None
    assert delivery.settling.kind == "timeout"
    await worker.until_empty()
    assert (worker.queue().counts.settled, worker.queue().counts.retried) == (1, 0)
