"""A bare NATS connection for load: bytes out, whole read buffers in."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import cast
from urllib.parse import unquote, urlsplit

DEFAULT_PORT = 4222
_CONNECT_TIMEOUT_S = 10.0

Reader = Callable[[bytes], int]
"""Takes all unread bytes, and gives how many of them it is done with.

The rest comes again with more behind it.
"""


class WireError(RuntimeError):
    """The server refused or closed the connection."""


class Wire(asyncio.Protocol):
    """One connection. What arrives goes to `reader`, whole buffers at a time.

    PING and errors are seen to here.
    """

    def __init__(self) -> None:
        self.reader: Reader = len
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.max_payload = 0
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._info = b""
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs: list[asyncio.Future[None]] = []
        self._closing = False

    @classmethod
    async def connect(cls, url: str, name: str) -> Wire:
        """Connect to `nats://[user:password@]host[:port]`.

        Raises:
            WireError: refused, or no answer; the text has the server's.
        """
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        if parts.scheme != "nats":
            raise WireError(f"{url}: the bench speaks plain NATS only; give nats://host:port")
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                _, wire = await loop.create_connection(
                    cls, parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORT
                )
                await wire._greeted
                wire._greet(name, parts.username, parts.password)
                await wire.flush()
        except (TimeoutError, OSError) as error:
            raise WireError(f"cannot connect to {url}: {str(error) or 'no answer'}") from error
        return wire

    def write(self, data: bytes) -> None:
        """Send protocol lines."""
        assert self._transport is not None
        self._transport.write(data)

    def subscribe(self, subject: str, sid: int) -> None:
        """Subscribe without a queue group."""
        self.write(f"SUB {subject} {sid}\r\n".encode())

    async def flush(self) -> None:
        """Wait until the server has handled all that was written."""
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self.write(b"PING\r\n")
        await asyncio.wait(
            {pong, self.failed}, return_when=asyncio.FIRST_COMPLETED, timeout=_CONNECT_TIMEOUT_S
        )
        if self.failed.done():
            self.failed.result()
        if not pong.done():
            raise WireError("the server does not answer PING")

    async def close(self) -> None:
        """Close; what is written goes out first."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()
        await asyncio.sleep(0)

    def _greet(self, name: str, user: str | None, password: str | None) -> None:
        info = json.loads(self._info)
        self.max_payload = int(info["max_payload"])
        options: dict[str, object] = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "lang": "python",
            "version": "0",
            "name": name,
            "protocol": 1,
        }
        if user is not None and password is not None:
            options |= {"user": unquote(user), "pass": unquote(password)}
        elif user is not None:
            options["auth_token"] = unquote(user)
        self.write(b"CONNECT " + json.dumps(options).encode() + b"\r\n")

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(
            asyncio.Transport, transport
        )  # uvloop's is one by its methods, not by its class

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail who still waits."""
        if not self._closing:
            self._fail(WireError(f"the server closed the connection{f': {exc}' if exc else ''}"))

    def data_received(self, data: bytes) -> None:
        """See to what is the connection's, hand the rest to the reader."""
        if not self._greeted.done():
            data = self._read_info(data)
        if b"PING\r\n" in data:
            self.write(b"PONG\r\n")
        if b"-ERR '" in data:
            self._fail(
                WireError("the server says " + data[data.index(b"-ERR '") + 5 :].split(b"\r")[0].decode())
            )
        if self._pongs and b"PONG\r\n" in data:
            with contextlib.suppress(asyncio.InvalidStateError):
                self._pongs.pop(0).set_result(None)
        buffer = self._unread + data if self._unread else data
        self._unread = buffer[self.reader(buffer) :]

    def _read_info(self, data: bytes) -> bytes:
        self._info += data
        line, end, rest = self._info.partition(b"\r\n")
        if not end:
            return b""
        self._info = line.removeprefix(b"INFO ")
        self._greeted.set_result(None)
        return rest

    def _fail(self, error: WireError) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(error)
        elif not self.failed.done():
            self.failed.set_exception(error)
            self.failed.exception()  # seen: nobody may be waiting at the moment


@contextlib.asynccontextmanager
async def in_and_out(url: str) -> AsyncIterator[tuple[Wire, Wire]]:
    """Two connections, one for what is published and one for what is delivered; closed at the end. Raises WireError."""
    inward, outward = [await Wire.connect(url, f"requeue-bench-{name}") for name in ("in", "out")]
    try:
        yield inward, outward
    finally:
        await inward.close()
        await outward.close()
