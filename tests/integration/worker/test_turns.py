"""Bulk changes in a worker that takes messages in meanwhile: their steps are small, and large again when it is quiet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nats.aio.client import Client
from requeue_protocol.envelope import build_envelope
from requeue_worker import faults

from tests.integration.worker.support import HOUR, INTAKE, LiveWorker, StartWorker
from tests.integration.worker.test_dead_endpoints import deleted, exported, imported
from tests.integration.worker.test_micro import ask
from tests.integration.worker.test_redrive import ended, kill

FEW = 10


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("requeue_worker.micro.turns.BESIDE_INTAKE", FEW)
    yield
    faults.install(None)


async def take_in(worker: LiveWorker) -> None:
    await worker.publish("jobs.later", queue="new", delay_ns=HOUR)


@pytest.mark.parametrize("is_quiet", [False, True], ids=["messages come in each step", "nothing comes"])
async def test_a_redrive_goes_in_small_steps_while_messages_come_and_in_large_ones_while_none_does(
    start: StartWorker, nc: Client, is_quiet: bool
) -> None:
    worker = await start()
    await kill(worker, 4 * FEW)
    await ask(nc, "redrive", job="none", subject="no.such")  # a step before: nothing has come since
    await ended(nc, "none")
    envelope = build_envelope(subject="jobs.later", payload=b"", queue="new", delay_ns=HOUR)
    steps: list[int] = []

    def on_place(place: str) -> None:
        if place == "redrive: step read" and not is_quiet:
            worker.worker._ingest.on_messages([(INTAKE.encode(), b"", None, envelope)])
        if place == "redrive: step durable":
            steps.append(worker.worker.counts.redriven)

    if not is_quiet:
        await take_in(worker)
    faults.install(on_place)
    await ask(nc, "redrive", job="all")
    await ended(nc, "all")
    # `step durable` comes just before the step is counted
    assert steps == ([0] if is_quiet else [0, FEW, 2 * FEW, 3 * FEW])
    assert worker.worker.counts.redriven == 4 * FEW


async def test_a_purge_and_a_deletion_take_few_messages_a_step_while_others_come(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await kill(worker, 3 * FEW)
    for number in range(3 * FEW):
        await worker.publish("jobs.old", b"%d" % number, queue="old", delay_ns=HOUR)
    for endpoint, request, answer in (
        ("purge", {"queue": "old", "dry_run": False}, "changed"),
        ("dead-delete", {"died_before_ns": 2**62}, "deleted"),
    ):
        for left in (2 * FEW, 1 * FEW):
            await take_in(worker)
            assert (await ask(nc, endpoint, **request))[answer] == FEW
            queue = worker.queue("old" if endpoint == "purge" else "default")
            assert (queue.pending if endpoint == "purge" else queue.dead) == left
        await take_in(worker)
        await ask(nc, endpoint, **request, subject="no.such")
        assert (await ask(nc, endpoint, **request))[answer] == FEW


async def test_an_import_goes_in_steps_and_tells_of_all_of_them(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.micro.dead.PAGE_LETTERS", 7)
    worker = await start()
    await kill(worker, 20)
    letters = await exported(nc)
    assert await deleted(nc) == 20
    commits = worker.worker.counts.commits
    answer = await imported(nc, [*letters, *letters])
    assert (answer["imported"], answer["known"], len(worker.dead())) == (20, 20, 20)
    assert worker.worker.counts.commits - commits == 3


async def test_a_look_goes_over_fewer_records_while_messages_come_and_finds_them_all(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.micro.scans.SCAN_RECORDS", 40)
    monkeypatch.setattr("requeue_worker.micro.scans.RANGE_RECORDS", 0)
    worker = await start()
    for number in range(60):
        await worker.publish("jobs.old", b"%d" % number, queue="old", delay_ns=HOUR)
    await ask(nc, "count", queue="old")  # a look before: nothing has come since
    assert (await ask(nc, "count", queue="old"))["messages"] == 40
    found, after = [], ""
    while after is not None:
        await take_in(worker)
        page = await ask(nc, "count", queue="old", after=after)
        found.append(page["messages"])
        after = page["next"]
    assert found == [10] * 6 + [0]
