"""One reconnect at a time, and none after the end.

`asyncio.wait_for` of Python 3.11 drops a cancellation that comes together with what it waited for, and nats-py cancels
its reconnect once: what misses that goes on beside the next one, or after the close, for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from requeue_worker.broker.client import BulkClient

from tests.servers import NatsServer, until


class Deaf(BulkClient):
    """Each attempt to connect misses one cancellation."""

    def __init__(self) -> None:
        super().__init__()
        self.missed = self.running = self.most = 0

    async def _select_next_server(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._try()
        finally:
            self.running -= 1

    async def _try(self) -> None:
        try:
            await super()._select_next_server()
        except asyncio.CancelledError:
            self.missed += 1
            await super()._select_next_server()


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Deaf]:
    async def ignore(_: Exception) -> None:
        """The server is away: that is the point."""

    deaf = Deaf()
    await deaf.connect(nats_server.url, error_cb=ignore, max_reconnect_attempts=-1, reconnect_time_wait=0.01)
    await asyncio.to_thread(nats_server.stop)
    await until(lambda: deaf.running)
    yield deaf
    await asyncio.wait_for(deaf.close(), 20)


async def test_a_reconnect_that_misses_its_cancellation_ends_with_the_client(client: Deaf) -> None:
    await asyncio.wait_for(client.close(), 20)
    assert (client.missed, client.running, client.is_closed) == (1, 0, True)


async def test_a_reconnect_begins_when_the_one_before_has_ended(
    client: Deaf, nats_server: NatsServer
) -> None:
    client._status = client.CONNECTED  # as if it had just been done, and broken again
    await client._process_op_err(OSError("broken again"))
    await until(lambda: client.missed)

    await asyncio.to_thread(nats_server.start)
    await until(lambda: client._reconnecting is not None and client._reconnecting.done())
    await client.flush()
    assert (client.most, client.running) == (1, 0)
