"""`requeue-worker run --shards N` as processes, on a real nats-server and a real disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import LocalProcessError, NatsServer, WorkerFactory, WorkerProcess, free_port

PATIENCE_S = 60


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.05)


async def get(address: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as response:
        return response.status, await response.text()


def shards_of(worker: WorkerProcess) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children()


async def metric(address: str, name: str) -> dict[str, float]:
    """By shard, summed over the queues."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families((await get(address, "/metrics"))[1]):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["shard"]] = found.get(sample.labels["shard"], 0) + sample.value
    return found


async def send(nc: Client, numbers: range, delay: str) -> None:
    headers = {"Requeue-Subject": "job", "Requeue-Delay": delay}

    async def one(number: int) -> None:
        answer = await nc.request("requeue.x", b"%d" % number, headers=headers, timeout=PATIENCE_S)
        assert answer.data == b""
        assert not answer.headers

    await asyncio.gather(*(one(number) for number in numbers))


class Handled:
    """Payloads that came, each time that they did."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    async def on_message(self, msg: Msg) -> None:
        self.payloads.append(msg.data)
        await msg.respond(b"")

    async def has(self, count: int) -> bool:
        return len(set(self.payloads)) == count


@pytest.fixture
async def handled(nc: Client) -> Handled:
    handler = Handled()
    await nc.subscribe("job", cb=handler.on_message)
    await nc.flush()
    return handler


async def test_each_message_goes_to_one_shard_and_is_delivered_once(
    nats_server: NatsServer, nc: Client, worker_factory: WorkerFactory, tmp_path: Path, handled: Handled
) -> None:
    http = f"127.0.0.1:{free_port()}"
    worker = worker_factory(
        nats_server, "--shards", "2", "--instance-id", "a", "--http", http, data_dir=tmp_path / "data"
    )
    await send(nc, range(1000), "2s")
    taken = await metric(http, "requeue_intake_messages_total")
    assert set(taken) == {"0", "1"}
    assert sum(taken.values()) == 1000
    assert min(taken.values()) > 0
    await until(lambda: handled.has(1000))
    assert len(handled.payloads) == 1000
    assert sorted(each.name for each in (tmp_path / "data").glob("a.*")) == ["a.0", "a.1"]

    assert (await get(http, "/readyz")) == (200, "shard 0: ready\nshard 1: ready\n")
    assert (await get(http, "/livez")) == (200, "shard 0: alive\nshard 1: alive\n")
    assert await metric(http, "requeue_shard_up") == {"0": 1, "1": 1}
    lines = [json.loads(line) for line in (await get(http, "/overview"))[1].splitlines()]
    told = [line["answer"] for line in lines if line["endpoint"] == "stats"]
    assert [each["instance"] for each in told] == ["a.0", "a.1"]
    assert sum(queue["accepted"] for each in told for queue in each["queues"]) == 1000
    worker.terminate()
    assert worker.wait(PATIENCE_S) == 0
    assert worker.log.count("stopped") >= 2


async def test_one_web_view_shows_all_shards(nats_server: NatsServer, worker_factory: WorkerFactory) -> None:
    view = f"127.0.0.1:{free_port()}"
    worker_factory(nats_server, "--shards", "2", "--instance-id", "a", "--web", view)
    url = f"http://{view}/ui/api/instances"
    async with aiohttp.ClientSession() as session, session.post(url, json={}) as response:
        answers = (await response.json())["answers"]
    assert sorted(answer["instance"] for answer in answers) == ["a.0", "a.1"]


async def test_a_shard_that_is_killed_is_started_again_alone_and_nothing_is_lost(
    nats_server: NatsServer, nc: Client, worker_factory: WorkerFactory, handled: Handled
) -> None:
    http = f"127.0.0.1:{free_port()}"
    worker = worker_factory(nats_server, "--shards", "2", "--instance-id", "a", "--http", http)
    await send(nc, range(500), "3s")
    one, other = shards_of(worker)
    os.kill(one.pid, signal.SIGKILL)
    await until(lambda: handled.has(500))

    async def restarted() -> bool:
        return sum((await metric(http, "requeue_shard_restarts_total")).values()) == 1

    await until(restarted)

    async def is_ready() -> bool:
        return (await get(http, "/readyz"))[0] == 200

    await until(is_ready)
    assert other.pid in {each.pid for each in shards_of(worker)}
    assert one.pid not in {each.pid for each in shards_of(worker)}
    assert (await get(http, "/livez"))[0] == 200


async def test_with_fewer_shards_what_the_others_had_is_merged_and_delivered(
    nats_server: NatsServer, nc: Client, worker_factory: WorkerFactory, tmp_path: Path, handled: Handled
) -> None:
    data = tmp_path / "data"
    config = tmp_path / "worker.yaml"
    config.write_text("reaper: {reap_after: 1s, interval: 1s}\n")
    args = ("--instance-id", "a", "--config", str(config))
    worker = worker_factory(nats_server, *args, "--shards", "3", data_dir=data)
    await send(nc, range(300), "4s")
    assert worker.stop() == 0
    worker_factory(nats_server, *args, data_dir=data)
    await until(lambda: handled.has(300))
    assert len(handled.payloads) == 300

    async def merged() -> bool:
        return [each.name for each in data.iterdir() if each.is_dir() and not each.name.startswith(".")] == [
            "a"
        ]

    await until(merged)


async def test_shards_stop_when_their_supervisor_is_killed(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    worker = worker_factory(nats_server, "--shards", "2", "--instance-id", "a")
    shards = shards_of(worker)
    assert len(shards) == 2
    os.kill(worker.pid, signal.SIGKILL)

    async def gone() -> bool:
        return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in shards)

    await until(gone)


def test_a_shard_that_cannot_run_ends_all_with_its_exit_code(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.1").write_text("no directory")
    worker = worker_factory(
        nats_server, "--shards", "2", "--instance-id", "a", data_dir=tmp_path / "data", start=False
    )
    with pytest.raises(LocalProcessError):
        worker.start()
    assert worker.wait(PATIENCE_S) == 3
    assert "a.1" in worker.log


def test_a_number_of_shards_that_is_none_is_told(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    worker = worker_factory(nats_server, "--shards", "0", start=False)
    with pytest.raises(LocalProcessError):
        worker.start()
    assert worker.wait(PATIENCE_S) == 2
    assert "--shards" in worker.log
