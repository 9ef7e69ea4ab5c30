"""The worker's numbers as Prometheus metrics.

Flow of a scrape: `Metrics.registry()` copies every counter and the queues' gauges while it runs on the
event loop (microseconds a queue); the registry that it returns holds that copy alone, so that it can be
encoded in a thread while the loop goes on. Nothing is done between two scrapes, and nothing per message:
the hot path bumps the plain numbers of `counts`. `http` serves the result.

Names carry their unit. Counters start at zero with the process; gauges say what is on disk now.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import accumulate
from operator import attrgetter
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from requeue_worker.counts import Counts, Histogram, QueueCounts, QueueSnapshot

_QUEUE_COUNTERS: Final = (
    ("requeue_accepted_total", "New messages written to disk and acknowledged.", "accepted"),
    ("requeue_replays_total", "Messages sent to their original subject.", "replays"),
    ("requeue_settled_total", "Messages that a handler settled.", "settled"),
    ("requeue_retried_total", "Replays that failed and will be tried again.", "retried"),
    ("requeue_held_total", "Replays put back without spending an attempt.", "held"),
    ("requeue_expired_total", "Messages that reached the end of their TTL.", "expired"),
)
_read: Final[Callable[[QueueCounts], tuple[int, ...]]] = attrgetter(*(field for *_, field in _QUEUE_COUNTERS))
_GAUGES: Final[tuple[tuple[str, str, Callable[[QueueSnapshot], float | None]], ...]] = (
    ("requeue_pending_messages", "Messages on disk that wait or are in flight.", lambda q: q.pending),
    ("requeue_pending_bytes", "Bytes of the pending messages.", lambda q: q.pending_bytes),
    ("requeue_dead_letter_messages", "Dead letters kept.", lambda q: q.dead),
    ("requeue_dead_letter_bytes", "Bytes of the dead letters kept.", lambda q: q.dead_bytes),
    ("requeue_in_flight_messages", "Replays that wait for their reply.", lambda q: q.in_flight),
    (
        "requeue_next_due_timestamp_seconds",
        "Unix time at which the next message is due; absent while the queue is empty.",
        lambda q: None if q.next_due_ns is None else q.next_due_ns / 1e9,
    ),
    (
        "requeue_backlog_age_seconds",
        "For how long the next message has been due; 0 while none is.",
        lambda q: 0.0 if q.next_due_ns is None else max(0.0, (time.time_ns() - q.next_due_ns) / 1e9),
    ),
    ("requeue_queue_paused", "1 while the queue is paused: nothing of it is sent.", lambda q: int(q.paused)),
)


class Metrics:
    """Translates `counts` and `snapshot` at scrape time.

    `snapshot` yields every queue as it stands; like `connected` it is called on the event loop and must not
    block. `version` defaults to that of the installed distribution.
    """

    def __init__(
        self,
        counts: Counts,
        snapshot: Callable[[], Iterable[QueueSnapshot]],
        connected: Callable[[], bool],
        *,
        build_version: str | None = None,
        intake: bool = True,
    ) -> None:
        self._counts = counts
        self._snapshot = snapshot
        self._connected = connected
        self._intake = intake
        self._version = build_version if build_version is not None else version("nats-requeue")
        self._process = (ProcessCollector(registry=None), PlatformCollector(registry=None))

    def registry(self) -> CollectorRegistry:
        """A registry over a copy taken now. Call it on the event loop; use the result on any thread."""
        registry = CollectorRegistry()
        registry.register(
            _Copy(self._counts, self._snapshot(), self._connected(), self._version, self._intake)
        )
        for collector in self._process:
            registry.register(collector)
        return registry


class _Histogram(NamedTuple):
    bounds: Sequence[float]
    counts: list[int]
    sum: float

    @classmethod
    def take(cls, histogram: Histogram) -> _Histogram:
        return cls(histogram.bounds, histogram.counts[:], histogram.sum)


class _Copy(Collector):
    """All numbers at one moment, as metric families when asked."""

    def __init__(
        self,
        counts: Counts,
        queues: Iterable[QueueSnapshot],
        connected: bool,
        build_version: str,
        intake: bool,
    ) -> None:
        self._connected, self._version, self._intake = connected, build_version, intake
        self._totals = (
            (
                "requeue_intake_messages_total",
                "Messages that came in, refused and duplicate ones too.",
                counts.intake_messages,
            ),
            ("requeue_intake_bytes_total", "Wire bytes of the messages taken in.", counts.intake_bytes),
            (
                "requeue_duplicates_total",
                "Messages dropped for a Nats-Msg-Id still pending.",
                counts.duplicates,
            ),
            ("requeue_commits_total", "Group commits: batches written and synced.", counts.commits),
            (
                "requeue_disk_background_errors_total",
                "Flushes and compactions that failed and are tried again.",
                counts.disk_background_errors,
            ),
            ("requeue_nats_disconnects_total", "Connections to NATS that broke.", counts.nats_disconnects),
            (
                "requeue_reaper_directories_total",
                "Directories of gone instances merged.",
                counts.reaped_directories,
            ),
            ("requeue_reaper_messages_total", "Pending messages merged from them.", counts.reaped_messages),
            (
                "requeue_reaper_dead_letters_total",
                "Dead letters merged from them.",
                counts.reaped_dead_letters,
            ),
            ("requeue_purged_total", "Pending messages removed on request.", counts.purged),
            ("requeue_moved_total", "Pending messages given another time on request.", counts.moved),
            (
                "requeue_redriven_total",
                "Dead letters that were made pending messages again.",
                counts.redriven,
            ),
            (
                "requeue_dead_letters_deleted_total",
                "Dead letters deleted on request.",
                counts.dead_letters_deleted,
            ),
            ("requeue_dead_letters_imported_total", "Dead letters imported.", counts.dead_letters_imported),
            (
                "requeue_handover_messages_total",
                "Pending messages taken over from drained volumes.",
                counts.handover_messages,
            ),
            (
                "requeue_handover_dead_letters_total",
                "Dead letters taken over from drained volumes.",
                counts.handover_dead_letters,
            ),
            (
                "requeue_handover_batches_total",
                "Batches of them, each acknowledged.",
                counts.handover_batches,
            ),
            (
                "requeue_handover_duplicates_total",
                "Records of drained volumes that were here already.",
                counts.handover_duplicates,
            ),
        )
        self._histograms = tuple(
            (name, text, _Histogram.take(histogram))
            for name, text, histogram in (
                (
                    "requeue_ack_seconds",
                    "Time from accepted to on disk and acknowledged.",
                    counts.ack_seconds,
                ),
                (
                    "requeue_reply_seconds",
                    "Time from sent to the reply that settled, of the first of those that came together.",
                    counts.reply_seconds,
                ),
                ("requeue_commit_seconds", "Time to write and sync a group commit.", counts.commit_seconds),
                ("requeue_commit_batch_messages", "Messages in a group commit.", counts.commit_messages),
                ("requeue_lateness_seconds", "Time between due and sent.", counts.lateness_seconds),
            )
        )
        self._gauges = (
            (
                "requeue_reaper_remaining_records",
                "Left in the directory that is being merged.",
                counts.reaper_remaining,
            ),
            ("requeue_handovers_open", "Volumes that are being taken over.", counts.handovers_open),
            ("requeue_disk_free_bytes", "Free on the disk under the data.", counts.disk_free_bytes),
            ("requeue_disk_reserve_bytes", "Below it no messages are taken in.", counts.disk_reserve_bytes),
            ("requeue_disk_full", "1 while no messages are taken in for that.", int(counts.disk_full)),
        )
        self._refused = dict(counts.refused)
        self._denied = dict(counts.nats_denied)
        self._bridged = dict(counts.bridged)
        self._set_aside = dict(counts.reaper_set_aside)
        self._queues = list(queues)
        self._queue_counts = [
            (name, _read(queue), tuple(queue.dead.items()), tuple(queue.dropped.items()))
            for name, queue in counts.queues.items()
        ]

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "requeue_build_info", "Version of the worker; always 1.", labels=("version", "python")
        )
        build.add_metric((self._version, platform.python_version()), 1)
        yield build
        yield GaugeMetricFamily(
            "requeue_nats_connected", "1 while the worker is connected to NATS.", value=int(self._connected)
        )
        yield GaugeMetricFamily(
            "requeue_intake_enabled",
            "0 when the worker is told to take no messages.",
            value=int(self._intake),
        )
        for name, text, total in self._totals:
            yield CounterMetricFamily(name, text, value=total)
        for name, text, value in self._gauges:
            yield GaugeMetricFamily(name, text, value=value)
        refused = CounterMetricFamily(
            "requeue_refused_total", "Messages refused at intake.", labels=("code",)
        )
        for code, count in sorted(self._refused.items()):
            refused.add_metric((str(code),), count)
        yield refused
        denied = CounterMetricFamily(
            "requeue_nats_denied_total", "Publishes and subscriptions that NATS denied.", labels=("action",)
        )
        for action, count in sorted(self._denied.items()):
            denied.add_metric((action,), count)
        yield denied
        bridged = CounterMetricFamily(
            "requeue_bridge_messages_total",
            "Messages that consumers of streams gave up, by what became of them.",
            labels=("stream", "consumer", "result"),
        )
        for labels, count in sorted(self._bridged.items()):
            bridged.add_metric(labels, count)
        yield bridged
        set_aside = GaugeMetricFamily(
            "requeue_reaper_set_aside_info",
            "1 for each directory of a gone instance that can't be merged.",
            labels=("instance", "reason"),
        )
        for instance, reason in sorted(self._set_aside.items()):
            set_aside.add_metric((instance, reason), 1)
        yield set_aside
        for name, text, histogram in self._histograms:
            yield _histogram_family(name, text, histogram)
        yield from self._queue_counters()
        yield from self._queue_gauges()

    def _queue_counters(self) -> Iterator[Metric]:
        for position, (name, text, _) in enumerate(_QUEUE_COUNTERS):
            family = CounterMetricFamily(name, text, labels=("queue",))
            for queue, values, *_ in self._queue_counts:
                family.add_metric((queue,), values[position])
            yield family
        dead = CounterMetricFamily(
            "requeue_dead_letters_total", "Messages that became dead letters.", labels=("queue", "reason")
        )
        dropped = CounterMetricFamily(
            "requeue_dropped_total",
            "Messages that the policy dropped instead of keeping a dead letter.",
            labels=("queue", "reason"),
        )
        for queue, _, *reasons in self._queue_counts:
            for family, counted in zip((dead, dropped), reasons, strict=True):
                for reason, count in counted:
                    family.add_metric((queue, str(reason)), count)
        yield dead
        yield dropped

    def _queue_gauges(self) -> Iterator[Metric]:
        for name, text, read in _GAUGES:
            family = GaugeMetricFamily(name, text, labels=("queue",))
            for queue in self._queues:
                value = read(queue)
                if value is not None:
                    family.add_metric((queue.name,), value)
            yield family


def _histogram_family(name: str, text: str, histogram: _Histogram) -> HistogramMetricFamily:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=histogram.sum)
