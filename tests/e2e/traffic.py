"""A client outside the cluster: it publishes, answers replays, and keeps the books. Messages are numbers."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import TracebackType
from typing import Self

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import Message, RequeueClient

_SUBJECT = "shop.orders"
_QUIET_S = 120.0


class Traffic:
    """`async with Traffic(url) as traffic`. Every replay is settled by an empty reply."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.acked: set[int] = set()
        self.came: Counter[int] = Counter()
        self.limits: dict[int, str] = {}
        self.changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.nc: Client = await nats.connect(self._url, max_reconnect_attempts=-1)
        self._requeue = await RequeueClient.connect(self._url)
        await self.nc.subscribe(f"{_SUBJECT}.>", cb=self._handle)
        await self.nc.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._requeue.close()
        await self.nc.close()

    async def publish(
        self, numbers: range, *, delay: str = "0s", queue: str = "orders", window: int = 512
    ) -> None:
        """All of them, sent again until a worker acknowledges."""
        messages = (
            Message(
                f"{_SUBJECT}.{number}", str(number).encode(), delay=delay, queue=queue, msg_id=f"n-{number}"
            )
            for number in numbers
        )
        async for outcome in self._requeue.publish_many(messages, window=window, timeout="5m"):
            assert outcome.ok, outcome
            self.acked.add(int(outcome.message.payload))

    async def until_delivered(self, quiet_s: float = _QUIET_S) -> None:
        """Every acknowledged message has come. Raises AssertionError when none came for `quiet_s` before that."""
        while not self.acked <= self.came.keys():
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), quiet_s)
            except TimeoutError:
                lost = sorted(self.acked - self.came.keys())
                raise AssertionError(f"{len(lost)} of {len(self.acked)} lost, such as {lost[:10]}") from None

    @property
    def repeated(self) -> int:
        """How many came more than once."""
        return sum(1 for times in self.came.values() if times > 1)

    async def _handle(self, msg: Msg) -> None:
        number = int(msg.data)
        self.came[number] += 1
        self.limits[number] = (msg.headers or {}).get("Requeue-Max-Attempts", "")
        await self.nc.publish(msg.reply, b"")
        self.changed.set()
