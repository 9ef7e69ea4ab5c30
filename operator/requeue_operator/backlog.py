"""What workers tell in their metrics, and the sum of it that stands in `status.backlog`. Pure.

The names are those of docs/operations.md ("Metrics"). A worker with thousands of queues tells megabytes, of which only
the gauges that are asked for here are parsed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from requeue_operator.api import LISTED_QUEUES
from requeue_operator.children.naming import Manifest

_CONNECTED: Final = "requeue_nats_connected"
_PENDING: Final = "requeue_pending_messages"
_DEAD: Final = "requeue_dead_letter_messages"
_NEXT_DUE: Final = "requeue_next_due_timestamp_seconds"
_INTAKE: Final = "requeue_intake_enabled"
_WANTED: Final = (_CONNECTED, _INTAKE, _PENDING, _DEAD, _NEXT_DUE)


class Unreadable(ValueError):
    """It is no text of a worker's metrics."""


@dataclass
class QueueNumbers:
    """Messages and dead letters of one queue, and when the next one is due (Unix time)."""

    pending: int = 0
    dead: int = 0
    next_due_s: float | None = None


@dataclass(frozen=True)
class Told:
    """What one worker has told."""

    is_connected: bool
    queues: Mapping[str, QueueNumbers] = field(default_factory=dict)
    takes_in: bool = True

    @property
    def is_empty(self) -> bool:
        """Nothing is left, and nothing comes."""
        return not self.takes_in and not any(each.pending or each.dead for each in self.queues.values())


def read_metrics(text: str) -> Told:
    """A worker's metrics in Prometheus text format. Raises Unreadable."""
    wanted = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(_WANTED))
    connected: float | None = None
    takes_in = said_intake = False
    queues: dict[str, QueueNumbers] = {}
    try:
        for family in text_string_to_metric_families(wanted):
            for sample in family.samples:
                if sample.name == _CONNECTED:
                    connected = sample.value if connected is None else min(connected, sample.value)
                elif sample.name == _INTAKE:
                    takes_in = takes_in or sample.value != 0
                    said_intake = True
                else:
                    _note(
                        queues.setdefault(sample.labels["queue"], QueueNumbers()), sample.name, sample.value
                    )
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise Unreadable(f"no metrics of a worker: {error}") from None
    if connected is None:
        raise Unreadable(f"no metrics of a worker: {_CONNECTED} is not among them")
    # A worker of several shards says all of it once for each.
    return Told(connected == 1, queues, takes_in or not said_intake)


def _note(numbers: QueueNumbers, name: str, value: float) -> None:
    if name == _PENDING:
        numbers.pending += int(value)
    elif name == _DEAD:
        numbers.dead += int(value)
    elif name == _NEXT_DUE:
        numbers.next_due_s = _earlier(numbers.next_due_s, value)


def backlog_of(all_told: Iterable[Told]) -> Manifest:
    """`status.backlog`: all of them together, the largest queues by pending and dead messages, then by name."""
    queues: dict[str, QueueNumbers] = {}
    workers = 0
    for told in all_told:
        workers += 1
        for name, numbers in told.queues.items():
            total = queues.setdefault(name, QueueNumbers())
            total.pending += numbers.pending
            total.dead += numbers.dead
            total.next_due_s = _earlier(total.next_due_s, numbers.next_due_s)
    due_s: float | None = None
    for numbers in queues.values():
        due_s = _earlier(due_s, numbers.next_due_s)
    busy = ((name, each) for name, each in queues.items() if each.pending or each.dead)
    largest = heapq.nsmallest(
        LISTED_QUEUES, busy, key=lambda item: (-item[1].pending, -item[1].dead, item[0])
    )
    backlog: dict[str, Any] = {
        "workers": workers,
        "pending": sum(each.pending for each in queues.values()),
        "dead": sum(each.dead for each in queues.values()),
        # Null takes away what was written before: it is merged.
        "nextDue": None if due_s is None else _time(due_s),
        "queues": [{"name": name, "pending": each.pending, "dead": each.dead} for name, each in largest],
    }
    return backlog


def _earlier(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
