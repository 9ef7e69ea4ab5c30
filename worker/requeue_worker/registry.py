"""All queues of this worker by name, each with its effective policy and subject rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from requeue_protocol.errors import QueueFull
from requeue_protocol.policy import QueuePolicy
from requeue_protocol.subjects import SubjectRules
from requeue_worker.counts import Counts
from requeue_worker.storage.queues import INVALID_QUEUE, QueueState


class QueueRegistry:
    """Queues known here: those with stored state, and those that a client has named since the start."""

    def __init__(
        self, policy_for: Callable[[str], QueuePolicy], intake: str, max_queues: int, counts: Counts
    ) -> None:
        self._counts = counts
        self._policy_for = policy_for
        self._intake = intake
        self._max_queues = max_queues
        self._queues: dict[str, QueueState] = {}
        #: `by_name[name]` is the hot path's look-up; a miss goes to `get`
        self.by_name = self._queues

    def __iter__(self) -> Iterator[QueueState]:
        return iter(self._queues.values())

    def __len__(self) -> int:
        return len(self._queues)

    def get(self, name: str) -> QueueState:
        """The queue of this name, made when new. Raises QueueFull beyond `max_queues`."""
        queue = self._queues.get(name)
        if queue is None:
            if len(self._queues) >= self._max_queues and name != INVALID_QUEUE:
                raise QueueFull(
                    f"this worker has {self._max_queues} queues (max_queues) and takes no new one: "
                    f"use an existing queue name"
                )
            queue = self._make(name)
        return queue

    def adopt(self, name: str) -> QueueState:
        """The queue of this name, made when new, beyond `max_queues` too: it has messages already."""
        return self._queues.get(name) or self._make(name)

    def load(self, name: str, stored: bytes) -> None:
        """Bring in a queue's stored state at start-up."""
        self._make(name).load(stored)

    def use_policies(self, policy_for: Callable[[str], QueuePolicy]) -> None:
        """Take new policies into use, for what is pending too."""
        self._policy_for = policy_for
        for queue in self:
            queue.policy = policy_for(queue.name)
            queue.rules = self._rules(queue.policy)

    def _make(self, name: str) -> QueueState:
        policy = self._policy_for(name)
        queue = self._queues[name] = QueueState(name, policy, self._rules(policy), self._counts.queues[name])
        return queue

    def _rules(self, policy: QueuePolicy) -> SubjectRules:
        return SubjectRules(policy.allow_subjects, policy.deny_subjects, intake=self._intake)
