"""`requeue pause|resume` as users run them, with real workers."""

from __future__ import annotations

import asyncio
import json

import pytest
from requeue_protocol.changes import UNTIL_RESUMED

from tests.integration.client.test_admin_commands import shown
from tests.integration.client.test_command import run
from tests.servers import NatsServer, WorkerFactory


@pytest.fixture
async def two_workers(nats_server: NatsServer, worker_factory: WorkerFactory) -> None:
    for instance in ("worker-0", "worker-1"):
        await asyncio.to_thread(worker_factory, nats_server, "--instance-id", instance)


async def test_a_queue_is_paused_and_resumed_on_all_workers(
    nats_server: NatsServer, two_workers: None
) -> None:
    rows = await shown(nats_server, "resume", "mail", code=6, says=b"mail was not paused")
    assert [row["known"] for row in rows] == [False, False]
    rows = await shown(nats_server, "pause", "mail", says=b"no worker had a queue mail")
    assert [(row["instance"], row["paused_until_ns"]) for row in rows] == [
        ("worker-0", UNTIL_RESUMED),
        ("worker-1", UNTIL_RESUMED),
    ]
    assert b"until resumed" in (await run("queues", "--server", nats_server.url)).stdout
    await shown(nats_server, "resume", "mail", "--instance", "worker-1")
    assert b"until resumed on 1 of 2" in (await run("queues", "--server", nats_server.url)).stdout
    done = await run("pause", "mail", "--for", "10m", "--server", nats_server.url)
    assert done.stdout.count(b"ends in 9m59s") == 2
    [queue] = await shown(nats_server, "queues", "mail")
    assert (queue["instances"], queue["paused_instances"]) == (2, 2)
    assert {row["was_paused"] for row in await shown(nats_server, "resume", "mail")} == {True}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["pause", "a b"], b"queue"),
        (["pause", "mail", "--for", "10"], b"unit"),
        (["pause", "mail", "--for", "0s"], b"requeue resume"),
        (["resume"], b"Missing argument"),
    ],
)
async def test_a_wrong_option_asks_nobody(args: list[str], says: bytes) -> None:
    done = await run(*args, "--server", "nats://127.0.0.1:1")
    assert done.returncode == 2
    assert says in done.stderr


async def test_a_read_only_worker_refuses_and_the_command_says_whose_setting_it_is(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    await asyncio.to_thread(worker_factory, nats_server, "--admin-read-only", "true", "--instance-id", "w")
    done = await run("pause", "mail", "--server", nats_server.url)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"requeue: worker w: nothing was changed" in done.stderr
    assert b"admin.read_only" in done.stderr
    assert b"ask again" not in done.stderr


async def test_the_worker_logs_who_paused_what(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    worker = await asyncio.to_thread(worker_factory, nats_server, "--log-format", "json")
    await shown(nats_server, "pause", "mail", says=b"no worker had")
    lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    [line] = [line for line in lines if line["message"] == "queue paused"]
    assert line["queue"] == "mail"
    assert "@" in line["by"]
