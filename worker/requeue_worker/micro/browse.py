"""Endpoints `list`, `count` and `get`: messages as they lie on disk, page by page.

A page takes one bounded look (`scans`) in its turn (`turns`): what was found so far goes out with a cursor. So no request
holds up the event loop, the intake or the reads of due messages, however much there is. A cursor is a key; each page sees
the data as it is by then.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Final

from requeue_protocol.admin import (
    SHOWN_PAYLOAD_BYTES,
    AttemptEntry,
    CountAnswer,
    CountRequest,
    GetAnswer,
    GetRequest,
    ListAnswer,
    ListRequest,
    MessageDetail,
    MessageEntry,
    MessageFilter,
    State,
)
from requeue_worker.inflight import Delivery
from requeue_worker.micro.filters import Wanted, is_requeue_id, wanted_by, wanted_by_id
from requeue_worker.micro.overview import ENVELOPE_BYTES, fill
from requeue_worker.micro.scans import SCAN_RECORDS, Item, Scan, look, pick, ranges, read_cursor
from requeue_worker.micro.turns import Turns
from requeue_worker.record import decode
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.keys import id_of, parse_message_key, queue_of, time_of
from requeue_worker.storage.queues import QueueState
from requeue_worker.storage.rocksdb import DEAD, MESSAGES
from requeue_worker.storage.store import Store

_GET_LIMIT: Final = 20


class Browse:
    """Lists and looks up messages."""

    def __init__(
        self,
        store: Store,
        registry: QueueRegistry,
        instance_id: str,
        turns: Turns,
        max_payload: Callable[[], int],
    ) -> None:
        self._turns = turns
        self._store = store
        self._registry = registry
        self._instance_id = instance_id
        self._max_payload = max_payload

    async def list_messages(self, request: ListRequest) -> ListAnswer:
        """A page of messages in one state. Raises ValueError for a cursor that is none."""
        family, scan = await self._find(request, request.state, request.after, request.limit)
        entries = [
            (item[0].hex(), self._entry(family, item, request.state, request.payload_bytes))
            for item in scan.found
        ]
        page, following = fill(entries, request.limit, self._max_payload())
        return ListAnswer(
            instance=self._instance_id, messages=page, scanned=scan.scanned, next=following or scan.cursor
        )

    async def count(self, request: CountRequest) -> CountAnswer:
        """How many messages a bounded look finds. Raises ValueError for a cursor that is none."""
        _, scan = await self._find(request, request.state, request.after, SCAN_RECORDS)
        return CountAnswer(
            instance=self._instance_id,
            messages=len(scan.found),
            bytes=sum(decode(value).size for _, value in scan.found),
            scanned=scan.scanned,
            next=scan.cursor,
        )

    async def _find(self, wanted: MessageFilter, state: State, cursor: str, limit: int) -> tuple[str, Scan]:
        """A page of what the filter wants in this state, and the family that it was read from."""
        family = DEAD if state == "dead" else MESSAGES
        after, matches = read_cursor(cursor), wanted_by(wanted)
        if state == "in-flight":
            return family, pick(sorted(self._in_flight(wanted.queue).items()), after, limit, matches)
        return family, await self._scan(family, wanted.queue, after, limit, matches)

    async def get(self, request: GetRequest) -> GetAnswer:
        """What has this id, in pages: first by the index of client ids, then pending messages, then dead letters."""
        phase, _, cursor = (request.after or "i:").partition(":")
        found: list[Item] = []
        family = DEAD if phase == "d" else MESSAGES
        if phase == "i":
            found, following = await self._by_client_id(request), "p:"
        elif phase in ("p", "d"):
            wanted = wanted_by_id(request.id)
            if not cursor and phase == "p":
                flying = sorted(self._in_flight(request.queue).items())
                found += [item for item in flying if wanted(item[0], decode(item[1]))]
            scan = await self._scan(family, request.queue, read_cursor(cursor), _GET_LIMIT, wanted)
            found += scan.found
            following = (
                f"{phase}:{scan.stopped.hex()}" if scan.stopped is not None else "d:" if phase == "p" else ""
            )
        else:
            raise ValueError(f"after: {request.after!r} is no cursor; take `next` of the last answer")
        if following.startswith("p") and not is_requeue_id(request.id):
            following = "d:"  # a client id that is pending stands in the index
        room = (self._max_payload() - ENVELOPE_BYTES) // max(len(found), 1)
        return GetAnswer(
            instance=self._instance_id,
            messages=[self._detail(family, item, room) for item in found],
            next=following or None,
        )

    async def _by_client_id(self, request: GetRequest) -> list[Item]:
        [keys] = await self._store.keys_of_ids([request.id.encode()])
        keys = keys[:_GET_LIMIT]
        values = await self._store.get_messages(keys)
        return [
            (key, value)
            for key, value in zip(keys, values, strict=True)
            if value is not None and request.queue in (None, parse_message_key(key)[0])
        ]

    async def _scan(self, family: str, queue: str | None, after: bytes, limit: int, wanted: Wanted) -> Scan:
        async with self._turns.turn():
            places = sorted(
                (max(start, after + b"\x00") if after else start, end)
                for state in self._queues(queue)
                for start, end in ranges(state, family)
                if end > after
            )
            flying = self._in_flight(queue) if family == MESSAGES else {}
            is_short = self._turns.beside_intake
            return await self._store.browse(
                lambda engine: look(engine, family, places, limit, wanted, flying, is_short=is_short)
            )

    def _queues(self, name: str | None) -> list[QueueState]:
        if name is None:
            return list(self._registry)
        queue = self._registry.by_name.get(name)
        return [] if queue is None else [queue]

    def _in_flight(self, queue: str | None) -> dict[bytes, bytes]:
        """Key and value of what handlers have now: `max_in_flight_total` bounds it."""
        return {
            key: delivery.value
            for state in self._queues(queue)
            if state.in_flight
            for lane in state.lanes.values()
            for key, delivery in lane.unsettled.items()
            if isinstance(delivery, Delivery)
        }

    # -- showing ---------------------------------------------------------------------------------------------

    def _state(self, key: bytes) -> State:
        name, priority, _, _ = parse_message_key(key)
        queue = self._registry.by_name.get(name)
        lane = None if queue is None else queue.lanes.get(priority)
        in_flight = lane is not None and isinstance(lane.unsettled.get(key), Delivery)
        return "in-flight" if in_flight else "pending"

    def _entry(self, family: str, item: Item, state: State, payload_bytes: int) -> MessageEntry:
        key, value = item
        record = decode(value)
        extras = record.extras
        dead = family == DEAD
        return MessageEntry(
            id=id_of(key).hex(),
            key=key.hex() if dead else None,
            state=state,
            queue=queue_of(key),
            priority=None if dead else key[1 + key[0]],
            subject=record.subject.decode(errors="replace"),
            client_id=_text(record.client_id),
            attempts=record.attempts,
            enqueued_ns=record.enqueued_ns,
            due_ns=None if dead else time_of(key),
            deadline_ns=record.deadline_ns or None,
            died_ns=time_of(key) if dead else None,
            reason=extras.reason,
            last_error=extras.last_error,
            payload_size=record.payload_len,
            payload=b64encode(record.payload[:payload_bytes]).decode(),
        )

    def _detail(self, family: str, item: Item, room: int) -> MessageDetail:
        """Everything; headers and payload are cut where a message of NATS has no room for them."""
        record = decode(item[1])
        state: State = "dead" if family == DEAD else self._state(item[0])
        history = record.extras.history
        room -= 4096 + sum(len(attempt.error) * 2 + 80 for attempt in history)
        headers = record.headers.decode(errors="replace")[: max(room // 4, 0)]
        payload_bytes = max(min((room - 2 * len(headers)) * 3 // 4, SHOWN_PAYLOAD_BYTES), 0)
        return MessageDetail(
            **self._entry(family, item, state, payload_bytes).model_dump(),
            headers=headers,
            history=[
                AttemptEntry(number=each.number, at_ns=each.at_ns, error=each.error) for each in history
            ],
        )


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="replace")
