"""The worker's own subscriptions: whether the server has taken them, and asking again for those that it denies.

    connect ─> SUBs ─> PING..PONG ─> denied in between? ─no─> they stand
                          ▲                   │ yes: said in logs and readiness
                          └── SUB again ◀─ wait (longer each time)

A server does not tell a client that its permissions were widened, and drops a subscription when they are narrowed; so
what is denied is asked for again, at the start, after a reconnect and after a reload alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nats import errors
from requeue_worker.broker.client import BulkClient
from requeue_worker.broker.parser import Consumer
from requeue_worker.broker.permissions import Permissions

log = logging.getLogger(__name__)

MIN_WAIT_S: Final = 0.01
MAX_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Own:
    """A subscription that the worker needs for its work."""

    subject: str
    queue_group: str
    handle: Any

    @property
    def command(self) -> bytes:
        """Its protocol operation. The server ignores a repeat while the subscription stands."""
        words = (b"SUB", self.subject.encode(), self.queue_group.encode(), b"%d" % self.handle._id)
        return b" ".join(word for word in words if word) + b"\r\n"


class Subscriptions:
    """Replies and intake, which the worker cannot do without, and others, which it can."""

    def __init__(
        self, client: BulkClient, permissions: Permissions, changed: Callable[[], None], wait_s: float
    ) -> None:
        self._client = client
        self._permissions = permissions
        self._changed = changed
        self._wait_s = max(wait_s, MIN_WAIT_S)
        self._replies: Own | None = None
        self._intake: Own | None = None
        self._others: list[Own] = []
        self._look = asyncio.Event()
        #: counts connections: an answer of one that is gone says nothing
        self._connection = 0
        self._answered = False

    # -- made once, kept by the client over reconnects -------------------------------------------------------

    async def add_replies(self, subject: str, consumer: Consumer) -> None:
        """The reply inbox: without it no replay is sent."""
        self._replies = Own(subject, "", await self._client.subscribe_hot(subject, consumer))

    async def add_intake(self, subject: str, queue_group: str, consumer: Consumer) -> None:
        """The intake: without it the worker is not ready."""
        handle = await self._client.subscribe_hot(subject, consumer, queue_group)
        self._intake = Own(subject, queue_group, handle)

    async def add_other(self, subject: str, callback: Callable[[Any], Any], queue_group: str = "") -> None:
        """Something that the worker does besides."""
        handle = await self._client.subscribe(subject, queue_group, cb=callback)
        self._others.append(Own(subject, queue_group, handle))

    async def end_intake(self, timeout_s: float) -> None:
        """Unsubscribe; on return everything that the server had sent has been handed over.

        Raises TimeoutError, or as nats-py.
        """
        intake, self._intake = self._intake, None
        if intake is not None and self._client.is_connected:
            async with asyncio.timeout(timeout_s):
                await intake.handle.unsubscribe()
                await self._client.flush()

    # -- what the server says --------------------------------------------------------------------------------

    def disconnected(self) -> None:
        """The connection is gone, and with it what was denied on it."""
        self._connection += 1
        self._answered = False
        self._permissions.new_connection()

    def reconnected(self) -> None:
        """nats-py has subscribed anew, and made a round trip after it."""
        self._answered = True
        self._look.set()

    def violated(self) -> None:
        """A subscription was denied just now."""
        self._look.set()

    async def keep(self) -> None:
        """Ask for what is denied, for ever. `changed` is called whenever an answer is known."""
        self._look.set()
        while True:
            await self._look.wait()
            self._look.clear()
            wait_s = self._wait_s
            while self._client.is_connected and not await self._stand():
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, MAX_WAIT_S)

    async def _stand(self) -> bool:
        """Ask for what is denied; whether all subscriptions stand now."""
        connection = self._connection
        counts = {own: self._count(own) for own in self._own}
        denied = [own for own, count in counts.items() if count]
        for own in denied:
            self._client.send(own.command, 0)
        try:
            await self._client.flush()
        except (errors.Error, OSError, TimeoutError) as error:
            log.warning("no answer to subscriptions", extra={"error": str(error) or type(error).__name__})
            return False
        if connection != self._connection:
            return False
        self._answered = True
        for own in denied:
            if self._count(own) == counts[own]:
                self._permissions.granted(own.subject)
                log.info("NATS allows a subscription now", extra={"subject": own.subject})
        self._changed()
        return not any(self._count(own) for own in self._own)

    @property
    def replies_stand(self) -> bool:
        """Whether a replay sent now would bring its reply."""
        return self._answered and self._replies is not None and not self._count(self._replies)

    @property
    def vital_trouble(self) -> str | None:
        """Why messages are not taken and replayed though the connection stands; None when they are."""
        if not self._answered:
            return "the server has not answered the subscriptions yet"
        return self._first_denial([self._replies, self._intake])

    @property
    def other_trouble(self) -> str | None:
        """A denied subscription that the worker goes on without."""
        return self._first_denial(self._others)

    def _first_denial(self, wanted: list[Own | None] | list[Own]) -> str | None:
        for own in wanted:
            denials = None if own is None else self._permissions.subscription(own.subject)
            if denials is not None:
                return denials.text
        return None

    @property
    def _own(self) -> list[Own]:
        return [own for own in (self._replies, self._intake, *self._others) if own is not None]

    def _count(self, own: Own) -> int:
        denials = self._permissions.subscription(own.subject)
        return 0 if denials is None else denials.count
