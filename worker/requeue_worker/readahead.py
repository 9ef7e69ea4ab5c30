"""Reading ahead: what is due at once or shortly, from disk into `Lane.ready`, bounded in bytes; and what needs no read.

    want(lane) ──> start: up to READ_LANES lanes in one hop to the read thread ──> on_read(lanes)
        └──> heads, until it is time ──┘

One hop is under way at a time. A lane that runs low is wanted: at once when what follows is due so soon, else in time,
together with others. What it brings back goes out with a later tick. A lane that a hop had no room for is wanted again.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Final

from requeue_worker.record import HEAD
from requeue_worker.storage.keys import TIME, time_of
from requeue_worker.storage.queues import NEVER, Lane
from requeue_worker.storage.store import ReadRequest, ReadResult
from requeue_worker.storage.transaction import Retained
from requeue_worker.wakeups import WakeUps

READ_LIMIT: Final = 2048  #: messages in a read of a lane of weight 100; with 1024 a replay costs 15 % more
READ_LEAST: Final = 64
READ_MOST: Final = 8192
#: lanes in one hop to the read thread. What it brings back is bounded by `Store.read_due`. With 8, the replay of 20,000
#: messages in 10,000 queues takes 82 µs of CPU for each, most of them for hops, ticks and commits of a few; so it is 33
READ_LANES: Final = 256
#: a hop asks for twice as many lanes as the last one had room for, and for so many at least
FEW_LANES: Final = 8
READY_BYTES: Final = 32 << 20  #: read ahead in all queues; beyond this a lane has one message ready at a time
#: A lane is read so long before what follows is due: a read may meet a dozen tables, not merged yet, and other reads,
READ_LEAD_NS: Final = 50_000_000
#: and so much sooner for each lane in which something waits: they may all be due at one instant.
LANE_READ_NS: Final = 25_000
LONGEST_LEAD_NS: Final = 1_000_000_000
#: Where there is more time than READ_LEAD_NS, lanes are read together, so far apart at least: a hop has its price. With a
#: longer lead it is a part of that: else a lane would be read for each message that is due within the lead.
READ_COMPANY_NS: Final = 4_000_000
_COMPANIES: Final = 16
#: A read takes in what is due so much later: a trickle costs about ten reads a second.
READ_AHEAD_NS: Final = 100_000_000
_WEIGHT: Final = 100  #: for which READ_LIMIT holds

Item = tuple[bytes, bytes]  #: key and value of a message


class ReadAhead:
    """What is read and waits to be sent. Runs on the event loop; `read` is the store's `read_due`."""

    def __init__(
        self,
        read: Callable[[Sequence[ReadRequest]], asyncio.Future[list[ReadResult]]],
        *,
        on_read: Callable[[list[Lane]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._read = read
        self._on_read = on_read
        self._failed = failed
        #: lanes to read, and how many messages: those with something that is due at once, and those in good time
        self._wanted: dict[Lane, int] = {}
        self._soon: dict[Lane, int] = {}
        #: lanes by when the first record that is not read yet is due, where that is not soon
        self._heads: WakeUps[Lane] = WakeUps()
        self._gathered_ns = 0  #: when these were looked at last
        self._reading = False
        self._lanes = FEW_LANES
        #: in all lanes
        self.ready_bytes = 0

    # -- out -------------------------------------------------------------------------------------------------

    def take(self, lane: Lane, number: int) -> list[Item]:
        """Take the first so many ready messages out."""
        pop = lane.ready.popleft
        items = [pop() for _ in range(number)]
        self.ready_bytes -= sum([len(value) for _, value in items])
        return items

    def take_expired(self, lane: Lane, now_ns: int) -> list[Item]:
        """Take those out whose deadline has passed, wherever they stand."""
        kept: deque[Item] = deque()
        expired: list[Item] = []
        for item in lane.ready:
            deadline_ns = int.from_bytes(item[1][_DEADLINE], "big")
            (expired if deadline_ns and deadline_ns <= now_ns else kept).append(item)
        self.ready_bytes -= sum([len(item[1]) for item in expired])
        lane.ready = kept
        lane.expires_ns = _first_deadline_ns(kept)
        return expired

    def withdraw(self, lane: Lane, key: bytes, value: bytes) -> bool:
        """Claim a pending message for a change from outside; False when it is on its way out already.

        In `unsettled` and in `ready`: read ahead, so it leaves the buffer. In `unsettled` alone: claimed by something
        else. In neither: on disk only, and the claim keeps a read that is under way from bringing it in.
        """
        if key in lane.unsettled:
            try:
                lane.ready.remove((key, value))
            except ValueError:
                return False
            self.ready_bytes -= len(value)
        lane.unsettled[key] = None
        return True

    def withdraw_all(self, lane: Lane, items: list[Item]) -> list[Item]:
        """As `withdraw`, for many at once: those that are claimed now. It walks over what is read ahead once."""
        known = [item for item in items if item[0] in lane.unsettled]
        if known:
            values = dict(known)
            taken = {key for key, value in lane.ready if values.get(key) == value}
            lane.ready = deque(item for item in lane.ready if item[0] not in taken)
            self.ready_bytes -= sum([len(values[key]) for key in taken])
            items = [item for item in items if item[0] not in values or item[0] in taken]
        lane.unsettled.update([(key, None) for key, _ in items])
        return items

    # -- in from a commit ------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes that a commit may retain: half of all that may be in memory is for what is read."""
        return READY_BYTES // 2 - self.ready_bytes

    def retain(self, messages: Iterable[Retained]) -> list[Lane]:
        """Take what `Lane.retain` has claimed, now that it is on disk. Returns its lanes."""
        lanes: dict[Lane, None] = {}
        for lane, key, value in messages:
            ready, item = lane.ready, (key, value)
            if ready and key < ready[-1][0]:
                insort(ready, item)
            else:
                ready.append(item)
            self.ready_bytes += len(value)
            lanes[lane] = None
            if (deadline := value[_DEADLINE]) != _NO_DEADLINE:
                lane.expires_ns = min(lane.expires_ns, int.from_bytes(deadline, "big"))
        return list(lanes)

    def forget(self, lane: Lane) -> None:
        """Its queue leaves: nobody wants to read it any more."""
        self._wanted.pop(lane, None)
        self._soon.pop(lane, None)
        self._heads.forget(lane)

    # -- in --------------------------------------------------------------------------------------------------

    def want(self, lane: Lane, now_ns: int) -> None:
        """Ask for a read when the lane runs low and something is due soon; else see that it is read in time."""
        if lane.reading or lane.head_due_ns == NEVER:
            return
        if lane.head_due_ns > now_ns + READ_LEAD_NS:
            self._heads.wake(lane, lane.head_due_ns)
        elif limit := self._limit(lane):
            self._soon.pop(lane, None)
            self._wanted[lane] = limit

    def _limit(self, lane: Lane) -> int:
        """How many messages to read: it follows the queue's weight, so that reads share as sends do.

        0 where enough is there: none is needed before some of that is sent, and then the lane is wanted again.
        """
        # What came since is due before what is there; so may be what is on disk while nothing is known of that.
        overtaken = lane.ready and lane.head_due_ns < time_of(lane.ready[0][0])
        # Half is for lanes that have nothing: one blocked queue must not slow down all. Beyond all of it an earlier
        # message is read still: what is there may not be due for an hour, when the clock was put back.
        if lane.ready and self.ready_bytes >= (2 * READY_BYTES if overtaken else READY_BYTES // 2):
            return 0
        limit = min(max(READ_LIMIT * lane.queue.policy.weight // _WEIGHT, READ_LEAST), READ_MOST)
        return limit if overtaken or len(lane.ready) < limit // 2 else 0

    def next_ns(self, now_ns: int) -> int | None:
        """When `start` has something to do because of the time alone; None while a read is under way, or nothing waits."""
        head_ns = None if self._reading else self._heads.next_ns()
        if head_ns is None:
            return None
        lead_ns = self._lead_ns()
        # Unless the clock was put back since.
        since_ns = self._gathered_ns if self._gathered_ns <= now_ns else 0
        return max(head_ns - lead_ns, since_ns + _company_ns(lead_ns))

    def _lead_ns(self) -> int:
        # What is read early takes room: where half of it is taken there is no more than the least.
        lanes = len(self._heads) if self.ready_bytes < READY_BYTES // 2 else 0
        return min(READ_LEAD_NS + READ_COMPANY_NS + lanes * LANE_READ_NS, LONGEST_LEAD_NS)

    def _gather(self, now_ns: int) -> None:
        """Ask for the lanes whose time has come, and for those whose time comes shortly."""
        next_ns = self.next_ns(now_ns)
        if next_ns is None or next_ns > now_ns:
            return
        self._gathered_ns = now_ns
        lead_ns = self._lead_ns()
        until_ns = now_ns + lead_ns + _company_ns(lead_ns)
        for lane in list(self._heads.due(until_ns)):
            if lane.head_due_ns > until_ns:  # it has changed
                self.want(lane, now_ns)
            elif lane not in self._wanted and (limit := self._limit(lane)):
                self._soon[lane] = limit

    def start(self, now_ns: int) -> None:
        """Read what is wanted, unless a read is under way."""
        if self._reading:
            return
        self._gather(now_ns)
        if not self._wanted and not self._soon:
            return
        number = min(self._lanes, READ_LANES)
        # Neither waits for all of the others: half of a hop is for each, where there are so many.
        at_once = list(islice(self._wanted, max(number // 2, number - len(self._soon))))
        lanes = [*at_once, *islice(self._soon, number - len(at_once))]
        full = self.ready_bytes >= READY_BYTES
        requests = []
        for lane in lanes:
            limit = self._wanted.pop(lane, 0) or self._soon.pop(lane)
            lane.reading = True
            # At least up to its head, unless the clock was put back since.
            from_ns = min(max(lane.head_due_ns, now_ns + READ_LEAD_NS), now_ns + LONGEST_LEAD_NS)
            until_ns = from_ns + READ_AHEAD_NS
            if lane.ready:
                # Over all that was retained: then what comes next is known, and need not be read either.
                until_ns = max(until_ns, time_of(lane.ready[-1][0]))
            requests.append(ReadRequest(lane, lane.cursor, until_ns, 1 if full else limit))
        self._reading = True
        self._read(requests).add_done_callback(partial(self._finish, requests))

    def _finish(self, requests: list[ReadRequest], future: asyncio.Future[list[ReadResult]]) -> None:
        self._reading = False
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._failed(error)
            return
        results = future.result()
        for lane, records, next_key, more in results:
            fresh = lane.note_read(records, next_key, more)
            self.ready_bytes += sum([len(value) for _, value in fresh])
            lane.expires_ns = min(lane.expires_ns, _first_deadline_ns(fresh))
        self._lanes = max(2 * len(results), FEW_LANES)
        for request in requests[len(results) :]:
            request.lane.note_unread()
        self._on_read([request.lane for request in requests])


def _company_ns(lead_ns: int) -> int:
    return max(READ_COMPANY_NS, lead_ns // _COMPANIES)


def count_due(lane: Lane, now_ns: int) -> int:
    """How many of the messages read ahead are due; they stand in due order."""
    ready = lane.ready
    if not ready or time_of(ready[0][0]) > now_ns:
        return 0
    beyond = lane.prefix + TIME.pack(now_ns + 1)
    if ready[-1][0] < beyond:
        return len(ready)
    return bisect_left(ready, beyond, key=itemgetter(0))


_DEADLINE = slice(HEAD.size - 8, HEAD.size)
_NO_DEADLINE = bytes(8)


def _first_deadline_ns(items: Iterable[Item]) -> int:
    """The earliest deadline among these records, NEVER when none has one."""
    deadlines = {value[_DEADLINE] for _, value in items}  # few are different
    deadlines.discard(_NO_DEADLINE)
    return int.from_bytes(min(deadlines), "big") if deadlines else NEVER
