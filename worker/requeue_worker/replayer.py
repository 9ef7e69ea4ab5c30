"""Replay: due messages out as requests, replies in, and what each reply does to its message.

    Scheduler ──(lane, key, value)──> Dispatcher ──> one chunk for each tick ──> NATS
    reply inbox ──list──> on_replies ──> settled: Committer.settle   (edge c)
                                     └─> else: retry.decide ──> a change (edges d, e, f, h), or +WPI: wait on
    timeouts ──> expire ──a round trip──> as a failed reply; as a hold when the connection was lost meanwhile

One wildcard inbox for all; the last token of a reply subject names the delivery.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable

from requeue_protocol.replies import Reply, Verb, one_line, read_replay_reply
from requeue_worker.broker.parser import Raw
from requeue_worker.broker.permissions import Denials
from requeue_worker.changes import Entomb, Rekey, Remove, Requeue
from requeue_worker.counts import Histogram
from requeue_worker.deadletters import DeadLetters
from requeue_worker.dispatch import REKEY_AFTER_NS, Dispatcher, wait_ns_of
from requeue_worker.inflight import Delivery, InFlight
from requeue_worker.record import Attempt, DeadReason, Record, decode
from requeue_worker.retry import Bury, Decision, Drop, Hold, Retry, Settle, decide, expire
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.queues import Lane, QueueState

log = logging.getLogger(__name__)

WORK_LIMIT_NS = 12 * 3600 * 10**9  #: +WPI extends a dispatch up to this in all


class Replayer:
    """What is in flight, and its fate. Runs on the event loop and never blocks."""

    def __init__(
        self,
        committer: Committer,
        dead_letters: DeadLetters,
        *,
        clock: Callable[[], int],
        connection: Callable[[], int],
        max_payload: Callable[[], int],
        denied: Callable[[bytes], Denials | None],
        confirm: Callable[[Callable[[], None]], None],
        freed: Callable[[Iterable[QueueState]], None],
        reply_seconds: Histogram,
        reconnect_grace_ns: int,
    ) -> None:
        self._reply_seconds = reply_seconds
        self._committer = committer
        self._dead_letters = dead_letters
        self._clock = clock
        self._connection = connection
        self._denied = denied
        self._confirm = confirm
        self._freed = freed
        self._grace_ns = reconnect_grace_ns
        self._connected_at_ns = 0
        self._jitter = random.random
        self._idle: asyncio.Event | None = None
        self.in_flight = InFlight()
        self.inbox = b""
        #: edge b: see `Dispatcher.send`
        self.send = Dispatcher(
            self.in_flight,
            inbox=lambda: self.inbox,
            connection=connection,
            max_payload=max_payload,
            refuse=lambda lane, key, record, why: self._bury_or_drop(lane, key, record, why, None),
        ).send

    # -- out -------------------------------------------------------------------------------------------------

    def expire_waiting(self, lane: Lane, key: bytes, value: bytes) -> None:
        """Edge g, for a message that waits for a slot or token: its deadline has passed."""
        self._bury_or_drop(lane, key, decode(value), expire(lane.queue.policy), None)

    # -- in --------------------------------------------------------------------------------------------------

    def on_replies(self, batch: list[Raw]) -> None:
        """Take one socket read's replies."""
        ended: list[Delivery] = []
        prefix = len(self.inbox)
        tokens = [
            subject[prefix:] for subject, _, headers, payload in batch if not payload and headers is None
        ]
        all_settle = len(tokens) == len(batch)
        settled = self.in_flight.pop_all(tokens) if all_settle else self._on_verbs(batch, ended)
        if settled:
            self._measure_replies(settled)
            self._committer.settle(settled)
        # Counted in C: one by one it took as long as all else here.
        queues = Counter([delivery.lane.queue for delivery in settled])
        for queue, number in queues.items():
            queue.counts.settled += number
            queue.in_flight -= number
        for delivery in ended:
            queue = delivery.lane.queue
            queues[queue] += 0
            queue.in_flight -= 1
        if queues:
            self._left(queues)

    def _on_verbs(self, batch: list[Raw], ended: list[Delivery]) -> list[Delivery]:
        """Take replies of which some say something, in their order: the first for a message counts.

        Returns those that settled; `ended` gets those whose dispatch ended unsettled.
        """
        settled: list[Delivery] = []
        prefix = len(self.inbox)
        for subject, _reply, headers, payload in batch:
            token = subject[prefix:]
            if not payload and headers is None:
                # None waits for a second reply, or for one that came after its timeout.
                settled += self.in_flight.pop_all([token])
                continue
            delivery = self.in_flight.get(token)
            if delivery is not None and self._on_verb(delivery, headers, payload, settled):
                ended.append(delivery)
        return settled

    def _measure_replies(self, settled: list[Delivery]) -> None:
        """Once for all that came together, as of the first: a measure of each would cost more than its settlement."""
        first = settled[0]
        works = first.work_until_ns
        sent_ns = works - WORK_LIMIT_NS if works else first.ack_deadline_ns - wait_ns_of(first)
        self._reply_seconds.observe(max(0, time.monotonic_ns() - sent_ns) / 1e9, len(settled))

    def _on_verb(
        self, delivery: Delivery, headers: bytes | None, payload: bytes, settled: list[Delivery]
    ) -> bool:
        """Handle a reply that says something; True when the dispatch ended unsettled."""
        policy = delivery.lane.queue.policy
        reply = read_replay_reply(headers, payload, policy.ack_mode == "any")
        if reply.verb is Verb.WPI:
            self._still_working(delivery)
            return False
        self.in_flight.pop(delivery.token)
        if reply.verb is Verb.SETTLED:
            settled.append(delivery)
            return False
        counts = True
        if reply.verb is Verb.NO_RESPONDERS:
            since_ns = time.monotonic_ns() - self._connected_at_ns
            counts = policy.count_no_responders and since_ns >= self._grace_ns
        self._end(delivery, reply, counts)
        return True

    def _still_working(self, delivery: Delivery) -> None:
        """+WPI: the ack timeout starts again, up to WORK_LIMIT_NS in all."""
        now_ns = time.monotonic_ns()
        wait_ns = wait_ns_of(delivery)
        if not delivery.work_until_ns:
            delivery.work_until_ns = delivery.ack_deadline_ns - wait_ns + WORK_LIMIT_NS
        delivery.ack_deadline_ns = min(now_ns + wait_ns, delivery.work_until_ns)
        # However often it says so: it is looked at in time to be re-keyed.
        wake_ns = min(delivery.ack_deadline_ns, delivery.rekey_ns)
        self.in_flight.rearm(delivery, max(wake_ns - now_ns, 0), now_ns)

    # -- time ------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """A connection stands: no-responders holds for the grace period, since handlers reconnect too."""
        self._connected_at_ns = time.monotonic_ns()

    def expire(self) -> None:
        """Handle every delivery whose wake time has come; those without a reply once it is sure that none has come."""
        now_ns = time.monotonic_ns()
        overdue: list[Delivery] = []
        for delivery in self.in_flight.expired(now_ns):
            left_ns = delivery.ack_deadline_ns - now_ns
            if left_ns > 0:
                # One long job must not pin the checkpoint: its record moves to where a crash should find it due.
                self._committer.submit(Rekey(delivery, self._clock() + left_ns, self._is_in_flight))
                delivery.rekey_ns = now_ns + REKEY_AFTER_NS
                self.in_flight.rearm(delivery, min(left_ns, REKEY_AFTER_NS), now_ns)
            else:
                overdue.append(delivery)
        if overdue:
            self._confirm(lambda: self._give_up(overdue))

    def _give_up(self, overdue: list[Delivery]) -> None:
        """Their ack timeout is over, and a round trip since has brought all that the server had, or none came back.

        Without it the timeout alone would blame the handler for a connection that is dead and does not show it, or for
        replies that wait in the socket of a worker that was stopped for a while.
        """
        now_ns = time.monotonic_ns()
        touched: set[QueueState] = set()
        for delivery in overdue:
            if not self._is_in_flight(delivery) or delivery.ack_deadline_ns > now_ns:
                continue  # it was answered meanwhile
            self.in_flight.pop(delivery.token)
            delivery.lane.queue.in_flight -= 1
            touched.add(delivery.lane.queue)
            lost = delivery.connection != self._connection()
            text = "connection lost while in flight" if lost else self._why_unanswered(delivery)
            self._end(delivery, Reply(Verb.FAILED, None, text), counts=not lost)
        if touched:
            self._left(touched)

    def _why_unanswered(self, delivery: Delivery) -> str:
        """What the server said against this dispatch, if it did; it names the subject and no more."""
        subject = decode(delivery.value).subject
        denials = self._denied(subject)
        sent_ns = delivery.ack_deadline_ns - wait_ns_of(delivery)
        if denials is None or delivery.work_until_ns or denials.last_ns < sent_ns:
            return "no reply within the ack timeout"
        return f"NATS does not allow this worker to publish to {subject.decode()}"

    async def wait_idle(self) -> None:
        """Return once nothing is in flight."""
        while len(self.in_flight):
            self._idle = asyncio.Event()
            await self._idle.wait()

    def _left(self, queues: Iterable[QueueState]) -> None:
        """Dispatches of these queues have ended."""
        self._freed(queues)
        if self._idle is not None and not len(self.in_flight):
            self._idle.set()

    def _is_in_flight(self, delivery: Delivery) -> bool:
        return self.in_flight.get(delivery.token) is delivery

    # -- the end of a dispatch -------------------------------------------------------------------------------

    def _end(self, delivery: Delivery, reply: Reply, counts: bool) -> None:
        record = decode(delivery.value)
        lane = delivery.lane
        now_ns = self._clock()
        decision = decide(reply, record, lane.queue.policy, now_ns=now_ns, jitter=self._jitter, counts=counts)
        self._apply(lane, delivery.key, record, decision, now_ns)

    def _apply(self, lane: Lane, key: bytes, record: Record, decision: Decision, now_ns: int) -> None:
        queue_counts = lane.queue.counts
        attempt = record.attempts + 1
        match decision:
            case Retry(due_ns, error):
                queue_counts.retried += 1
                spent = Attempt(attempt, now_ns, one_line(error))
                self._committer.submit(Requeue(lane, key, record, due_ns, spent))
            case Hold(due_ns, _):
                queue_counts.held += 1
                self._committer.submit(Requeue(lane, key, record, due_ns, None))
            case Bury(_, error) | Drop(_, error):
                spent = Attempt(attempt, now_ns, one_line(error))
                self._bury_or_drop(lane, key, record, decision, spent)
            case Settle():
                raise AssertionError("a settled delivery goes to Committer.settle")

    def _bury_or_drop(
        self, lane: Lane, key: bytes, record: Record, decision: Bury | Drop, attempt: Attempt | None
    ) -> None:
        queue = lane.queue
        if decision.reason is DeadReason.EXPIRED:
            queue.counts.expired += 1
        if isinstance(decision, Drop):
            queue.counts.dropped[str(decision.reason)] += 1
            self._committer.submit(Remove(lane, key, record))
            return
        queue.counts.dead[str(decision.reason)] += 1
        log.info(
            "dead letter",
            extra={"queue": queue.name, "reason": str(decision.reason), "id": key[-16:].hex()},
        )
        announce, mark = self._dead_letters.announcer(queue)
        self._committer.submit(Entomb(lane, key, record, decision.reason, attempt, announce, mark))
