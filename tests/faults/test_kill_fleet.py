"""A fleet under load whose workers and drains are killed at random instants, with the reaper at work: the promise."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.faults.fleet import Fleet
from tests.faults.load import Load
from tests.servers import NatsServer, WorkerFactory, until


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
async def test_a_fleet_killed_again_and_again_loses_nothing_that_it_acknowledged(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path, kills: int
) -> None:
    rng = random.Random(kills)
    fleet = Fleet(nats_server, worker_factory, tmp_path, rng)
    fleet.spawn()
    load = Load(nc)
    await load.listen()
    publishing = asyncio.create_task(load.run())
    for _ in range(kills):
        acked = len(load.books.acked)
        await until(lambda acked=acked: len(load.books.acked) > acked + 20, timeout_s=60)
        await asyncio.sleep(rng.uniform(0, 0.25))
        await fleet.kill_one()
    load.stop()
    await publishing
    await fleet.settle()
    await until(lambda: not load.books.lost, timeout_s=120)
    reports = await asyncio.to_thread(fleet.stop)

    repeated = sum(len(came_s) - 1 for came_s in load.books.came_s.values())
    print(f"{len(load.books.acked)} acknowledged, {repeated} repeated, {fleet.drained} volumes drained")
    assert load.books.lost == set()
    assert load.books.early == set()
    assert load.books.repeated_without(fleet.faults_s) == []
    assert [report.findings for report in reports if not report.ok] == []
    assert sum(report.records["messages"] + report.records["dead"] for report in reports) == 0
