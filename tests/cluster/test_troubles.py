"""What keeps a fleet from coming up is a condition with a sentence, and goes away when it is mended.

Quotas and permissions are real. What a kubelet would tell (there is none) the tests tell in its words.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import (
    MERGE,
    OPERATOR,
    SOME_NAMESPACES,
    Operator,
    condition,
    create_queue,
    has_condition,
    make_pods_ready,
)
from tests.cluster.rights import IN_ALL

_ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces"


@pytest.fixture
def operator(cluster: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[None]:
    process = Operator("requeue-operator", tmp_path / "operator.log")
    process.start(cluster.kubeconfig(OPERATOR), namespace)
    yield
    process.stop()


def _until_stalled(cluster: ControlPlane, namespace: str, reason: str) -> str:
    cluster.until("it is stalled", lambda: has_condition(cluster, namespace, "Stalled", "True", reason))
    assert has_condition(cluster, namespace, "Ready", "False", reason)
    return str(condition(cluster, namespace, "Stalled")["message"])


def _until_mended(cluster: ControlPlane, namespace: str) -> None:
    make_pods_ready(cluster, namespace, 1)
    cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))
    assert has_condition(cluster, namespace, "Stalled", "False")


def _pod(cluster: ControlPlane, namespace: str) -> dict[str, Any]:
    where = f"/api/v1/namespaces/{namespace}/pods/orders-0"
    cluster.until("the pod is made", lambda: cluster.get(where))
    found: dict[str, Any] = cluster.get(where)
    return found


@pytest.mark.usefixtures("operator")
def test_a_missing_secret_is_seen_from_the_events_of_the_pod(cluster: ControlPlane, namespace: str) -> None:
    create_queue(cluster, namespace, nats={"credentials": {"creds": {"secretName": "nats", "key": "user"}}})
    pod = _pod(cluster, namespace)
    event = {
        "metadata": {"name": "orders-0.1"},
        "involvedObject": {
            "kind": "Pod",
            "namespace": namespace,
            "name": "orders-0",
            "uid": pod["metadata"]["uid"],
        },
        "type": "Warning",
        "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "credentials" : secret "nats" not found',
        "lastTimestamp": "2026-01-02T03:04:05Z",
    }
    assert cluster.request("POST", f"/api/v1/namespaces/{namespace}/events", event)[0] == 201
    assert "no Secret nats in this namespace; create it" in _until_stalled(
        cluster, namespace, "SecretMissing"
    )
    _until_mended(cluster, namespace)


@pytest.mark.usefixtures("operator")
def test_an_image_that_cannot_be_had_is_told(cluster: ControlPlane, namespace: str) -> None:
    create_queue(cluster, namespace, image="requeue:typo")
    _pod(cluster, namespace)
    container = {
        "name": "worker",
        "image": "requeue:typo",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
    }
    where = f"/api/v1/namespaces/{namespace}/pods/orders-0/status"
    assert cluster.request("PATCH", where, {"status": {"containerStatuses": [container]}}, MERGE)[0] == 200
    assert "correct spec.image" in _until_stalled(cluster, namespace, "ImagePullFailed")
    _until_mended(cluster, namespace)


@pytest.mark.usefixtures("operator")
def test_a_quota_without_room_for_a_pod_is_told(cluster: ControlPlane, namespace: str) -> None:
    quota = f"/api/v1/namespaces/{namespace}/resourcequotas"
    body = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    assert cluster.request("POST", quota, body)[0] == 201
    cluster.until("the quota holds", lambda: cluster.get(f"{quota}/none")["status"].get("hard"))
    create_queue(cluster, namespace)
    message = _until_stalled(cluster, namespace, "QuotaExceeded")
    assert "raise it, or ask for less" in message
    assert cluster.request("DELETE", f"{quota}/none")[0] == 200
    _until_mended(cluster, namespace)


@pytest.mark.parametrize("lacking", ["services", "statefulsets", "pods", "jobs"])
def test_a_permission_that_is_missing_is_told_and_used_when_it_is_there(
    cluster: ControlPlane, namespace: str, tmp_path: Path, lacking: str
) -> None:
    scarce = copy.deepcopy(IN_ALL)
    for rule in scarce:
        # Of services it may not write any, of the others not even look at one.
        if lacking in rule["resources"] and lacking == "services":
            rule["resources"].remove(lacking)
            scarce.append({**rule, "resources": [lacking], "verbs": ["get", "list", "watch"]})
            break
        if lacking in rule["resources"]:
            rule["verbs"] = ["create", "patch"]
    role = {"metadata": {"name": "op"}, "rules": scarce}
    assert cluster.request("POST", f"{_ROLES}/{namespace}/roles", role)[0] == 201
    binding = {
        "metadata": {"name": "op"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "op"},
        "subjects": [{"kind": "User", "name": SOME_NAMESPACES, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    assert cluster.request("POST", f"{_ROLES}/{namespace}/rolebindings", binding)[0] == 201
    operator = Operator("requeue-operator", tmp_path / "operator.log")
    operator.start(cluster.kubeconfig(SOME_NAMESPACES), namespace)
    with operator:
        create_queue(cluster, namespace)
        message = _until_stalled(cluster, namespace, "Forbidden")
        assert "the operator lacks a permission; grant it" in message
        assert lacking in message
        grant = {"rules": IN_ALL}
        assert cluster.request("PATCH", f"{_ROLES}/{namespace}/roles/op", grant, MERGE)[0] == 200
        _until_mended(cluster, namespace)
