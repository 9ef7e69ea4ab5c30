"""What was seen of every message, and what that proves.

Identity is the message's own number; a `Requeue-Id` names one copy of it (a publisher that never saw its ack may have
sent a second one). Nothing is taken from the worker on trust but `Requeue-Enqueued-At`, and that may not lie before
the message was sent.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from requeue_client.demo.plan import End, How, Planned


class Seen(NamedTuple):
    """One delivery as its headers and this machine's clock tell it (Unix ns)."""

    number: int
    requeue_id: str
    attempt: int
    enqueued_ns: int
    received_ns: int


@dataclass(slots=True)
class _Attempt:
    """`due_ns`: it was not sent before; None when nothing is known of the attempt before it. `repeated`: sent again
    after a crash, so that its end is known only to be no earlier than the first answer."""

    due_ns: int | None
    answered_ns: int | None = None
    repeated: bool = False


class _Wait(NamedTuple):
    """From due to delivered (Unix ns)."""

    due_ns: int
    received_ns: int

    @property
    def late_ns(self) -> int:
        return self.received_ns - self.due_ns


@dataclass(frozen=True, slots=True)
class Report:
    """The closing figures: messages, but for `retried` and `redelivered`, which are deliveries. Lateness in ns."""

    published: int
    acked: int
    delivered: int
    redelivered: int
    retried: int
    settled: int
    expired: int
    dead: int
    lost: int
    early: int
    p50_ns: int
    p99_ns: int
    waited_through_outage: int
    outage_worst_ns: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the demo kept every promise."""
        return not self.problems


@dataclass(slots=True)
class Ledger:
    """Fed by publisher and handler, on one event loop."""

    plan: Sequence[Planned]
    sent: int = 0
    acked: set[int] = field(default_factory=set)
    half_acked: asyncio.Event = field(default_factory=asyncio.Event)
    refused: list[str] = field(default_factory=list)
    settled: set[int] = field(default_factory=set)
    retried: int = 0
    redelivered: int = 0
    #: reasons of dead letters by number
    dead: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    dead_ids: set[str] = field(default_factory=set)
    early: list[str] = field(default_factory=list)
    #: (from, to) while no worker was ready, Unix ns
    outages: list[tuple[int, int]] = field(default_factory=list)
    _sent_ns: dict[int, int] = field(default_factory=dict)
    _attempts: dict[tuple[str, int], _Attempt] = field(default_factory=dict)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _delivered: set[int] = field(default_factory=set)
    _waits: list[_Wait] = field(default_factory=list)

    # -- events ----------------------------------------------------------------------------------------------

    def sending(self, number: int) -> None:
        """A message is about to be sent for the first time."""
        self.sent += 1
        self._sent_ns[number] = time.time_ns()

    def acknowledged(self, number: int) -> None:
        """A worker said that the message is on disk."""
        self.acked.add(number)
        if len(self.acked) * 2 >= len(self.plan):
            self.half_acked.set()

    def delivery(self, seen: Seen) -> None:
        """A handler got a message."""
        self._delivered.add(seen.number)
        if (seen.number, seen.attempt) in self._seen:
            self.redelivered += 1
        else:
            self._seen.add((seen.number, seen.attempt))
            self.retried += seen.attempt > 1
        known = self._attempts.get((seen.requeue_id, seen.attempt))
        if known is not None:
            known.repeated = True
            return
        before = self._attempts.get((seen.requeue_id, seen.attempt - 1))
        due_ns = self._due_ns(seen, before)
        self._attempts[seen.requeue_id, seen.attempt] = _Attempt(due_ns)
        if due_ns is not None:
            # A silent attempt lasts from when it was sent, and that is known to be no earlier than due.
            exact = before is None or not (before.repeated or self.plan[seen.number].how is How.SILENT)
            self._compare(seen, due_ns, exact)

    def answered(self, seen: Seen, answered_ns: int, settles: bool) -> None:
        """A handler is about to answer (or has decided to be silent). The first answer counts: a worker that went on
        after the second one is only later."""
        attempt = self._attempts[seen.requeue_id, seen.attempt]
        attempt.answered_ns = attempt.answered_ns or answered_ns
        if settles:
            self.settled.add(seen.number)

    def buried(self, number: int, requeue_id: str, reason: str) -> None:
        """A dead letter was published."""
        self.dead[number].add(reason)
        self.dead_ids.add(requeue_id)

    # -- state -----------------------------------------------------------------------------------------------

    def ended(self) -> int:
        """How many messages have an end."""
        return len(self.settled | self.dead.keys())

    def dead_with(self, *reasons: str) -> int:
        """How many messages are dead letters for one of these reasons."""
        return sum(not of.isdisjoint(reasons) for of in self.dead.values())

    def lost(self) -> list[int]:
        """Acknowledged, and neither settled nor a dead letter."""
        return sorted(self.acked - self.settled - self.dead.keys())

    # -- the verdict -----------------------------------------------------------------------------------------

    def report(self, *, pending: int, dead_on_disk: int) -> Report:
        """Everything is over. `pending` and `dead_on_disk` are what the worker's metrics say."""
        lost = self.lost()
        calm = sorted(waited.late_ns for waited in self._waits if not self._through_outage(waited))
        outage = [waited.late_ns for waited in self._waits if self._through_outage(waited)]
        return Report(
            published=self.sent,
            acked=len(self.acked),
            delivered=len(self._delivered),
            redelivered=self.redelivered,
            retried=self.retried,
            settled=len(self.settled),
            expired=self.dead_with(End.EXPIRED),
            dead=sum(bool(reasons - {End.EXPIRED}) for reasons in self.dead.values()),
            lost=len(lost),
            early=len(self.early),
            p50_ns=percentile(calm, 0.50),
            p99_ns=percentile(calm, 0.99),
            waited_through_outage=len(outage),
            outage_worst_ns=max(outage, default=0),
            problems=tuple(self._problems(lost, pending, dead_on_disk)),
        )

    def _problems(self, lost: list[int], pending: int, dead_on_disk: int) -> Iterable[str]:
        if lost:
            yield f"{len(lost)} acknowledged messages were lost, such as {_some(lost)}"
        if self.early:
            yield f"{len(self.early)} deliveries were early: {'; '.join(self.early[:3])}"
        missing = len(self.plan) - len(self.acked)
        if missing:
            yield f"{missing} messages were never acknowledged{''.join(': ' + text for text in self.refused[:1])}"
        other = [planned.number for planned in self.plan if not self._as_planned(planned)]
        if other:
            yield f"{len(other)} messages ended otherwise than they had to, such as {_some(other)}"
        if pending:
            yield f"the worker still has {pending} messages pending"
        if dead_on_disk != len(self.dead_ids):
            yield f"the worker has {dead_on_disk} dead letters and published {len(self.dead_ids)}"

    def _as_planned(self, planned: Planned) -> bool:
        number, end = planned.number, planned.end
        if number not in self.settled and number not in self.dead:
            return True  # no end at all is told elsewhere
        ends = set(self.dead.get(number, ())) | ({str(End.SETTLED)} if number in self.settled else set())
        return ends == {str(end)}

    def _due_ns(self, seen: Seen, before: _Attempt | None) -> int | None:
        planned = self.plan[seen.number]
        if seen.attempt == 1:
            return planned.first_due_ns(seen.enqueued_ns)
        if before is None or before.due_ns is None or before.answered_ns is None:
            return None
        return planned.retry_due_ns(seen.attempt - 1, before.due_ns, before.answered_ns)

    def _compare(self, seen: Seen, due_ns: int, exact: bool) -> None:
        """`exact`: it was due then, and not only no earlier."""
        if seen.enqueued_ns < self._sent_ns.get(seen.number, 0):
            self.early.append(f"number {seen.number} claims to be on disk before it was sent")
        late_ns = seen.received_ns - due_ns
        if late_ns < 0:
            self.early.append(f"number {seen.number}, attempt {seen.attempt}, by {-late_ns / 1e6:.3f} ms")
        if exact:
            self._waits.append(_Wait(max(due_ns, seen.enqueued_ns), seen.received_ns))

    def _through_outage(self, wait: _Wait) -> bool:
        return any(wait.due_ns <= end and wait.received_ns >= start for start, end in self.outages)


def percentile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that `share` of them do not exceed (nearest rank); 0 of none."""
    if not ordered:
        return 0
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5]))
