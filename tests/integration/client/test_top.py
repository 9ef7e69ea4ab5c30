"""`requeue top` on a real terminal (a pty whose screen pyte keeps), with real workers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable

import pyte
import pytest
from nats.aio.client import Client
from requeue_client import Message, RequeueClient

from tests.integration.client.test_command import run
from tests.servers import NatsServer, WorkerFactory

COLUMNS, LINES = 110, 24


class Terminal:
    """`requeue top` on a terminal of its own."""

    def __init__(self, server: NatsServer) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.settings = termios.tcgetattr(self.slave)
        self.sent = b""
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        os.set_blocking(self.master, False)
        args = ("top", "--interval", "100ms", "--sort", "name", "--server", server.url)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "requeue_client.cli", *args],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, env=os.environ | {"TERM": "xterm"},
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),  # noqa: PLW1509
        )  # fmt: skip

    def read(self) -> str:
        try:
            while data := os.read(self.master, 65536):
                self.sent += data
                self._stream.feed(data)
        except BlockingIOError:
            pass
        return "\n".join(self.screen.display)

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    async def until(self, holds: Callable[[str], bool]) -> str:
        while not holds(shown := self.read()):
            assert self.process.poll() is None, shown
            await asyncio.sleep(0.05)
        return shown

    async def end(self) -> int:
        while self.process.poll() is None:
            self.read()
            await asyncio.sleep(0.05)
        self.read()
        return self.process.returncode

    def is_as_before(self) -> bool:
        left, cursor = self.sent.rfind(b"\x1b[?1049l"), self.sent.rfind(b"\x1b[?25h")
        restored = left > self.sent.rfind(b"\x1b[?1049h") >= 0 and cursor > self.sent.rfind(b"\x1b[?25l")
        return restored and termios.tcgetattr(self.slave) == self.settings


@pytest.fixture
async def terminal(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> AsyncIterator[Terminal]:
    await asyncio.to_thread(worker_factory, nats_server)
    async with RequeueClient(nc) as client:
        for queue, number in (("alpha", 1), ("beta", 3)):
            for _ in range(number):
                await client.publish("mail.out", b"x", queue=queue, delay="1h")
    opened = Terminal(nats_server)
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.master)
    os.close(opened.slave)


def ordered(first: str, second: str) -> Callable[[str], bool]:
    return lambda shown: 0 <= shown.find(first) < shown.find(second)


def rates(shown: str) -> dict[str, str]:
    """IN/S of each queue on the screen."""
    lines = [line.split() for line in shown.splitlines()]
    return {words[0]: words[-2] for words in lines if words[:1] in (["alpha"], ["beta"])}


async def test_top_shows_queues_and_rates_and_keys_sort_and_filter_them(
    terminal: Terminal, nc: Client
) -> None:
    await terminal.until(ordered("alpha", "beta"))
    terminal.press(b"2")
    await terminal.until(ordered("beta", "alpha"))
    terminal.press(b"/alp\r")
    await terminal.until(lambda shown: "alpha" in shown and "beta" not in shown)
    async with RequeueClient(nc) as client:
        message = Message("mail.out", b"x", queue="alpha", delay="1h")
        assert all([one.ok async for one in client.publish_many(message for _ in range(500))])
    shown = await terminal.until(lambda shown: "pending 504" in shown)
    assert "workers 1 up, 1 ready" in shown


async def test_what_comes_in_is_shown_as_a_rate_of_its_queue(terminal: Terminal, nc: Client) -> None:
    await terminal.until(ordered("alpha", "beta"))
    async with RequeueClient(nc) as client:
        while rates(terminal.read()).get("beta") in (None, "0.0"):
            await client.publish("mail.out", b"x", queue="beta", delay="1h")
    assert rates(terminal.read())["alpha"] == "0.0"


async def test_top_goes_on_over_a_reconnect_and_names_a_worker_that_died(
    terminal: Terminal, nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    second = await asyncio.to_thread(worker_factory, nats_server, "--instance-id", "second")
    await terminal.until(lambda shown: "workers 2 up, 2 ready" in shown)
    await asyncio.to_thread(second.kill)
    shown = await terminal.until(lambda shown: "no answer from second" in shown)
    assert "workers 1 up, 1 ready" in shown
    await asyncio.to_thread(nats_server.kill)
    shown = await terminal.until(lambda shown: "no answer: there is no connection to NATS" in shown)
    assert ordered("alpha", "beta")(shown), "the last answers stay"
    await asyncio.to_thread(nats_server.restart)
    await asyncio.to_thread(second.restart)
    shown = await terminal.until(lambda shown: "workers 2 up, 2 ready" in shown)
    lines = [line.split() for line in shown.splitlines() if line.strip()]
    heads = {words[0] for words in lines if set(words[0]) != {"─"}}
    assert heads == {"workers", "pending", "QUEUE*", "alpha", "beta"}, (
        "nothing else was written on the screen"
    )
    terminal.press(b"q")
    assert await terminal.end() == 0
    assert terminal.is_as_before()


@pytest.mark.parametrize(
    ("stop", "code"), [(b"q", 0), (b"\x03", 130), (signal.SIGTERM, 0)], ids=["q", "ctrl-c", "sigterm"]
)
async def test_terminal_is_as_it_was_when_top_ends(
    terminal: Terminal, stop: bytes | signal.Signals, code: int
) -> None:
    await terminal.until(lambda shown: "alpha" in shown)
    assert termios.tcgetattr(terminal.slave) != terminal.settings
    if isinstance(stop, bytes):
        terminal.press(stop)
    else:
        terminal.process.send_signal(stop)
    assert await terminal.end() == code
    assert terminal.is_as_before()


async def test_top_without_a_terminal_says_what_to_use_and_once_prints_a_frame(
    nats_server: NatsServer, terminal: Terminal
) -> None:
    refused = await run("top", "--server", nats_server.url)
    assert refused.returncode == 2
    assert b"requeue top --once" in refused.stderr
    once = await run("top", "--once", "--server", nats_server.url)
    assert once.returncode == 0
    assert once.stdout.index(b"beta") < once.stdout.index(b"alpha")
