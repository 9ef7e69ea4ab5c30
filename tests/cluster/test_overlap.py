"""Two RequeueQueues that take in the same messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import MERGE, OPERATOR, Operator
from tests.cluster.specs import path, requeue_queue


@pytest.fixture
def operator(cluster: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    process = Operator("requeue-operator", tmp_path / "operator.log")
    process.start(cluster.kubeconfig(OPERATOR), namespace)
    yield process
    process.stop()


def _reason(cluster: ControlPlane, namespace: str, name: str) -> str:
    conditions = cluster.get(path(namespace, name))["status"].get("conditions", [])
    return next((each["reason"] for each in conditions if each["type"] == "IntakeExclusive"), "")


@pytest.mark.usefixtures("operator")
def test_both_are_told_until_one_of_them_changes(cluster: ControlPlane, namespace: str) -> None:
    for name, spec in (("orders", {}), ("mail", {"subject": "requeue.mail.>", "queueGroup": "mail"})):
        body = requeue_queue(name, paused=True, **spec)
        assert cluster.request("POST", path(namespace), body)[0] == 201
    for name in ("orders", "mail"):
        cluster.until("it is told", lambda name=name: _reason(cluster, namespace, name) == "TakenTwice")
    events = f"/api/v1/namespaces/{namespace}/events?fieldSelector=reason=TakenTwice"
    cluster.until("events tell it", lambda: len(cluster.get(events)["items"]) == 2)

    change = {"spec": {"queueGroup": "requeue-workers"}}
    assert cluster.request("PATCH", path(namespace, "mail"), change, MERGE)[0] == 200
    cluster.until("one is told", lambda: _reason(cluster, namespace, "orders") == "Shared")

    assert cluster.request("DELETE", path(namespace, "mail"))[0] == 200
    cluster.until("the other one is alone", lambda: _reason(cluster, namespace, "orders") == "Fine")
