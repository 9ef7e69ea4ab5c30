"""Purges and moves that crash at any of their steps, or are killed, while new messages flow: each message is changed or as
it was, none is lost, and the counters agree with the data."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from requeue_protocol.envelope import build_envelope
from requeue_worker import faults
from requeue_worker.record import decode
from requeue_worker.storage.keys import parse_message_key
from requeue_worker.storage.rocksdb import MESSAGES, Engine

from tests.faults.load import Load
from tests.integration.worker.support import HOUR, INTAKE, LiveWorker, StartWorker, check_data
from tests.integration.worker.test_micro import ask
from tests.servers import NatsServer, WorkerFactory, settle, until

STEP = 40
NUMBER = 3 * STEP - 5
QUEUE = "mail"


async def fill(nc: Client, number: int) -> None:
    """So many with distinct payloads, acknowledged, due in an hour."""
    acks = asyncio.Semaphore(0)

    async def on_ack(_: Any) -> None:
        acks.release()

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, cb=on_ack)
    for name in range(number):
        envelope = build_envelope(subject="jobs.a", payload=b"%d" % name, queue=QUEUE, delay_ns=HOUR)
        await nc.publish(INTAKE, envelope, reply=inbox)
    for _ in range(number):
        await asyncio.wait_for(acks.acquire(), 60)
    await subscription.unsubscribe()


async def all_steps(
    nc: Client, endpoint: str, instance: str, on_step: Callable[[int], None], **how: Any
) -> int:
    changed, after = 0, ""
    while after is not None:
        answer = await ask(nc, endpoint, instance, dry_run=False, queue=QUEUE, after=after, **how)
        changed, after = changed + answer["changed"], answer["next"]
        on_step(changed)
    return changed


def on_disk(path: Path) -> dict[int, int]:
    """Due time of each message of the queue in a closed directory, by number."""
    engine = Engine(path)
    try:
        return {
            int(decode(value).payload): parse_message_key(key)[2]
            for key, value in engine.items(MESSAGES, b"", b"\xff")
            if parse_message_key(key)[0] == QUEUE
        }
    finally:
        engine.close()


@pytest.mark.parametrize("endpoint", ["purge", "move"])
async def test_a_crash_at_any_moment_leaves_each_message_changed_or_as_it_was_and_counters_agree(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str
) -> None:
    """What lies on disk at each place is what a crash there would leave: it is kept, and started from."""
    monkeypatch.setattr("requeue_worker.micro.changing.STEP_MESSAGES", STEP)
    # A step is more than a batch: some crashes fall between two batches of one step.
    monkeypatch.setattr("requeue_worker.storage.committer.BATCH_MESSAGES", STEP // 2 - 1)
    worker = await start()
    await fill(nc, NUMBER)
    at_ns = worker.clock() + 9 * HOUR
    how = {"at_ns": at_ns} if endpoint == "move" else {}
    images: list[Path] = []
    places: list[str] = []

    def keep(place: str) -> None:
        image = tmp_path / "images" / f"{len(images)}" / worker.path.name
        shutil.copytree(worker.path, image)
        images.append(image)
        places.append(place)

    _at_each_write(worker, lambda: keep("write"))
    faults.install(keep)
    try:
        assert await all_steps(nc, endpoint, "tested", lambda _: None, **how) == NUMBER
    finally:
        faults.install(None)
    await worker.stop()
    assert {*places} == {"write", *(each for each in faults.FAULT_POINTS if each.startswith("change: "))}

    left_as_they_were = set()
    for image in images:
        check_data(image)
        stored = on_disk(image)
        if endpoint == "move":
            assert stored.keys() == {*range(NUMBER)}
            as_they_were = [number for number, time_ns in stored.items() if time_ns != at_ns]
        else:
            as_they_were = [*stored]
        left_as_they_were.add(len(as_they_were))
    assert {0, NUMBER, NUMBER - STEP} <= left_as_they_were
    assert len(left_as_they_were) > 4, "some crashes fall into the middle of a step"

    for image in images[:: len(images) // 4]:
        heir = await start(data_dir=image.parent)
        await all_steps(nc, endpoint, "tested", lambda _: None, **how)
        times = {stored.time_ns for stored in heir.pending(QUEUE)}
        assert times == ({at_ns} if endpoint == "move" else set())
        assert heir.queue(QUEUE).pending == (NUMBER if endpoint == "move" else 0)
        await heir.stop()


def _at_each_write(worker: LiveWorker, hook: Callable[[], None]) -> None:
    store = worker.worker._store
    write = store.write

    async def writing(batch: Any) -> None:
        await write(batch)
        hook()

    store.write = writing  # type: ignore[method-assign]


async def test_a_worker_killed_in_the_middle_of_a_purge_keeps_the_rest_and_loses_nothing_else(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> None:
    worker = await asyncio.to_thread(worker_factory, nats_server, "--instance-id", "w0")
    number = 20_000
    await fill(nc, number)
    load = Load(nc)
    await load.listen()
    publishing = asyncio.create_task(load.run())
    await until(lambda: len(load.books.acked) > 100)
    purged: list[int] = []
    purge = asyncio.create_task(all_steps(nc, "purge", "w0", purged.append))
    await until(lambda: bool(purged))
    worker.kill()
    purge.cancel()
    await settle(nc)
    assert purged[-1] < number
    check_data(worker.data_dir / "w0")
    stored = on_disk(worker.data_dir / "w0")
    assert number - purged[-1] - 2 * 1024 <= len(stored) <= number - purged[-1]

    await asyncio.to_thread(worker.start)
    assert await all_steps(nc, "purge", "w0", purged.append) == len(stored)
    load.stop()
    await publishing
    await until(lambda: not load.books.lost, timeout_s=60)
    await asyncio.to_thread(worker.stop)
    assert on_disk(worker.data_dir / "w0") == {}
    check_data(worker.data_dir / "w0")
