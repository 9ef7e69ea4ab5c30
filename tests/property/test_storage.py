"""The store under any sequence of operations, with crashes in between, against a model of what must be on disk.

After every step: each message is in exactly one of pending, dead and gone, as the model says; counters, checkpoints and
ids agree with a full scan; nothing pending lies below a checkpoint, or below a read cursor without being in memory; no
lane sleeps longer than until its first message; nothing is acked that is not on disk.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from requeue_worker.admin import Admin
from requeue_worker.changes import Entomb, Redrive, Rekey, Remove, RemoveDead, Requeue
from requeue_worker.errors import CommitError
from requeue_worker.inflight import Delivery
from requeue_worker.micro.changing import Changes
from requeue_worker.micro.turns import Turns
from requeue_worker.readahead import ReadAhead
from requeue_worker.record import Attempt, DeadReason, decode, encode
from requeue_worker.revival import Revived
from requeue_worker.storage import committer as committing
from requeue_worker.storage.keys import TIME, parse_message_key, time_of
from requeue_worker.storage.queues import NEVER, Lane
from requeue_worker.storage.store import ReadRequest, ReadResult
from requeue_worker.storage.transaction import NewMessage

from tests.property.rig import MS, START_NS, Rig, Stored, new_message

QUEUES = ("default", "a.b", "b")
PRIORITIES = (0, 4)
CLIENT_IDS = (b"x", b"y\xff")
OFFSETS = st.sampled_from([-50 * MS, -1, 0, 0, 1, 5 * MS, 50 * MS, 500 * MS])
DELAYS = st.sampled_from([0, 0, 0, 1, 5 * MS, 50 * MS, 500 * MS])
RETAIN = st.sampled_from([-(10**18), 0, 5 * MS, 10**9])
TTLS = st.sampled_from([0, 0, 0, 1, 20 * MS])
PICK = st.integers(0, 10_000)
LUCK = st.integers(0, 4)  # the end of a life is rare, so that lives are long enough for something to go wrong


class Fate(NamedTuple):
    """Where a message is, on disk: `time_ns` is that of its key."""

    state: str
    queue: str
    priority: int
    time_ns: int
    attempts: int


GONE = Fate("gone", "", 0, 0, 0)


class Reading(NamedTuple):
    """A read under way. `result`: once it has looked at the disk."""

    request: ReadRequest
    result: ReadResult | None


class Asked(NamedTuple):
    """A cancel or reschedule that has read, and has not decided yet."""

    commits: int
    keys: list[bytes]
    values: list[bytes | None]
    due_ns: int | None


class Looked(NamedTuple):
    """A step of a purge or move that has read, and has not claimed yet; `left`: what has left its key since."""

    watch: Any
    left: set[bytes]
    items: list[tuple[bytes, bytes]]
    due_ns: int | None


class StorageMachine(RuleBasedStateMachine):
    """Random operations on one directory."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(committing, "BATCH_MESSAGES", 3)  # so that batches are cut
        self.root = tempfile.TemporaryDirectory(prefix="requeue-storage-", ignore_cleanup_errors=True)
        self.rig = Rig(Path(self.root.name) / "data")
        self.names = 0
        #: by payload: what must be on disk now, and what the sealed batch makes of it
        self.disk: dict[bytes, Fate] = {}
        self.sealing: dict[bytes, Fate] = {}
        self.deadlines: dict[bytes, int] = {}
        self.acked: set[bytes] = set()
        self._begin_life()

    def _begin_life(self) -> None:
        self.in_flight: dict[bytes, Delivery] = {}
        self.readings: dict[Lane, Reading] = {}
        self.asked: list[Asked] = []
        #: dead letters that somebody is removing, by payload
        self.leaving: set[bytes] = set()
        committer = self.rig.committer
        seal = committer._seal

        def noting(new: list[NewMessage], settled: list[Delivery], changes: list[Any]) -> Any:
            self._note_sealed(new, settled, changes)
            transaction = seal(new, settled, changes)
            self._note_rekeyed(changes)
            return transaction

        committer._seal = noting  # type: ignore[method-assign]
        self.admin = Admin(
            self.rig.store,
            committer,
            self.rig.registry,
            "rig",
            lambda: self.rig.now_ns,
            self.rig.counts,
            withdraw=lambda lane, key, value: ReadAhead.withdraw(self.rig.read_ahead, lane, key, value),
        )
        self.looked: list[Looked] = []
        self.changes = Changes(
            self.rig.store,
            committer,
            self.rig.registry,
            "rig",
            lambda: self.rig.now_ns,
            self.rig.counts,
            Turns(lambda: self.rig.counts.intake_messages),
            withdraw_all=lambda lane, items: ReadAhead.withdraw_all(self.rig.read_ahead, lane, items),
            has_room=lambda: True,
        )

    def teardown(self) -> None:
        try:
            if self.rig.committer.failed is None:
                self._everything_comes()
        finally:
            self.rig.dispose()
            self.patches.undo()
            self.root.cleanup()

    # -- the model -------------------------------------------------------------------------------------------

    def _note_sealed(self, new: list[NewMessage], settled: list[Delivery], changes: list[Any]) -> None:
        """What the batch about to be made must do. By the meaning of each operation, not by how it is written."""
        now_ns = self.rig.now_ns
        sealing = self.sealing
        for message in new:
            payload = message.tail[-4:]
            due_ns = now_ns + message.delay_ns if message.at_ns is None else message.at_ns
            deadline_ns = self.deadlines[payload] = now_ns + message.ttl_ns if message.ttl_ns else 0
            time_ns = min(due_ns, deadline_ns or due_ns)
            sealing[payload] = Fate("pending", message.lane.queue.name, message.lane.priority, time_ns, 0)
        for delivery in settled:
            sealing[decode(delivery.value).payload] = GONE
        for wrapped in changes:
            change = getattr(wrapped, "change", wrapped)
            if isinstance(change, Rekey):
                payload = decode(change.delivery.value).payload
                if self.in_flight.get(payload) is change.delivery:
                    sealing[payload] = self._fate(payload)._replace(time_ns=change.time_ns)
                continue
            if isinstance(change, Redrive | RemoveDead):
                self._note_left(change)
                continue
            payload = change.record.payload
            before = self._fate(payload)
            assert before.state == "pending", "one end for each message"
            attempts = before.attempts + (getattr(change, "attempt", None) is not None)
            if isinstance(change, Requeue):
                deadline_ns = self.deadlines[payload]
                time_ns = min(change.due_ns, deadline_ns or change.due_ns)
                sealing[payload] = before._replace(time_ns=time_ns, attempts=attempts)
            elif isinstance(change, Entomb):
                sealing[payload] = Fate("dead", before.queue, 0, now_ns, attempts)
            else:
                sealing[payload] = GONE

    def _note_left(self, change: Redrive | RemoveDead) -> None:
        if isinstance(change, RemoveDead):
            dead = self.rig.stored.dead
            for key, _ in change.letters:
                self.sealing[decode(dead[key]).payload] = GONE
            return
        for letter in change.letters:
            payload = decode(letter.value).payload
            assert self._fate(payload).state == "dead"
            time_ns = min(change.due_ns, letter.deadline_ns or change.due_ns)
            self.deadlines[payload] = letter.deadline_ns
            self.sealing[payload] = Fate("pending", change.queue.name, letter.priority, time_ns, 0)

    def _note_rekeyed(self, changes: list[Any]) -> None:
        """A message in flight takes no key again that it had: then it is keyed some nanoseconds later."""
        for change in changes:
            if (
                isinstance(change, Rekey)
                and self.in_flight.get(decode(change.delivery.value).payload) is change.delivery
            ):
                payload, time_ns = decode(change.delivery.value).payload, time_of(change.delivery.key)
                asked = self.sealing[payload]
                assert asked.time_ns <= time_ns <= asked.time_ns + 8
                self.sealing[payload] = asked._replace(time_ns=time_ns)

    def _fate(self, payload: bytes) -> Fate:
        return self.sealing.get(payload) or self.disk[payload]

    def _scan(self, stored: Stored) -> dict[bytes, Fate]:
        found: dict[bytes, Fate] = {}
        for key, value in stored.pending.items():
            record = decode(value)
            queue, priority, time_ns, _ = parse_message_key(key)
            assert record.payload not in found, "a message is there twice"
            found[record.payload] = Fate("pending", queue, priority, time_ns, record.attempts)
        for key, value in stored.dead.items():
            record = decode(value)
            assert record.payload not in found, "a message is pending and dead"
            found[record.payload] = Fate(
                "dead", key[1 : 1 + key[0]].decode(), 0, time_of(key), record.attempts
            )
        return found

    # -- operations ------------------------------------------------------------------------------------------

    @property
    def _alive(self) -> bool:
        return self.rig.committer.failed is None

    @initialize(salt=st.integers(0, 7))
    def _start(self, salt: int) -> None:
        """The epochs of later lives, and with them the order of ids, are drawn: whatever happens can happen again."""
        self.rig.salt = salt

    @precondition(lambda self: self._alive)
    @rule(
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from(PRIORITIES),
        number=st.integers(1, 5),
        delay_ns=DELAYS,
        at_offset_ns=st.none() | OFFSETS,
        ttl_ns=TTLS,
        client_id=st.none() | st.sampled_from(CLIENT_IDS),
    )
    def accept(
        self,
        queue: str,
        priority: int,
        number: int,
        delay_ns: int,
        at_offset_ns: int | None,
        ttl_ns: int,
        client_id: bytes | None,
    ) -> None:
        lane = self.rig.queue(queue).lane(priority)
        at_ns = None if at_offset_ns is None else self.rig.now_ns + at_offset_ns
        messages = []
        for _ in range(number):
            self.names += 1
            messages.append(
                new_message(
                    lane,
                    b"%04d" % self.names,
                    delay_ns=delay_ns,
                    at_ns=at_ns,
                    ttl_ns=ttl_ns,
                    client_id=client_id,
                )
            )
            lane.queue.waiting += 1
            lane.queue.waiting_bytes += messages[-1].size
        self.rig.call(lambda: self.rig.committer.accept(messages))

    @precondition(lambda self: self._alive and self._ready())
    @rule(picks=st.lists(PICK, min_size=1, max_size=4))
    def dispatch(self, picks: list[int]) -> None:
        """Messages that were read go out."""
        for pick in picks:
            lanes = self._ready()
            if lanes:
                self._dispatch(lanes[pick % len(lanes)])

    def _ready(self) -> list[Lane]:
        return [lane for lane in self.rig.lanes() if lane.ready]

    def _dispatch(self, lane: Lane) -> None:
        key, value = lane.ready.popleft()
        self.rig.read_ahead.ready_bytes -= len(value)
        record = decode(value)
        assert record.payload not in self.in_flight, "one copy in flight"
        assert lane.unsettled[key] is None
        delivery = Delivery(lane, key, value, record.size, record.client_id, 1)
        lane.unsettled[key] = delivery
        self.in_flight[record.payload] = delivery

    def _end(self, pick: int) -> Delivery | None:
        if not self.in_flight:
            return None
        payload = sorted(self.in_flight)[pick % len(self.in_flight)]
        return self.in_flight.pop(payload)

    @precondition(lambda self: self._alive and self.in_flight)
    @rule(picks=st.lists(PICK, min_size=1, max_size=5))
    def settle(self, picks: list[int]) -> None:
        ended = [delivery for pick in picks if (delivery := self._end(pick)) is not None]
        self.rig.call(lambda: self.rig.committer.settle(ended))

    @precondition(lambda self: self._alive and self.in_flight)
    @rule(pick=PICK, offset_ns=OFFSETS, spends=st.booleans(), in_place=st.booleans())
    def retry(self, pick: int, offset_ns: int, spends: bool, in_place: bool) -> None:
        """Nak, timeout, hold; `in_place`: due at the very time that it was."""
        delivery = self._end(pick)
        assert delivery is not None
        record = decode(delivery.value)
        due_ns = time_of(delivery.key) if in_place else self.rig.now_ns + offset_ns
        attempt = Attempt(record.attempts + 1, self.rig.now_ns, "failed") if spends else None
        change = Requeue(delivery.lane, delivery.key, record, due_ns, attempt)
        self.rig.call(lambda: self.rig.committer.submit(change))

    @precondition(lambda self: self._alive and self.in_flight)
    @rule(pick=PICK, drops=st.booleans())
    def give_up(self, pick: int, drops: bool) -> None:
        delivery = self._end(pick)
        assert delivery is not None
        self._bury_or_drop(delivery.lane, delivery.key, delivery.value, drops)

    @precondition(lambda self: self._alive and self._ready())
    @rule(pick=PICK, drops=st.booleans())
    def expire(self, pick: int, drops: bool) -> None:
        """A message that was read ahead ends without going out."""
        lanes = self._ready()
        lane = lanes[pick % len(lanes)]
        key, value = lane.ready.popleft()
        self.rig.read_ahead.ready_bytes -= len(value)
        self._bury_or_drop(lane, key, value, drops)

    def _bury_or_drop(self, lane: Lane, key: bytes, value: bytes, drops: bool) -> None:
        record = decode(value)
        attempt = Attempt(record.attempts + 1, self.rig.now_ns, "failed")
        change = (
            Remove(lane, key, record)
            if drops
            else Entomb(lane, key, record, DeadReason.EXHAUSTED, attempt, None, None)
        )
        self.rig.call(lambda: self.rig.committer.submit(change))

    @precondition(lambda self: self._alive and not self.rig.store.sealed)
    @rule(number=st.integers(1, 4), queue=st.sampled_from(QUEUES), client_id=st.sampled_from(CLIENT_IDS))
    def take_in_and_bury(self, number: int, queue: str, client_id: bytes) -> None:
        """The common life up to its bad end."""
        self.take_in_and_send(number, queue, client_id)
        for delivery in list(self.in_flight.values()):
            self._bury_or_drop(delivery.lane, delivery.key, delivery.value, drops=False)
        self.in_flight.clear()
        self._commit_all()

    @precondition(lambda self: self._alive and any(fate.state == "dead" for fate in self.disk.values()))
    @rule(
        pick=PICK,
        priority=st.sampled_from(PRIORITIES),
        number=st.integers(1, 4),
        offset_ns=OFFSETS,
        ttl_ns=TTLS,
        removes=st.booleans(),
    )
    def redrive(
        self, pick: int, priority: int, number: int, offset_ns: int, ttl_ns: int, removes: bool
    ) -> None:
        """Dead letters of a queue are read and redriven, or removed; nobody else removes any meanwhile."""
        self.leaving = {payload for payload in self.leaving if self.disk[payload].state == "dead"}
        if self.leaving:
            return
        dead = sorted(self.rig.stored.dead.items(), key=lambda item: decode(item[1]).payload)
        stored = dead[pick % len(dead) :] if dead else []
        if not stored:
            return
        prefix = stored[0][0][: 1 + stored[0][0][0]]
        stored = [item for item in stored if item[0].startswith(prefix)]
        state, due_ns = self.rig.queue(prefix[1:].decode()), self.rig.now_ns + offset_ns
        letters = []
        for key, value in stored[:number]:
            record = decode(value)
            self.leaving.add(record.payload)
            deadline_ns = due_ns + ttl_ns if ttl_ns else 0
            extras = record.extras
            extras.reason = extras.died_ns = None
            revived = encode(record, attempts=0, extras=extras, deadline_ns=deadline_ns)
            size = record.size
            letters.append(Revived(key, size, revived, size, priority, record.client_id, deadline_ns))
        gone = [(letter.dead_key, letter.dead_size) for letter in letters]
        change = RemoveDead(state, gone) if removes else Redrive(state, letters, due_ns)
        self.rig.call(lambda: self.rig.committer.submit(change))

    @precondition(lambda self: self._alive and self.in_flight)
    @rule(pick=PICK, offset_ns=OFFSETS)
    def rekey(self, pick: int, offset_ns: int) -> None:
        """A long job moves to its ack deadline; it may be answered before that is written."""
        delivery = self.in_flight[sorted(self.in_flight)[pick % len(self.in_flight)]]
        change = Rekey(
            delivery,
            self.rig.now_ns + offset_ns,
            lambda asked: self.in_flight.get(decode(asked.value).payload) is asked,
        )
        self.rig.call(lambda: self.rig.committer.submit(change))

    @precondition(lambda self: self._alive)
    @rule(client_id=st.sampled_from(CLIENT_IDS), offset_ns=st.none() | OFFSETS)
    def ask_admin(self, client_id: bytes, offset_ns: int | None) -> None:
        """A cancel (no offset) or reschedule has looked at the disk; between its two looks nothing happens here."""
        commits = self.rig.counts.commits
        keys = self.rig.store._keys_of_id(client_id)
        values = [self.rig.store._engine.get("messages", key) for key in keys]
        due_ns = None if offset_ns is None else self.rig.now_ns + offset_ns
        self.asked.append(Asked(commits, keys, values, due_ns))

    @precondition(lambda self: self._alive and self.asked)
    @rule()
    def answer_admin(self) -> None:
        """It decides, unless a commit came in between: then it would look again."""
        commits, keys, values, due_ns = self.asked.pop()
        if commits != self.rig.counts.commits:
            return

        def make(lane: Lane, key: bytes, record: Any) -> Any:
            assert record.payload not in self.in_flight, "what is in flight is left alone"
            if due_ns is None:
                return Remove(lane, key, record)
            return Requeue(lane, key, record, due_ns, None)

        task = self.rig.loop.create_task(self.admin._submit(keys, values, make))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.rig.spin()

    @precondition(lambda self: self._alive)
    @rule(pick=PICK, number=st.integers(1, 9), offset_ns=st.none() | OFFSETS)
    def look_for_purge(self, pick: int, number: int, offset_ns: int | None) -> None:
        """A step of a purge (no offset) or move reads some of what is pending, in key order."""
        items = list(self.rig.store._engine.items("messages", b"", b"\xff"))
        by_payload = sorted(range(len(items)), key=lambda place: decode(items[place][1]).payload)
        first = by_payload[pick % len(items)] if items else 0
        watch = self.rig.committer.departures()
        due_ns = None if offset_ns is None else self.rig.now_ns + offset_ns
        self.looked.append(Looked(watch, watch.__enter__(), items[first : first + number], due_ns))

    @precondition(lambda self: self._alive and self.looked)
    @rule(pick=PICK)
    def claim_for_purge(self, pick: int) -> None:
        """Later, with commits, reads and deliveries in between, it claims what is still there."""
        watch, left, items, due_ns = self.looked.pop(pick % len(self.looked))
        found = self.changes._by_lane(items, left)
        watch.__exit__(None, None, None)

        def make(lane: Lane, key: bytes, record: Any) -> Any:
            assert record.payload not in self.in_flight, "what is in flight is left alone"
            if due_ns is None:
                return Remove(lane, key, record)
            return Requeue(lane, key, record, due_ns, None)

        claimed, _ = self.changes._claim(found, make)
        for change in claimed:
            self.rig.call(lambda change=change: self.rig.committer.submit(change))

    # -- commits ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self._alive and not self.rig.store.sealed)
    @rule(checkpoints=st.booleans(), retain_ns=RETAIN)
    def seal(self, checkpoints: bool, retain_ns: int) -> None:
        self.rig.mono_ns += 10**9 if checkpoints else 1
        self.rig.retain_until_ns = self.rig.now_ns + retain_ns
        self.rig.seal()

    @precondition(lambda self: self._alive and self.rig.store.sealed and not self.rig.store.landed)
    @rule()
    def land(self) -> None:
        self._land()

    def _land(self) -> None:
        self.disk.update(self.sealing)
        self.sealing = {}
        self.rig.land()

    @precondition(lambda self: self._alive and self.rig.store.landed)
    @rule(checkpoints=st.booleans())
    def finish(self, checkpoints: bool) -> None:
        self.rig.mono_ns += 10**9 if checkpoints else 1
        self._finish()

    def _finish(self) -> None:
        self.rig.finish()
        for message in self.rig.acked:
            payload = message.tail[-4:]
            assert payload in self.disk, "acked before it is on disk"
            self.acked.add(payload)
        self.rig.acked.clear()

    @precondition(lambda self: self._alive)
    @rule()
    def commit_all(self) -> None:
        self._commit_all()

    def _commit_all(self) -> None:
        self.rig.seal()
        while self.rig.store.sealed:
            if not self.rig.store.landed:
                self._land()
            self._finish()

    @precondition(lambda self: self._alive and self.rig.store.sealed and not self.rig.store.landed)
    @rule(after_all=st.booleans(), luck=LUCK)
    def fail_write(self, after_all: bool, luck: int) -> None:
        """The disk says no; `after_all`: the bytes were there nevertheless."""
        if luck:
            return
        if after_all:
            self.disk.update(self.sealing)
            write = self.rig.store._engine.write

            def write_and_fail(batch: Any) -> None:
                write(batch)
                raise CommitError("fsync failed")

            self.rig.store._engine.write = write_and_fail  # type: ignore[method-assign]
        else:
            self.rig.store.fail = CommitError("no space")
        self.sealing = {}
        acked = len(self.rig.acked)
        self.rig.land()
        assert self.rig.committer.failed is not None
        assert len(self.rig.acked) == acked, "nothing of a failed batch is acked"
        assert len(self.rig.errors) == 1
        refused = {message.tail[-4:] for message in self.rig.refused}
        assert refused.isdisjoint(self.acked)
        self.rig.errors.clear()
        self.rig.refused.clear()

    # -- reads -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self._alive)
    @rule(pick=PICK, ahead_ns=st.sampled_from([0, 100 * MS]), limit=st.sampled_from([1, 2, 5, 1000]))
    def ask_read(self, pick: int, ahead_ns: int, limit: int) -> None:
        lanes = [lane for lane in self.rig.lanes() if not lane.reading]
        if lanes:
            self._ask_read(lanes[pick % len(lanes)], ahead_ns, limit)

    @precondition(lambda self: self._alive)
    @rule(ahead_ns=st.sampled_from([0, 100 * MS]), limit=st.sampled_from([1, 2, 1000]))
    def read_all_due(self, ahead_ns: int, limit: int) -> None:
        """As a tick does it: every lane that says something is due is read."""
        for lane in self.rig.lanes():
            if not lane.reading and lane.head_due_ns <= self.rig.now_ns + ahead_ns:
                self._ask_read(lane, ahead_ns, limit)
                self._look(lane)
                self._deliver(lane)

    @precondition(lambda self: self._alive and not self.rig.store.sealed)
    @rule(
        number=st.integers(1, 4),
        queue=st.sampled_from(QUEUES),
        client_id=st.none() | st.sampled_from(CLIENT_IDS),
    )
    def take_in_and_send(self, number: int, queue: str, client_id: bytes | None) -> None:
        """The common life up to the dispatch, so that what follows has something to work on."""
        self.accept(queue, 4, number, 0, None, 0, client_id)
        self._commit_all()
        self.read_all_due(0, 1000)
        for lane in self._ready():
            self._dispatch(lane)

    @precondition(lambda self: self._alive and self.in_flight and not self.rig.store.sealed)
    @rule(pick=PICK)
    def look_over_what_is_in_flight(self, pick: int) -> None:
        """An earlier message takes the cursor back, and a read that passes what is in flight is under way."""
        delivery = self.in_flight[sorted(self.in_flight)[pick % len(self.in_flight)]]
        lane = delivery.lane
        if lane.reading:
            return
        offset_ns = time_of(delivery.key) - 1 - self.rig.now_ns
        self.accept(lane.queue.name, lane.priority, 1, 0, offset_ns, 0, None)
        self._commit_all()
        self._ask_read(lane, 0, 1000)
        self._look(lane)

    def _ask_read(self, lane: Lane, ahead_ns: int, limit: int) -> None:
        lane.reading = True
        self.readings[lane] = Reading(ReadRequest(lane, lane.cursor, self.rig.now_ns + ahead_ns, limit), None)

    @precondition(lambda self: self._alive and self.readings)
    @rule(pick=PICK)
    def look(self, pick: int) -> None:
        """The read thread comes to it: what it finds is what is on disk now."""
        waiting = [lane for lane, reading in self.readings.items() if reading.result is None]
        if waiting:
            self._look(waiting[pick % len(waiting)])

    def _look(self, lane: Lane) -> None:
        request = self.readings[lane].request
        result = self.rig.store._read_lane(request)
        below = lane.prefix + TIME.pack(request.until_ns + 1)
        keys = sorted(
            key for key in self.rig.stored.pending if key.startswith(lane.prefix) and key >= request.cursor
        )
        due = [key for key in keys if key < below]
        assert [key for key, _ in result.records] == due[: request.limit], "exactly what is due"
        if len(due) < request.limit:
            assert result.next_key == next((key for key in keys if key >= below), None)
            assert not result.more
        self.readings[lane] = Reading(request, result)

    @precondition(lambda self: self._alive and self.readings)
    @rule(pick=PICK)
    def turn_back(self, pick: int) -> None:
        """The read thread has brought enough before it comes to this lane."""
        waiting = [lane for lane, reading in self.readings.items() if reading.result is None]
        if waiting:
            lane = waiting[pick % len(waiting)]
            del self.readings[lane]
            lane.note_unread()

    @precondition(lambda self: self._alive and self.readings)
    @rule(pick=PICK)
    def deliver(self, pick: int) -> None:
        """The read comes back to the loop."""
        done = [lane for lane, reading in self.readings.items() if reading.result is not None]
        if done:
            self._deliver(done[pick % len(done)])

    def _deliver(self, lane: Lane) -> None:
        result = self.readings.pop(lane).result
        assert result is not None
        in_memory = set(lane.unsettled)
        fresh = lane.note_read(result.records, result.next_key, result.more)
        self.rig.read_ahead.ready_bytes += sum(len(value) for _, value in fresh)
        assert [key for key, _ in fresh] == [key for key, _ in result.records if key not in in_memory]
        for _, value in fresh:
            assert decode(value).payload not in self.in_flight, "what is in flight is not read again"

    @rule(ns=st.sampled_from([1, MS, 30 * MS, 600 * MS, -40 * MS]))
    def pass_time(self, ns: int) -> None:
        """Also backwards: the wall clock may be stepped."""
        self.rig.now_ns += ns

    # -- ends of a life --------------------------------------------------------------------------------------

    @rule(luck=LUCK)
    def crash(self, luck: int) -> None:
        if luck and self._alive:
            return
        self.rig.crash()
        self.sealing = {}  # what was still being made when it ended, too
        self._begin_life()

    @precondition(lambda self: self._alive)
    @rule(luck=LUCK)
    def restart(self, luck: int) -> None:
        """In good order: everything is committed, and the checkpoints move up."""
        if luck:
            return
        self._commit_all()
        self.rig.call(lambda: self.rig.committer.checkpoint(list(self.rig.registry)))
        self._commit_all()
        self.rig.close()
        self.rig.open()
        self._begin_life()

    # -- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def the_disk_is_what_the_model_says(self) -> None:
        stored = self.rig.stored
        alive = {payload: fate for payload, fate in self.disk.items() if fate.state != "gone"}
        assert self._scan(stored) == alive
        assert self.acked <= set(self.disk)
        if not self.rig.store.landed and self._alive:
            self._check_memory(stored)

    def _check_memory(self, stored: Stored) -> None:
        for lane in self.rig.lanes():
            pending = {key for key in stored.pending if key.startswith(lane.prefix)}
            for key in pending:
                known = key in lane.unsettled or key >= lane.cursor
                assert known or (lane.arrived is not None and key >= lane.arrived), (
                    "below the cursor, forgotten"
                )
            ready = [key for key, _ in lane.ready]
            assert ready == sorted(set(ready)), "read ahead in due order, each once"
            assert all(lane.unsettled[key] is None for key in ready)
            if lane.reading:
                continue
            asleep = [time_of(key) for key in pending if key not in lane.unsettled]
            assert lane.head_due_ns <= min(asleep, default=NEVER), "a lane that sleeps too long"
            if not self.rig.store.sealed:
                assert set(lane.unsettled) <= pending, "memory for what is no more"
        if not self.rig.store.sealed:
            for queue in self.rig.registry:
                kept = stored.queues.get(queue.name)
                counted = (queue.pending, queue.bytes, queue.dead, queue.dead_bytes)
                wanted = (kept.pending, kept.bytes, kept.dead, kept.dead_bytes) if kept else (0, 0, 0, 0)
                assert counted == wanted

    def _everything_comes(self) -> None:
        """At the end: whatever is pending is read, once, by lanes that are looked at when they say so."""
        self._commit_all()
        for lane in list(self.readings):
            if self.readings[lane].result is None:
                self._look(lane)
            self._deliver(lane)
        self._commit_all()
        self.rig.now_ns = max(self.rig.now_ns, START_NS) + 10**12
        for lane in self.rig.lanes():
            for _ in range(1000):
                if lane.head_due_ns > self.rig.now_ns:
                    break
                self._ask_read(lane, 0, 2)
                self._look(lane)
                self._deliver(lane)
            assert lane.head_due_ns == NEVER
        in_memory = {key for lane in self.rig.lanes() for key in lane.unsettled}
        assert in_memory == set(self.rig.stored.pending)


def run(examples: int, steps: int, machine: type[StorageMachine] = StorageMachine, **more: Any) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **more,
        ),
    )


def test_the_store_does_what_the_model_says_over_operations_and_crashes() -> None:
    run(examples=50, steps=50)


def _recorded() -> list[object]:
    """What is on disk and in memory after each step of a run."""
    seen: list[object] = []

    class Recorded(StorageMachine):
        @invariant()
        def record(self) -> None:
            keys = {decode(value).payload: key for key, value in self.rig.stored.pending.items()}
            ready = [[decode(value).payload for _, value in lane.ready] for lane in self.rig.lanes()]
            seen.append((keys, dict(self.disk), ready, list(self.in_flight), self.rig.now_ns))

    run(15, 50, Recorded, derandomize=True)
    return seen


def test_a_run_can_be_repeated() -> None:
    first, second = _recorded(), _recorded()
    assert len(first) > 100
    differ = [step for step, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
    assert not differ, f"the first step that came out differently is {differ[0]}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_store_does_what_the_model_says_over_many_more() -> None:
    run(examples=3000, steps=100)
