"""The queues of this worker by name, each with its effective policy and subject rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

from requeue_protocol.errors import QueueFull
from requeue_protocol.policy import QueuePolicy
from requeue_protocol.subjects import SubjectRules
from requeue_worker.counts import Counts
from requeue_worker.storage.queues import INVALID_QUEUE, QueueState

CROWDED = 0.9  #: of `max_queues`: from here on idle queues leave at once, until there are fewer


class QueueRegistry:
    """Queues known here: those that hold something, and those that a client named lately (see `retirement`)."""

    def __init__(
        self,
        policy_for: Callable[[str], QueuePolicy],
        intake: str,
        max_queues: int,
        counts: Counts,
        configured: Collection[str] = (),
    ) -> None:
        self._counts = counts
        self._policy_for = policy_for
        self._intake = intake
        self._max_queues = max_queues
        self.crowd = math.ceil(max_queues * CROWDED)  #: with so many it is crowded
        self._configured = frozenset(configured)
        #: one for each distinct pair of lists: it remembers subjects, and a million queues must not each do so
        self._rules_by_lists: dict[tuple[tuple[str, ...], tuple[str, ...]], SubjectRules] = {}
        self._queues: dict[str, QueueState] = {}
        #: called when a new queue brings the number close to `max_queues`
        self.crowded: Callable[[], None] = _nothing
        #: grows when a queue left, or a policy changed: a lane that was looked up before may be the wrong one now
        self.changes = 0
        #: for looking up what need not be there
        self.by_name = self._queues

    def __iter__(self) -> Iterator[QueueState]:
        return iter(self._queues.values())

    def __len__(self) -> int:
        return len(self._queues)

    def get(self, name: str) -> QueueState:
        """The queue of this name, made when new. Raises QueueFull beyond `max_queues`."""
        queue = self._queues.get(name)
        if queue is None:
            if len(self._queues) + 1 >= self.crowd:
                self.crowded()
            if len(self._queues) >= self._max_queues and name != INVALID_QUEUE:
                raise QueueFull(
                    f"this worker has {self._max_queues} queues (max_queues) and takes no new one: "
                    f"use an existing queue name"
                )
            queue = self._make(name)
        return queue

    def named(self, name: str, subject: bytes) -> QueueState:
        """The queue that a message for this subject names; a message that its rules refuse makes no queue.

        Raises QueueFull, MalformedMessage or SubjectNotAllowed.
        """
        queue = self._queues.get(name)
        if queue is None:
            self._rules(self._policy_for(name)).check(subject)
            return self.get(name)
        queue.rules.check(subject)
        return queue

    def adopt(self, name: str) -> QueueState:
        """The queue of this name, made when new, beyond `max_queues` too: it has messages already."""
        return self._queues.get(name) or self._make(name)

    def load(self, name: str, stored: bytes) -> None:
        """Bring in a queue's stored state at start-up."""
        self._make(name).load(stored)

    def remove(self, queue: QueueState) -> None:
        """Forget an idle queue and its counters."""
        del self._queues[queue.name]
        self.changes += 1
        self._counts.queues.pop(queue.name, None)

    def is_configured(self, name: str) -> bool:
        """Whether the configuration names this queue."""
        return name in self._configured

    def use_policies(
        self, policy_for: Callable[[str], QueuePolicy], configured: Collection[str] = ()
    ) -> None:
        """Take new policies into use, for what is pending too."""
        self._policy_for = policy_for
        self._configured = frozenset(configured)
        self._rules_by_lists.clear()
        self.changes += 1
        for queue in self:
            queue.policy = policy_for(queue.name)
            queue.rules = self._rules(queue.policy)

    def _make(self, name: str) -> QueueState:
        policy = self._policy_for(name)
        queue = self._queues[name] = QueueState(name, policy, self._rules(policy), self._counts.queues[name])
        return queue

    def _rules(self, policy: QueuePolicy) -> SubjectRules:
        lists = (policy.allow_subjects, policy.deny_subjects)
        rules = self._rules_by_lists.get(lists)
        if rules is None:
            rules = self._rules_by_lists[lists] = SubjectRules(*lists, intake=self._intake)
        return rules


def _nothing() -> None:
    """Nobody listens."""
