from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from requeue_worker.counts import Counts, QueueSnapshot
from requeue_worker.http import HttpAddress, HttpListenError, HttpServer
from requeue_worker.metrics import Metrics

from tests.servers import free_port


class Worker:
    """What the endpoints ask: a state that a test sets."""

    def __init__(self) -> None:
        self.live = (True, "storage and loop are well")
        self.ready = (False, "NATS is disconnected")
        self.counts = Counts()
        self.lines: list[bytes] | None = None
        self.queues = [QueueSnapshot("orders", 1, 10, 0, 0, 0, None)]

    def server(self, address: str) -> HttpServer:
        metrics = Metrics(self.counts, lambda: self.queues, lambda: True)
        return HttpServer(
            address,
            live=lambda: self.live,
            ready=lambda: self.ready,
            registry=metrics.registry,
            overview=lambda: None if self.lines is None else self._overview(self.lines),
        )

    @staticmethod
    async def _overview(lines: list[bytes]) -> AsyncIterator[bytes]:
        for line in lines:
            yield line


Start = Callable[[str], Awaitable[HttpServer]]


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def start(worker: Worker) -> AsyncIterator[Start]:
    servers: list[HttpServer] = []

    async def start_server(address: str) -> HttpServer:
        server = worker.server(address)
        servers.append(server)
        await server.start()
        return server

    yield start_server
    for server in servers:
        await server.close()


@pytest.fixture
async def http(start: Start) -> AsyncIterator[aiohttp.ClientSession]:
    server = await start("127.0.0.1:0")
    async with aiohttp.ClientSession(f"http://{server.address}") as session:
        yield session


async def test_probes_answer_with_the_reason(worker: Worker, http: aiohttp.ClientSession) -> None:
    async with http.get("/livez") as live, http.get("/readyz") as ready:
        assert (live.status, await live.text()) == (200, "storage and loop are well\n")
        assert (ready.status, await ready.text()) == (503, "NATS is disconnected\n")
    worker.live, worker.ready = (False, "a commit hangs"), (True, "ready")
    async with http.get("/livez") as live, http.get("/readyz") as ready:
        assert (live.status, await live.text()) == (503, "a commit hangs\n")
        assert (ready.status, await ready.text()) == (200, "ready\n")


async def test_a_scrape_shows_the_numbers_of_now(worker: Worker, http: aiohttp.ClientSession) -> None:
    worker.counts.intake_messages = 41
    for expected in (41, 42):
        async with http.get("/metrics") as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            families = {f.name: f for f in parse_text(await response.text())}
        assert families["requeue_intake_messages"].samples[0].value == expected
        worker.counts.intake_messages += 1


async def test_a_scraper_may_ask_for_openmetrics(http: aiohttp.ClientSession) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    async with http.get("/metrics", headers=accept) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        families = parse_openmetrics(await response.text())  # type: ignore[no-untyped-call]
        assert "requeue_settled" in {family.name for family in families}


async def test_many_queues_come_compressed_and_whole(worker: Worker, http: aiohttp.ClientSession) -> None:
    worker.queues = [QueueSnapshot(f"tenant-{n}", n, n, 0, 0, 0, 1) for n in range(2000)]
    async with http.get("/metrics", headers={"Accept-Encoding": "gzip"}) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        families = {f.name: f for f in parse_text(await response.text())}
    assert len(families["requeue_pending_messages"].samples) == 2000


async def test_scrapes_at_the_same_time_are_all_answered(http: aiohttp.ClientSession) -> None:
    async def scrape() -> int:
        async with http.get("/metrics") as response:
            return response.status

    assert await asyncio.gather(*(scrape() for _ in range(20))) == [200] * 20


async def test_an_overview_comes_line_by_line_and_not_before_there_is_one(
    worker: Worker, http: aiohttp.ClientSession
) -> None:
    async with http.get("/overview") as early:
        assert (early.status, await early.text()) == (503, "nothing to tell yet: NATS is disconnected\n")
    worker.lines = [b"{}\n", b"[]\n"]
    async with http.get("/overview") as response:
        assert (response.status, response.content_type) == (200, "application/x-ndjson")
        assert await response.read() == b"{}\n[]\n"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("POST", "/metrics", 405)])
async def test_nothing_else_is_served(
    http: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with http.request(method, path) as response:
        assert response.status == status


async def test_a_taken_port_is_named(start: Start) -> None:
    first = await start("127.0.0.1:0")
    with pytest.raises(HttpListenError, match=rf"cannot listen on {first.address}: .*in use"):
        await start(str(first.address))


async def test_ipv6_is_listened_on(start: Start) -> None:
    server = await start("[::1]:0")
    async with aiohttp.ClientSession() as session, session.get(f"http://{server.address}/livez") as live:
        assert live.status == 200


async def test_every_interface_is_listened_on_without_a_host(start: Start) -> None:
    server = await start(f":{free_port()}")
    url = f"http://127.0.0.1:{server.address.port}/livez"
    async with aiohttp.ClientSession() as session, session.get(url) as live:
        assert live.status == 200


async def test_after_close_nobody_listens(start: Start) -> None:
    server = await start("127.0.0.1:0")
    await server.close()
    await server.close()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://{server.address}/livez")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", HttpAddress("127.0.0.1", 8080)),
        (":8080", HttpAddress(None, 8080)),
        ("*:8080", HttpAddress(None, 8080)),
        ("[::1]:0", HttpAddress("::1", 0)),
        (" localhost:9090 ", HttpAddress("localhost", 9090)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: HttpAddress) -> None:
    assert HttpAddress.parse(text) == address


@pytest.mark.parametrize(
    "text", ["", "8080", "localhost", "localhost:", "::1:80", "h:80:90", "h:x", "h:-1", "h:²"]
)
def test_what_is_no_address_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        HttpAddress.parse(text)


def test_a_port_above_65535_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 65535"):
        HttpAddress.parse("localhost:70000")


def test_importing_the_module_loads_neither_aiohttp_nor_prometheus() -> None:
    code = "import requeue_worker.http, sys; print({'aiohttp', 'prometheus_client'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
