"""The web view's HTTP server; off unless `web.listen` is set.

    GET  /ui/                     the pages: static files of this package
    GET  /ui/api/about            which instance serves, and whether it changes anything
    POST /ui/api/<endpoint>       that endpoint of the admin API, of all instances; ?instance=ID of one
                                  {"answers": [what each answered], "silent": how many did not}

Nothing is decided here about queues and messages: the admin API does. Without `web.changes` its endpoints that change
anything are refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Protocol

from requeue_worker.http import HttpAddress, listening
from requeue_worker.web.fleet import Fleet
from requeue_worker.web.guards import HEADERS, wrong_host, wrong_request
from requeue_worker.web.settings import WebSettings

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES: Final = 16 << 10
#: what the pages ask for; a new endpoint of the admin API is not served to browsers by being there
SERVED: Final = frozenset(
    {
        "instances",
        "queues",
        "stats",
        "list",
        "count",
        "get",
        "jobs",
        "redrive",
        "cancel-job",
        "pause",
        "resume",
        "purge",
        "dead-delete",
        "dead-export",
    }
)
#: changes nothing, and is refused with what does: many whole letters are more than a look at one
WITH_CHANGES: Final = frozenset({"dead-export"})
AT_A_TIME: Final = 4  #: what more browsers ask for waits
_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


class Endpoints(Protocol):
    """Which endpoints the admin API has."""

    def changes(self, endpoint: str) -> bool | None:
        """Whether it changes anything; None when there is none of that name."""


class WebServer:
    """Serves the view from `start` to `close`, on the running event loop. `changes`: whether it may change anything."""

    def __init__(
        self,
        settings: WebSettings,
        instance_id: str,
        *,
        changes: bool,
        endpoints: Endpoints,
        fleet: Fleet,
    ) -> None:
        self.address = HttpAddress.parse(settings.listen or "")
        """Where it listens; after `start` with the port that was taken, when that was left open."""
        self._hosts = settings.hosts
        self._about = json.dumps({"instance": instance_id, "changes": changes}).encode()
        self._changes = changes
        self._endpoints = endpoints
        self._fleet = fleet
        self._turns = asyncio.Semaphore(AT_A_TIME)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises HttpListenError."""
        from aiohttp import web  # noqa: PLC0415 - only when the view is on

        async def to_view(_: web.Request) -> web.StreamResponse:
            raise web.HTTPFound("/ui/")

        async def about(_: web.Request) -> web.Response:
            return web.Response(body=self._about, content_type="application/json")

        @web.middleware
        async def guard(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            return await self._guard(request, handler)

        app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[guard])
        app.router.add_get("/", to_view)
        app.router.add_get("/ui", to_view)
        app.router.add_get("/ui/api/about", about)
        app.router.add_post("/ui/api/{endpoint}", self._ask)
        for name, (body, kind) in _pages().items():
            app.router.add_get(f"/ui/{name}", _page(body, kind))
        self._runner, self.address = await listening(app, self.address)

    async def close(self) -> None:
        """Stop listening and end open connections, within a second. Safe to call twice, or before `start`."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        from aiohttp import web  # noqa: PLC0415 - only when the view is on

        response: web.StreamResponse
        reason = wrong_host(request.headers.get("Host", ""), self._hosts)
        refusal = (421, reason) if reason is not None else None
        if refusal is None and request.method == "POST":
            refusal = wrong_request(request.headers)
        if refusal is not None:
            response = _refused(*refusal)
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                error.headers.update(HEADERS)
                raise
        response.headers.update(HEADERS)
        return response

    async def _ask(self, request: web.Request) -> web.Response:
        from aiohttp import web  # noqa: PLC0415 - only when the view is on

        endpoint = request.match_info["endpoint"]
        changes = self._endpoints.changes(endpoint) if endpoint in SERVED else None
        if changes is None:
            return _refused(404, f"there is no endpoint {endpoint[:100]!r}")
        if (changes or endpoint in WITH_CHANGES) and not self._changes:
            return _refused(403, "this view changes nothing: web.changes is off, or admin.read_only is on")
        payload = await request.read()
        instance = request.query.get("instance")
        if changes or endpoint in WITH_CHANGES:
            log.info(
                "asked by the web view",
                extra={
                    "endpoint": endpoint,
                    "from": request.remote,
                    "request": payload[:1000].decode(errors="replace"),
                },
            )
        async with self._turns:
            answers = await self._fleet.ask(endpoint, payload, instance)
        return web.Response(body=answers.as_json(), content_type="application/json")


def _refused(status: int, text: str) -> web.Response:
    from aiohttp import web  # noqa: PLC0415 - only when the view is on

    return web.json_response({"error": text}, status=status)


def _pages() -> dict[str, tuple[bytes, str]]:
    """The static files by name; the page itself has none."""
    found = {}
    for file in files("requeue_worker.web").joinpath("static").iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in _TYPES:
            name = "" if file.name == "index.html" else file.name
            found[name] = (file.read_bytes(), _TYPES[suffix])
    return found


def _page(body: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    from aiohttp import web  # noqa: PLC0415 - only when the view is on

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind, charset="utf-8")

    return answer
