"""A worker's HTTP endpoint, played: on an address of the loopback of its own, at the port that workers have."""

from __future__ import annotations

import random
from typing import Self

from aiohttp import web
from requeue_operator.children.worker_config import HTTP_PORT


class Endpoint:
    """`async with Endpoint() as worker`; what it tells can be changed at any time."""

    def __init__(self, **pending: int) -> None:
        self.address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
        self.pending = pending
        self.is_connected = True
        self.takes_in = True
        self.dead = 0
        self.asked = 0
        self._runner: web.AppRunner

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/readyz", self._ready)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, HTTP_PORT).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        self.asked += 1
        lines = [f"requeue_nats_connected {int(self.is_connected)}", "requeue_commits_total 7"]
        lines += [f"requeue_intake_enabled {int(self.takes_in)}"]
        lines += [f'requeue_dead_letter_messages{{queue="mail"}} {self.dead}']
        lines += [f'requeue_pending_messages{{queue="{name}"}} {n}' for name, n in self.pending.items()]
        return web.Response(text="\n".join(lines) + "\n")

    async def _ready(self, _: web.Request) -> web.Response:
        if self.is_connected:
            return web.Response(text="ready\n")
        return web.Response(status=503, text="not connected to NATS: Authorization Violation\n")
