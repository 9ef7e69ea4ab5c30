"""promtool, Prometheus's own checker, has nothing to say against the alerts and the worker's metrics."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from requeue_worker.counts import Counts, QueueSnapshot
from requeue_worker.metrics import Metrics

ALERTS = Path(__file__).parents[2] / "charts/nats-requeue/files/alerts.yaml"


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not on PATH; Debian's package prometheus has it")
    return found


def check(promtool: str, *args: str, text: str = "") -> str:
    done = subprocess.run([promtool, "check", *args], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_takes_every_alert(promtool: str) -> None:
    written = ALERTS.read_text(encoding="utf-8").count("- alert:")
    assert f"SUCCESS: {written} rules found" in check(promtool, "rules", str(ALERTS))


def test_promtool_has_no_advice_about_the_metrics_of_the_worker(promtool: str) -> None:
    counts = Counts()
    counts.queues["orders"].dead["exhausted"] = 1
    counts.bridged["ORDERS", "billing", "dead"] = 1
    counts.reaper_set_aside["gone"] = "damaged"
    queue = QueueSnapshot("orders", 1, 1, 1, 1, 1, 1)
    text = generate_latest(Metrics(counts, lambda: [queue], lambda: True).registry()).decode()
    assert check(promtool, "metrics", text=text) == ""
