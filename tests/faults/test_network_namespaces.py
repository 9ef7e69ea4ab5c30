"""What needs a network or a file system of the worker's own: packets that vanish on the way, a name that nobody knows.

No proxy is in between: the kernel loses the packets, and the C library looks the name up. Needs the rights to make
namespaces (root), and leaves nothing behind: they go with their processes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from requeue_client import local

from tests.faults.scene import WAIT_S, Scene, arguments
from tests.servers import NatsServer, NatsServerFactory, WorkerFactory, until

SERVER_IP, WORKER_IP = "10.213.77.1", "10.213.77.2"
NOBODYS_MAC = "02:00:00:00:00:99"
INSIDE = "INSIDE_A_NETWORK_NAMESPACE"


def allowed(*kind: str) -> bool:
    """Whether such a namespace can be made here."""
    if not (shutil.which("unshare") and shutil.which("nsenter") and shutil.which("ip")):
        return False
    return subprocess.run(["unshare", *kind, "true"], capture_output=True, check=False).returncode == 0


def worker_started_by(script: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this test are started by this shell command; WORKER in it stands for the worker's own."""
    real = local.find_executable("requeue-worker", "pip install 'nats-requeue[worker]'")
    script.write_text("#!/bin/sh\n" + command.replace("WORKER", f'{real} "$@"') + "\n")
    script.chmod(0o755)
    find = local.find_executable
    monkeypatch.setattr(
        local, "find_executable", lambda name, hint: script if name == "requeue-worker" else find(name, hint)
    )


@pytest.mark.skipif(not allowed("--mount"), reason="may not make a mount namespace")
async def test_a_name_that_cannot_be_resolved_for_a_while(
    nats_server: NatsServer,
    worker_factory: WorkerFactory,
    nc: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts, resolver = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("127.0.0.1 localhost\n")
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    mounts = f"mount --bind {hosts} /etc/hosts && mount --bind {resolver} /etc/resolv.conf"
    worker_started_by(
        tmp_path / "start", f"exec unshare --mount sh -c '{mounts} && exec WORKER' sh \"$@\"", monkeypatch
    )
    url = f"nats://nats.requeue.test:{nats_server.port}"
    worker = worker_factory(url, *arguments(tmp_path), start=False)
    worker.spawn()
    await until(lambda: "cannot connect to NATS, trying on" in worker.log, WAIT_S)

    with hosts.open("a") as file:
        file.write("127.0.0.1 nats.requeue.test\n")
    await asyncio.to_thread(worker.until_ready)
    async with Scene(worker, nc) as scene:
        await scene.flows()


# -- packets that vanish -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(INSIDE in os.environ, reason="this is the inside")
@pytest.mark.skipif(not allowed("--net"), reason="may not make a network namespace")
def test_packets_that_vanish_both_ways_without_a_word(tmp_path: Path) -> None:
    """Runs the test below in a network namespace of its own."""
    inside = f"{__file__}::test_inside_packets_vanish_and_the_worker_comes_back"
    options = ("-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "pytest", *options, inside],
        env={**os.environ, INSIDE: "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert "1 passed" in done.stdout


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def neighbour() -> Iterator[int]:
    """A process whose network namespace is connected to ours by a cable; its id names the namespace."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    pid = str(process.pid)
    ours = Path("/proc/self/ns/net").readlink()
    while Path(f"/proc/{pid}/ns/net").readlink() == ours:
        pass
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", pid)
    run("ip", "address", "add", f"{SERVER_IP}/30", "dev", "near")
    run("ip", "link", "set", "near", "up")
    run("nsenter", "-t", pid, "-n", "ip", "address", "add", f"{WORKER_IP}/30", "dev", "far")
    run("nsenter", "-t", pid, "-n", "ip", "link", "set", "far", "up")
    yield process.pid
    process.kill()
    process.wait()


def misdirect(neighbour: int) -> None:
    """From now on each side sends to a station that does not exist."""
    wrong = ("lladdr", NOBODYS_MAC, "nud", "permanent")
    run("ip", "neighbour", "replace", WORKER_IP, "dev", "near", *wrong)
    run("nsenter", "-t", str(neighbour), "-n", "ip", "neighbour", "replace", SERVER_IP, "dev", "far", *wrong)


def mend(neighbour: int) -> None:
    run("ip", "neighbour", "delete", WORKER_IP, "dev", "near")
    run("nsenter", "-t", str(neighbour), "-n", "ip", "neighbour", "delete", SERVER_IP, "dev", "far")


@pytest.mark.skipif(INSIDE not in os.environ, reason="run by the test above")
async def test_inside_packets_vanish_and_the_worker_comes_back(
    neighbour: int,
    nats_server_factory: NatsServerFactory,
    worker_factory: WorkerFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = nats_server_factory(args=["-a", "0.0.0.0"])
    nc = Client()
    await nc.connect(server.url)
    worker_started_by(tmp_path / "start", f"exec nsenter -t {neighbour} -n WORKER", monkeypatch)
    flags = arguments(tmp_path, "ping_interval: 700ms, connect_timeout: 500ms")
    worker = await asyncio.to_thread(worker_factory, f"nats://{SERVER_IP}:{server.port}", *flags)
    async with Scene(worker, nc) as scene:
        await scene.flows()
        with scene.fault():
            misdirect(neighbour)
            await scene.logged("disconnected from NATS")
            await scene.logged("cannot connect to NATS, trying on")
            mend(neighbour)
            await scene.logged("reconnected to NATS")
        await scene.flows()
    await nc.close()
