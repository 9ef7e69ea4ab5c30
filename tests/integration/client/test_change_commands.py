"""`requeue pause|resume|cancel|run-now|reschedule|purge` as users run them, with real workers."""

from __future__ import annotations

import asyncio
import json

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import Message, RequeueClient
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


# -- cancel, run-now, reschedule, purge --------------------------------------------------------------------------

NUMBER = 250


@pytest.fixture
async def filled(nc: Client, two_workers: None) -> None:
    """NUMBER messages in `mail`, on both workers."""
    async with RequeueClient(nc) as client:
        messages = [
            Message(f"mail.{n % 2}", b"%d" % n, queue="mail", delay="1h", msg_id=f"m{n}")
            for n in range(NUMBER)
        ]
        assert all([outcome.ok async for outcome in client.publish_many(messages)])


def summed(rows: list[dict[str, int]]) -> tuple[int, int]:
    assert [row["instance"] for row in rows] == ["worker-0", "worker-1"]
    return sum(row["messages"] for row in rows), sum(row["in_flight"] for row in rows)


async def left(server: NatsServer) -> int:
    return sum(row["pending"] for row in await shown(server, "queues", "mail"))


async def test_a_purge_counts_and_asks_first_and_then_empties_the_queue_on_all_workers(
    nats_server: NatsServer, filled: None
) -> None:
    rows = await shown(nats_server, "purge", "mail", "--subject", "mail.1", "--dry-run")
    assert summed(rows) == (NUMBER // 2, 0)
    asked = await run("purge", "mail", "--server", nats_server.url)
    assert asked.returncode == 2
    assert b"Purge 250 messages? Say --yes" in asked.stderr
    assert await left(nats_server) == NUMBER
    rows = await shown(nats_server, "purge", "mail", "--subject", "mail.1", "--yes")
    assert summed(rows) == (NUMBER // 2, 0)
    assert await left(nats_server) == NUMBER // 2
    assert summed(await shown(nats_server, "purge", "mail", "--older", "1h", "--yes", code=6)) == (0, 0)
    table = await run("purge", "mail", "--yes", "--server", nats_server.url)
    assert (table.returncode, table.stderr) == (0, b"")
    assert b"MESSAGES" in table.stdout
    assert await left(nats_server) == 0
    assert await shown(nats_server, "list", "--state", "dead") == []


async def test_any_number_of_ids_is_cancelled_without_a_question(
    nats_server: NatsServer, filled: None
) -> None:
    ids = [f"m{n}" for n in range(130)]
    own = [
        row["id"] for row in await shown(nats_server, "list", "--limit", "0") if row["client_id"] == "m200"
    ]
    rows = await shown(nats_server, "cancel", *ids, *own, "no-such-id", "m0")
    assert summed(rows) == (131, 0)
    assert await left(nats_server) == NUMBER - 131
    assert summed(await shown(nats_server, "cancel", "m0", code=6)) == (0, 0)
    rows = await shown(nats_server, "cancel", "--subject", "mail.*", "--newer", "1h", "--yes")
    assert summed(rows) == (NUMBER - 131, 0)


async def test_messages_are_rescheduled_and_run_now(
    nats_server: NatsServer, filled: None, nc: Client
) -> None:
    rows = await shown(nats_server, "reschedule", "m1", "m3", "--at", "2040-01-01T00:00:00Z")
    assert summed(rows) == (2, 0)
    listed = {row["client_id"]: row["due_ns"] for row in await shown(nats_server, "list", "--limit", "0")}
    assert {listed["m1"], listed["m3"]} == {2_208_988_800 * 10**9}
    assert listed["m2"] < 2_208_988_800 * 10**9
    handled: asyncio.Queue[bytes] = asyncio.Queue()

    async def settle_it(msg: Msg) -> None:
        handled.put_nowait(msg.data)
        await msg.ack()

    await nc.subscribe("mail.>", cb=settle_it)
    await nc.flush()
    assert summed(await shown(nats_server, "run-now", "m7")) == (1, 0)
    assert await asyncio.wait_for(handled.get(), 20) == b"7"
    assert summed(await shown(nats_server, "run-now", "--queue", "mail", "--yes")) == (NUMBER - 1, 0)
    rest = {await asyncio.wait_for(handled.get(), 20) for _ in range(NUMBER - 1)}
    assert rest == {b"%d" % n for n in range(NUMBER)} - {b"7"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["cancel"], b"say which messages"),
        (["run-now"], b"say which messages"),
        (["purge"], b"Missing argument"),
        (["cancel", "--older", "soon"], b"soon"),
        (["cancel", "--subject", "a..b"], b"subject"),
        (["reschedule", "x"], b"either --delay or --at"),
        (["reschedule", "x", "--delay", "1h", "--at", "2040-01-01T00:00:00Z"], b"either --delay or --at"),
        (["reschedule", "x", "--delay", "1"], b"unit"),
    ],
)
async def test_a_change_that_makes_no_sense_asks_nobody(args: list[str], says: bytes) -> None:
    done = await run(*args, "--server", "nats://127.0.0.1:1")
    assert done.returncode == 2
    assert says in done.stderr


async def test_the_worker_logs_who_purged_what_and_how_many(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    worker = await asyncio.to_thread(worker_factory, nats_server, "--log-format", "json")
    await run(
        "publish", "a.b", "--queue", "mail", "--delay", "1h", "--count", "5", "--server", nats_server.url
    )
    await run("purge", "mail", "--subject", "a.*", "--yes", "--server", nats_server.url)
    lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    [line] = [line for line in lines if line["message"] == "purge: messages changed"]
    assert (line["changed"], line["in_flight"], "@" in line["by"]) == (5, 0, True)
    assert line["request"] == {"queue": "mail", "subject": "a.*"}
