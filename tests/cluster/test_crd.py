"""The custom resource as kubectl and autoscalers meet it, on the real API server."""

from __future__ import annotations

from tests.cluster.control_plane import ControlPlane
from tests.cluster.specs import path, requeue_queue

_MERGE = "application/merge-patch+json"


def test_defaults_are_written_and_a_new_object_is_not_yet_observed(
    cluster: ControlPlane, namespace: str
) -> None:
    status, made = cluster.request("POST", path(namespace), requeue_queue())
    assert status == 201, made
    assert made["spec"]["replicas"] == 1
    assert made["spec"]["storage"] == {
        "size": "1Gi",
        "mode": "PerPod",
        "onScaleDown": "Drain",
        "onDelete": "Retain",
    }
    assert made["status"] == {"observedGeneration": -1}


def test_scale_goes_over_the_subresource_with_its_selector(cluster: ControlPlane, namespace: str) -> None:
    cluster.request("POST", path(namespace), requeue_queue())
    told = {"status": {"observedGeneration": 1, "replicas": 1, "selector": "app=orders"}}
    assert cluster.request("PATCH", path(namespace, "orders", "status"), told, _MERGE)[0] == 200
    scaled = cluster.request("PATCH", path(namespace, "orders", "scale"), {"spec": {"replicas": 3}}, _MERGE)[
        1
    ]
    assert scaled["spec"]["replicas"] == 3
    assert scaled["status"] == {"replicas": 1, "selector": "app=orders"}
    assert cluster.get(path(namespace, "orders"))["spec"]["replicas"] == 3


def test_kubectl_shows_the_columns_under_the_short_name(cluster: ControlPlane, namespace: str) -> None:
    cluster.request("POST", path(namespace), requeue_queue())
    told = {
        "status": {
            "observedGeneration": 1,
            "replicas": 1,
            "backlog": {"pending": 12, "dead": 3, "nextDue": "2030-01-31T18:30:00Z"},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "Ready",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
            ],
        }
    }
    status, answer = cluster.request("PATCH", path(namespace, "orders", "status"), told, _MERGE)
    assert status == 200, answer
    head, line = cluster.kubectl("-n", namespace, "get", "rq").stdout.splitlines()
    assert head.split("  ")[0] == "NAME"
    assert [word.strip() for word in head.split("  ") if word.strip()] == [
        "NAME", "READY", "REPLICAS", "BACKLOG", "DEAD", "NEXT DUE", "AGE",
    ]  # fmt: skip
    assert line.split()[:6] == ["orders", "True", "1", "12", "3", "2030-01-31T18:30:00Z"]
    assert "orders" in cluster.kubectl("-n", namespace, "get", "requeue").stdout


def test_kubectl_explains_a_field_with_its_default(cluster: ControlPlane) -> None:
    said = " ".join(cluster.kubectl("explain", "requeuequeues.spec.queues.ackTimeout").stdout.split())
    assert "No reply for this long: the attempt failed. Default: 15s." in said
    said = " ".join(cluster.kubectl("explain", "requeuequeues.spec.storage.onScaleDown").stdout.split())
    assert "Retain: it stays, with its messages." in said


def test_a_misspelt_field_is_refused_by_kubectl(cluster: ControlPlane, namespace: str) -> None:
    body = requeue_queue(replica=3)
    status, answer = cluster.request("POST", f"{path(namespace)}?fieldValidation=Strict", body)
    assert status == 400
    assert 'unknown field "spec.replica"' in answer["message"]


def test_a_queue_stands_once_in_the_list(cluster: ControlPlane, namespace: str) -> None:
    body = requeue_queue(queues=[{"name": "a"}, {"name": "a"}])
    status, answer = cluster.request("POST", path(namespace), body)
    assert status == 422
    assert "Duplicate value" in answer["message"]
