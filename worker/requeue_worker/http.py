"""The worker's HTTP endpoints for probes, metrics and support bundles; off unless `http` is set.

    GET /livez    200 while the process can still do its work, else 503: restart it
    GET /readyz   200 while it takes messages in, else 503: do not count on it now
    GET /metrics  Prometheus text or OpenMetrics, as the scraper asks
    GET /overview the admin API's `instances`, `queues` and `stats` of this worker, a JSON object a line

Whoever reaches the address sees names of queues and numbers, and nothing of a message. Both probes answer with a sentence
that says why. Nothing here reads a body or changes anything. aiohttp and prometheus-client are imported on first use: a
worker without `--http` pays for neither. `app` decides what live and ready mean; `metrics` makes the registry.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client import CollectorRegistry

Check = Callable[[], tuple[bool, str]]
"""Called on the event loop, must not block: whether all is well, and a sentence that says why (not)."""

_COMPRESS_IN_THREAD_BYTES = 64 * 1024


class HttpAddress(NamedTuple):
    """Where to listen. `host` None: on every interface; `port` 0: on any free one."""

    host: str | None
    port: int

    @classmethod
    def parse(cls, text: str) -> HttpAddress:
        """`HOST:PORT`, `[IPV6]:PORT`, or `:PORT` for every interface. ValueError says what would be right."""
        host, colon, port = text.strip().rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not port.isascii() or not port.isdigit() or (":" in host and not bracketed):
            raise ValueError(f"{text!r} is not HOST:PORT; write it like 127.0.0.1:8080, [::1]:8080 or :8080")
        if int(port) > 65535:
            raise ValueError(f"{text!r} has port {port}; a port is at most 65535")
        host = host[1:-1] if bracketed else host
        return cls(None if host in ("", "*") else host, int(port))

    def __str__(self) -> str:
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class HttpListenError(OSError):
    """The address cannot be listened on; the text says which and why."""


async def listening(
    app: web.Application, address: HttpAddress, given: socket.socket | None = None
) -> tuple[web.AppRunner, HttpAddress]:
    """Serve `app` there, or on a socket that listens already; the address has the port that was taken.

    Raises HttpListenError.
    """
    from aiohttp import web  # noqa: PLC0415 - only when HTTP is on

    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        if given is None:
            await web.TCPSite(runner, address.host, address.port).start()
        else:
            await web.SockSite(runner, given).start()
    except OSError as error:
        await runner.cleanup()
        reason = os.strerror(error.errno) if error.errno else str(error)  # loops add text of their own
        raise HttpListenError(f"http: cannot listen on {address}: {reason}") from error
    return runner, address._replace(port=runner.addresses[0][1])


class HttpServer:
    """Serves the endpoints from `start` to `close`, on the running event loop.

    `registry` is called once a scrape, on the event loop; what it returns is encoded in a thread. `overview` gives lines, or
    None while there is nothing to tell.
    """

    def __init__(
        self,
        address: str | socket.socket,
        *,
        live: Check,
        ready: Check,
        registry: Callable[[], CollectorRegistry],
        overview: Callable[[], AsyncIterator[bytes] | None],
    ) -> None:
        self._socket = None if isinstance(address, str) else address
        self.address = (
            HttpAddress.parse(address)
            if isinstance(address, str)
            else HttpAddress(*address.getsockname()[:2])
        )
        """Where it listens; after `start` with the port that was taken, when that was left open."""
        self._live = live
        self._ready = ready
        self._registry = registry
        self._lines = overview
        self._one_scrape = asyncio.Lock()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises HttpListenError when the address is taken, not ours, or not allowed."""
        from aiohttp import web  # noqa: PLC0415 - only when HTTP is on

        app = web.Application(client_max_size=0)
        app.router.add_get("/livez", self._probe(self._live))
        app.router.add_get("/readyz", self._probe(self._ready))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/overview", self._overview)
        self._runner, self.address = await listening(app, self.address, self._socket)

    async def close(self) -> None:
        """Stop listening and end open connections, within a second. Safe to call twice, or before `start`."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @staticmethod
    def _probe(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
        from aiohttp import web  # noqa: PLC0415 - only when HTTP is on

        async def answer(_: web.Request) -> web.Response:
            well, why = check()
            headers = {"Cache-Control": "no-store"}
            return web.Response(status=200 if well else 503, text=f"{why}\n", headers=headers)

        return answer

    async def _metrics(self, request: web.Request) -> web.Response:
        from aiohttp import web  # noqa: PLC0415 - only when HTTP is on
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - as above

        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        async with self._one_scrape:  # ten thousand queues are megabytes: one copy in memory at a time
            body = await asyncio.to_thread(encode, self._registry())
        response = web.Response(
            body=body,
            headers={"Content-Type": content_type},
            zlib_executor_size=_COMPRESS_IN_THREAD_BYTES,
        )
        response.enable_compression()
        return response

    async def _overview(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web  # noqa: PLC0415 - only when HTTP is on

        lines = self._lines()
        if lines is None:
            return web.Response(status=503, text=f"nothing to tell yet: {self._ready()[1]}\n")
        headers = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        async for line in lines:
            await response.write(line)
        return response
