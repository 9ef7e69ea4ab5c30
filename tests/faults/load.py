"""A publisher and a handler that keep the books: what was acknowledged, when it was due, what came, and when."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import defaultdict

from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.envelope import build_envelope

from tests.servers import settle

WINDOW = 200
ACK_WAIT_S = 1.0


class Books:
    """Everything that one test's messages did. Times are Unix seconds; a message is its number."""

    def __init__(self) -> None:
        self.due_s: dict[int, float] = {}
        self.acked: set[int] = set()
        self.came_s: defaultdict[int, list[float]] = defaultdict(list)

    @property
    def lost(self) -> set[int]:
        """Acknowledged and never delivered."""
        return self.acked - self.came_s.keys()

    @property
    def early(self) -> set[int]:
        """Delivered before they were due."""
        return {number for number, came_s in self.came_s.items() if came_s[0] < self.due_s[number]}

    def repeated_without(self, faults_s: list[float]) -> list[int]:
        """Delivered twice although no fault lies between when it was due and the second delivery.

        Without a fault no ack was in flight. The due time stands for the first delivery, since a busy handler notes that
        late: the fault may have come before it looked.
        """
        return [
            number
            for number, came_s in self.came_s.items()
            for second in came_s[1:]
            if not any(self.due_s[number] <= fault_s <= second for fault_s in faults_s)
        ]


class Load:
    """Publishes envelopes for as long as it runs, `WINDOW` at a time, and settles each replay."""

    def __init__(self, nc: Client, subject: str = "requeue.load", most: int | None = None) -> None:
        self.books = Books()
        self._nc = nc
        self._subject = subject
        self._most = most
        self._numbers = itertools.count()
        self._inbox = nc.new_inbox()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._stopped = False

    async def listen(self) -> None:
        """Subscribe handler and ack inbox; on return the server knows."""
        await self._nc.subscribe("jobs.load", cb=self._handle)
        await self._nc.subscribe(self._inbox + ".*", cb=self._on_ack)
        await settle(self._nc)

    async def run(self) -> None:
        """Publish until `stop` (or `most` messages); an unanswered message is given up, as a client would."""
        await asyncio.gather(*[self._publish_one_by_one() for _ in range(WINDOW)])

    def stop(self) -> None:
        """Let what is under way come to its end."""
        self._stopped = True

    async def _publish_one_by_one(self) -> None:
        while not self._stopped and (self._most is None or len(self.books.due_s) < self._most):
            number = next(self._numbers)
            delay_s = random.choice((0, 0.02, 0.2, 0.5))
            acked = self._waiting[number] = asyncio.get_running_loop().create_future()
            self.books.due_s[number] = time.time() + delay_s
            envelope = build_envelope(
                subject="jobs.load", payload=b"%d" % number, retries=2**64 - 1, delay_ns=int(delay_s * 1e9),
                queue=f"q{number % 3}",
            )  # fmt: skip
            await self._nc.publish(self._subject, envelope, reply=f"{self._inbox}.{number}")
            await asyncio.wait([acked], timeout=ACK_WAIT_S)
            self._waiting.pop(number, None)

    async def _on_ack(self, msg: Msg) -> None:
        number = int(msg.subject.rpartition(".")[2])
        if msg.data == b"" and not msg.headers:
            self.books.acked.add(number)
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _handle(self, msg: Msg) -> None:
        self.books.came_s[int(msg.data)].append(time.time())
        await self._nc.publish(msg.reply, b"")
