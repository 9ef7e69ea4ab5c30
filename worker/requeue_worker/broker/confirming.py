"""Is a reply that is missing really missing? Asked of the server: what it had for the worker is here when its PONG is.

A half-open connection and a worker that was suspended both look like handlers that do not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from nats import errors
from requeue_worker.broker.client import BulkClient
from requeue_worker.supervisor import ended

log = logging.getLogger(__name__)

ROUND_TRIP_S: Final = 10.0  #: a server that takes longer is given up


class Confirming:
    """Round trips on demand, one at a time; who asks while one is under way is answered by the next."""

    def __init__(self, client: BulkClient, connection: Callable[[], int]) -> None:
        self._client = client
        self._connection = connection
        self._asked: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None

    def ask(self, callback: Callable[[], None]) -> None:
        """Call back once all that the server had by now is here, or the connection is known to be lost."""
        self._asked.append(callback)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._answer())

    async def stop(self) -> None:
        """Call nobody back any more."""
        self._asked.clear()
        await ended(self._task)

    async def _answer(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            connection = self._connection()
            try:
                await self._client.flush(ROUND_TRIP_S)
            except TimeoutError:
                if connection and self._connection() == connection:
                    log.warning("NATS does not answer", extra={"waited_s": ROUND_TRIP_S})
                    await self._client.give_up()
            except (errors.Error, OSError) as error:
                log.debug("lost before it answered", extra={"error": str(error)})
            for callback in asked:
                callback()
