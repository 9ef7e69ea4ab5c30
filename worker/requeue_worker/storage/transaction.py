"""One atomic change of the store: records, dead letters, client ids, counters and checkpoints in one WriteBatch.

A transaction is filled on the event loop between two writes (never while one is under way), so what it sees of the
queues in memory is exactly what is durable. `seal` adds the counters and checkpoints of every queue it touched;
`settle_in_memory` is called once the batch is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from requeue_worker.inflight import Delivery
from requeue_worker.record import HEAD_TIMES, MAX_TIME_NS
from requeue_worker.storage.keys import TIME_ID, dead_key, id_of, ids_prefix, time_of
from requeue_worker.storage.queues import Lane, QueueState
from requeue_worker.storage.rocksdb import Batch

CHECKPOINT_INTERVAL_NS = (
    100_000_000  #: a checkpoint moves forward this often at most: it costs a walk over what is in flight
)


#: What is due so soon when it is committed stays in memory: a read would bring it back at once, or in a moment.
RETAIN_NS: Final = 10 * 10**9
#: In a batch of so many new messages what is due at once is read: a read brings several of a queue, which then share a turn
FLOOD: Final = 256


class NewMessage(NamedTuple):
    """An accepted message on its way to disk; its key and the HEAD's times are made at commit."""

    lane: Lane
    delay_ns: int
    at_ns: int | None  #: absolute due time; then `delay_ns` does not count
    ttl_ns: int  #: 0 = no deadline
    head: bytes  #: HEAD_STATIC
    tail: bytes  #: extras, headers, body
    size: int
    client_id: bytes | None
    reply: bytes
    has_headers: bool
    counted: bool = True  #: in what its queue has `waiting`


#: a NewMessage as a bare tuple, which is made in a third of the time: what comes in bulk is one
Accepted = tuple[Lane, int, int | None, int, bytes, bytes, int, bytes | None, bytes, bool, bool]
size_of: Callable[[Accepted], int] = itemgetter(6)
Retained = tuple[Lane, bytes, bytes]  #: key and value of a message that `Lane.retain` took
client_id_of: Callable[[Accepted], bytes | None] = itemgetter(7)
reply_of: Callable[[Accepted], bytes] = itemgetter(8)


class Ids:
    """Mints Requeue-Ids: 8 random bytes for this start of the process, then a sequence."""

    __slots__ = ("epoch", "sequence")

    def __init__(self, epoch: bytes) -> None:
        self.epoch = epoch
        self.sequence = 0


class Transaction:
    """A batch under construction. Not thread-safe: it belongs to the event loop."""

    def __init__(self, batch: Batch, now_ns: int, *, room: int = 0) -> None:
        """What is due within RETAIN_NS is `retained`, up to `room` bytes, where its lane can do without reading it."""
        self.batch = batch
        self.now_ns = now_ns
        self._retain_until_ns = now_ns + RETAIN_NS
        self._room = room
        self.retained: list[Retained] = []
        self._touched: set[QueueState] = set()
        #: each once: those whose `inserting` is set, and the earliest of all of these
        self._inserted: list[Lane] = []
        self._earliest_ns = MAX_TIME_NS
        self._released: list[tuple[Lane, bytes]] = []
        self._settled: list[Delivery] = []

    # -- bulk paths ------------------------------------------------------------------------------------------

    def insert_new(self, messages: Sequence[Accepted], ids: Ids) -> None:
        """Edge a. Store accepted messages: due = now + delay, deadline = now + ttl, key at the earlier of the two."""
        put, pack, now_ns = self.batch.put, TIME_ID.pack, self.now_ns
        epoch, sequence, inserted, earliest_ns = ids.epoch, ids.sequence, self._inserted, self._earliest_ns
        retain_until_ns, flood = self._retain_until_ns, len(messages) >= FLOOD
        times_for_ttl: dict[int, tuple[int, bytes]] = {}
        for (
            lane,
            delay_ns,
            at_ns,
            ttl_ns,
            head,
            tail,
            size,
            client_id,
            _reply,
            _has_headers,
            counted,
        ) in messages:
            cached = times_for_ttl.get(ttl_ns)
            if cached is None:
                deadline_ns = min(now_ns + ttl_ns, MAX_TIME_NS) if ttl_ns else 0
                cached = times_for_ttl[ttl_ns] = (deadline_ns, HEAD_TIMES.pack(now_ns, deadline_ns))
            deadline_ns, times = cached
            due_ns = now_ns + delay_ns if at_ns is None else at_ns
            if deadline_ns and deadline_ns < due_ns:
                due_ns = deadline_ns
            sequence += 1
            key = lane.prefix + pack(due_ns if due_ns < MAX_TIME_NS else MAX_TIME_NS, epoch, sequence)
            value = head + times + tail
            put(key, value)
            if client_id is not None:
                self.batch.put_id(ids_prefix(client_id) + id_of(key), key)
            queue = lane.queue
            queue.pending += 1
            queue.counts.accepted += 1
            queue.bytes += size
            if counted:
                queue.waiting -= 1
                queue.waiting_bytes -= size
            if (
                due_ns <= retain_until_ns
                and not (flood and (due_ns <= now_ns or lane.inserting))
                and self._retain(lane, key, value)
            ):
                continue
            if due_ns < earliest_ns:  # noqa: PLR1730 - a call of `min` takes twice the time
                earliest_ns = due_ns
            lowest = lane.inserting
            if lowest is None:
                inserted.append(lane)
                lane.inserting = key
            elif key < lowest:
                lane.inserting = key
        ids.sequence = sequence
        self._earliest_ns = earliest_ns

    def remove_settled(self, deliveries: list[Delivery]) -> None:
        """Remove messages whose replay was settled."""
        delete = self.batch.delete
        for delivery in deliveries:
            delete(delivery.key)
            queue = delivery.lane.queue
            queue.pending -= 1
            queue.bytes -= delivery.size
            self._touched.add(queue)
            if delivery.client_id is not None:
                self.batch.delete_id(ids_prefix(delivery.client_id) + id_of(delivery.key))
        self._settled.extend(deliveries)

    # -- one record at a time --------------------------------------------------------------------------------

    def rewrite(
        self, lane: Lane, old_key: bytes, new_key: bytes, value: bytes, client_id: bytes | None
    ) -> None:
        """Move a message that is in flight to another time, or give it another value."""
        self._rewrite(lane, old_key, new_key, value, client_id)
        self._note_insert(lane, new_key)

    def requeue(
        self, lane: Lane, old_key: bytes, new_key: bytes, value: bytes, client_id: bytes | None
    ) -> None:
        """Let a message wait again (retry, hold, reschedule), at another time or with another value."""
        self._rewrite(lane, old_key, new_key, value, client_id)
        if time_of(new_key) > self._retain_until_ns or not self._retain(lane, new_key, value):
            self._note_insert(lane, new_key)

    def _rewrite(
        self, lane: Lane, old_key: bytes, new_key: bytes, value: bytes, client_id: bytes | None
    ) -> None:
        if new_key != old_key:
            self.batch.delete(old_key)
        self.batch.put(new_key, value)
        if client_id is not None:
            self.batch.put_id(ids_prefix(client_id) + id_of(new_key), new_key)
        self._release(lane, old_key)

    def remove(self, lane: Lane, key: bytes, size: int, client_id: bytes | None) -> None:
        """Remove a pending message: settled, dropped or cancelled."""
        self.batch.delete(key)
        if client_id is not None:
            self.batch.delete_id(ids_prefix(client_id) + id_of(key))
        lane.queue.pending -= 1
        lane.queue.bytes -= size
        self._release(lane, key)

    def bury(self, lane: Lane, key: bytes, value: bytes, size: int, client_id: bytes | None) -> bytes:
        """Turn a pending message into a dead letter with this value. Returns its key in the `dead` family."""
        self.remove(lane, key, size, client_id)
        return self.add_dead(lane.queue, id_of(key), value, size)

    def add_dead(self, queue: QueueState, message_id: bytes, value: bytes, size: int) -> bytes:
        """Store a dead letter, dead as of now. Returns its key."""
        key = dead_key(queue.name, self.now_ns, message_id)
        self.batch.put_dead(key, value)
        queue.dead += 1
        queue.dead_bytes += size
        self._touched.add(queue)
        return key

    def adopt(self, lane: Lane, messages: list[tuple[bytes, bytes]], size: int) -> None:
        """Store messages of another instance, or redriven ones, in key order; `size` is theirs together."""
        put = self.batch.put
        for key, value in messages:
            put(key, value)
        lane.queue.pending += len(messages)
        lane.queue.bytes += size
        self._note_insert(lane, messages[0][0])

    def adopt_id(self, entry: bytes, key: bytes) -> None:
        """Store an entry of the `ids` family for an adopted message."""
        self.batch.put_id(entry, key)

    def adopt_dead(self, queue: QueueState, letters: list[tuple[bytes, bytes]], size: int) -> None:
        """Store dead letters of another instance, as they are; `size` is theirs together."""
        for key, value in letters:
            self.batch.put_dead(key, value)
        queue.dead += len(letters)
        queue.dead_bytes += size
        self._touched.add(queue)

    def remove_dead(self, queue: QueueState, key: bytes, size: int) -> None:
        """Remove a dead letter."""
        self.batch.delete_dead(key)
        queue.dead -= 1
        queue.dead_bytes -= size
        self._touched.add(queue)

    def touch(self, queues: Iterable[QueueState]) -> None:
        """Write the counters and checkpoints of these queues too."""
        self._touched.update(queues)

    # -- the two ends of a commit ----------------------------------------------------------------------------

    def seal(self, checkpoints_due: bool) -> None:
        """Add counters and checkpoints of all queues touched.

        A checkpoint goes down to the smallest key inserted here in any case (`Lane.retain` did so for what is retained); it
        moves forward only when `checkpoints_due`, to the smallest key that is in memory and not settled.
        """
        put_meta, touched = self.batch.put_meta, self._touched
        for lane in self._inserted:
            queue = lane.queue
            if queue in touched or len(queue.lanes) > 1:
                touched.add(queue)
                continue
            # As below, of a queue with this lane alone. With ten thousand queues each message comes here: with the list
            # of lanes that were inserted into it takes off about a tenth of such a message's CPU.
            checkpoint = lane.lowest_unsettled() if checkpoints_due else lane.checkpoint
            inserting = lane.inserting
            if inserting is not None and inserting < checkpoint:
                checkpoint = inserting
            lane.checkpoint = checkpoint
            put_meta(queue.meta_key, queue.encode_with(lane))
        for queue in touched:
            for lane in queue.lanes.values():
                if checkpoints_due:
                    lane.checkpoint = lane.lowest_unsettled()
                inserting = lane.inserting
                if inserting is not None and inserting < lane.checkpoint:
                    lane.checkpoint = inserting
            put_meta(queue.meta_key, queue.encode())

    def settle_in_memory(self) -> list[Lane]:
        """The batch is durable: release removed keys, bring in inserted ones.

        Returns the lanes whose next due time became earlier.
        """
        for delivery in self._settled:
            lane = delivery.lane
            if lane.reading:
                lane.released.add(delivery.key)
            else:
                lane.unsettled.pop(delivery.key, None)
        for lane, key in self._released:
            lane.release(key)
        earlier, earliest_ns = [], self._earliest_ns
        for lane in self._inserted:
            lowest, lane.inserting = lane.inserting, None
            if 0 < lane.head_due_ns < earliest_ns and not lane.reading:
                continue  # what comes next is known, and comes before this: two thirds less for each of ten thousand queues
            if lowest is not None and lane.note_durable_insert(lowest):
                earlier.append(lane)
        return earlier

    def left_keys(self) -> Iterator[bytes]:
        """Keys of pending messages that this batch removed or rewrote."""
        yield from (delivery.key for delivery in self._settled)
        yield from (key for _, key in self._released)

    def _retain(self, lane: Lane, key: bytes, value: bytes) -> bool:
        """Keep a record in memory where there is room and its lane can do without reading it: whether it did."""
        if self._room <= 0 or not lane.retain(key):
            return False
        self.retained.append((lane, key, value))
        self._room -= len(value)
        self._touched.add(lane.queue)
        return True

    def _note_insert(self, lane: Lane, key: bytes) -> None:
        self._earliest_ns = min(self._earliest_ns, time_of(key))
        if lane.inserting is None:
            self._inserted.append(lane)
            lane.inserting = key
        elif key < lane.inserting:
            lane.inserting = key

    def _release(self, lane: Lane, key: bytes) -> None:
        self._released.append((lane, key))
        self._touched.add(lane.queue)
