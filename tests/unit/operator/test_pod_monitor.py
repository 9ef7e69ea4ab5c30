"""PodMonitors, which not every cluster knows."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from requeue_operator.plan import Observed, plan

from tests.unit.operator.specs import OWNER, built, pod


def test_it_finds_the_pods_and_their_port() -> None:
    (monitor,) = built("PodMonitor", podMonitor={"enabled": True})
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod()["metadata"]["labels"].items()
    (port,) = pod()["spec"]["containers"][0]["ports"]
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert built("PodMonitor") == []


@pytest.mark.parametrize("has_monitoring", [True, False])
def test_it_is_applied_where_the_cluster_knows_them(has_monitoring: bool) -> None:
    metadata = {"name": OWNER.name, "namespace": OWNER.namespace, "uid": OWNER.uid, "generation": 1}
    spec = {
        "replicas": 1,
        "nats": {"servers": ["nats"]},
        "storage": {"size": "1Gi"},
        "podMonitor": {"enabled": True},
    }
    observed = Observed({"metadata": metadata, "spec": spec}, {}, (), has_monitoring=has_monitoring)
    planned = plan(observed, "requeue:1", datetime.now(UTC))
    assert planned.stall is None
    assert ("PodMonitor" in {each["kind"] for each in planned.apply}) == has_monitoring
