"""Redrives that are cancelled, killed, or crash at any of their steps, while new messages flow: every message is dead or
redriven, none is twice, none is lost, and the counters agree with the data. And a deletion that is killed."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.envelope import build_envelope
from requeue_worker import faults
from requeue_worker.record import decode
from requeue_worker.storage.rocksdb import DEAD, MESSAGES, Engine

from tests.faults.load import Load
from tests.integration.worker.support import Handler, StartWorker, check_data
from tests.integration.worker.test_micro import ask
from tests.integration.worker.test_redrive import ended
from tests.servers import NatsServer, WorkerFactory, WorkerProcess, settle, until

SUBJECT = "jobs.redriven"
STEP = 50
LETTERS = [3_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]


class Received:
    """How often each redriven message came to a handler, which settles it."""

    def __init__(self) -> None:
        self.times: Counter[int] = Counter()

    @classmethod
    async def listen(cls, nc: Client) -> Received:
        received = cls()
        await nc.subscribe(SUBJECT, cb=received.on_message)
        await settle(nc)
        return received

    async def on_message(self, msg: Msg) -> None:
        self.times[int(msg.data)] += 1
        await msg.ack()


async def die(nc: Client, number: int) -> None:
    """Publish so many messages that nobody handles: each of them becomes a dead letter of the queue `lost`."""
    acked = asyncio.Semaphore(0)

    async def on_ack(msg: Msg) -> None:
        assert (msg.data, msg.headers) == (b"", None)
        acked.release()

    inbox = nc.new_inbox()
    acks = await nc.subscribe(inbox, cb=on_ack)
    for first in range(0, number, 1000):
        names = range(first, min(first + 1000, number))
        for name in names:
            envelope = build_envelope(subject=SUBJECT, payload=b"%d" % name, retries=1, queue="lost")
            await nc.publish("requeue.lost", envelope, reply=inbox)
        for _ in names:
            await asyncio.wait_for(acked.acquire(), 60)
    await acks.unsubscribe()
    while (await counted(nc))["dead"] < number:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def counted(nc: Client) -> dict[str, Any]:
    """The queue of the redriven messages as its worker has it."""
    answer = json.loads((await nc.request("_requeue.admin.queues", b'{"queue": "lost"}', timeout=60)).data)
    return dict(answer["queues"][0])


def on_disk(path: Path) -> tuple[Counter[int], Counter[int]]:
    """Numbers of the messages that are pending, and of those that are dead, in a closed directory."""
    engine = Engine(path)
    try:
        pending, dead = (
            Counter(
                int(record.payload)
                for _, value in engine.items(family, b"", b"\xff")
                for record in [decode(value)]
                if record.subject == SUBJECT.encode()
            )
            for family in (MESSAGES, DEAD)
        )
    finally:
        engine.close()
    return pending, dead


# -- cancelled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limited", [False, True], ids=["full speed", "limited"])
@pytest.mark.parametrize("letters", LETTERS)
async def test_a_redrive_cancelled_half_way_while_new_messages_flow_leaves_each_dead_or_redriven_once(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch, letters: int, limited: bool
) -> None:
    if letters == LETTERS[0]:
        monkeypatch.setattr("requeue_worker.micro.redrive.STEP_MESSAGES", 10)  # else it ends too soon
    rate = letters / 5 if limited else None
    worker = await start()
    await die(nc, letters)
    received, load = await Received.listen(nc), Load(nc)
    await load.listen()
    publishing = asyncio.create_task(load.run())
    await until(lambda: len(load.books.acked) > 100)

    await ask(nc, "redrive", job="half", queue="lost", rate=rate)
    while (await ask(nc, "jobs", job="half"))["jobs"][0]["redriven"] < letters // 2:
        pass
    [job] = (await ask(nc, "cancel-job", job="half"))["jobs"]
    assert job["state"] == "cancelled"
    assert letters // 2 <= job["redriven"] < letters
    if rate is not None:
        seconds = (job["ended_ns"] - job["started_ns"]) / 1e9
        assert job["redriven"] <= rate * (seconds + 0.2), "no faster than it was told"
    await until(lambda: sum(received.times.values()) >= job["redriven"], timeout_s=60)
    load.stop()
    await publishing
    await until(lambda: not load.books.lost, timeout_s=60)
    await worker.stop()

    pending, dead = on_disk(worker.path)
    assert pending == Counter()
    assert set(received.times.values()) == set(dead.values()) == {1}
    assert (len(received.times), len(dead)) == (job["redriven"], letters - job["redriven"])
    assert received.times.keys() | dead.keys() == set(range(letters))
    assert load.books.early == set()
    assert load.books.repeated_without([]) == []


# -- killed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letters", LETTERS)
async def test_a_worker_killed_in_a_redrive_while_new_messages_flow_has_each_message_once(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path, letters: int
) -> None:
    worker = await asyncio.to_thread(_start, worker_factory, nats_server, tmp_path)
    await die(nc, letters)
    received, load = await Received.listen(nc), Load(nc)
    await load.listen()
    publishing = asyncio.create_task(load.run())
    await until(lambda: len(load.books.acked) > 100)

    await ask(nc, "redrive", instance="w0", queue="lost", rate=letters / 2)
    await until(lambda: len(received.times) > letters // 4, timeout_s=60)
    worker.kill()
    await settle(nc)
    check_data(worker.data_dir / "w0")
    pending, dead = on_disk(worker.data_dir / "w0")
    assert set((pending + dead).values()) == {1}, "no message twice"
    assert not dead.keys() & received.times.keys(), "none that was redriven is dead"
    assert pending.keys() | dead.keys() | received.times.keys() == set(range(letters)), "none lost"
    assert 0 < len(dead) < letters

    await asyncio.to_thread(worker.start)
    assert (await ask(nc, "jobs", instance="w0"))["jobs"] == []
    await ask(nc, "redrive", instance="w0", job="rest", queue="lost")
    await until(lambda: len(received.times) == letters, timeout_s=120)
    load.stop()
    await publishing
    await until(lambda: not load.books.lost, timeout_s=60)
    await asyncio.to_thread(worker.stop)
    assert on_disk(worker.data_dir / "w0") == (Counter(), Counter())
    check_data(worker.data_dir / "w0")
    twice = {name for name, times in received.times.items() if times > 1}
    assert twice <= pending.keys(), "only what had no durable settlement when it was killed comes again"


def _start(worker_factory: WorkerFactory, server: NatsServer, tmp_path: Path) -> WorkerProcess:
    config = tmp_path / "worker.yaml"
    config.write_text("reconnect_grace: 0s\ndefaults: {ack_timeout: 5s, min_backoff: 50ms}\n")
    return worker_factory(server, "--instance-id", "w0", "--config", str(config))


# -- crashed at each step ----------------------------------------------------------------------------------------


async def test_a_crash_at_any_moment_of_a_redrive_leaves_each_message_in_one_place_and_the_rest_can_be_redriven(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What lies on disk at each place is what a crash there would leave: it is kept, and started from."""
    monkeypatch.setattr("requeue_worker.micro.redrive.STEP_MESSAGES", STEP)
    letters = 3 * STEP - 10
    worker = await start()
    await die(nc, letters)
    images: dict[str, Path] = {}
    await Handler.listen(nc, SUBJECT)  # takes them, and does not answer: they stay pending

    def keep(place: str) -> None:
        name = f"{place.removeprefix('redrive: ')} {sum(place[9:] in known for known in images)}"
        images[name] = tmp_path / "images" / name.replace(" ", "-") / worker.path.name
        shutil.copytree(worker.path, images[name])

    faults.install(keep)
    try:
        await ask(nc, "redrive", job="mine", queue="lost")
        assert (await ended(nc, "mine"))["redriven"] == letters
    finally:
        faults.install(None)
    places = {place for place in faults.FAULT_POINTS if place.startswith("redrive: ")}
    assert len(images) == 3 * len(places), "each place in each of three steps"
    await worker.stop()

    redriven: set[int] = set()
    for name, image in images.items():
        check_data(image)
        pending, dead = on_disk(image)
        assert set((pending + dead).values()) == {1}, name
        assert pending.keys() | dead.keys() == set(range(letters)), name
        redriven.add(len(pending))
    assert redriven == {0, STEP, 2 * STEP, letters}

    received = await Received.listen(nc)
    for name, image in images.items():
        received.times.clear()
        heir = await start(data_dir=image.parent)
        await ask(nc, "redrive", job=name.replace(" ", "-"), queue="lost")
        await until(lambda: len(received.times) == letters)
        await heir.until_empty("lost")
        await heir.stop()
        assert on_disk(image) == (Counter(), Counter()), name


# -- deleted with an export --------------------------------------------------------------------------------------


async def test_a_deletion_killed_half_way_has_written_every_letter_that_is_gone(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    letters, file = 3_000, tmp_path / "lost.jsonl"
    worker = await asyncio.to_thread(_start, worker_factory, nats_server, tmp_path)
    await die(nc, letters)
    command = str(Path(sys.executable).parent / "requeue")
    args = ["dead", "delete", "lost", "--export", str(file), "--yes", "--server", nats_server.url]
    process = await asyncio.create_subprocess_exec(command, *args, stdout=subprocess.DEVNULL)
    while (await counted(nc))["dead"] == letters:
        pass
    process.kill()
    await process.wait()
    await settle(nc)

    *lines, rest = file.read_text().split("\n")
    written = {int(b64decode(json.loads(line)["payload"])) for line in lines}
    await asyncio.to_thread(worker.stop)
    pending, dead = on_disk(worker.data_dir / "w0")
    assert pending == Counter()
    assert len(dead) < letters
    assert written | dead.keys() == set(range(letters))
    await asyncio.to_thread(worker.start)
    if rest:
        file.write_text("\n".join(lines))
    done = await asyncio.to_thread(
        subprocess.run,
        [command, "dead", "import", str(file), "--server", nats_server.url],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done
    await asyncio.to_thread(worker.stop)
    check_data(worker.data_dir / "w0")
    pending, dead = on_disk(worker.data_dir / "w0")
    assert (pending, dead) == (Counter(), Counter(range(letters)))
