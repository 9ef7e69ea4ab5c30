"""Many RequeueQueues at once: how long it takes, and that nothing is written afterwards.

The workers' endpoint is played, one for all of them: what is measured is the operator.
"""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from requeue_client.local import free_port

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import OPERATOR, Operator, children, make_pods_ready
from tests.cluster.specs import path, requeue_queue

_RESYNC_S = 600.0
_MOST_BYTES = 200_000_000


class _Worker(BaseHTTPRequestHandler):
    """As much as a worker with 20 queues tells."""

    def do_GET(self) -> None:
        lines = [f'requeue_pending_messages{{queue="queue-{n}"}} {n}' for n in range(20)]
        lines += [f'requeue_something_else{{queue="queue-{n}"}} {n}' for n in range(200)]
        content = "\n".join(["requeue_nats_connected 1", *lines, ""]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def worker_address() -> Iterator[str]:
    address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
    server = ThreadingHTTPServer((address, 8080), _Worker)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


class _Measured(Operator):
    """An operator whose numbers are read."""

    def begin(self, kubeconfig: Path, namespace: str, *, resync_s: float = _RESYNC_S) -> None:
        self._port = free_port()
        self.start(kubeconfig, namespace, http=f"127.0.0.1:{self._port}", resync_s=resync_s)

    def number(self, name: str) -> float:
        """The sum of a metric over its labels; 0 before the operator listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as response:
                text = response.read().decode()
        except urllib.error.URLError:
            return 0.0
        families = text_string_to_metric_families(text)
        return sum(each.value for family in families for each in family.samples if each.name == name)

    @property
    def reconciles(self) -> float:
        return self.number("requeue_operator_reconciles_total")

    @property
    def cpu_s(self) -> float:
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)


def _apply(cluster: ControlPlane, namespace: str, count: int) -> None:
    items = [
        requeue_queue(f"queue-{number}", subject=f"requeue-{number}.>", queueGroup=f"group-{number}")
        for number in range(count)
    ]
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    cluster.kubectl("-n", namespace, "apply", "--server-side", "-f", "-", stdin=body)


def _queues(cluster: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    return list(cluster.get(path(namespace))["items"])


def _with(queues: list[dict[str, Any]], kind: str) -> int:
    """How many have this condition True for the generation that is there now."""
    return sum(
        any(
            each["type"] == kind and each["status"] == "True"
            for each in queue["status"].get("conditions", [])
        )
        and queue["status"]["observedGeneration"] == queue["metadata"]["generation"]
        for queue in queues
    )


def _versions(cluster: ControlPlane, namespace: str) -> dict[str, str]:
    found = {each["metadata"]["name"]: each for each in _queues(cluster, namespace)}
    found |= children(cluster, namespace)
    return {key: each["metadata"]["resourceVersion"] for key, each in found.items()}


def _reconcile_all(
    cluster: ControlPlane, namespace: str, operator: _Measured, count: int, address: str
) -> float:
    """Apply them, then play their pods. Seconds until all were reconciled for the first time."""
    began_s = time.monotonic()
    _apply(cluster, namespace, count)
    cluster.until(
        f"{count} are reconciled", lambda: _with(_queues(cluster, namespace), "Reconciling") == count
    )
    took_s = time.monotonic() - began_s
    make_pods_ready(cluster, namespace, count, address=address)
    for kind in ("Ready", "NatsConnected"):
        cluster.until(
            f"{count} are {kind}", lambda kind=kind: _with(_queues(cluster, namespace), kind) == count
        )
    return took_s


def _resync_thrice(
    cluster: ControlPlane, namespace: str, operator: _Measured, count: int, *, every_s: float
) -> float:
    """The CPU seconds of one reconcile, in three resyncs in which nothing is written."""
    operator.stop()
    before = _versions(cluster, namespace)
    assert len(before) == 7 * count
    operator.begin(cluster.kubeconfig(OPERATOR), namespace, resync_s=every_s)
    cluster.until("all are looked at", lambda: operator.reconciles >= count)
    cpu_s, reconciles = operator.cpu_s, operator.reconciles
    cluster.until("three resyncs are over", lambda: operator.reconciles >= reconciles + 3 * count)
    assert _versions(cluster, namespace) == before
    return (operator.cpu_s - cpu_s) / (operator.reconciles - reconciles)


def test_nothing_is_written_over_three_resyncs_of_twenty(
    cluster: ControlPlane, namespace: str, tmp_path: Path, worker_address: str
) -> None:
    with _Measured("requeue-operator", tmp_path / "operator.log") as operator:
        operator.begin(cluster.kubeconfig(OPERATOR), namespace)
        _reconcile_all(cluster, namespace, operator, 20, worker_address)
        _resync_thrice(cluster, namespace, operator, 20, every_s=2)
        assert operator.memory < _MOST_BYTES


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_hundred_are_reconciled_in_a_minute_and_cost_little(
    cluster: ControlPlane,
    namespace: str,
    tmp_path: Path,
    worker_address: str,
    say: Callable[[str], None],
) -> None:
    count, watched_s = 200, 120.0
    with _Measured("requeue-operator", tmp_path / "operator.log") as operator:
        operator.begin(cluster.kubeconfig(OPERATOR), namespace)
        took_s = _reconcile_all(cluster, namespace, operator, count, worker_address)
        one_s = _resync_thrice(cluster, namespace, operator, count, every_s=20)
        memory = operator.memory
        operator.stop()
        operator.begin(cluster.kubeconfig(OPERATOR), namespace)
        cluster.until("all are looked at", lambda: operator.reconciles >= count)
        time.sleep(20)
        cpu_s = operator.cpu_s
        time.sleep(watched_s)
        # No resync falls into that time: what the resyncs cost in it comes on top.
        share = (operator.cpu_s - cpu_s) / watched_s + one_s * count / _RESYNC_S
        memory = max(memory, operator.memory)
    say(
        f"{count} RequeueQueues: reconciled in {took_s:.1f} s, {memory / 1e6:.0f} MB, {share:.2%} CPU, "
        f"{one_s * 1000:.1f} ms CPU a reconcile"
    )
    assert took_s < 60
    assert memory < _MOST_BYTES
    assert share < 0.02
