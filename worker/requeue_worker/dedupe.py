"""Deduplication by the publisher's `Nats-Msg-Id` while a message with that id is pending on this instance.

An id in flight does not deduplicate: a handler may republish with copied headers before it acks. A duplicate is acked
only after the first copy's fsync.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

from requeue_worker.storage.keys import parse_message_key
from requeue_worker.storage.queues import QueueState
from requeue_worker.storage.store import Store
from requeue_worker.storage.transaction import NewMessage


class Dedupe:
    """Between intake and committer, for messages that carry a client id."""

    def __init__(
        self,
        store: Store,
        *,
        is_pending: Callable[[str, int, bytes], bool],
        departures: Callable[[], AbstractContextManager[set[bytes]]],
        accept: Callable[[list[NewMessage]], list[NewMessage]],
        duplicate: Callable[[list[NewMessage]], None],
        failed: Callable[[list[NewMessage]], None],
    ) -> None:
        self._store = store
        self._is_pending = is_pending
        self._departures = departures
        self._accept = accept
        self._duplicate = duplicate
        self._failed = failed
        #: ids looked up or on their way to disk, with the later copies that wait for the first one's fsync
        self._open: dict[bytes, list[NewMessage]] = {}
        self._waiting: list[NewMessage] = []
        self._looking: asyncio.Task[None] | None = None
        #: how many messages are here, by queue
        self._held: Counter[QueueState] = Counter()
        self._closed = False

    def holds(self, queue: QueueState) -> bool:
        """Whether a message for this queue is being looked up, or waits for a first copy."""
        return queue in self._held

    def admit(self, messages: list[NewMessage]) -> None:
        """Take accepted messages that carry ids."""
        self._held.update([message.lane.queue for message in messages])
        if self._closed:
            self._failed(self._let_go(messages))
        else:
            self._admit(messages)

    def _admit(self, messages: list[NewMessage]) -> None:
        for message in messages:
            assert message.client_id is not None
            copies = self._open.get(message.client_id)
            if copies is not None:
                copies.append(message)
            else:
                self._open[message.client_id] = []
                self._waiting.append(message)
        if self._waiting and self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look_up())

    def durable(self, client_id: bytes) -> None:
        """A message with this id is on disk: its copies are duplicates."""
        copies = self._open.pop(client_id, [])
        if copies:
            self._duplicate(self._let_go(copies))

    def close(self) -> None:
        """Nothing will be written any more: refuse the copies whose first one is not on disk, and all else."""
        self._closed = True
        copies = [copy for later in self._open.values() for copy in later]
        refused, self._open, self._waiting = copies + self._waiting, {}, []
        if refused:
            self._failed(self._let_go(refused))

    async def idle(self) -> None:
        """Return when no look-up is under way."""
        while self._looking is not None:
            await asyncio.shield(self._looking)

    async def _look_up(self) -> None:
        try:
            while self._waiting:
                messages, self._waiting = self._waiting, []
                await self._sort_out(messages)
        finally:
            self._looking = None

    async def _sort_out(self, messages: list[NewMessage]) -> None:
        try:
            with self._departures() as left:
                found = await self._store.keys_of_ids([message.client_id or b"" for message in messages])
        except Exception:
            for message in messages:
                self._failed(self._let_go([message, *self._open.pop(message.client_id or b"", [])]))
            raise
        if self._closed:
            self._failed(self._let_go(messages))
            return
        fresh = []
        for message, keys in zip(messages, found, strict=True):
            if not left.isdisjoint(keys):
                self._waiting.append(message)  # what was found has moved or gone meanwhile: look again
            elif any(self._pending(key) for key in keys):
                self._duplicate(self._let_go([message, *self._open.pop(message.client_id or b"", [])]))
            else:
                fresh.append(message)
        for refused in self._accept(self._let_go(fresh)) if fresh else ():
            self._admit(self._open.pop(refused.client_id or b"", []))

    def _let_go(self, messages: list[NewMessage]) -> list[NewMessage]:
        """These messages leave."""
        for message in messages:
            queue = message.lane.queue
            self._held[queue] -= 1
            if not self._held[queue]:
                del self._held[queue]
        return messages

    def _pending(self, key: bytes) -> bool:
        queue, priority, _, _ = parse_message_key(key)
        return self._is_pending(queue, priority, key)
