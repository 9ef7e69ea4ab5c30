"""A disk without room, on real small file systems: intake stops in time, what is pending goes out, and room comes back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.envelope import build_envelope
from requeue_worker import headroom
from requeue_worker.headroom import BALLAST, reserve_bytes
from requeue_worker.storage.rocksdb import MESSAGES

from tests.faults.disks import KINDS, MIB, Disk, mounted
from tests.integration.worker.support import (
    HOUR,
    INTAKE,
    Handler,
    LiveWorker,
    StartWorker,
    ask,
    ask_later,
    check_data,
    headers_of,
    is_ack,
    refusal_of,
)
from tests.servers import NatsServer, WorkerFactory, settle, until

DISK = 64 * MIB
LATER = {"Requeue-Subject": "jobs.later", "Requeue-Delay": "1h"}
ROOM_S = 120.0


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", request.param, DISK) as disk:
        yield disk


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headroom, "LOOK_S", 0.05)
    monkeypatch.setattr(headroom, "RECLAIM_S", 0.2)


async def publish_until_refused(nc: Client) -> tuple[int, Msg]:
    """How many were acknowledged, and the first answer that was no ack."""
    for acked in range(1000):
        answer = await ask(nc, INTAKE, os.urandom(512 * 1024), LATER)
        if not is_ack(answer):
            return acked, answer
    raise AssertionError("never refused")


def reserve_of(worker: LiveWorker) -> int:
    """Of a small disk a quarter, whatever is configured."""
    return worker.worker.counts.disk_reserve_bytes


def ballast_bytes(data: Path) -> int:
    """Its size: while it is being made it is there and has none."""
    try:
        return (data / BALLAST).stat().st_size
    except FileNotFoundError:
        return 0


def full(worker: LiveWorker) -> bool:
    return worker.worker._headroom.full


async def test_below_the_reserve_intake_is_refused_and_returns_when_replays_have_made_room(
    start: StartWorker, nc: Client, disk: Disk
) -> None:
    worker = await start(data_dir=disk.path)
    acked, answer = await publish_until_refused(nc)
    code, text = refusal_of(answer)
    mib = reserve_of(worker) >> 20
    assert (code, text) == (507, f"the worker's disk has less than {mib} MiB left: send again later")
    assert acked * 512 * 1024 > DISK // 4, "a good part of the disk was used"
    assert disk.free_bytes > reserve_of(worker) // 2 - 4 * MIB, "RocksDB is far from the wall"
    assert worker.worker.live()[0]
    ready, why = worker.worker.ready()
    assert ready
    assert why.startswith("ready; the disk is full: new messages are refused")

    # Old clients must take nothing for an ack, and a message that is no message is not kept either.
    silent = await ask_later(nc, INTAKE, build_envelope(subject="jobs.a", payload=b""))
    broken = await ask_later(nc, INTAKE, b"no envelope")
    assert refusal_of(await ask(nc, INTAKE, b"", {"Requeue-Subject": "$SYS.x"}))[0] == 507
    await settle(nc)
    assert not silent.answered
    assert not broken.answered
    assert worker.invalid() == []
    assert worker.worker.counts.refused[507] >= 4

    jobs = await Handler.listen(nc, "jobs.>", lambda msg: nc.publish(msg.reply, b""))
    await worker.forward(HOUR)
    await until(lambda: not worker.queue().pending, ROOM_S)
    assert len(jobs.received) == acked
    await until(lambda: not full(worker), ROOM_S)
    await worker.publish("jobs.again", b"taken in again")
    await worker.until_empty()
    assert worker.write_errors == []
    await until(lambda: not (disk.path / BALLAST).exists())  # it goes with the next look at the disk


async def test_all_that_was_settled_can_be_reclaimed_although_nothing_moves_the_checkpoint_any_more(
    start: StartWorker, nc: Client
) -> None:
    # A checkpoint moves with the batches of its queue, ten times a second at most. On a full disk no batch may follow.
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", lambda msg: nc.publish(msg.reply, b""))
    for _ in range(3):
        await worker.publish("jobs.a", b"x")
    await worker.until_empty()
    assert len(jobs.received) == 3

    await worker.worker._reclaimer.reclaim()

    (lane,) = worker.queue().lanes.values()
    assert lane.checkpoint == lane.lowest_unsettled() == lane.cursor
    assert lane.checkpoint > lane.prefix


async def test_what_another_process_takes_counts_and_what_it_gives_back_too(
    start: StartWorker, nc: Client, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    worker = await start(data_dir=disk.path)
    reserve = reserve_of(worker)
    disk.fill(leave_bytes=reserve - MIB)
    await until(lambda: full(worker))
    await until(lambda: (disk.path / BALLAST).exists())
    assert refusal_of(await ask(nc, INTAKE, b"x", LATER))[0] == 507

    disk.fill()  # what it leaves is ours: the ballast goes, and there is room for what has to be written
    await until(lambda: not (disk.path / BALLAST).exists() and disk.free_bytes > MIB)
    assert full(worker)

    disk.make_room()
    await until(lambda: not full(worker))
    await worker.publish_plain("jobs.later", b"x", LATER)
    told = [record.message for record in caplog.records if "the disk" in record.message]
    assert told == [
        "the disk is full: no messages are taken in",
        "the disk has room again: messages are taken in",
    ]


async def fill_to_the_last_byte(disk: Disk, worker: LiveWorker) -> None:
    """As another process does: twice, since the first time gives the ballast back."""
    disk.fill()
    await until(lambda: full(worker) and not (disk.path / BALLAST).exists())
    disk.fill()
    await until(lambda: not worker.worker.counts.disk_free_bytes)


async def test_after_a_flush_that_found_no_room_messages_are_taken_once_rocksdb_writes_again(
    start: StartWorker, nc: Client, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headroom, "RECLAIM_S", 3600.0)
    worker = await start(data_dir=disk.path)
    await worker.publish_plain("jobs.later", os.urandom(200_000), LATER)
    await fill_to_the_last_byte(disk, worker)
    await worker.worker._store.reclaim([])
    assert not worker.worker._store.writable

    disk.make_room()
    monkeypatch.setattr(headroom, "RECLAIM_S", 0.2)
    await until(lambda: worker.worker.counts.disk_free_bytes > DISK // 2)
    assert refusal_of(await ask(nc, INTAKE, b"x", LATER))[0] == 507
    await until(lambda: not full(worker), ROOM_S)
    await worker.publish_plain("jobs.later", b"x", LATER)
    assert worker.write_errors == []


async def test_a_reply_that_comes_before_rocksdb_writes_again_waits_for_it(
    start: StartWorker, nc: Client, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headroom, "RECLAIM_S", 3600.0)
    worker = await start(data_dir=disk.path)
    await worker.publish_plain("jobs.later", os.urandom(200_000), LATER)
    jobs = await Handler.listen(nc, "jobs.>", lambda msg: nc.publish(msg.reply, b""))
    await fill_to_the_last_byte(disk, worker)
    await worker.worker._store.reclaim([])
    assert not worker.worker._store.writable

    disk.make_room()
    await worker.forward(HOUR)
    await until(lambda: not worker.queue().pending, ROOM_S)
    assert len(jobs.received) == 1
    assert worker.write_errors == []


async def test_on_a_disk_without_a_byte_nothing_is_written_to_reclaim_room(
    start: StartWorker, disk: Disk
) -> None:
    worker = await start(data_dir=disk.path)
    await worker.publish_plain("jobs.later", os.urandom(200_000), LATER)
    await fill_to_the_last_byte(disk, worker)

    await worker.worker._reclaimer.reclaim()

    assert worker.write_errors == []
    assert worker.worker.live()[0]


async def test_a_compaction_without_room_is_told_and_made_good_when_there_is_room(
    start: StartWorker, nc: Client, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start(data_dir=disk.path, disk_reserve="0")
    store, everything = worker.worker._store, [(MESSAGES, b"", b"\xff")]
    for _ in range(2):
        for number in range(12):  # tables that overlap, or they would be moved as they are
            later = {**LATER, "Requeue-Delay": f"{number + 1}h"}
            assert is_ack(await ask(nc, INTAKE, os.urandom(512 * 1024), later))
        await store.reclaim([])
    disk.fill(leave_bytes=MIB)
    await store.reclaim(everything)
    await until(lambda: worker.worker.counts.disk_background_errors)
    assert "tables can't be rewritten: room is given back later" in caplog.messages
    assert unmerged(worker)

    disk.make_room()  # RocksDB asks every few seconds whether there is some
    async with asyncio.timeout(ROOM_S):
        while unmerged(worker):
            await store.reclaim(everything)
            await asyncio.sleep(0.5)
    assert worker.write_errors == []
    await worker.publish_plain("jobs.later", b"x", LATER)


def unmerged(worker: LiveWorker) -> int:
    """Tables of messages that no compaction has seen."""
    family = worker.worker._store._engine._families[MESSAGES]
    return int(family.property_int_value("rocksdb.num-files-at-level0") or 0)


async def test_between_reserve_and_a_quarter_more_nothing_changes(
    start: StartWorker, nc: Client, disk: Disk
) -> None:
    worker = await start(data_dir=disk.path)
    reserve = reserve_of(worker)
    disk.fill(leave_bytes=reserve - MIB)
    await until(lambda: full(worker))
    disk.make_room()
    disk.fill(leave_bytes=reserve + reserve // 8)
    room = worker.worker._headroom.look()
    worker.worker._headroom.note(room._replace(ballast_bytes=0, free_bytes=reserve + reserve // 8))
    assert full(worker), "it was, and it stays until there is more"
    disk.make_room()
    await until(lambda: not full(worker))
    disk.fill(leave_bytes=reserve + reserve // 8)
    await worker.worker._headroom.look_now()
    assert not full(worker), "it was not, and it stays so"


async def test_no_space_left_after_all_ends_the_worker_and_nothing_unwritten_is_acknowledged(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, disk: Disk
) -> None:
    """With the watch off: what happens when another process fills the disk between two looks."""
    config = disk.path.with_name("worker.yaml")
    config.write_text("disk_reserve: 0\n")
    data = disk.path / "data"
    worker = worker_factory(nats_server, "--instance-id", "w0", "--config", str(config), data_dir=data)
    acked = 0
    for number in range(20):
        acked += is_ack(await ask(nc, INTAKE, os.urandom(256 * 1024), {**LATER, "Nats-Msg-Id": f"{number}"}))
    assert acked == 20
    disk.fill()
    answer = await ask(nc, INTAKE, os.urandom(768 * 1024), LATER)
    assert refusal_of(answer)[0] == 500
    assert await asyncio.to_thread(worker.wait) == 1
    assert "No space left on device" in worker.log
    assert "the worker ends" in worker.log

    disk.make_room()
    await asyncio.to_thread(worker.start)
    for number in range(20):
        again = await ask(nc, INTAKE, b"x", {**LATER, "Nats-Msg-Id": f"{number}"})
        assert headers_of(again)["Requeue-Duplicate"] == "true", "still there"
    assert await asyncio.to_thread(worker.stop) == 0
    check_data(data / "w0")


async def test_a_worker_that_starts_on_a_full_disk_replays_and_so_makes_room(
    start: StartWorker, nc: Client, nats_server: NatsServer, worker_factory: WorkerFactory, disk: Disk
) -> None:
    config = disk.path.with_name("worker.yaml")
    config.write_text("defaults: {ack_timeout: 10s}\n")
    data = disk.path / "data"
    process = worker_factory(nats_server, "--instance-id", "tested", "--config", str(config), data_dir=data)
    acked, _ = await publish_until_refused(nc)
    await until(lambda: ballast_bytes(data) > 0)
    process.kill()  # its log is written into tables at the next start, for which there has to be room
    disk.fill()
    assert disk.free_bytes < MIB

    worker = await start(data_dir=data)
    assert full(worker)
    await Handler.listen(nc, "jobs.>", lambda msg: nc.publish(msg.reply, b""))
    await worker.forward(HOUR)
    await until(lambda: not worker.queue().pending, ROOM_S)
    assert worker.queue().counts.settled >= acked
    await until(lambda: not full(worker), ROOM_S)
    await worker.publish("jobs.again", b"taken in again")
    await worker.until_empty()


async def test_a_start_for_which_there_is_no_room_at_all_says_so_and_exits_with_3(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, disk: Disk
) -> None:
    data = disk.path / "data"
    worker = worker_factory(nats_server, "--instance-id", "w0", data_dir=data)
    assert is_ack(await ask(nc, INTAKE, os.urandom(512 * 1024), LATER))
    worker.kill()
    disk.fill()
    worker.spawn()
    assert await asyncio.to_thread(worker.wait) == 3
    assert "No space left on device" in worker.log

    disk.make_room()
    await asyncio.to_thread(worker.start)
    assert await asyncio.to_thread(worker.stop) == 0
    check_data(data / "w0")


@pytest.mark.parametrize(
    ("reserve", "total", "bytes_kept"),
    [
        ("256MiB", 100 << 30, 256 * MIB),
        ("256MiB", 400 * MIB, 100 * MIB),
        ("5%", 100 << 30, 5 << 30),
        ("50%", 400 * MIB, 200 * MIB),
        ("0", 100 << 30, 0),
    ],
)
def test_a_reserve_is_a_share_or_a_size_of_which_a_small_disk_gives_a_quarter(
    reserve: str, total: int, bytes_kept: int
) -> None:
    assert reserve_bytes(reserve, total) == bytes_kept
