"""Workers that are killed under load, on a real NATS server and a real disk: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.faults.load import Load
from tests.integration.worker.support import check_data
from tests.servers import NatsServer, WorkerFactory, until

POLICY = "defaults: {ack_timeout: 2s, min_backoff: 50ms, max_backoff: 200ms}\n"


def config(tmp_path: Path) -> str:
    path = tmp_path / "worker.yaml"
    path.write_text(POLICY)
    return str(path)


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
async def test_a_worker_killed_again_and_again_loses_nothing_that_it_acknowledged(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path, kills: int
) -> None:
    worker = worker_factory(nats_server, "--instance-id", "w0", "--config", config(tmp_path))
    load = Load(nc)
    await load.listen()
    publishing = asyncio.create_task(load.run())
    killed_s: list[float] = []
    for _ in range(kills):
        acked = len(load.books.acked)
        await until(lambda acked=acked: len(load.books.acked) > acked + 20)
        await asyncio.sleep(random.uniform(0, 0.25))
        worker.kill()
        killed_s.append(time.time())
        await asyncio.to_thread(check_data, worker.data_dir / "w0")
        await asyncio.to_thread(worker.start)
    load.stop()
    await publishing
    await until(lambda: not load.books.lost, timeout_s=60)
    await asyncio.to_thread(worker.stop)
    check_data(worker.data_dir / "w0")

    assert len(load.books.acked) > 20 * kills
    assert load.books.lost == set()
    assert load.books.early == set()
    assert load.books.repeated_without(killed_s) == []


async def test_two_workers_of_one_group_share_the_load_and_one_may_die(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    first, second = (
        worker_factory(nats_server, "--instance-id", name, "--config", config(tmp_path)) for name in "ab"
    )
    load = Load(nc)
    await load.listen()
    publishing = asyncio.create_task(load.run())
    await until(lambda: len(load.books.acked) > 500)
    first.kill()
    killed_s = [time.time()]
    acked = len(load.books.acked)
    await until(lambda: len(load.books.acked) > acked + 500)
    load.stop()
    await publishing
    await asyncio.to_thread(first.start)
    await until(lambda: not load.books.lost, timeout_s=60)

    assert load.books.early == set()
    assert load.books.repeated_without(killed_s) == []
    for worker, name in ((first, "a"), (second, "b")):
        await asyncio.to_thread(worker.stop)
        check_data(worker.data_dir / name)


async def test_a_nats_server_killed_under_load_costs_no_acknowledged_message(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    worker = worker_factory(nats_server, "--instance-id", "w0", "--config", config(tmp_path))
    load = Load(nc)
    await load.listen()
    publishing = asyncio.create_task(load.run())
    killed_s: list[float] = []
    for _ in range(3):
        acked = len(load.books.acked)
        await until(lambda acked=acked: len(load.books.acked) > acked + 300)
        nats_server.kill()
        killed_s.append(time.time())
        await asyncio.to_thread(nats_server.start)
        await until(lambda: nc.is_connected)
    load.stop()
    await publishing
    await until(lambda: not load.books.lost, timeout_s=60)
    await asyncio.to_thread(worker.stop)

    assert load.books.early == set()
    assert load.books.repeated_without(killed_s) == []
    check_data(worker.data_dir / "w0")


async def test_sigterm_under_load_loses_nothing_and_exits_with_0(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    worker = worker_factory(nats_server, "--instance-id", "w0", "--config", config(tmp_path))
    load = Load(nc)
    await load.listen()
    publishing = asyncio.create_task(load.run())
    await until(lambda: len(load.books.acked) > 300)
    worker.terminate()
    stopped_s = [time.time()]
    assert await asyncio.to_thread(worker.wait) == 0
    load.stop()
    await publishing
    check_data(worker.data_dir / "w0")
    await asyncio.to_thread(worker.start)
    await until(lambda: not load.books.lost, timeout_s=60)

    assert load.books.early == set()
    assert load.books.repeated_without(stopped_s) == []


@pytest.mark.timeout(600)
async def test_a_hundred_thousand_messages_are_all_accounted_for(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    worker = worker_factory(nats_server, "--instance-id", "w0", "--config", config(tmp_path))
    load = Load(nc, most=100_000)
    await load.listen()

    await load.run()
    await until(lambda: not load.books.lost, timeout_s=120)
    await asyncio.to_thread(worker.stop)

    assert len(load.books.acked) >= 100_000
    assert load.books.early == set()
    assert load.books.repeated_without([]) == []
    check_data(worker.data_dir / "w0")
