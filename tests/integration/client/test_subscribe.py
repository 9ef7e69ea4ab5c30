"""`requeue subscribe` as users run it, with a real worker."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from requeue_client import Message, RequeueClient
from requeue_client.handler import DEFAULT_GROUP

from tests.integration.client.test_admin_commands import shown
from tests.integration.client.test_command import run
from tests.servers import NatsServer, WorkerFactory

REQUEUE = str(Path(sys.executable).parent / "requeue")
Child = subprocess.Popen[bytes]


@pytest.fixture
def children() -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


async def subscribed(server: NatsServer, children: list[Child], *args: str) -> Child:
    """A running `requeue subscribe`, once its subscription stands."""
    command = [REQUEUE, "subscribe", *args, "--server", server.url]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: ASYNC220
    children.append(child)
    assert child.stderr is not None
    assert b"subscribed to" in await asyncio.to_thread(child.stderr.readline)
    return child


async def ended(child: Child) -> list[bytes]:
    """Its lines, once it has ended well."""
    out, errors = await asyncio.to_thread(child.communicate, timeout=30)
    assert (child.returncode, errors) == (0, b"")
    return out.splitlines()


async def test_it_settles_prints_a_line_for_each_and_gives_back_what_is_beyond_the_count(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, children: list[Child]
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    child = await subscribed(nats_server, children, "jobs.*", "--count", "3", "--delay", "300ms")
    async with RequeueClient(nc) as client:
        messages = [Message("jobs.a", b"job %d" % n, queue="jobs", backoff=["1h"]) for n in range(20)]
        assert all([outcome.ok async for outcome in client.publish_many(messages)])
    lines = await ended(child)
    assert len(lines) == 3
    assert all(line.startswith(b"settled  jobs.a  attempt 1 of 20  job ") for line in lines)

    async def left() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await shown(nats_server, "list", "jobs", "--limit", "0")
        return rows

    while any(row["attempts"] == 0 and not row["last_error"] for row in await left()):  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # those that nobody was there for fail by themselves
    assert len(await left()) == 17


async def test_it_fails_on_purpose_and_says_so_as_json(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, children: list[Child]
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    args = ("jobs.>", "--fail-rate", "1", "--count", "2", "--delay", "10ms", "-o", "json")
    child = await subscribed(nats_server, children, *args)
    async with RequeueClient(nc) as client:
        options: dict[str, Any] = {"queue": "jobs", "backoff": ["10ms"], "retries": 2}
        await client.publish("jobs.a", b"\xff", headers={"Trace": "t"}, **options)
    first, second = map(json.loads, await ended(child))
    assert (first["outcome"], first["attempt"], first["payload"], first["queue"]) == (
        "failed",
        1,
        "/w==",
        "jobs",
    )
    assert (second["attempt"], second["id"], second["headers"]["Trace"]) == (2, first["id"], "t")
    assert "failed on purpose" in second["last_error"]
    while not await shown(nats_server, "list", "jobs", "--state", "dead"):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def test_it_fails_the_share_that_it_is_told_and_prints_what_it_answered(
    nats_server: NatsServer, nc: Client, children: list[Child]
) -> None:
    child = await subscribed(nats_server, children, "jobs.a", "--fail-rate", "0.3", "--count", "400")
    answers = await asyncio.gather(*(nc.request("jobs.a", b"x", timeout=60) for _ in range(400)))
    failed = sum(answer.data.startswith(b"-NAK") for answer in answers)
    lines = await ended(child)
    assert sum(line.startswith(b"failed ") for line in lines) == failed
    assert 60 <= failed <= 180, "120 are meant: so far off is one run in ten thousand millions"


async def test_it_takes_no_share_from_real_handlers_unless_told_and_ends_at_a_signal(
    nats_server: NatsServer, nc: Client, children: list[Child]
) -> None:
    seen: list[bytes] = []

    async def real(msg: Any) -> None:
        seen.append(msg.data)

    await nc.subscribe("jobs.a", DEFAULT_GROUP, cb=real)
    child = await subscribed(nats_server, children, "jobs.a")
    for n in range(20):
        await nc.request("jobs.a", b"%d" % n)
    child.send_signal(signal.SIGTERM)
    lines = await ended(child)
    assert len(lines) == len(seen) == 20
    assert lines[0] == b"settled  jobs.a  direct  0"


async def test_a_wrong_option_and_no_server_are_told() -> None:
    assert (await run("subscribe", "jobs.a", "--fail-rate", "2")).returncode == 2
    assert (await run("subscribe", "jobs a")).returncode == 2
    done = await run("subscribe", "jobs.a", "--timeout", "300ms", "--server", "nats://127.0.0.1:1")
    assert done.returncode == 3
    assert b"cannot connect" in done.stderr
