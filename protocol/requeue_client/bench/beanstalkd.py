"""The peer beanstalkd: its Debian package, with an fsync for each put (`-f0`), where it is on PATH.

A put is acknowledged when the job is in its log and synced, so that its durability is a worker's. Jobs are due at once:
its delays have whole seconds. A job is reserved and deleted, which is what a replay and its settlement are.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from requeue_client.bench.figures import Figure, Result, spread_ms
from requeue_client.bench.ingest import parameters
from requeue_client.bench.messages import STAMP, Load, noise
from requeue_client.bench.target import Lab, Meter
from requeue_client.local import HOST, LocalProcess, find_executable, free_port

SYSTEM = "beanstalkd"
_INSERTED = b"INSERTED "
_RESERVED = re.compile(rb"RESERVED (\d+) (\d+)\r\n")
_CONNECT_S = 10.0
_STALL_S = 120.0


class Beanstalkd(LocalProcess):
    """A beanstalkd on a free loopback port. Raises LocalProcessError where there is none."""

    def __init__(self, lab: Lab) -> None:
        directory = lab.new_directory(SYSTEM)
        super().__init__(SYSTEM, directory / "beanstalkd.log")
        self._directory = directory
        self.port = free_port()

    def start(self) -> Beanstalkd:
        """Start it; `connect` waits until it listens."""
        program = find_executable(SYSTEM, "install beanstalkd, or leave its --peer out")
        argv = [str(program), "-l", HOST, "-p", str(self.port), "-b", str(self._directory), "-f0"]
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self


class _Link(asyncio.Protocol):
    """One connection: whole buffers go to `reader`, which says how much of them it is done with."""

    def __init__(self) -> None:
        self.reader: Callable[[bytes], int] = len
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unread = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._unread + data
        self._unread = buffer[self.reader(buffer) :]

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


@asynccontextmanager
async def _running(lab: Lab) -> AsyncIterator[tuple[Beanstalkd, _Link]]:
    with Beanstalkd(lab) as server:
        server.start()
        loop, deadline_s = asyncio.get_running_loop(), time.monotonic() + _CONNECT_S
        while True:
            try:
                _, link = await loop.create_connection(_Link, HOST, server.port)
                break
            except OSError:
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.05)
        yield server, link
        link.close()


async def _put_all(link: _Link, load: Load) -> tuple[float, array[int]]:
    """Put the load, at most `load.window` unanswered. Gives the seconds and the latencies in ns."""
    fill = noise(load.size - STAMP.size)
    head = f"put 1 0 120 {load.size}\r\n".encode()
    sent_ns, latencies = array("q"), array("q")
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(count: int) -> None:
        first = len(sent_ns)
        count = min(count, load.n - first)
        if count > 0:
            sent_ns.extend([time.perf_counter_ns()] * count)
            jobs = [head + STAMP.pack(i, 0) + fill(i) + b"\r\n" for i in range(first, first + count)]
            link.write(b"".join(jobs))

    def read(buffer: bytes) -> int:
        end, now_ns = buffer.rfind(b"\n") + 1, time.perf_counter_ns()
        answered = buffer.count(_INSERTED, 0, end)
        latencies.extend([now_ns - at_ns for at_ns in sent_ns[len(latencies) : len(latencies) + answered]])
        send(answered)
        if len(latencies) == load.n and not done.done():
            done.set_result(None)
        return end

    link.reader = read
    started_s = time.perf_counter()
    send(load.window)
    await asyncio.wait_for(done, _STALL_S)
    return time.perf_counter() - started_s, latencies


async def _take_all(link: _Link, load: Load) -> tuple[float, set[int]]:
    """Reserve and delete everything, with so many reserves on their way. Gives the seconds and the numbers that came."""
    numbers: set[int] = set()
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def read(buffer: bytes) -> int:
        at, out = 0, []
        while True:
            found = _RESERVED.match(buffer, at)
            if found is None:
                if not buffer.startswith(b"DELETED\r\n", at):
                    break
                at += len(b"DELETED\r\n")
                continue
            end = found.end() + int(found[2]) + 2
            if end > len(buffer):
                break
            numbers.add(STAMP.unpack_from(buffer, found.end())[0])
            out.append(b"delete %b\r\nreserve\r\n" % found[1])
            at = end
        link.write(b"".join(out))
        if len(numbers) == load.n and not done.done():
            done.set_result(None)
        return at

    link.reader = read
    started_s = time.perf_counter()
    link.write(b"reserve\r\n" * min(load.window, load.n))
    await asyncio.wait_for(done, _STALL_S)
    return time.perf_counter() - started_s, numbers


async def measure_beanstalkd(lab: Lab, load: Load, scenario: str) -> Result:
    """`ingest`: put all. `replay`: reserve and delete all. Raises LocalProcessError, or TimeoutError for a stall."""
    figures: dict[str, Figure]
    async with _running(lab) as (server, link):
        meter = Meter(server_pid=server.pid, worker_pid=None)
        seconds, latencies = await _put_all(link, load)
        figures = {"rate_per_s": round(load.n / seconds), **spread_ms("ack", latencies)}
        if scenario == "replay":
            meter = Meter(server_pid=server.pid, worker_pid=None)
            seconds, numbers = await _take_all(link, load)
            figures = {"rate_per_s": round(load.n / seconds), "missing": load.n - len(numbers)}
        costs = meter.figures(load.n)
    return Result(scenario, SYSTEM, parameters(load), {**figures, **costs})
