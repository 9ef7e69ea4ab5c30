"""A worker under load, and a network and servers that fail it in every way: nothing acknowledged is lost.

What each test ends with stands in `scene.Scene`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from requeue_protocol.envelope import build_envelope

from tests.faults.proxy import TO_SERVER, TO_WORKER, Proxy
from tests.faults.scene import WAIT_S, Scene, arguments
from tests.servers import NatsServer, NatsServerFactory, WorkerFactory, WorkerProcess, free_port, until

HOUR_NS = 3600 * 10**9

#: each ends in the middle of something
CUTS = [
    (TO_WORKER, rb"MSG requeue\.lo"),
    (TO_WORKER, rb"MSG requeue\.load [^\r]*\r"),
    (TO_WORKER, rb"MSG requeue\.load [^\r]*\r\n.{30}"),
    (TO_WORKER, rb"MSG _INBOX\.[^\r]* 0\r\n"),
    (TO_SERVER, rb"HPUB jobs\.lo"),
    (TO_SERVER, rb"HPUB jobs\.load [^\r]*\r\nNATS/1\.0\r\nReq"),
    (TO_SERVER, rb"Nats-Msg-Id: \w+\r\n\r\n."),
    (TO_SERVER, rb"PUB _INBOX\.\S+ 0\r\n"),
]


@pytest.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[Proxy]:
    """Between the worker and `nats_server`; the load has a connection of its own."""
    async with Proxy(nats_server.port) as made:
        yield made


async def started(worker: WorkerProcess) -> WorkerProcess:
    """Start it while the proxy, on this loop, goes on."""
    return await asyncio.to_thread(worker.start)


# -- servers that come and go --------------------------------------------------------------------------------


async def test_a_worker_that_finds_no_nats_at_its_start_is_up_and_ready_once_there_is_one(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    server = nats_server_factory(start=False)
    server.port = free_port()
    http = f"127.0.0.1:{free_port()}"
    worker = worker_factory(server, *arguments(tmp_path), "--http", http, start=False)
    worker.spawn()
    await until(lambda: worker.log.count("cannot connect to NATS, trying on"), WAIT_S)
    assert await get(f"http://{http}/livez") == (200, "alive\n")
    status, text = await get(f"http://{http}/readyz")
    assert (status, text.startswith("not connected to NATS: ")) == (503, True), text

    await asyncio.to_thread(server.start)
    await asyncio.to_thread(worker.until_ready)
    assert await get(f"http://{http}/readyz") == (200, "ready\n")
    nc = Client()
    await nc.connect(server.url)
    async with Scene(worker, nc) as scene:
        await scene.flows()
    await nc.close()
    assert len(scene.lines("cannot connect to NATS")) == 1


async def get(url: str) -> tuple[int, str]:
    """Status and text, whatever the status."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
async def test_a_server_that_is_restarted_again_and_again(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path, times: int
) -> None:
    worker = worker_factory(nats_server, *arguments(tmp_path))
    async with Scene(worker, nc) as scene:
        for turn in range(times):
            await scene.flows()
            with scene.fault():
                await asyncio.to_thread(nats_server.kill if turn % 2 else nats_server.stop)
                await asyncio.to_thread(nats_server.start)
                await scene.logged("reconnected to NATS", turn + 1)
                await until(lambda: nc.is_connected, WAIT_S)
        await scene.flows()


# -- connections that break ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
async def test_a_connection_that_is_cut_in_the_middle_of_a_line_or_payload(
    proxy: Proxy, worker_factory: WorkerFactory, nc: Client, tmp_path: Path, rounds: int
) -> None:
    worker = await started(worker_factory(proxy.url, *arguments(tmp_path), start=False))
    async with Scene(worker, nc) as scene:
        for turn, (direction, pattern) in enumerate(CUTS * rounds, 1):
            await scene.flows()
            with scene.fault():
                await asyncio.wait_for(proxy.cut_at(direction, pattern), WAIT_S)
                await scene.logged("reconnected to NATS", turn)
        await scene.flows()


async def test_a_connection_that_is_slow_both_ways(
    proxy: Proxy, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    worker = await started(worker_factory(proxy.url, *arguments(tmp_path), start=False))
    async with Scene(worker, nc) as scene:
        await scene.flows()
        proxy.delay_s = 0.15
        await scene.flows(500)
        proxy.delay_s = 0.0
        await scene.flows()
    assert proxy.connections == 1


@pytest.mark.parametrize(
    "direction",
    [TO_SERVER, pytest.param(TO_WORKER, marks=pytest.mark.slow)],
    ids=["to the server", "to the worker"],
)
async def test_a_connection_that_stalls_and_goes_on(
    proxy: Proxy, worker_factory: WorkerFactory, nc: Client, tmp_path: Path, direction: int
) -> None:
    worker = await started(worker_factory(proxy.url, *arguments(tmp_path), start=False))
    async with Scene(worker, nc) as scene:
        await scene.flows()
        with scene.fault(), proxy.stalled(direction):
            await asyncio.sleep(1)
        await scene.flows()
    assert proxy.connections == 1


async def test_a_slow_consumer_that_the_server_cuts_off(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    server = nats_server_factory(config='write_deadline: "500ms"\nmax_pending: 1MiB\nmax_payload: 512KiB\n')
    nc = Client()
    await nc.connect(server.url)
    async with Proxy(server.port) as proxy:
        worker = await started(worker_factory(proxy.url, *arguments(tmp_path), start=False))
        async with Scene(worker, nc) as scene:
            await scene.flows()
            with scene.fault():
                with proxy.stalled(TO_WORKER):
                    large = build_envelope(subject="jobs.large", payload=bytes(400_000), delay_ns=HOUR_NS)
                    while "Slow Consumer" not in server.log:
                        await nc.publish("requeue.large", large)
                        await nc.flush()
                await scene.logged("reconnected to NATS")
            await scene.flows()
    await nc.close()


@pytest.mark.parametrize(
    "ping_interval",
    ["700ms", pytest.param("10s", marks=pytest.mark.slow), pytest.param("1h", marks=pytest.mark.slow)],
)
async def test_a_half_open_connection_is_found_and_spends_no_attempt(
    proxy: Proxy, worker_factory: WorkerFactory, nc: Client, tmp_path: Path, ping_interval: str
) -> None:
    """By its PINGs, or, where they are rare, by the replies that are missing."""
    flags = arguments(tmp_path, f"ping_interval: {ping_interval}")
    worker = await started(worker_factory(proxy.url, *flags, start=False))
    async with Scene(worker, nc) as scene:
        await scene.flows()
        with scene.fault():
            proxy.go_silent()
            await scene.logged("disconnected from NATS")
            await scene.logged("cannot connect to NATS, trying on")
            proxy.come_back()
            await scene.logged("reconnected to NATS")
        await scene.flows()


@pytest.mark.slow
async def test_a_worker_stops_in_time_while_its_connection_is_half_open(
    proxy: Proxy, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    flags = (*arguments(tmp_path, "ping_interval: 1h"), "--shutdown-grace", "100ms")
    worker = await started(worker_factory(proxy.url, *flags, start=False))
    async with Scene(worker, nc) as scene:
        await scene.flows()
        with scene.fault():
            proxy.go_silent()
            assert await asyncio.to_thread(worker.stop) == 0
            proxy.come_back()
            await started(worker)
        await scene.flows()


@pytest.mark.slow
async def test_a_worker_that_is_stopped_for_longer_than_the_ack_timeout_blames_no_handler(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    """As a machine that is suspended: the replies wait in its socket, and every timer has run out."""
    worker = await asyncio.to_thread(worker_factory, nats_server, *arguments(tmp_path))
    async with Scene(worker, nc) as scene:
        for _ in range(3):
            await scene.flows()
            os.kill(worker.pid, signal.SIGSTOP)
            await asyncio.sleep(4)
            os.kill(worker.pid, signal.SIGCONT)
        await scene.flows()


async def test_a_server_that_accepts_and_never_speaks_is_left_after_the_connect_timeout(
    proxy: Proxy, worker_factory: WorkerFactory, nc: Client, tmp_path: Path
) -> None:
    proxy.go_silent()
    worker = worker_factory(proxy.url, *arguments(tmp_path, "connect_timeout: 200ms"), start=False)
    worker.spawn()
    await until(lambda: proxy.connections >= 3, WAIT_S)
    assert "no answer in time" in worker.log
    proxy.come_back()
    await asyncio.to_thread(worker.until_ready)
    async with Scene(worker, nc) as scene:
        await scene.flows()


# -- a cluster -----------------------------------------------------------------------------------------------


class Cluster:
    """Servers that know each other. A client that knows one hears of the rest."""

    def __init__(self, make: NatsServerFactory, size: int, config: str = "") -> None:
        routes = [free_port() for _ in range(size)]
        urls = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        self.servers = [
            make(
                config=f'{config}cluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{urls}] }}\n',
                start=False,
            )
            for port in routes
        ]

    async def start(self) -> None:
        """Start them; on return each has told of all."""
        for server in self.servers:
            await asyncio.to_thread(server.start)
        for server in self.servers:
            nc = Client()
            await nc.connect(server.url)
            await until(lambda nc=nc: len(nc.servers) >= len(self.servers), WAIT_S)
            await nc.close()

    async def client(self) -> Client:
        """One that goes on with the last server, and moves when that one goes."""
        nc = Client()
        await nc.connect(
            [server.url for server in reversed(self.servers)],
            dont_randomize=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,
        )
        return nc


def home(worker: WorkerProcess) -> str:
    """The server that the worker is connected to, or was last."""
    [*_, line] = [
        line for line in worker.log.splitlines() if "connected to NATS" in line and "server=" in line
    ]
    return line.partition("server=")[2].split()[0]


async def test_a_cluster_of_three_that_loses_the_workers_server_and_the_next_one(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    """The worker was told of one server only; it goes on with those that it heard of."""
    cluster = Cluster(nats_server_factory, 3)
    await cluster.start()
    nc = await cluster.client()
    worker = await asyncio.to_thread(worker_factory, cluster.servers[0], *arguments(tmp_path))
    async with Scene(worker, nc) as scene:
        for turn in (1, 2):
            await scene.flows()
            [lost] = [server for server in cluster.servers if home(worker).endswith(f":{server.port}")]
            with scene.fault():
                await asyncio.to_thread(lost.kill)
                await scene.logged("reconnected to NATS", turn)
                assert not home(worker).endswith(f":{lost.port}")
                await asyncio.to_thread(lost.start)
                await until(lambda: nc.is_connected, WAIT_S)
                await scene.flows()
    await nc.close()


@pytest.mark.slow
async def test_two_servers_that_are_both_lost_and_come_back(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    cluster = Cluster(nats_server_factory, 2)
    await cluster.start()
    nc = await cluster.client()
    worker = await asyncio.to_thread(worker_factory, cluster.servers[0], *arguments(tmp_path))
    async with Scene(worker, nc) as scene:
        await scene.flows()
        with scene.fault():
            for server in cluster.servers:
                await asyncio.to_thread(server.kill)
            await scene.logged("cannot connect to NATS, trying on")
            for server in cluster.servers:
                await asyncio.to_thread(server.start)
            await scene.logged("reconnected to NATS")
            await until(lambda: nc.is_connected, WAIT_S)
            await scene.flows()
    await nc.close()


async def test_a_server_in_lame_duck_mode_is_left_for_another_one(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    cluster = Cluster(nats_server_factory, 2, LAME_DUCK)
    await cluster.start()
    nc = await cluster.client()
    worker = await asyncio.to_thread(worker_factory, cluster.servers[0], *arguments(tmp_path))
    async with Scene(worker, nc) as scene:
        await scene.flows()
        with scene.fault():
            lame_duck(cluster.servers[0])
            await scene.logged("the NATS server is about to stop")
            await scene.logged("reconnected to NATS")
            assert home(worker).endswith(f":{cluster.servers[1].port}")
        await scene.flows()
    await nc.close()


@pytest.mark.slow
async def test_a_lone_server_in_lame_duck_mode_is_waited_for(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    server = nats_server_factory(config=LAME_DUCK)
    nc = Client()
    await nc.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
    worker = await asyncio.to_thread(worker_factory, server, *arguments(tmp_path))
    async with Scene(worker, nc) as scene:
        await scene.flows()
        with scene.fault():
            lame_duck(server)
            await asyncio.to_thread(server.wait)
            await asyncio.to_thread(server.start)
            await scene.logged("reconnected to NATS")
            await until(lambda: nc.is_connected, WAIT_S)
            await scene.flows()
    await nc.close()


LAME_DUCK = 'lame_duck_duration: "30s"\nlame_duck_grace_period: "200ms"\n'


def lame_duck(server: NatsServer) -> None:
    """`nats-server --signal ldm`: no new clients; those that are there are sent away one after the other."""
    assert server._child is not None
    server._child.send_signal(signal.SIGUSR2)
