"""The scheduler: which message goes out next, and when to look again. Event-driven: one wake-up, no polling.

A tick, in order:
 1. lanes whose head has come due put their queue into the ring;
 2. deliveries whose wait is over go back to the replayer;
 3. the ring is served by deficit round robin: a queue may send `weight` credits' worth a round, strictly by priority
    inside, while it has slots, tokens and no pause; expired messages need neither;
 4. queues that ran low ask for a read; all wanted lanes are read in one hop on the read thread;
 5. the next wake-up is the earliest of next due head, in-flight wait, rate token, pause end and deadline.
Whatever changes that from outside (a commit, a reply, a read, a connection, a policy) requests a tick.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from requeue_worker.alarm import Alarm
from requeue_worker.allowance import ANY_SLOT, Allowance
from requeue_worker.counts import Counts
from requeue_worker.readahead import Item, ReadAhead, count_due
from requeue_worker.registry import QueueRegistry
from requeue_worker.replayer import Replayer
from requeue_worker.storage.keys import time_of
from requeue_worker.storage.queues import NEVER, Lane, QueueState
from requeue_worker.storage.store import ReadRequest, ReadResult
from requeue_worker.storage.transaction import Retained
from requeue_worker.wakeups import WakeUps

TICK_MESSAGES: Final = 1024  #: a tick sends so many at most, then the loop gets its turn
TICK_BYTES: Final = 1 << 20
UNSENT_BYTES: Final = 4 << 20  #: beyond this the socket is the bottleneck: wait for it
ROUND_CREDITS: Final = 100  #: of weight for one round: a queue with weight 100 sends up to QUANTUM in a round
QUANTUM: Final = 128
SEND_CHUNK: Final = 128  #: handed to the replayer at once; the byte bounds are looked at in between
COMPANY_NS: Final = (
    500_000  #: time alone brings no tick sooner than so long after the last one: many due share one
)
_LONGEST_SLEEP_NS: Final = 3600 * 10**9


class Scheduler:
    """Runs on the event loop. `read` is the store's `read_due`; `send` takes one chunk of protocol bytes."""

    def __init__(
        self,
        registry: QueueRegistry,
        replayer: Replayer,
        counts: Counts,
        *,
        clock: Callable[[], int],
        read: Callable[[Sequence[ReadRequest]], asyncio.Future[list[ReadResult]]],
        send: Callable[[bytes, int], None],
        may_send: Callable[[], bool],
        when_flushed: Callable[[Callable[[], None]], None],
        failed: Callable[[BaseException], None],
        unsent_bytes: Callable[[], int],
        max_in_flight: int,
        max_in_flight_bytes: int,
    ) -> None:
        self._registry = registry
        self._replayer = replayer
        self._counts = counts
        self._clock = clock
        self.read_ahead = ReadAhead(read, on_read=self.lanes_earlier, failed=failed)
        self._allowance = Allowance(
            replayer.in_flight, max_in_flight=max_in_flight, max_in_flight_bytes=max_in_flight_bytes
        )
        self._send = send
        self._may_send = may_send
        self._when_flushed = when_flushed
        self._unsent_bytes = unsent_bytes
        self._lane_wakes: WakeUps[Lane] = WakeUps()
        self._queue_wakes: WakeUps[QueueState] = WakeUps()
        self._ring: deque[QueueState] = deque()
        #: queues that wait for a slot or byte of any queue; they keep their place in the round
        self._starved: dict[QueueState, None] = {}
        self._tick_requested = False
        self._alarm = Alarm(self.request_tick)
        self._stopped = False
        self._closed = False
        self.ticks = 0

    # -- what happens outside --------------------------------------------------------------------------------

    def start(self) -> None:
        """Look at every lane that has something pending."""
        self.look_again()

    def stop(self) -> None:
        """Send nothing any more; replies and timeouts are still handled."""
        self._stopped = True

    def close(self) -> None:
        """Do nothing any more: what times out from now on is in flight for whoever opens the store next."""
        self._stopped = self._closed = True
        self._alarm.close()

    def lanes_earlier(self, lanes: Iterable[Lane]) -> None:
        """A commit made these lanes due earlier, or a read brought what is due."""
        now_ns = self._clock()
        for lane in lanes:
            self._look(lane, now_ns)
        self.request_tick()

    def retained(self, messages: Iterable[Retained]) -> None:
        """A commit brought messages that are due shortly, and need no read."""
        self.lanes_earlier(self.read_ahead.retain(messages))

    def freed(self, queues: Iterable[QueueState]) -> None:
        """Slots of these queues became free."""
        if self._starved:
            starved, self._starved = list(self._starved), {}
            for queue in reversed(starved):
                if queue.deficit > 0 and not queue.in_ring:  # its turn was not over
                    queue.in_ring = True
                    self._ring.appendleft(queue)
            for queue in starved:
                self._activate(queue)
        for queue in queues:
            # What else a queue may wait for than a slot of its own, a timer or a read brings about.
            if queue.lacks_slot:
                self._activate(queue)
        self.request_tick()

    def forget(self, queue: QueueState) -> None:
        """The queue holds nothing and leaves: nothing wakes up for it."""
        self._starved.pop(queue, None)
        self._queue_wakes.forget(queue)
        for lane in queue.lanes.values():
            self._lane_wakes.forget(lane)
            self.read_ahead.forget(lane)

    def look_again(self) -> None:
        """Policies, pauses, the clock or the connection changed: consider every queue."""
        for queue in self._registry:
            if queue.pending:
                self._activate(queue)
        self.request_tick()

    def request_tick(self) -> None:
        """Tick once, as soon as the loop comes round."""
        if not self._tick_requested:
            self._tick_requested = True
            asyncio.get_running_loop().call_soon(self._tick)

    def withdraw(self, lane: Lane, key: bytes, value: bytes) -> bool:
        """Claim a pending message for a change from outside: see `ReadAhead.withdraw`."""
        return self.read_ahead.withdraw(lane, key, value)

    def withdraw_all(self, lane: Lane, items: list[Item]) -> list[Item]:
        """Claim pending messages for a change from outside; those that are claimed: see `ReadAhead.withdraw_all`."""
        return self.read_ahead.withdraw_all(lane, items)

    # -- the tick --------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._tick_requested = False
        if self._closed:
            return
        self.ticks += 1
        now_ns = self._clock()
        for lane in list(self._lane_wakes.due(now_ns)):
            self._look(lane, now_ns)
        for queue in self._queue_wakes.due(now_ns):
            self._activate(queue)
        self._replayer.expire()
        if not self._stopped and self._may_send():
            self._serve_ring(now_ns)
        self.read_ahead.start(now_ns)
        self._arm(now_ns)

    def _serve_ring(self, now_ns: int) -> None:
        out: list[bytes] = []
        in_flight = len(self._replayer.in_flight)
        budget, room = TICK_MESSAGES, TICK_BYTES
        while self._ring and budget > 0 and room > 0:
            if self._unsent_bytes() >= UNSENT_BYTES:
                self._when_flushed(self.request_tick)
                break
            queue = self._ring[0]
            if queue.deficit <= 0:
                queue.deficit += max(1, queue.policy.weight * QUANTUM // ROUND_CREDITS)
            taken, size, more = self._serve(queue, min(queue.deficit, budget), room, now_ns, out)
            budget -= taken
            room -= size
            queue.deficit -= taken
            if not more:
                if queue not in self._starved:
                    queue.deficit = 0
                queue.in_ring = False
                self._ring.popleft()
            elif queue.deficit <= 0:
                self._ring.rotate(-1)
        else:
            if self._ring:
                self.request_tick()
        if out:
            self._send(b"".join(out), len(self._replayer.in_flight) - in_flight)

    def _serve(
        self, queue: QueueState, quota: int, room: int, now_ns: int, out: list[bytes]
    ) -> tuple[int, int, bool]:
        """Take up to `quota` due messages and send `room` bytes of this queue.

        Returns messages taken and bytes sent, and whether the queue has more to send right now. A message that is
        taken and then expires, or is too large, uses no slot and no token.
        """
        taken = size = 0
        in_flight = queue.in_flight
        allowed, until_ns = self._allowance.of(queue, now_ns)
        queue.lacks_slot = False
        for lane in queue.lanes.values():
            due = count_due(lane, now_ns)
            while due and taken < quota and size < room and allowed > 0:
                number = min(due, quota - taken, allowed, SEND_CHUNK)
                size += self._send_first(lane, number, now_ns, out)
                due -= number
                taken += number
                allowed -= queue.in_flight - in_flight
                self._allowance.spend(queue, queue.in_flight - in_flight)
                in_flight = queue.in_flight
            self.read_ahead.want(lane, now_ns)
            if due and allowed > 0:
                return taken, size, True
            self._watch(lane, now_ns)
            if due or lane.head_due_ns <= now_ns:
                # Priority is strict: nothing below goes out while this lane has something due.
                break
        if allowed <= 0:
            self._wait(queue, until_ns, now_ns)
        return taken, size, False

    def _send_first(self, lane: Lane, number: int, now_ns: int, out: list[bytes]) -> int:
        """Hand the first so many ready messages of a lane to the replayer. Returns the bytes that go out."""
        items, counts = self.read_ahead.take(lane, number), lane.queue.counts
        before = counts.replays
        size = self._replayer.send(lane, items, now_ns, out)
        if counts.replays - before < len(items):  # the others had expired or are too large
            items = [item for item in items if lane.unsettled.get(item[0]) is not None]
        if items:
            self._observe_lateness(items, now_ns)
        return size

    def _observe_lateness(self, items: list[tuple[bytes, bytes]], now_ns: int) -> None:
        """Count how late these are. They are in due order, so the two ends tell about all."""
        first, last = now_ns - time_of(items[0][0]), now_ns - time_of(items[-1][0])
        self._counts.lateness_seconds.observe((first + last) / 2e9, len(items))

    def _wait(self, queue: QueueState, until_ns: int, now_ns: int) -> None:
        """Arrange for a blocked queue to be looked at again: when unblocked, or when a waiting message expires."""
        if until_ns == ANY_SLOT:
            self._starved[queue] = None
        queue.lacks_slot = until_ns == NEVER
        for lane in queue.lanes.values():
            if lane.expires_ns <= now_ns:
                for key, value in self.read_ahead.take_expired(lane, now_ns):
                    self._replayer.expire_waiting(lane, key, value)
            until_ns = min(until_ns, lane.expires_ns)
            # Of every lane, also of those that wait for a higher one: what is not read can't expire.
            self.read_ahead.want(lane, now_ns)
            self._watch(lane, now_ns)
        if until_ns < ANY_SLOT:
            self._queue_wakes.wake(queue, max(until_ns, now_ns + 1))

    # -- wake-ups --------------------------------------------------------------------------------------------

    def _activate(self, queue: QueueState) -> None:
        if not queue.in_ring:
            queue.in_ring = True
            self._ring.append(queue)

    def _look(self, lane: Lane, now_ns: int) -> None:
        """Something about this lane has changed: its queue gets a turn when it has a message that is due.

        Before that a turn would do no more than what is done here, at several times the price: with thousands of queues
        most looks are such ones. Of several lanes a lower one may wait for what this one has.
        """
        if (lane.ready and time_of(lane.ready[0][0]) <= now_ns) or len(lane.queue.lanes) > 1:
            self._activate(lane.queue)
        else:
            self.read_ahead.want(lane, now_ns)
            self._watch(lane, now_ns)

    def _watch(self, lane: Lane, now_ns: int) -> None:
        """Wake up for this lane when its first read-ahead message is due.

        What is past already needs no wake-up: it waits for a slot or token, which bring the queue back into the ring. So
        does a read, and `ReadAhead` knows itself when it is time for one.
        """
        if lane.ready and now_ns < (first_ns := time_of(lane.ready[0][0])):
            self._lane_wakes.wake(lane, first_ns)

    def _arm(self, now_ns: int) -> None:
        """Set the one timer to the earliest thing that time alone brings about."""
        if self._tick_requested:
            return
        wakes = (self._lane_wakes.next_ns(), self._queue_wakes.next_ns(), self.read_ahead.next_ns(now_ns))
        # From the tick's beginning on: one that serves a dozen queues takes as long as COMPANY_NS.
        spent_ns = max(self._clock() - now_ns, 0)
        waits = [at_ns - now_ns for at_ns in wakes if at_ns is not None]
        in_flight_ns = self._replayer.in_flight.next_wake_ns()
        if in_flight_ns is not None:
            waits.append(in_flight_ns - time.monotonic_ns() + spent_ns)
        if waits:
            self._alarm.set(min(max(min(waits), COMPANY_NS), _LONGEST_SLEEP_NS) - spent_ns)
        else:
            self._alarm.cancel()
