"""`requeue-worker` as a process, on a real nats-server and a real disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from nats.aio.client import Client
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import (
    LocalProcessError,
    NatsServer,
    WorkerFactory,
    WorkerProcess,
    free_port,
)

PATIENCE_S = 30


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.02)


async def logs(worker: WorkerProcess, text: str) -> None:
    async def logged() -> bool:
        return text in worker.log

    await until(logged)


async def get(address: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as response:
        return response.status, await response.text()


async def publish(nc: Client, subject: str, **headers: str) -> str:
    """`taken`, or the code of the refusal (nc.request would raise for it)."""
    all_headers = {"Requeue-Subject": subject, **{f"Requeue-{k}": v for k, v in headers.items()}}
    inbox = nc.new_inbox()
    replies = await nc.subscribe(inbox)
    await nc.publish("requeue.x", b"payload", reply=inbox, headers=all_headers)
    reply = await replies.next_msg(timeout=PATIENCE_S)
    await replies.unsubscribe()
    code = (reply.headers or {}).get("Nats-Service-Error-Code")
    return "taken" if code is None and reply.data == b"" else str(code)


def samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("queue", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exits_with(worker: WorkerProcess, code: int, sentence: str) -> None:
    with pytest.raises(LocalProcessError):
        worker.start()
    assert worker.returncode == code, worker.log
    assert any(line.startswith("requeue-worker: ") and sentence in line for line in worker.log.splitlines())
    assert "Traceback" not in worker.log


def test_sigterm_and_sigint_stop_it_with_0(nats_server: NatsServer, worker_factory: WorkerFactory) -> None:
    worker = worker_factory(nats_server)
    assert worker.log.count("ready: taking requeue.> as ") == 1
    assert worker.stop() == 0
    worker.start()
    os.kill(worker.pid, signal.SIGINT)
    assert worker.wait() == 0


def test_a_locked_data_directory_exits_with_3(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    worker_factory(nats_server, data_dir=tmp_path / "data")
    exits_with(
        worker_factory(nats_server, data_dir=tmp_path / "data", start=False), 3, str(tmp_path / "data")
    )


def test_an_unusable_data_directory_exits_with_3(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    worker = worker_factory(nats_server, "--instance-id", "me", data_dir=tmp_path / "data", start=False)
    (tmp_path / "data" / "me").write_text("a file stands where the directory should be")
    exits_with(worker, 3, str(tmp_path / "data"))


def test_a_wrong_configuration_exits_with_2(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    config = tmp_path / "worker.yaml"
    config.write_text("queues: [{name: orders, retires: 3}]")
    worker = worker_factory(nats_server, "--config", str(config), start=False)
    exits_with(worker, 2, f"{config}:1: queues[0].retires: unknown key; did you mean retries?")


def test_a_taken_http_port_exits_with_2_before_a_message_is_taken(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        worker = worker_factory(nats_server, "--http", address, start=False)
        exits_with(worker, 2, f"http: cannot listen on {address}: Address already in use")
    assert "connected to NATS" not in worker.log


async def test_probes_and_metrics_follow_the_worker(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> None:
    http = f"127.0.0.1:{free_port()}"
    worker_factory(nats_server, "--http", http)

    async def not_ready() -> bool:
        return (await get(http, "/readyz"))[0] == 503

    assert await get(http, "/livez") == (200, "alive\n")
    assert await get(http, "/readyz") == (200, "ready\n")
    assert await publish(nc, "orders.new", Queue="orders", Delay="1h") == "taken"
    found = samples((await get(http, "/metrics"))[1])
    assert found["requeue_intake_messages_total", ""] == 1
    assert found["requeue_nats_connected", ""] == 1
    assert found["requeue_pending_messages", "orders"] == 1
    assert found["requeue_next_due_timestamp_seconds", "orders"] > 1.7e9
    await asyncio.to_thread(nats_server.stop)
    await until(not_ready)
    instances, queues, stats = map(json.loads, (await get(http, "/overview"))[1].splitlines())
    assert (instances["endpoint"], instances["answer"]["pending"]) == ("instances", 1)
    assert instances["answer"]["state"].startswith("not connected to NATS")
    assert [(each["name"], each["pending"]) for each in queues["answer"]["queues"]] == [("orders", 1)]
    assert [each["accepted"] for each in stats["answer"]["queues"]] == [1]
    assert (await get(http, "/livez"))[0] == 200
    assert samples((await get(http, "/metrics"))[1])["requeue_nats_connected", ""] == 0


async def test_http_answers_while_nats_is_not_there(worker_factory: WorkerFactory) -> None:
    http = f"127.0.0.1:{free_port()}"
    worker = worker_factory(f"nats://127.0.0.1:{free_port()}", "--http", http, start=False)
    worker.spawn()
    await logs(worker, "HTTP is listening")
    assert (await get(http, "/readyz"))[0] == 503
    assert (await get(http, "/livez"))[0] == 200
    assert (await get(http, "/metrics"))[0] == 200
    assert await asyncio.to_thread(worker.stop) == 0


async def test_a_changed_policy_is_used_without_a_restart(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    config = tmp_path / "worker.yaml"
    config.write_text("queues: [{name: orders, max_messages: 1}]")
    worker = worker_factory(nats_server, "--config", str(config))
    assert await publish(nc, "orders.new", Queue="orders", Delay="1h") == "taken"
    assert await publish(nc, "orders.new", Queue="orders", Delay="1h") == "429"
    config.write_text("queues: [{name: orders, max_messages: 2}]")
    await logs(worker, "queue policies changed")
    async with asyncio.timeout(PATIENCE_S):  # it says so right before it uses them
        while await publish(nc, "orders.new", Queue="orders", Delay="1h") != "taken":
            pass


def test_json_logs_are_one_object_a_line_and_standard_output_is_one_line(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    worker = worker_factory(nats_server, "--log-format", "json", "--log-level", "debug")
    worker.stop()
    lines = worker.log.splitlines()
    events = [json.loads(line) for line in lines if not line.startswith("ready: ")]
    assert len(lines) == len(events) + 1
    assert {"starting", "stopped"} <= {event["message"] for event in events}


async def test_a_second_signal_ends_it_at_once_and_loses_nothing(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> None:
    handler = await nc.subscribe("orders.slow")  # takes the replay and never answers
    worker = worker_factory(nats_server, "--shutdown-grace", "10m")
    assert await publish(nc, "orders.slow", Retries="5") == "taken"
    first = await handler.next_msg(timeout=PATIENCE_S)
    worker.terminate()
    await logs(worker, "stopping: a signal asks for it")
    worker.terminate()
    assert await asyncio.to_thread(worker.wait) == 128 + signal.SIGTERM
    await asyncio.to_thread(worker.start)
    again = await handler.next_msg(timeout=PATIENCE_S)
    assert (again.headers or {})["Requeue-Id"] == (first.headers or {})["Requeue-Id"]
    await nc.publish(again.reply, b"")
