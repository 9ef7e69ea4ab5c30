"""`requeue check`: one message through a worker and back, and what is told when it does not come back."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path

from nats.aio.client import Client
from requeue_client import RequeueClient
from requeue_client.check import check
from requeue_client.local import find_executable

from tests.integration.client.test_command import requeue, run
from tests.servers import NatsServer, WorkerFactory, until


async def test_it_comes_back_and_leaves_nothing(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    worker = await asyncio.to_thread(worker_factory, nats_server, data_dir=data)
    done = await run("check", "--server", nats_server.url)
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(
        rb"on disk after \d+ ms, back after \d+ ms: requeue-check\.[0-9a-f]{16}\n", done.stdout
    )
    await asyncio.to_thread(worker.stop)
    assert _kept(data) == 0


def _kept(data: Path) -> int:
    """Messages and dead letters on the disk of a worker that has stopped."""
    command = find_executable("requeue-worker", "make install")
    done = subprocess.run(
        [str(command), "verify", "--json", "--data-dir", str(data)], capture_output=True, check=True
    )
    (instance,) = json.loads(done.stdout)["instances"]
    return int(instance["records"]["messages"] + instance["records"]["dead"])


async def test_it_waits_for_a_worker(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> None:
    async with RequeueClient(nc) as client:
        waiting = asyncio.create_task(check(client, timeout_s=60))
        await until(lambda: nc.stats["out_msgs"])  # it has asked, and nobody was there
        await asyncio.to_thread(worker_factory, nats_server)
        assert (await waiting).subject.startswith("requeue-check.")


async def test_of_no_worker_it_says_so(nats_server: NatsServer) -> None:
    done = await run("check", "--timeout", "500ms", "--server", nats_server.url)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"start a worker" in done.stderr


async def test_of_no_server_it_says_so(nats_server: NatsServer) -> None:
    nats_server.kill()
    done = await run("check", "--timeout", "500ms", "--server", nats_server.url)
    assert done.returncode == 3
    assert b"cannot connect" in done.stderr


async def test_a_message_that_is_not_replayed_is_told_and_cancelled(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    config, data = tmp_path / "worker.yaml", tmp_path / "data"
    config.write_text("queues: [{name: requeue-check, max_rate: 0.001}]")
    worker = await asyncio.to_thread(worker_factory, nats_server, "--config", str(config), data_dir=data)
    assert (
        await run("check", "--server", nats_server.url)
    ).returncode == 0  # it has taken the one token that there is
    done = await run("check", "--timeout", "1s", "--server", nats_server.url)
    assert done.returncode == 5
    assert b"is on disk, and was not replayed within 1 s" in done.stderr
    await asyncio.to_thread(worker.stop)
    assert _kept(data) == 0


async def test_a_subject_that_a_worker_may_not_write_to_is_refused(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    await asyncio.to_thread(worker_factory, nats_server)
    done = await run("check", "--subject", "requeue.x", "--server", nats_server.url)
    assert done.returncode == 1
    assert b"not allowed" in done.stderr


def test_a_wrong_option_is_exit_code_2() -> None:
    assert b"wildcard" in requeue("check", "--subject", "a.*").stderr
    assert requeue("check", "--timeout", "soon").returncode == 2
    assert b"Exit codes:" in requeue("check", "--help").stdout
