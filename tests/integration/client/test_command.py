"""The `requeue` command as users run it: its line, its exit codes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.errors import DiskFull

from tests.integration.client.intake import scripted_intake
from tests.servers import NatsServer, WorkerFactory, settle


def requeue(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = str(Path(sys.executable).parent / "requeue")
    return subprocess.run([command, *args], input=stdin, capture_output=True, check=False, timeout=60)


async def run(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(requeue, *args, stdin=stdin)


async def test_publish_waits_for_the_ack_and_the_worker_delivers(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    handled: asyncio.Queue[Msg] = asyncio.Queue()

    async def on_message(msg: Msg) -> None:
        await msg.ack()
        handled.put_nowait(msg)

    await nc.subscribe("orders.*", cb=on_message)
    await settle(nc)
    options = "--delay 10ms --ttl 1h --retries 3 --backoff 1s,5s --queue orders --priority 0 --msg-id order-7"
    done = await run(
        *["publish", "orders.created", "-", *options.split(" ")],
        *["--header", "Trace: t1", "--server", nats_server.url],
        stdin=b"\x00in",
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"on disk: orders.created id order-7\n"
    msg = await asyncio.wait_for(handled.get(), 20)
    assert msg.data == b"\x00in"
    headers = msg.headers or {}
    assert (headers["Trace"], headers["Requeue-Queue"], headers["Requeue-Max-Attempts"]) == (
        "t1",
        "orders",
        "3",
    )


async def test_an_id_that_is_pending_is_said(nats_server: NatsServer, worker_factory: WorkerFactory) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    args = ["publish", "a.b", "x", "--delay", "1h", "--msg-id", "same", "--server", nats_server.url]
    assert (await run(*args)).stdout == b"on disk: a.b id same\n"
    assert (await run(*args)).stdout == b"on disk: a.b id same (was pending already)\n"


async def test_many_copies_are_one_line(nats_server: NatsServer) -> None:
    async with scripted_intake(nats_server.url) as intake:
        done = await run("publish", "a.b", "x", "--count", "500", "--server", nats_server.url)
    assert done.stdout == b"on disk: 500 messages for a.b\n"
    assert len(set(intake.ids())) == 500


async def test_a_permanent_refusal_is_exit_code_1(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    done = await run("publish", "_INBOX.x.y", "x", "--server", nats_server.url)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"requeue: subject '_INBOX.x.y' is not allowed" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["a.b", "--delay", "30"], b"every number needs a unit"),
        (["a.*"], b"wildcard"),
        (["a.b", "--retries", "many"], b"or unlimited"),
        (["a.b", "--header", "no colon"], b"'Name: value'"),
        (["a.b", "--count", "2", "--msg-id", "x"], b"leave one of them out"),
        (["a.b", "--timeout", "0"], b"more than zero"),
        (["a.b", "--creds", "/nowhere"], b"does not exist"),
        ([], b"Missing argument"),
    ],
)
def test_a_wrong_option_is_exit_code_2(args: list[str], says: bytes) -> None:
    done = requeue("publish", *args)
    assert done.returncode == 2
    assert says in done.stderr


async def test_no_worker_is_exit_code_3(nats_server: NatsServer) -> None:
    done = await run("publish", "a.b", "x", "--timeout", "500ms", "--server", nats_server.url)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"start a worker" in done.stderr


async def test_silence_is_exit_code_3_and_names_the_id(nats_server: NatsServer) -> None:
    async with scripted_intake(nats_server.url, *[None] * 9):
        done = await run(
            "publish", "a.b", "--msg-id", "o-7", "--timeout", "500ms", "--server", nats_server.url
        )
    assert done.returncode == 3
    assert b"o-7" in done.stderr


async def test_an_unreachable_server_is_exit_code_3(nats_server: NatsServer) -> None:
    nats_server.kill()
    done = await run("publish", "a.b", "x", "--timeout", "500ms", "--server", nats_server.url)
    assert done.returncode == 3
    assert b"cannot connect" in done.stderr


async def test_a_persisting_refusal_is_exit_code_4(nats_server: NatsServer) -> None:
    async with scripted_intake(nats_server.url, *[DiskFull("the disk is full")] * 99):
        done = await run("publish", "a.b", "x", "--timeout", "1s", "--server", nats_server.url)
    assert done.returncode == 4
    assert b"the disk is full" in done.stderr


def test_help_tells_the_exit_codes() -> None:
    done = requeue("publish", "--help")
    assert b"Exit codes:" in done.stdout
    assert b"bench" in requeue("--help").stdout
