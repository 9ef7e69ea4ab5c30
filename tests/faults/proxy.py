"""A TCP proxy with a network's bad days: it stalls, goes silent, delays, refuses, and cuts where it is told to.

    async with Proxy(nats_server.port) as proxy:
        worker = worker_factory(proxy.url)
        proxy.cut_at(TO_SERVER, rb"HPUB jobs\\S+ ")   # in the middle of that line, once
        with proxy.stalled(TO_WORKER): ...            # bytes wait; who sends them fills up his buffers
        proxy.go_silent()                             # bytes vanish, both ways and for good: nobody hears of it
        proxy.come_back()                             # for connections made from now on

Nothing is duplicated, reordered or changed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

TO_SERVER: Final = 0
TO_WORKER: Final = 1
HOST: Final = "127.0.0.1"

_CHUNK: Final = 1 << 16


class Proxy:
    """Between workers and one server. Runs on the test's event loop."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        #: connections made so far
        self.connections = 0
        #: for each chunk on its way
        self.delay_s = 0.0
        #: a new connection is closed at once
        self.refuses = False
        self._silent = False
        self._links: set[_Link] = set()
        self._cut: tuple[int, re.Pattern[bytes]] | None = None
        self._cut_done = asyncio.Event()
        self._open = (asyncio.Event(), asyncio.Event())
        for open_ in self._open:
            open_.set()

    @property
    def url(self) -> str:
        return f"nats://{HOST}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for link in list(self._links):
            link.abort()

    # -- what can go wrong -----------------------------------------------------------------------------------

    @contextmanager
    def stalled(self, *directions: int) -> Iterator[None]:
        """Pass nothing on (both ways, unless told), and lose nothing."""
        for direction in directions or (TO_SERVER, TO_WORKER):
            self._open[direction].clear()
        try:
            yield
        finally:
            for open_ in self._open:
                open_.set()

    def go_silent(self) -> None:
        """Swallow every byte, both ways. Neither side is told, not of the other's end either."""
        self._silent = True
        for link in self._links:
            link.silent = True

    def come_back(self) -> None:
        """New connections work again; those that lost bytes never do."""
        self._silent = False

    def cut(self) -> None:
        """Reset every connection now, whatever is on its way."""
        for link in list(self._links):
            link.abort()

    async def cut_at(self, direction: int, pattern: bytes) -> None:
        """Pass on up to the end of the next match, reset that connection there, and return."""
        self._cut_done.clear()
        self._cut = direction, re.compile(pattern)
        await self._cut_done.wait()

    # -- passing on ------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if self.refuses:
                raise ConnectionRefusedError
            far_reader, far_writer = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, far_writer, self._silent)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pass_on(link, reader, far_writer, TO_SERVER),
                self._pass_on(link, far_reader, writer, TO_WORKER),
            )
        finally:
            link.abort()
            self._links.discard(link)

    async def _pass_on(
        self, link: _Link, source: asyncio.StreamReader, target: asyncio.StreamWriter, direction: int
    ) -> None:
        tail = b""
        try:
            while data := await source.read(_CHUNK):
                await self._open[direction].wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if link.silent:
                    continue
                if self._cut is not None and self._cut[0] == direction:
                    end = self._find_cut(tail, data)
                    if end is not None:
                        target.write(data[:end])
                        await target.drain()
                        self._cut = None
                        link.abort()
                        self._cut_done.set()
                        return
                    tail = data[-256:]
                target.write(data)
                await target.drain()
            await self._open[direction].wait()
            if not link.silent:
                target.close()
        except OSError:
            if not link.silent:
                link.abort()

    def _find_cut(self, tail: bytes, data: bytes) -> int | None:
        """Where in `data` the match ends; `tail` is what was passed on just before."""
        assert self._cut is not None
        found = self._cut[1].search(tail + data, max(len(tail) - 255, 0))
        return None if found is None or found.end() <= len(tail) else found.end() - len(tail)


class _Link:
    """One connection through the proxy, both its halves."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter, silent: bool) -> None:
        self._writers = near, far
        self.silent = silent

    def abort(self) -> None:
        """End both halves at once."""
        for writer in self._writers:
            writer.transport.abort()
