"""Large payloads in numbers: what is handled at once is weighed, not only counted."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client
from requeue_worker import deadletters
from requeue_worker.storage.queues import INVALID_QUEUE, NEVER

from tests.integration.worker.support import INTAKE, Handler, StartWorker, ask_later, refusal_of
from tests.servers import until

LARGE = b"x" * 900_000
LETTERS = 40


async def bury(worker: object, nc: Client, number: int) -> None:
    """Make so many large dead letters: a handler terminates each."""
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.term())
    for _ in range(number):
        await worker.publish("jobs.a", LARGE)  # type: ignore[attr-defined]
    await until(lambda: worker.queue().dead == number)  # type: ignore[attr-defined]
    await worker.idle()  # type: ignore[attr-defined]


async def test_large_dead_letters_are_published_a_few_at_a_time(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await bury(worker, nc, LETTERS)
    await worker.stop()
    dead = await Handler.listen(nc, "dead.>")
    worker = await start(defaults={"dead_letter_subject": "dead.jobs"}, shutdown_grace=0)
    broker, unconfirmed, most = worker.worker._broker, 0, 0
    send, flush = broker.send, broker.flush

    def weigh(chunk: bytes, messages: int) -> None:
        nonlocal unconfirmed, most
        unconfirmed += len(chunk)
        most = max(most, unconfirmed)
        send(chunk, messages)

    async def confirm() -> None:
        nonlocal unconfirmed
        await flush()
        unconfirmed = 0

    broker.send, broker.flush = weigh, confirm  # type: ignore[method-assign]
    worker.worker._dead_letters.adopted([_key(worker, stored) for stored in worker.dead()])

    await until(lambda: len(dead.received) == LETTERS)

    assert len({msg.headers["Requeue-Id"] for msg in dead.received if msg.headers}) == LETTERS
    assert most < 6_000_000


def _key(worker: object, wanted: object) -> bytes:
    [key] = [
        key
        for key, _ in worker._engine.items("dead", b"", b"\xff")  # type: ignore[attr-defined]
        if key[-16:].hex() == wanted.id  # type: ignore[attr-defined]
    ]
    return bytes(key)


async def test_large_dead_letters_are_looked_through_and_forgotten_a_few_at_a_time(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await bury(worker, nc, LETTERS)

    page = await worker.worker._store.dead_before("default", NEVER, 512)
    await worker.forward(15 * 24 * 3600 * 10**9)
    await worker.worker._dead_letters._retain(worker.queue())

    assert sum(len(value) for _, value in page) < 6_000_000
    assert worker.dead() == []


async def test_refused_messages_kept_are_bounded_in_bytes_too(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "INVALID_BYTES", 3_000_000, raising=False)
    worker = await start()

    asked = [await ask_later(nc, INTAKE, b"%02d" % number + LARGE) for number in range(10)]
    answers = [await each.answer() for each in asked]
    await worker.idle()

    assert {refusal_of(answer)[0] for answer in answers} == {400}
    assert [stored.record.payload[:2] for stored in worker.invalid()] == [b"07", b"08", b"09"]
    assert worker.queue(INVALID_QUEUE).dead_bytes == 3 * (len(LARGE) + 2)
    await worker.stop()
    monkeypatch.setattr(deadletters, "INVALID_BYTES", 1_000_000, raising=False)
    again = await start()
    await asyncio.sleep(0)
    assert [stored.record.payload[:2] for stored in again.invalid()] == [b"09"]
