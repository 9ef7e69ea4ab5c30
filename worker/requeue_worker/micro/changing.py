"""Endpoints `purge` and `move`: pending messages go, or get another time, by ids or by a filter, step by step.

    its turn ──> look (browse thread) ──> claim what is meant and here ──> changes into the next commits ──> answer

A request is one bounded step; the client asks again with `next` of the answer, so whoever goes away ends it. The loop
never has more than STEP_MESSAGES at a time, and the turns (`micro/turns.py`) give way to the intake. The look may be old by
the time of the claim: what left its key meanwhile is left alone. Whatever is claimed is submitted at once, and each
change is whole in one transaction. Edges j and k of docs/architecture.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal

from requeue_protocol.changes import ChangeAnswer, ChangeRequest, MoveRequest, PurgeRequest
from requeue_protocol.errors import Busy, DiskFull
from requeue_worker.changes import Remove, Requeue, key_time_ns
from requeue_worker.counts import Counts
from requeue_worker.faults import fault_point
from requeue_worker.inflight import Delivery
from requeue_worker.micro.filters import Wanted, is_requeue_id, wanted_by
from requeue_worker.micro.scans import SCAN_RECORDS, Item, Scan, look, ranges
from requeue_worker.micro.turns import Turns
from requeue_worker.record import MAX_TIME_NS, Record, decode
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.committer import Change, Committer
from requeue_worker.storage.keys import id_of, parse_message_key, queue_of, time_of
from requeue_worker.storage.queues import Lane
from requeue_worker.storage.rocksdb import MESSAGES
from requeue_worker.storage.store import Store

log = logging.getLogger(__name__)

STEP_MESSAGES: Final = 1024  #: some milliseconds of the event loop, and the same again in the commit
_CURSOR = re.compile(r"([ik]):([0-9]{1,19}):([0-9]{1,19}):([0-9a-f]*)")

MakeChange = Callable[[Lane, bytes, Record], Change]
WithdrawAll = Callable[[Lane, list[Item]], list[Item]]


@dataclass(frozen=True, slots=True)
class _Step:
    """Where a step begins: `by_id` looks into the index of client ids, else from `after` on in key order.

    `begun_ns` is when the first step was, `due_ns` when moved messages are due.
    """

    by_id: bool
    begun_ns: int
    due_ns: int
    after: bytes = b""

    @property
    def cursor(self) -> str:
        """As `next` of an answer says it."""
        return f"{'i' if self.by_id else 'k'}:{self.begun_ns}:{self.due_ns}:{self.after.hex()}"


class Changes:
    """Purges and moves pending messages."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        registry: QueueRegistry,
        instance_id: str,
        clock: Callable[[], int],
        counts: Counts,
        turns: Turns,
        *,
        withdraw_all: WithdrawAll,
        has_room: Callable[[], bool],
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._instance_id = instance_id
        self._clock = clock
        self._counts = counts
        self._turns = turns
        self._withdraw_all = withdraw_all
        self._has_room = has_room
        self._stopped = False

    def stop(self) -> None:
        """Claim nothing any more; what is claimed is in the committer."""
        self._stopped = True

    async def purge(self, request: PurgeRequest) -> ChangeAnswer:
        """One step of a purge. Raises ValueError for a cursor that is none, Busy, CommitError."""
        now_ns = self._clock()
        return await self._change("purge", request, _begin(request, now_ns, now_ns), Remove, _all)

    async def move(self, request: MoveRequest) -> ChangeAnswer:
        """One step of a move. Raises as `purge`, and DiskFull: to move a message is to write it."""
        now_ns = self._clock()
        due_ns = request.at_ns if request.at_ns is not None else now_ns + (request.delay_ns or 0)
        step = _begin(request, now_ns, min(due_ns, MAX_TIME_NS))
        if not self._has_room():
            raise DiskFull("the disk is full: move messages when there is room, or purge some")

        def make(lane: Lane, key: bytes, record: Record) -> Change:
            return Requeue(lane, key, record, step.due_ns, None)

        return await self._change("move", request, step, make, _elsewhere(step))

    # -- a step ----------------------------------------------------------------------------------------------

    async def _change(
        self,
        verb: Literal["purge", "move"],
        request: ChangeRequest,
        step: _Step,
        make: MakeChange,
        movable: Wanted,
    ) -> ChangeAnswer:
        matches, by_ids = wanted_by(request), _wanted_by_ids(request.ids, step.by_id)

        def wanted(key: bytes, record: Record) -> bool:
            old = record.enqueued_ns <= step.begun_ns
            return old and by_ids(key, record) and matches(key, record) and movable(key, record)

        async with self._turns.turn():
            scan, changed, in_flight = await self._take_step(request, step, make, wanted)
        if not request.dry_run and changed:
            if verb == "purge":
                self._counts.purged += changed
            else:
                self._counts.moved += changed
            said = request.model_dump(exclude={"dry_run", "by", "after"}, exclude_defaults=True)
            log.info(
                f"{verb}: messages changed",
                extra={"by": request.by, "changed": changed, "in_flight": in_flight, "request": said},
            )
        return ChangeAnswer(
            instance=self._instance_id,
            changed=changed,
            in_flight=in_flight,
            scanned=scan.scanned,
            next=_following(step, scan, request),
        )

    async def _take_step(
        self, request: ChangeRequest, step: _Step, make: MakeChange, wanted: Wanted
    ) -> tuple[Scan, int, int]:
        """What was looked at, how many of it were changed (or would be), and how many are on their way out."""
        with self._committer.departures() as left:
            scan = await self._look(request, step, wanted)
            fault_point("change: step read")
            if self._stopped:
                raise Busy("this worker is shutting down: ask again when it is back")
            found = self._by_lane(scan.found, left)
            if request.dry_run:
                in_flight = sum(
                    isinstance(lane.unsettled.get(key), Delivery) for lane in found for key, _ in found[lane]
                )
                return scan, sum(map(len, found.values())) - in_flight, in_flight
            changes, in_flight = self._claim(found, make)
        if changes:
            await self._commit(changes)
        return scan, len(changes), in_flight

    async def _look(self, request: ChangeRequest, step: _Step, wanted: Wanted) -> Scan:
        if step.by_id:
            return await self._look_up(request, wanted)
        start = step.after + b"\x00" if step.after else b""
        places = sorted(
            (max(first, start), end)
            for queue in self._registry
            if request.queue in (None, queue.name)
            for first, end in ranges(queue, MESSAGES)
            if end > start
        )
        limit = SCAN_RECORDS if request.dry_run else self._turns.most(STEP_MESSAGES)
        is_short = self._turns.beside_intake
        return await self._store.browse(
            lambda engine: look(engine, MESSAGES, places, limit, wanted, is_short=is_short)
        )

    async def _look_up(self, request: ChangeRequest, wanted: Wanted) -> Scan:
        """By the index of client ids: one look for all of `ids`."""
        found = await self._store.keys_of_ids([each.encode() for each in request.ids])
        keys = sorted({key for keys in found for key in keys})
        values = await self._store.get_messages(keys)
        items = [
            (key, value)
            for key, value in zip(keys, values, strict=True)
            if value is not None and request.queue in (None, queue_of(key))
        ]
        return Scan([item for item in items if wanted(item[0], decode(item[1]))], len(items), None)

    def _by_lane(self, items: list[Item], left: Collection[bytes]) -> dict[Lane, list[Item]]:
        """What was read by the lanes that there are now, without what has left its key since the look began."""
        found: dict[Lane, list[Item]] = {}
        for item in items:
            key = item[0]
            name, priority, _, _ = parse_message_key(key)
            queue = self._registry.by_name.get(name)
            lane = None if queue is None else queue.lanes.get(priority)
            if lane is not None and key not in left:
                found.setdefault(lane, []).append(item)
        return found

    def _claim(self, found: dict[Lane, list[Item]], make: MakeChange) -> tuple[list[Change], int]:
        """The changes of what could be claimed, and how many are on their way out already."""
        changes: list[Change] = []
        in_flight = 0
        for lane, items in found.items():
            claimed = self._withdraw_all(lane, items)
            in_flight += len(items) - len(claimed)
            changes += [make(lane, key, decode(value)) for key, value in claimed]
        return changes, in_flight

    async def _commit(self, changes: list[Change]) -> None:
        """Submit them all, without a turn for anybody in between, and return when the last one is durable."""
        fault_point("change: step claimed")
        *others, last = changes
        for change in others:
            self._committer.submit(change)
        await self._committer.commit(last)
        fault_point("change: step durable")


def _all(_: bytes, __: Record) -> bool:
    return True


def _elsewhere(step: _Step) -> Wanted:
    """Whether a message would be moved at all: a walk meets some that it moved itself."""
    due_ns, begun_ns = step.due_ns, step.begun_ns

    def movable(key: bytes, record: Record) -> bool:
        time_ns = time_of(key)
        return (
            time_ns > begun_ns if due_ns <= begun_ns else time_ns != key_time_ns(due_ns, record.deadline_ns)
        )

    return movable


def _wanted_by_ids(ids: tuple[str, ...], by_index: bool) -> Wanted:
    """Whether a record has one of these ids; without any, all have. What the index says is not said again by the walk."""
    if not ids:
        return _all
    client_ids = {each.encode() for each in ids}
    if by_index:
        return lambda _, record: record.client_id in client_ids
    own = {bytes.fromhex(each) for each in ids if is_requeue_id(each)}
    return lambda key, record: id_of(key) in own and record.client_id not in client_ids


def _begin(request: ChangeRequest, now_ns: int, due_ns: int) -> _Step:
    """The step that a request asks for: the first one, or where the last one stopped."""
    if not request.after:
        return _Step(bool(request.ids), now_ns, due_ns)
    read = _CURSOR.fullmatch(request.after)
    if read is None or len(read[4]) % 2:
        raise ValueError(f"after: {request.after!r} is no cursor; take `next` of the last answer")
    return _Step(read[1] == "i", int(read[2]), int(read[3]), bytes.fromhex(read[4]))


def _following(step: _Step, scan: Scan, request: ChangeRequest) -> str | None:
    """The next step's cursor. A Requeue-Id stands in no index: all keys are walked for it, after the look into the index."""
    if step.by_id:
        walk = any(is_requeue_id(each) for each in request.ids)
        return _Step(False, step.begun_ns, step.due_ns).cursor if walk else None
    if scan.stopped is None:
        return None
    return _Step(False, step.begun_ns, step.due_ns, scan.stopped).cursor
