"""The operator's numbers for Prometheus. Names carry their unit; counters start at zero with the process."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from requeue_operator.children.naming import Manifest

_STATES: Final = ("ready", "reconciling", "stalled", "unknown")
_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """`registry` is what is served. Everything else takes note of something; all of it on one event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._states: dict[tuple[str, str], str] = {}
        self._reconciles = prometheus_client.Counter(
            "requeue_operator_reconciles_total",
            "Reconciles by their result.",
            ("result",),
            registry=self.registry,
        )
        for result in ("ok", "failed"):
            self._reconciles.labels(result)
        self._seconds = Histogram(
            "requeue_operator_reconcile_seconds",
            "Time of a reconcile.",
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._requests = prometheus_client.Counter(
            "requeue_operator_api_requests_total",
            "Requests to the API server; status 0 when it could not be reached.",
            ("method", "status"),
            registry=self.registry,
        )
        for collector in (
            _Now(self._count),
            ProcessCollector(registry=None),
            PlatformCollector(registry=None),
        ):
            self.registry.register(collector)

    def reconciled(self, seconds: float, *, failed: bool) -> None:
        """A reconcile has ended."""
        self._reconciles.labels("failed" if failed else "ok").inc()
        self._seconds.observe(seconds)

    def requested(self, method: str, status: int) -> None:
        """The API server answered; 0: it did not."""
        self._requests.labels(method, str(status)).inc()

    def see_queue(self, namespace: str, name: str, queue: Manifest | None) -> None:
        """A RequeueQueue as it stands now; None when it is gone."""
        if queue is None:
            self._states.pop((namespace, name), None)
        else:
            self._states[namespace, name] = _state(queue)

    def _count(self) -> Counter[str]:
        return Counter(list(self._states.values()))


class _Now(Collector):
    """What is so when it is asked for."""

    def __init__(self, count: Callable[[], Counter[str]]) -> None:
        self._count = count

    def collect(self) -> Iterator[Metric]:
        count = self._count()
        queues = GaugeMetricFamily(
            "requeue_operator_requeuequeues", "RequeueQueues by state.", labels=("state",)
        )
        for state in _STATES:
            queues.add_metric((state,), count[state])
        yield queues
        build = GaugeMetricFamily(
            "requeue_operator_build_info", "Version of the operator; always 1.", labels=("version", "python")
        )
        build.add_metric((version("nats-requeue"), platform.python_version()), 1)
        yield build


def _state(queue: Manifest) -> str:
    conditions = (queue.get("status") or {}).get("conditions") or []
    true = {each["type"] for each in conditions if each["status"] == "True"}
    return next((kind.lower() for kind in ("Stalled", "Ready", "Reconciling") if kind in true), "unknown")
