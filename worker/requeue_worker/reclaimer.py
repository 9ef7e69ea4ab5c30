"""Room given back on a full disk: what was settled, and dead letters behind their retention, are compacted away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from requeue_worker.counts import Counts
from requeue_worker.registry import QueueRegistry
from requeue_worker.replayer import Replayer
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.keys import TIME, queue_prefix
from requeue_worker.storage.rocksdb import DEAD, MESSAGES
from requeue_worker.storage.store import Store

#: for a batch of checkpoints in the log, and for the tables of what is in memory
WRITE_ROOM_BYTES: Final = 1 << 20


class Reclaimer:
    """Reclaims on one store. Belongs to the event loop."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        registry: QueueRegistry,
        replayer: Replayer,
        counts: Counts,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._replayer = replayer
        self._counts = counts
        self._clock = clock

    async def reclaim(self) -> None:
        """Below a lane's checkpoint nothing is pending, and dead letters end with their retention.

        The checkpoints move first: on a full disk no batch may follow that would move them past what was settled last.
        What stands between removed records is written once more, so there must be room for it: RocksDB compacts nothing
        for long after it had none. After a flush that found none every write would fail, and end the worker.
        """
        if not self._store.writable:
            await self._store.recover()
            return
        lanes = [lane for queue in self._registry for lane in queue.lanes.values()]
        alive = self._replayer.in_flight.bytes + sum(len(value) for lane in lanes for _, value in lane.ready)
        if alive + WRITE_ROOM_BYTES > self._counts.disk_free_bytes // 2:
            return
        await self._committer.checkpointed(queue for queue in self._registry if queue.lanes)
        removed = [(MESSAGES, lane.prefix, lane.checkpoint) for lane in lanes]
        for queue in self._registry:
            before_ns = max(self._clock() - queue.policy.dead_letter_retention_ns, 0)
            prefix = queue_prefix(queue.name)
            removed.append((DEAD, prefix, prefix + TIME.pack(before_ns)))
        await self._store.reclaim(removed)
