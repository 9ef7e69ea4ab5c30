"""A disk that fails, stalls or goes away under a worker: it says so and ends, and no ack was ever given in vain."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from requeue_worker import headroom
from requeue_worker.errors import CommitError
from requeue_worker.storage.rocksdb import Batch, Engine

from tests.faults.disks import KINDS, MIB, Disk, mounted
from tests.integration.worker.support import (
    INTAKE,
    Handler,
    StartWorker,
    ask,
    ask_later,
    check_data,
    is_ack,
    refusal_of,
)
from tests.servers import NatsServer, WorkerFactory, until

LATER = {"Requeue-Subject": "jobs.later", "Requeue-Delay": "1h"}
FSYNC_S = 0.5
NOW = {"Requeue-Subject": "jobs.now"}


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", request.param, 64 * MIB) as disk:
        yield disk


async def acked(nc: Client, headers: dict[str, str] = LATER) -> None:
    assert is_ack(await ask(nc, INTAKE, b"x", headers))


# -- read-only ---------------------------------------------------------------------------------------------------


async def test_a_disk_that_is_read_only_at_the_start_is_named_and_the_exit_code_is_3(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, disk: Disk
) -> None:
    data = disk.path / "data"
    worker = worker_factory(nats_server, "--instance-id", "w0", data_dir=data)
    await acked(nc)
    await asyncio.to_thread(worker.stop)
    disk.remount("ro")
    worker.spawn()
    assert await asyncio.to_thread(worker.wait) == 3
    assert f"{data / 'w0'}" in worker.log
    assert "Read-only file system" in worker.log or "read, write and search rights" in worker.log

    disk.remount("rw")
    await asyncio.to_thread(worker.start)
    assert await asyncio.to_thread(worker.stop) == 0
    check_data(data / "w0")


async def test_a_disk_that_stops_working_under_a_worker_ends_it_and_nothing_unwritten_is_acknowledged(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    """A file system that shuts itself down, as ext4 does after an I/O error: every write fails from then on."""
    with mounted(tmp_path / "disk", "ext4", 64 * MIB) as disk:
        data = disk.path / "data"
        worker = worker_factory(nats_server, "--instance-id", "w0", data_dir=data)
        await acked(nc)
        disk.shut_down()
        assert refusal_of(await ask(nc, INTAKE, b"y", LATER))[0] == 500
        assert await asyncio.to_thread(worker.wait) == 1
        assert "the worker ends" in worker.log
        assert "error" in worker.log.rpartition("the worker ends")[2]

        disk.mount_again()
        await asyncio.to_thread(worker.start)
        assert await asyncio.to_thread(worker.stop) == 0
        check_data(data / "w0")
        assert pending_in(data / "w0") == 1


def pending_in(path: Path) -> int:
    engine = Engine(path, read_only=True)
    try:
        return len(list(engine.keys("messages", b"", b"\xff")))
    finally:
        engine.close()


# -- a write that fails, a write that takes long -----------------------------------------------------------------


class BadDisk(Engine):
    """A real database on a disk that fails or takes its time, as it is told."""

    error: str | None = None
    lands = False
    fsync_s = 0.0
    writes = 0

    def write(self, batch: Batch, *, sync: bool = True) -> None:
        time.sleep(self.fsync_s)
        if self.error is not None and not self.lands:
            raise CommitError(self.error)
        super().write(batch, sync=sync)
        type(self).writes += 1
        if self.error is not None:
            raise CommitError(self.error)


@pytest.fixture
def bad_disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Bad(BadDisk):
        pass

    monkeypatch.setattr("requeue_worker.storage.store.Engine", Bad)
    return Bad


@pytest.mark.parametrize("lands", [False, True], ids=["write", "fsync"])
async def test_an_io_error_of_write_or_fsync_ends_the_worker_and_the_next_start_is_clean(
    start: StartWorker, nc: Client, bad_disk: type[BadDisk], lands: bool
) -> None:
    worker = await start()
    await acked(nc, {**LATER, "Nats-Msg-Id": "before"})
    bad_disk.lands = lands  # after a failed fsync nobody knows what is on disk
    bad_disk.error = "IO error: While fdatasync: Input/output error"
    answers = [await ask_later(nc, INTAKE, b"x", {**LATER, "Nats-Msg-Id": f"{n}"}) for n in range(50)]
    for answer in answers:
        assert refusal_of(await answer.answer())[0] in (500, 503)
    with pytest.raises(CommitError, match="Input/output error"):
        await worker.worker.closed()

    await worker.stop()
    bad_disk.error = None
    again = await start()
    assert len(again.pending()) >= 1
    assert b"Nats-Msg-Id: before" in again.pending()[0].record.headers


async def test_on_a_slow_disk_acks_wait_for_the_fsync_and_share_it(
    start: StartWorker, nc: Client, bad_disk: type[BadDisk]
) -> None:
    worker = await start()
    bad_disk.fsync_s = FSYNC_S
    writes = bad_disk.writes
    answers = [await ask_later(nc, INTAKE, b"x", LATER) for _ in range(300)]
    for answer in answers:
        assert is_ack(await answer.answer())
    assert len(worker.pending()) == 300
    assert bad_disk.writes - writes < 30, "throughput falls with the fsyncs, not with the messages"
    ready, why = worker.worker.ready()
    assert (ready, why) == (True, "ready")
    assert worker.worker.counts.commit_seconds.sum > FSYNC_S
    bad_disk.fsync_s = 0.0


async def test_on_a_slow_disk_a_settlement_that_waits_is_no_timeout_and_nothing_goes_out_twice(
    start: StartWorker, nc: Client, bad_disk: type[BadDisk]
) -> None:
    """The ack timeout is shorter than an fsync: a reply that came in time counts, however late it is on disk."""
    worker = await start(defaults={"ack_timeout": "2s", "retries": 5})
    jobs = await Handler.listen(nc, "jobs.>", lambda msg: nc.publish(msg.reply, b""))
    bad_disk.fsync_s = 3.0
    for number in range(60):
        await nc.publish(INTAKE, b"%d" % number, headers=NOW)
    await until(lambda: worker.queue().counts.settled >= 60, 60)
    await worker.idle()
    counts = worker.queue().counts
    assert (counts.replays, counts.settled, counts.retried, counts.held) == (60, 60, 0, 0)
    assert len(jobs.received) == 60
    assert worker.pending() == []
    bad_disk.fsync_s = 0.0


async def test_on_a_slow_disk_stats_and_admin_answer_and_the_stop_commits_what_came_in(
    start: StartWorker, nc: Client, bad_disk: type[BadDisk]
) -> None:
    worker = await start(stats_interval="50ms")
    await acked(nc, {**LATER, "Nats-Msg-Id": "known"})
    stats = await Handler.listen(nc, "_requeue._stats")
    bad_disk.fsync_s = FSYNC_S
    told = await ask_later(nc, INTAKE, b"x", LATER)
    for _ in range(3):
        await stats.next()
    answers = [await ask_later(nc, INTAKE, b"x", LATER) for _ in range(20)]
    await nc.flush()
    await until(lambda: worker.worker.counts.intake_messages >= 22)
    await worker.worker.stop()
    for answer in (told, *answers):
        assert is_ack(await answer.answer())
    assert pending_in(worker.path) == 22


# -- gone --------------------------------------------------------------------------------------------------------


async def test_a_directory_that_is_removed_under_a_worker_ends_it_with_a_sentence_even_when_idle(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> None:
    worker = worker_factory(nats_server, "--instance-id", "w0")
    await acked(nc)
    shutil.rmtree(worker.data_dir / "w0")
    assert await asyncio.to_thread(worker.wait) == 1
    assert f"{worker.data_dir / 'w0'} was removed, moved or unmounted under the running worker" in worker.log


async def test_into_a_directory_that_is_gone_nothing_is_acknowledged(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headroom, "LOOK_S", 3600)  # not the watch, the commit itself
    worker = await start()
    await acked(nc)
    kept = worker.path.with_name("moved")
    worker.path.rename(kept)
    assert refusal_of(await ask(nc, INTAKE, b"x", LATER))[0] == 500
    with pytest.raises(CommitError, match="was removed, moved or unmounted"):
        await worker.worker.closed()
    await worker.worker.stop()
    assert pending_in(kept) == 1
    kept.rename(worker.path)


async def test_a_disk_that_is_mounted_over_the_data_or_unmounted_ends_the_worker(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "tmpfs", 64 * MIB) as disk:
        worker = worker_factory(nats_server, "--instance-id", "w0", data_dir=disk.path / "data")
        await acked(nc)
        disk.unmount()
        assert await asyncio.to_thread(worker.wait) == 1
        assert "was removed, moved or unmounted under the running worker" in worker.log


@pytest.mark.parametrize("there", ["a file", "no rights for a parent"])
async def test_a_data_directory_that_cannot_be_made_is_named_and_the_exit_code_is_3(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path, there: str
) -> None:
    data = tmp_path / "data"
    worker = worker_factory(nats_server, "--instance-id", "w0", data_dir=data, start=False)
    data.rmdir()
    if there == "a file":
        data.write_text("")
    else:
        data.symlink_to("/proc/nowhere")
    worker.spawn()
    assert await asyncio.to_thread(worker.wait) == 3
    assert f"{data}" in worker.log
