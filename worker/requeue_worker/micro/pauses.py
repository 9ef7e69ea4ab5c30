"""Endpoints `pause` and `resume`: a queue sends nothing for a while, or until somebody resumes it.

A pause stands in the queue's row on disk, so that it survives a restart, goes along when the directory is merged or
drained, and keeps the queue from leaving. What is in flight goes on; what expires, expires.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from requeue_protocol.changes import UNTIL_RESUMED, PauseAnswer, PauseRequest, ResumeRequest
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.transaction import Transaction

log = logging.getLogger(__name__)

_NOT_PAUSED: Final = 0


@dataclass(slots=True)
class SetPause:
    """The queue is paused until then (Unix ns; 0: it is not)."""

    registry: QueueRegistry
    name: str
    until_ns: int

    def apply(self, transaction: Transaction) -> None:
        """Write it with the queue's row. A queue that is not known needs no end of a pause."""
        queue = self.registry.by_name.get(self.name)
        if queue is None and self.until_ns == _NOT_PAUSED:
            return
        queue = queue or self.registry.adopt(self.name)
        queue.paused_until_ns = self.until_ns
        transaction.touch([queue])

    def durable(self) -> None:
        """Nothing waits for it."""


class Pauses:
    """Pauses and resumes queues."""

    def __init__(
        self,
        registry: QueueRegistry,
        committer: Committer,
        instance_id: str,
        clock: Callable[[], int],
        *,
        look_again: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._committer = committer
        self._instance_id = instance_id
        self._clock = clock
        self._look_again = look_again

    async def pause(self, request: PauseRequest) -> PauseAnswer:
        """Pause a queue; on return it is on disk. Raises ValueError for an end that has passed, QueueFull, CommitError."""
        now_ns, until_ns = self._clock(), request.until_ns or UNTIL_RESUMED
        if request.for_ns is not None:
            until_ns = min(now_ns + request.for_ns, UNTIL_RESUMED - 1)
        if until_ns <= now_ns:
            raise ValueError("until_ns has passed: give an instant to come")
        known = request.queue in self._registry.by_name
        self._registry.get(
            request.queue
        )  # beyond `max_queues` a new name is refused here, and not in a commit
        return await self._set(request, known, until_ns)

    async def resume(self, request: ResumeRequest) -> PauseAnswer:
        """End a queue's pause; on return that is on disk. Raises CommitError."""
        return await self._set(request, request.queue in self._registry.by_name, _NOT_PAUSED)

    async def _set(self, request: PauseRequest | ResumeRequest, known: bool, until_ns: int) -> PauseAnswer:
        name = request.queue
        before = self._registry.by_name.get(name)
        was_paused = before is not None and before.paused_until_ns > self._clock()
        await self._committer.commit(SetPause(self._registry, name, until_ns))
        self._look_again()
        queue = self._registry.by_name.get(name)
        said = "queue resumed" if until_ns == _NOT_PAUSED else "queue paused"
        log.info(said, extra={"queue": name, "until_ns": until_ns, "by": request.by})
        return PauseAnswer(
            instance=self._instance_id,
            queue=name,
            known=known,
            was_paused=was_paused,
            paused_until_ns=until_ns or None,
            pending=0 if queue is None else queue.pending,
        )
