"""`start`: workers in the test's event loop (support.py), stopped and checked at teardown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from requeue_worker.settings import Settings

from tests.integration.worker.support import DEFAULTS, INSTANCE, Clock, LiveWorker, StartWorker
from tests.servers import NatsServer


@pytest.fixture
async def start(tmp_path: Path, nats_server: NatsServer, nc: Client) -> AsyncIterator[StartWorker]:
    """Start workers: `await start(queues=[...], defaults={...})`; settings that are not given suit tests."""
    workers: list[LiveWorker] = []

    async def begin(*, clock: Clock | None = None, defaults: Any = None, **settings: Any) -> LiveWorker:
        said = {
            "data_dir": tmp_path / "data",
            "instance_id": INSTANCE,
            "nats": {"servers": [nats_server.url], "reconnect_wait": "50ms"},
            "reconnect_grace": 0,
            "shutdown_grace": 0,
            **settings,
        }
        policy = {**DEFAULTS, **(defaults or {})}
        live = LiveWorker(Settings(**said, defaults=policy), nc, clock or Clock())
        workers.append(live)
        return await live.start()

    yield begin
    for live in reversed(workers):
        await live.stop()
