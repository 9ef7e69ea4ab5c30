"""Queue and lane state: what the worker knows of a queue in memory, and its stored form in the `meta` family.

All of it belongs to the event loop's thread. Per message only what is in flight, read ahead or not yet committed is
in memory (`Lane.unsettled`); everything else is on disk.

The checkpoint invariant: nothing pending lies below `Lane.checkpoint`, and nothing pending lies below `Lane.cursor`
but what `Lane.unsettled` holds.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from requeue_worker.counts import QueueCounts
from requeue_worker.storage.keys import (
    DEFAULT_PRIORITY,
    SUFFIX_LEN,
    after_prefix,
    lane_prefix,
    meta_queue_key,
    time_of,
)

if TYPE_CHECKING:
    from requeue_protocol.policy import QueuePolicy
    from requeue_protocol.subjects import SubjectRules
    from requeue_worker.inflight import Delivery

#: unsettled keys of a lane beyond which it retains nothing: checkpoints walk over them
RETAIN_MOST: Final = 1024
NEVER: Final = 2**63  #: a due time that no wake-up waits for
INVALID_QUEUE: Final = "$invalid"  #: holds refused messages as dead letters; no client can name it

_META_VERSION = 1
_TOP: Final = b"\xff" * SUFFIX_LEN  #: beyond every key of a lane
# version, lanes | pending, pending_bytes, dead, dead_bytes, paused_until_ns
_META = struct.Struct(">BBQQQQQ")
# priority, checkpoint
_META_LANE = struct.Struct(f">B{SUFFIX_LEN}s")
# all of a queue with one lane, as most have
_pack_one_lane = struct.Struct(_META.format + _META_LANE.format[1:]).pack


class Lane:
    """One priority of one queue: a key range with a checkpoint, a read cursor and what was read ahead."""

    __slots__ = (
        "arrived",
        "checkpoint",
        "cursor",
        "end",
        "expires_ns",
        "head_due_ns",
        "inserting",
        "prefix",
        "priority",
        "queue",
        "reading",
        "ready",
        "released",
        "unsettled",
    )

    def __init__(self, queue: QueueState, priority: int, checkpoint: bytes | None = None) -> None:
        self.queue = queue
        self.priority = priority
        self.prefix = lane_prefix(queue.name, priority)
        self.end = after_prefix(self.prefix)
        #: durable: everything in this lane below it is settled. A new lane is empty: its first record moves it down,
        #: and no read walks over what an earlier lane of this name has left
        self.checkpoint = self.prefix + (_TOP if checkpoint is None else checkpoint)
        #: the next read starts here
        self.cursor = self.checkpoint
        #: time of the first record at or beyond the cursor, or earlier: 0 not known yet, NEVER none
        self.head_due_ns = NEVER
        #: read or retained, but not yet dispatched; in due order
        self.ready: deque[tuple[bytes, bytes]] = deque()
        #: every key below the cursor whose removal is not durable yet, and those retained by the batch being written; a
        #: Delivery while in flight, else None
        self.unsettled: dict[bytes, Delivery | None] = {}
        #: smallest key that the batch being sealed inserts
        self.inserting: bytes | None = None
        #: smallest key that became durable while a read was under way
        self.arrived: bytes | None = None
        #: keys whose removal became durable while a read was under way: that read may still return them
        self.released: set[bytes] = set()
        self.reading = False
        #: no deadline in `ready` is earlier
        self.expires_ns = NEVER

    def release(self, key: bytes) -> None:
        """The removal of `key` is durable."""
        if self.reading:
            self.released.add(key)
        else:
            self.unsettled.pop(key, None)

    def hold(self, key: bytes, delivery: Delivery) -> None:
        """What is in flight has this key from now on, also when it had it once and a read may still return that."""
        self.unsettled[key] = delivery
        self.released.discard(key)

    def retain(self, key: bytes) -> bool:
        """Claim a key that is about to be inserted for `ready`: True where no read has to bring it.

        It is the caller's to put it there once it is on disk. False where something that is not read yet may be due before
        it, and where the key itself is about to be let go of.
        """
        if self.reading or key in self.unsettled or len(self.unsettled) >= RETAIN_MOST:
            return False
        if key >= self.cursor:
            if time_of(key) >= self.head_due_ns:
                return False
            self.cursor = key + b"\x00"
        self.unsettled[key] = None
        self.checkpoint = min(self.checkpoint, key)
        return True

    def note_durable_insert(self, key: bytes) -> bool:
        """A record at `key` (the smallest of its batch) is on disk now: move the cursor back where needed.

        True when the lane's next due time became earlier.
        """
        if self.reading:
            if self.arrived is None or key < self.arrived:
                self.arrived = key
            return False
        if key < self.cursor:  # noqa: PLR1730 - a call of `min` takes twice the time, for each message of ten thousand queues
            self.cursor = key
        due_ns = time_of(key)
        if due_ns < self.head_due_ns:
            self.head_due_ns = due_ns
            return True
        return False

    def note_read(
        self, records: list[tuple[bytes, bytes]], next_key: bytes | None, more: bool
    ) -> list[tuple[bytes, bytes]]:
        """A read from the cursor came back: `records` are due soon, `next_key` is the first that is not.

        `more` says that the read stopped at its limit, so what follows is not known. Returns what is new in `ready`.
        """
        self.reading = False
        unsettled, fresh = self.unsettled, records
        # Without a loop in Python: that took a sixth of a replay's time.
        keys: dict[bytes, Delivery | None] = dict.fromkeys([key for key, _ in records])
        if not unsettled.keys().isdisjoint(keys):
            fresh = [item for item in records if item[0] not in unsettled]
            keys = dict.fromkeys([key for key, _ in fresh])
        if fresh:
            unsettled.update(keys)
            in_order = not self.ready or self.ready[-1][0] < fresh[0][0]
            self.ready.extend(fresh)
            if not in_order:
                self.ready = deque(sorted(self.ready))
        if next_key is not None:
            self.cursor, self.head_due_ns = next_key, time_of(next_key)
        else:
            if records:
                self.cursor = records[-1][0] + b"\x00"
            # What follows is not earlier than the last one read.
            self.head_due_ns = time_of(records[-1][0]) if more and records else NEVER
        self._catch_up()
        return fresh

    def note_unread(self) -> None:
        """A read that was asked for came back without this lane: cursor and head are what they were."""
        self.reading = False
        self._catch_up()

    def _catch_up(self) -> None:
        """Take in what became durable while a read was under way."""
        if self.arrived is not None:
            self.cursor = min(self.cursor, self.arrived)
            self.head_due_ns = min(self.head_due_ns, time_of(self.arrived))
            self.arrived = None
        for key in self.released:
            self.unsettled.pop(key, None)
        self.released.clear()

    def lowest_unsettled(self) -> bytes:
        """The key that the checkpoint may move up to."""
        lowest = min(self.unsettled, default=self.cursor)
        if self.arrived is not None and self.arrived < lowest:
            lowest = self.arrived
        return min(lowest, self.cursor)


def less(stored: bytes, pending: int, pending_bytes: int, dead: int, dead_bytes: int) -> bytes:
    """What `QueueState.encode` wrote, with so much less in its counters. Raises ValueError below zero."""
    version, lanes, *counters, paused_until_ns = _META.unpack_from(stored)
    gone = (pending, pending_bytes, dead, dead_bytes)
    left = [had - lost for had, lost in zip(counters, gone, strict=True)]
    if min(left) < 0:
        raise ValueError(f"its counters say {counters}, and there is more than that")
    return _META.pack(version, lanes, *left, paused_until_ns) + stored[_META.size :]


def unpaused(stored: bytes) -> bytes:
    """What `QueueState.encode` wrote, without a pause."""
    *fields, _ = _META.unpack_from(stored)
    return _META.pack(*fields, 0) + stored[_META.size :]


def counters_of(stored: bytes) -> tuple[int, int, int]:
    """Pending, dead and `paused_until_ns` of what `QueueState.encode` wrote. Raises ValueError for a newer version."""
    version, _, pending, _, dead, _, paused_until_ns = _META.unpack_from(stored)
    if version != _META_VERSION:
        raise ValueError(f"queue state version {version}; this release knows {_META_VERSION}")
    return pending, dead, paused_until_ns


class QueueState:
    """A queue's counters (as of the last sealed batch), lanes, policy and dispatch state."""

    __slots__ = (
        "bytes",
        "counts",
        "dead",
        "dead_bytes",
        "deficit",
        "in_flight",
        "in_ring",
        "lacks_slot",
        "lanes",
        "meta_key",
        "name",
        "paused_until_ns",
        "pending",
        "policy",
        "rules",
        "tokens",
        "tokens_at_ns",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, name: str, policy: QueuePolicy, rules: SubjectRules, counts: QueueCounts) -> None:
        self.name = name
        self.meta_key = meta_queue_key(name)
        self.policy = policy
        self.rules = rules
        self.counts = counts
        self.pending = self.bytes = self.dead = self.dead_bytes = 0
        #: accepted but not yet in a sealed batch, for max_messages and max_bytes: all that is `NewMessage.counted`
        self.waiting = self.waiting_bytes = 0
        self.paused_until_ns = 0
        self.lanes: dict[int, Lane] = {}
        self.in_flight = 0
        self.in_ring = False
        #: it waits for one of its own messages in flight to end
        self.lacks_slot = False
        self.deficit = 0
        self.tokens = 0.0
        self.tokens_at_ns = 0

    def lane(self, priority: int = DEFAULT_PRIORITY) -> Lane:
        """The lane of this priority, made when it is new; `lanes` stays in priority order."""
        lane = self.lanes.get(priority)
        if lane is None:
            self.lanes[priority] = lane = Lane(self, priority)
            self.lanes = dict(sorted(self.lanes.items()))
        return lane

    @property
    def next_due_ns(self) -> int | None:
        """Time of the first message that waits, read ahead or not; None when there is none, or it is not known yet."""
        heads = [lane.head_due_ns for lane in self.lanes.values()]
        heads += [time_of(lane.ready[0][0]) for lane in self.lanes.values() if lane.ready]
        due_ns = min(heads, default=NEVER)
        return None if due_ns in (0, NEVER) else due_ns

    def encode(self) -> bytes:
        """Counters and checkpoints for the `meta` family."""
        lanes = self.lanes
        if len(lanes) == 1:
            return self.encode_with(*lanes.values())
        counters = (self.pending, self.bytes, self.dead, self.dead_bytes, self.paused_until_ns)
        parts = [_META.pack(_META_VERSION, len(lanes), *counters)]
        for priority, lane in lanes.items():
            parts.append(_META_LANE.pack(priority, lane.checkpoint[len(lane.prefix) :]))
        return b"".join(parts)

    def encode_with(self, lane: Lane) -> bytes:
        """As `encode`, where this is the only lane, as in most queues."""
        # Each commit writes each queue that it touches, so this counts where each message is another queue's.
        return _pack_one_lane(
            _META_VERSION,
            1,
            self.pending,
            self.bytes,
            self.dead,
            self.dead_bytes,
            self.paused_until_ns,
            lane.priority,
            lane.checkpoint[len(lane.prefix) :],
        )

    def load(self, stored: bytes) -> None:
        """Take over what `encode` wrote. Lanes of a queue with pending messages are due for a first read."""
        version, lanes, *numbers = _META.unpack_from(stored)
        if version != _META_VERSION:
            raise ValueError(f"queue state version {version}; this release knows {_META_VERSION}")
        self.pending, self.bytes, self.dead, self.dead_bytes, self.paused_until_ns = numbers
        for index in range(lanes):
            at = _META.size + index * _META_LANE.size
            priority, checkpoint = _META_LANE.unpack_from(stored, at)
            lane = Lane(self, priority, checkpoint)
            lane.head_due_ns = 0 if self.pending else NEVER
            self.lanes[priority] = lane
