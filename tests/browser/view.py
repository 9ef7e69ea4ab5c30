"""Workers with a web view, and messages in them that are worth looking at."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from nats.aio.client import Client
from requeue_client import Message, RequeueClient

from tests.servers import NatsServer, WorkerFactory

CONFIG = "reconnect_grace: 0s\ndefaults:\n  min_backoff: 20ms\n"


async def start_views(
    make: WorkerFactory, server: NatsServer, path: Path, instances: tuple[str, ...], *args: str
) -> list[str]:
    """A worker for each of these instances; the addresses of their views."""
    config = path / "worker.yaml"
    config.write_text(CONFIG)
    addresses = []
    for instance in instances:
        worker = await asyncio.to_thread(
            make, server, "--instance-id", instance, "--config", str(config), "--web", "127.0.0.1:0", *args
        )
        addresses.append(address_of(worker.log))
    return addresses


def address_of(log: str) -> str:
    """Where the view of a worker is, by its log."""
    found = re.search(r"the web view is listening.*address=(\S+)", log)
    assert found, log
    return f"http://{found[1]}"


async def publish(nc: Client, messages: list[Message]) -> None:
    client = RequeueClient(nc)
    assert all([outcome.ok async for outcome in client.publish_many(messages)])


def later(queue: str, subject: str, number: int, payload: bytes = b"{}") -> Message:
    return Message(subject, payload, queue=queue, delay="1h", msg_id=f"{queue}-{number}-{time.time_ns()}")
