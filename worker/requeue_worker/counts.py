"""What the worker counts: plain numbers that the hot path bumps, and nothing else.

No library is imported here, and no lock is taken: every counter is touched by the event loop alone.
`metrics` copies them at scrape time and translates them for Prometheus; the stats publisher and tests
read them as they are. Counters only grow, and start at zero with the process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import NamedTuple

REFUSAL_CODES = (400, 403, 413, 429, 500, 503, 507)
"""Refusals of the wire protocol: all present from the start, so that a rate over them begins at a zero."""

DENIED = ("publish", "subscribe")
"""What a server can deny: both present from the start, too."""

COMMIT_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
COMMIT_MESSAGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
REPLY_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0, 43200.0,
)  # fmt: skip
LATENESS_SECONDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0,
    3600.0, 86400.0,
)  # fmt: skip


class QueueSnapshot(NamedTuple):
    """One queue as it stands now. `next_due_ns`: wall-clock nanoseconds, None when nothing is pending."""

    name: str
    pending: int
    pending_bytes: int
    dead: int
    dead_bytes: int
    in_flight: int
    next_due_ns: int | None
    paused: bool = False


class Histogram:
    """Observations in fixed buckets. `counts[i]` holds what is <= `bounds[i]` and above the bound before it;
    the last entry of `counts` holds what is above every bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` (in the unit of the bounds) once, or `times` times for a batch that shares it."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class QueueCounts:
    """What happened to the messages of one queue since the process started."""

    __slots__ = ("accepted", "dead", "dropped", "expired", "held", "replays", "retried", "settled")

    def __init__(self) -> None:
        self.accepted = 0
        """New messages taken in: no duplicates, and nothing that was redriven, merged or handed over."""
        self.replays = 0
        self.settled = 0
        self.retried = 0
        self.held = 0
        self.expired = 0
        self.dead: defaultdict[str, int] = defaultdict(int)
        """Dead letters by reason."""
        self.dropped: defaultdict[str, int] = defaultdict(int)
        """Messages that the policy drops where others become dead letters, by reason."""


class _Queues(dict[str, QueueCounts]):
    """Makes the counters of a queue when it is first named: `counts.queues[name].settled += 1`."""

    __slots__ = ()

    def __missing__(self, name: str) -> QueueCounts:
        counts = self[name] = QueueCounts()
        return counts


class Counts:
    """All counters of one worker. A queue that is gone may be removed from `queues`."""

    __slots__ = (
        "ack_seconds",
        "bridged",
        "commit_messages",
        "commit_seconds",
        "commits",
        "dead_letters_deleted",
        "dead_letters_imported",
        "disk_background_errors",
        "disk_free_bytes",
        "disk_full",
        "disk_reserve_bytes",
        "duplicates",
        "handover_batches",
        "handover_dead_letters",
        "handover_duplicates",
        "handover_messages",
        "handovers_open",
        "intake_bytes",
        "intake_messages",
        "lateness_seconds",
        "moved",
        "nats_denied",
        "nats_disconnects",
        "purged",
        "queues",
        "reaped_dead_letters",
        "reaped_directories",
        "reaped_messages",
        "reaper_remaining",
        "reaper_set_aside",
        "redriven",
        "refused",
        "reply_seconds",
    )

    def __init__(self) -> None:
        self.intake_messages = 0
        """All that came, refused messages and duplicates too."""
        self.intake_bytes = 0
        self.duplicates = 0
        self.commits = 0
        self.disk_free_bytes = 0
        """Free on the disk under the data, as of the last look; not counted but measured, as the next two."""
        self.disk_reserve_bytes = 0
        self.disk_full = False
        """Messages are refused, since less than the reserve is free."""
        self.disk_background_errors = 0
        """Flushes and compactions that failed; measured, too."""
        self.reaped_directories = 0
        self.reaped_messages = 0
        self.reaped_dead_letters = 0
        self.reaper_remaining = 0
        """Records that a directory still holds which is being merged; measured, too, as the next one."""
        self.purged = 0
        """Pending messages removed on request."""
        self.moved = 0
        """Pending messages that got another time on request."""
        self.redriven = 0
        """Dead letters that became pending messages again, as the next two on somebody's request."""
        self.dead_letters_deleted = 0
        self.dead_letters_imported = 0
        self.handovers_open = 0
        self.handover_messages = 0
        self.handover_dead_letters = 0
        self.handover_batches = 0
        self.handover_duplicates = 0
        self.bridged: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        """Advisories of JetStream dealt with, by stream, consumer and result."""
        self.nats_disconnects = 0
        """Connections that broke."""
        self.nats_denied: defaultdict[str, int] = defaultdict(int, dict.fromkeys(DENIED, 0))
        """Permissions that the server denied, by what it was for."""
        self.reaper_set_aside: dict[str, str] = {}
        """Directories that the reaper can't merge: instance id to the kind of what is wrong."""
        self.refused: defaultdict[int, int] = defaultdict(int, dict.fromkeys(REFUSAL_CODES, 0))
        """Refused messages by code."""
        self.queues: dict[str, QueueCounts] = _Queues()
        """By queue name; reading `queues[name]` of a new name makes its counters."""
        self.ack_seconds = Histogram(COMMIT_SECONDS)
        self.reply_seconds = Histogram(REPLY_SECONDS)
        self.commit_seconds = Histogram(COMMIT_SECONDS)
        self.commit_messages = Histogram(COMMIT_MESSAGES)
        self.lateness_seconds = Histogram(LATENESS_SECONDS)
