"""The socket under nats-py: larger reads, an end that is waited for in bounds, and an end at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from nats.aio.transport import TcpTransport

READ_BYTES: Final = 256 * 1024
BUFFER_BYTES: Final = 64 * 1024  #: what asyncio takes for enough, too
CLOSE_WAIT_S: Final = 0.5


class WideTransport(TcpTransport):  # type: ignore[misc, unused-ignore]
    """TCP with reads of READ_BYTES instead of nats-py's 32 KiB: fewer wake-ups for the same bytes."""

    async def read(self, buffer_size: int) -> bytes:
        """Read what is there, up to READ_BYTES."""
        data: bytes = await super().read(READ_BYTES)
        return data

    def send_now(self, data: bytes) -> bool:
        """Hand this to the socket, unless that has enough to do or is broken."""
        writer = self._io_writer
        if writer is None or writer.transport.is_closing():
            return False
        if writer.transport.get_write_buffer_size() >= BUFFER_BYTES:
            return False
        try:
            writer.transport.write(data)
        except RuntimeError:  # uvloop's, when the socket broke a moment ago
            return False
        return True

    async def wait_closed(self) -> None:
        """Wait for the end, not for ever: the end of a connection whose TLS handshake failed is never told."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(super().wait_closed(), CLOSE_WAIT_S)  # type: ignore[no-untyped-call]

    def abort(self) -> None:
        """End it at once. `close` would first send what is buffered, to a peer that may not read for an hour."""
        for writer in (self._io_writer, self._bare_io_writer):
            if writer is not None:
                # Debian 12's asyncio (3.11.2) fails so when a TLS connection is lost already.
                with contextlib.suppress(AttributeError):
                    writer.transport.abort()
