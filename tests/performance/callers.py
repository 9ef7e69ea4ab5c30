"""What people do at a worker while it takes in messages, as rounds that can be repeated for as long as one likes.

A round is a bounded piece of work by the admin API, as the commands do it: it asks for page after page.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from nats.aio.client import Client
from requeue_protocol.dead_letters import unpack

LOOK = ("instances", "queues", "stats")
MOST_PAGES = 40
EVERY_S = 1.0  #: `top` and the view look so often
_COMMAND = str(Path(sys.executable).with_name("requeue"))
_END_S = 5.0  #: the end of a round may ask for something, too
_SCREEN = struct.pack("HHHH", 50, 160, 0, 0)

Round = Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def meanwhile(round_: Round) -> AsyncIterator[None]:
    """Round after round, until the block ends. Raises what a round raised."""

    async def forever() -> None:
        while True:
            await round_()
            await asyncio.sleep(0)

    task = asyncio.create_task(forever())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        # More than once: a request whose answer comes just then takes no notice (asyncio.wait_for before Python 3.12).
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_END_S)
        if not task.cancelled():
            task.result()


@contextlib.asynccontextmanager
async def top(url: str) -> AsyncIterator[None]:
    """`requeue top` on a terminal, which looks once a second; from its first frame on."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, _SCREEN)
    argv = ("top", "--interval", f"{EVERY_S:g}s", "--server", url)
    env = {**os.environ, "TERM": "xterm-256color"}
    process = await asyncio.create_subprocess_exec(
        _COMMAND, *argv, stdin=its, stdout=its, stderr=its, env=env
    )
    os.close(its)
    shown, drawn = bytearray(), asyncio.Event()

    def read() -> None:
        with contextlib.suppress(OSError):
            shown.extend(os.read(ours, 1 << 16))
        if b"load-" in shown:
            drawn.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(ours, read)
    try:
        await asyncio.wait_for(drawn.wait(), 60)
        yield
    finally:
        process.terminate()
        await process.wait()
        loop.remove_reader(ours)
        os.close(ours)


@dataclass(slots=True)
class Caller:
    """Asks one worker, the looks through its web view and the rest over NATS."""

    nc: Client
    http: aiohttp.ClientSession
    queues: int
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    async def ask(self, endpoint: str, **request: Any) -> dict[str, Any]:
        """One answer over NATS, unpacked."""
        payload = json.dumps(request).encode()
        answer = await self.nc.request(f"_requeue.admin.{endpoint}.worker-0", payload, timeout=60)
        assert not answer.headers, answer.headers
        return dict(json.loads(unpack(answer.data, 1 << 26)))

    async def ask_view(self, endpoint: str, **request: Any) -> dict[str, Any]:
        """One answer through the web view."""
        async with self.http.post(f"/ui/api/{endpoint}", json=request) as response:
            assert response.status == 200
            [answer] = (await response.json())["answers"]
        assert "code" not in answer, answer
        return dict(answer)

    async def pages(
        self, endpoint: str, most: int = MOST_PAGES, *, by_view: bool = False, **request: Any
    ) -> int:
        """How many pages there were; `most` at most."""
        ask = self.ask_view if by_view else self.ask
        for number in itertools.count(1):
            after = (await ask(endpoint, **request)).get("next")
            if after is None or number == most:
                return number
            request["after"] = after
        raise AssertionError

    @property
    def _queue(self) -> str:
        """The next one."""
        return f"load-{next(self._turn) % self.queues}"

    # -- rounds ----------------------------------------------------------------------------------------------

    async def view(self) -> None:
        """What the web view asks for each time."""
        await asyncio.gather(*(self.ask_view(endpoint) for endpoint in LOOK))

    async def view_again(self) -> None:
        """The same as long as it stands open."""
        await self.view()
        await asyncio.sleep(EVERY_S)

    async def count(self) -> None:
        """How many there are."""
        await self.pages("count")

    async def list(self) -> None:
        """Whom nothing is for."""
        await self.pages("list", subject="nobody.*")

    async def purge(self) -> None:
        """A whole queue (`requeue purge`, `cancel` with a filter)."""
        await self.pages("purge", queue=self._queue, dry_run=False)

    async def purge_none(self) -> None:
        """A filter that means nothing: a walk over the backlog."""
        await self.pages("purge", subject="no.such", dry_run=False)

    async def move(self) -> None:
        """A whole queue gets another time (`reschedule`, `run-now` with a filter)."""
        await self.pages("move", queue=self._queue, delay_ns=40 * 3600 * 10**9, dry_run=False)

    async def redrive(self) -> None:
        """All dead letters; nobody is there for them, so that they die again."""
        job = (await self.ask("redrive"))["job"]["job"]
        try:
            while (await self.ask("jobs", job=job))["jobs"][0]["state"] == "running":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        finally:
            await self.ask("cancel-job", job=job)

    async def export(self) -> None:
        """Dead letters with all that they are."""
        await self.pages("dead-export")

    async def delete_and_import(self) -> None:
        """A page of dead letters goes and comes back."""
        page = await self.ask("dead-export")
        await self.ask("dead-delete", keys=page["keys"])
        answer = await self.ask("dead-import", letters=page["letters"])
        assert answer["refused"] == [], answer
