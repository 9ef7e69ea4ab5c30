"""The workers' HTTP endpoints, as the operator asks them. Every call ends within `_TIMEOUT_S`."""

from __future__ import annotations

import asyncio
from typing import Final, Self

import aiohttp

from requeue_operator.backlog import Told, Unreadable, read_metrics
from requeue_operator.children.worker_config import HTTP_PORT

_TIMEOUT_S: Final = 5
_AT_ONCE: Final = 32
_MOST_BYTES: Final = 64 * 1024 * 1024
_PARSED_AT_ONCE_BYTES: Final = 64 * 1024
_LONGEST_SENTENCE: Final = 300


class NoAnswer(Exception):
    """A worker that cannot be reached, or says what no worker says. The text tells which."""


class Workers:
    """`async with Workers() as workers`."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def __aenter__(self) -> Self:
        # Connections would wait for half a minute between two questions: none is kept.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def metrics(self, address: str) -> Told:
        """What the worker at this IP address tells. Raises NoAnswer."""
        status, content = await self._get(address, "/metrics")
        if status != 200:
            raise NoAnswer(f"/metrics answers {status}")
        try:
            text = content.decode()
            if len(content) < _PARSED_AT_ONCE_BYTES:
                return read_metrics(text)
            return await asyncio.to_thread(read_metrics, text)
        except (UnicodeDecodeError, Unreadable) as error:
            raise NoAnswer(str(error)) from None

    async def why_not_ready(self, address: str) -> str | None:
        """The worker's own sentence, or None when it is ready. Raises NoAnswer."""
        status, content = await self._get(address, "/readyz")
        if status == 200:
            return None
        return " ".join(content.decode(errors="replace").split())[:_LONGEST_SENTENCE] or f"status {status}"

    async def _get(self, address: str, path: str) -> tuple[int, bytes]:
        host = f"[{address}]" if ":" in address else address
        try:
            async with (
                self._slots,
                self._session.get(f"http://{host}:{HTTP_PORT}{path}", allow_redirects=False) as response,
            ):
                content = bytearray()
                async for part in response.content.iter_any():
                    content += part
                    if len(content) > _MOST_BYTES:
                        raise NoAnswer(f"{path} has more than {_MOST_BYTES} bytes")
                return response.status, bytes(content)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error
