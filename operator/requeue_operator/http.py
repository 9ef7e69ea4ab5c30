"""The operator's HTTP endpoints: `/livez`, and `/metrics` for Prometheus. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Check = Callable[[], str | None]
"""None when all is well, else a sentence that says what is wrong. Must not block."""


class Address(NamedTuple):
    """Where to listen. `host` None: on every interface."""

    host: str | None
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`HOST:PORT`, `[IPV6]:PORT`, or `:PORT` for every interface. ValueError says what would be right."""
        host, colon, port = text.rpartition(":")
        is_bracketed = host.startswith("[") and host.endswith("]")
        right = colon and port.isascii() and port.isdecimal() and int(port) <= 65535
        if not right or (":" in host and not is_bracketed):
            raise ValueError(f"{text!r} is not HOST:PORT; write it like 127.0.0.1:8080, [::1]:8080 or :8080")
        return cls(host.strip("[]") or None, int(port))


class ListenError(OSError):
    """The address cannot be listened on; the text says which and why."""


@asynccontextmanager
async def serving(address: Address, live: Check, registry: CollectorRegistry) -> AsyncIterator[int]:
    """Serve as long as the context lasts; gives the port. Raises ListenError."""

    async def livez(_: web.Request) -> web.Response:
        wrong = live()
        return web.Response(status=200 if wrong is None else 503, text=f"{wrong or 'alive'}\n")

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = await asyncio.to_thread(encode, registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address.host, address.port).start()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ListenError(
                f"--http: cannot listen on {address.host or ''}:{address.port}: {reason}"
            ) from error
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()
