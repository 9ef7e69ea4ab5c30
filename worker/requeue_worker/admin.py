"""Requests about single messages on `_requeue.admin.*`: cancel and reschedule by the publisher's `Nats-Msg-Id`.

Every instance answers for itself. A message in flight can't be cancelled or moved: it is counted as `in_flight`.
Edges j (rescheduled) and k (cancelled) of docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from requeue_protocol.errors import Busy
from requeue_protocol.header_values import MAX_MSG_ID_BYTES
from requeue_protocol.subjects import ADMIN_PREFIX
from requeue_worker.changes import Remove, Requeue
from requeue_worker.counts import Counts
from requeue_worker.record import MAX_TIME_NS, Record, decode
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.committer import Change, Committer
from requeue_worker.storage.keys import parse_message_key
from requeue_worker.storage.queues import Lane
from requeue_worker.storage.store import Store

CANCEL = f"{ADMIN_PREFIX}.admin.cancel"
RESCHEDULE = f"{ADMIN_PREFIX}.admin.reschedule"
MAX_REQUEST_BYTES = 4096  #: an id with every character escaped fits; JSON in memory is many times its text
_TRIES = 100

MakeChange = Callable[[Lane, bytes, Record], Change]


class Admin:
    """Cancel and reschedule."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        registry: QueueRegistry,
        instance_id: str,
        clock: Callable[[], int],
        counts: Counts,
        withdraw: Callable[[Lane, bytes, bytes], bool],
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._instance_id = instance_id
        self._clock = clock
        self._counts = counts
        self._withdraw = withdraw

    @property
    def endpoints(self) -> dict[str, Callable[[bytes], Awaitable[bytes]]]:
        """Subject to handler."""
        return {CANCEL: self._cancel, RESCHEDULE: self._reschedule}

    async def _cancel(self, payload: bytes) -> bytes:
        return await self._answer(payload, "cancelled", lambda _: Remove)

    async def _reschedule(self, payload: bytes) -> bytes:
        def move(request: dict[str, Any]) -> MakeChange:
            due_ns = self._due_ns(request)
            return lambda lane, key, record: Requeue(lane, key, record, due_ns, None)

        return await self._answer(payload, "rescheduled", move)

    def _due_ns(self, request: dict[str, Any]) -> int:
        delay_ns, at_ns = request.get("delay_ns"), request.get("at_ns")
        if (delay_ns is None) == (at_ns is None):
            raise ValueError("give either delay_ns or at_ns")
        due_ns = at_ns if delay_ns is None else delay_ns
        if not isinstance(due_ns, int) or isinstance(due_ns, bool) or due_ns < 0:
            raise ValueError("delay_ns and at_ns are whole nanoseconds from 0")
        if delay_ns is not None:
            due_ns += self._clock()
        if due_ns > MAX_TIME_NS:
            raise ValueError("that is after the year 2262, the end of 64-bit nanoseconds")
        return due_ns

    async def _answer(
        self, payload: bytes, verb: str, prepare: Callable[[dict[str, Any]], MakeChange]
    ) -> bytes:
        """The answer. Raises ValueError or RecursionError for what is no request, Busy or CommitError."""
        request = _read_request(payload)
        done, in_flight = await self._change(request["id"].encode(), prepare(request))
        if verb == "cancelled":
            self._counts.purged += done
        else:
            self._counts.moved += done
        return json.dumps({"instance": self._instance_id, verb: done, "in_flight": in_flight}).encode()

    async def _change(self, client_id: bytes, make: MakeChange) -> tuple[int, int]:
        """Apply the change to every pending message with this id. Returns how many, and how many are in flight.

        Raises Busy or CommitError.
        """
        for _ in range(_TRIES):
            commits = self._counts.commits
            [keys] = await self._store.keys_of_ids([client_id])
            values = await self._store.get_messages(keys)
            if commits != self._counts.commits:
                await asyncio.sleep(0)
                continue  # what was read may be settled by now: read again between two commits
            return await self._submit(keys, values, make)
        raise Busy("the worker is too busy: try again")

    async def _submit(
        self, keys: list[bytes], values: list[bytes | None], make: MakeChange
    ) -> tuple[int, int]:
        changes: list[Change] = []
        in_flight = 0
        for key, value in zip(keys, values, strict=True):
            if value is None:
                continue
            queue, priority, _, _ = parse_message_key(key)
            lane = self._registry.get(queue).lane(priority)
            if lane.unsettled.get(key) is not None or not self._withdraw(lane, key, value):
                in_flight += 1
                continue
            changes.append(make(lane, key, decode(value)))
        await asyncio.gather(*[self._committer.commit(change) for change in changes])
        return len(changes), in_flight


def _read_request(payload: bytes) -> dict[str, Any]:
    if len(payload) > MAX_REQUEST_BYTES:
        raise ValueError(
            f"the request has {len(payload)} bytes: {MAX_REQUEST_BYTES} are enough, an id has at most {MAX_MSG_ID_BYTES}"
        )
    request = json.loads(payload)
    if not isinstance(request, dict) or not isinstance(request.get("id"), str) or not request["id"]:
        raise ValueError('send JSON such as {"id": "<Nats-Msg-Id>"}')
    if len(request["id"].encode()) > MAX_MSG_ID_BYTES:
        raise ValueError(f"the id is too long: at most {MAX_MSG_ID_BYTES} bytes are one")
    return request
