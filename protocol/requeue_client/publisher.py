"""Publishing until it is on disk: send, wait for the fsynced ack, send again where that helps.

One delivery is one message with one reply subject and one `Nats-Msg-Id` over all its sends:

    send ──ack──────────────────────────────→ done: Ack
     ↑ │──permanent refusal─────────────────→ done: that refusal
     │ │──transient refusal──┐
     │ └──no answer in time──┴─ backoff ──┐   deadline or number of attempts reached →
     └────────────────────────────────────┘   done: the last refusal, or PublishTimeout when any
                                              send went unanswered (it may be on disk)

An ack that comes late, during a backoff or a second send, counts as well. While the connection is down
nothing is sent (nats-py would buffer it and send it after the caller gave up) and no attempt is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.replies import parse_intake_reply

from requeue_client.alarms import Alarms
from requeue_client.backoff import BackoffShape, ExponentialBackOff
from requeue_client.errors import (
    InvalidMessage,
    MessageTooLarge,
    NotConnected,
    PermanentRefusal,
    PublishTimeout,
    RefusedError,
    RequeueError,
)
from requeue_client.inbox import ReplyInbox, answer_of
from requeue_client.message import Encoded, check_size

_BACKOFF = BackoffShape(
    initial_s=0.1, multiplier=2.0, randomization=0.5, max_interval_s=2.0, max_elapsed_s=0.0
)
_CONNECTION_POLL_S = 0.05


class Ack(NamedTuple):
    """The message is on disk, fsynced.

    `duplicate`: a message with this `msg_id` was pending already, and this one was not added. Never so for an
    id that was made up here: then the copy on disk is this message's own, from an earlier attempt.
    """

    duplicate: bool
    msg_id: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often to try. `attempts` None: as often as fits into `timeout_s`."""

    timeout_s: float = 30.0
    attempts: int | None = None
    ack_wait_s: float = 5.0  # a send that was not answered for so long is repeated

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"attempts={self.attempts}; it is 1 or more, or None for as many as fit")


class Publisher:
    """Sends deliveries to the intake and settles them."""

    def __init__(self, nc: Client, inbox: ReplyInbox, intake_subject: str) -> None:
        self.nc = nc
        self.inbox = inbox
        self.intake_subject = intake_subject
        self.on_the_way: dict[str, Delivery] = {}
        self.alarms = Alarms(self.on_the_way.get)
        self._resending: set[asyncio.Task[None]] = set()

    async def publish(self, encoded: Encoded, patience: Patience) -> Ack:
        """Send a message and wait for its ack. Raises RequeueError.

        Cancelling forgets the message here; what was sent may still reach the disk.
        """
        done: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()

        def settle(result: Ack | RequeueError) -> None:
            if done.done():
                return
            if isinstance(result, RequeueError):
                done.set_exception(result)
            else:
                done.set_result(result)

        delivery = await self.deliver(encoded, patience, settle)
        try:
            return await done
        finally:
            delivery.forget()

    async def deliver(
        self, encoded: Encoded, patience: Patience, on_done: Callable[[Ack | RequeueError], None]
    ) -> Delivery:
        """Send a message, waiting only for room in the connection's buffer; `on_done` is called once, maybe before."""
        await self.inbox.open()
        delivery = Delivery(self, encoded, patience, on_done)
        try:
            await delivery.send()
        except asyncio.CancelledError:
            delivery.forget()
            raise
        return delivery

    def close(self) -> None:
        """Repeat nothing any more; what is unanswered fails."""
        for delivery in list(self.on_the_way.values()):
            delivery.give_up()
        self.alarms.close()

    def resend(self, delivery: Delivery) -> None:
        """Send again, from a timer."""
        task = asyncio.get_running_loop().create_task(delivery.send())
        self._resending.add(task)
        task.add_done_callback(self._resending.discard)


class Delivery:
    """One message on its way, over all its sends."""

    __slots__ = (
        "_backoff",
        "_deadline_s",
        "_encoded",
        "_on_done",
        "_patience",
        "_publisher",
        "_refusal",
        "_reply",
        "_send_when_woken",
        "_sent",
        "_unanswered",
        "wake_tick",
    )

    def __init__(
        self,
        publisher: Publisher,
        encoded: Encoded,
        patience: Patience,
        on_done: Callable[[Ack | RequeueError], None],
    ) -> None:
        self._publisher = publisher
        self._encoded = encoded
        self._patience = patience
        self._on_done = on_done
        self._deadline_s = time.monotonic() + patience.timeout_s
        self._backoff: ExponentialBackOff | None = None
        self._sent = 0
        self._unanswered = False
        self._refusal: RefusedError | None = None
        self.wake_tick = 0
        self._send_when_woken = (
            False  # a flag, not the method: a cycle would leave each delivery to the collector
        )
        self._reply = publisher.inbox.expect(self._answered)
        publisher.on_the_way[self._reply] = self

    @property
    def pending(self) -> bool:
        """Whether it is still to be settled."""
        return self._reply in self._publisher.on_the_way

    def forget(self) -> None:
        """Care no more about it; `on_done` is not called."""
        self._publisher.inbox.forget(self._reply)
        self._publisher.on_the_way.pop(self._reply, None)

    async def send(self) -> None:
        """Send once, and set the alarm for the case that no answer comes."""
        if not self.pending:
            return
        nc = self._publisher.nc
        if nc.is_closed or nc.is_draining:
            self._finish(NotConnected("the connection to NATS is closed; make a new one"))
        elif not nc.is_connected:
            self._wait_for_connection()
        else:
            await self._send(nc)

    async def _send(self, nc: Client) -> None:
        encoded = self._encoded
        try:
            # Each time: a reconnect may have led to a server with another limit.
            check_size(encoded.size, nc.max_payload)
        except MessageTooLarge as refusal:
            self._finish(refusal)
            return
        self._sent += 1
        left_s = self._deadline_s - time.monotonic()
        last = self._sent == self._patience.attempts
        self._after(left_s if last else min(left_s, self._patience.ack_wait_s), send=False)
        try:
            await nc.publish(self._publisher.intake_subject, encoded.data, self._reply, encoded.headers)
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError):
            self._finish(NotConnected("the connection to NATS is closed; make a new one"))
        except nats.errors.OutboundBufferLimitError:  # the connection broke a moment ago
            self._sent -= 1
            self._wait_for_connection()
        except (
            nats.errors.BadHeaderError,
            nats.errors.BadSubjectError,
            nats.errors.MaxPayloadError,
        ) as wrong:
            self._finish(InvalidMessage(str(wrong)))

    def _wait_for_connection(self) -> None:
        if time.monotonic() >= self._deadline_s:
            self.give_up()
        else:
            self._after(_CONNECTION_POLL_S, send=True)

    def wake(self) -> None:
        """Send again after a pause, or see that no answer came in time."""
        if self._send_when_woken:
            self._publisher.resend(self)
        else:
            self._unanswered = True
            self._again()

    def _answered(self, msg: Msg) -> None:
        try:
            answer = answer_of(msg)
            duplicate = parse_intake_reply(answer.headers, answer.payload).duplicate
        except PermanentRefusal as refusal:
            self._finish(refusal)
        except RefusedError as refusal:
            self._refusal = refusal
            self._again()
        else:
            encoded = self._encoded
            self._finish(Ack(duplicate and not encoded.own_id, encoded.msg_id, self._sent))

    def _again(self) -> None:
        if self._backoff is None:
            self._backoff = ExponentialBackOff(_BACKOFF)
        wait_s = self._backoff.next_s() or 0.0
        exhausted = self._sent == self._patience.attempts
        if exhausted or time.monotonic() + wait_s >= self._deadline_s:
            self.give_up()
        else:
            self._after(wait_s, send=True)

    def give_up(self) -> None:
        """End with what was the matter so far."""
        tries = f"{self._sent} attempt{'s' if self._sent != 1 else ''}"
        if self._unanswered:
            last = f"; the last refusal was: {self._refusal}" if self._refusal is not None else ""
            msg_id = self._encoded.msg_id
            text = f"no worker acknowledged in {tries}; it may be on disk: repeat it with msg_id {msg_id!r}{last}"
            self._finish(PublishTimeout(text, msg_id=msg_id, attempts=self._sent))
        elif self._refusal is not None:
            self._finish(self._refusal)
        else:
            self._finish(NotConnected("NATS could not be reached in time; nothing was sent"))

    def _finish(self, result: Ack | RequeueError) -> None:
        if self.pending:
            self.forget()
            self._on_done(result)

    def _after(self, seconds: float, *, send: bool) -> None:
        self._send_when_woken = send
        self._publisher.alarms.set(self._reply, self, max(0.0, seconds))
