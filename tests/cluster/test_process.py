"""The operator as a process: what it serves, and how it outlives what happens to the API server."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from requeue_client.local import free_port

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import (
    OPERATOR,
    SOME_NAMESPACES,
    Operator,
    children,
    create_queue,
    has_condition,
    make_pods_ready,
    patch_spec,
)
from tests.cluster.rights import IN_A_NAMESPACE
from tests.cluster.specs import path

_FLOW = "/apis/flowcontrol.apiserver.k8s.io/v1"


@pytest.fixture
def operator(cluster: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    process = Operator("requeue-operator", tmp_path / "operator.log")
    process.start(cluster.kubeconfig(OPERATOR), namespace)
    yield process
    process.stop()


def _is_reconciled(cluster: ControlPlane, namespace: str) -> bool:
    return has_condition(cluster, namespace, "Reconciling", "True")


def test_it_tells_that_it_lives_and_what_it_does(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    port = free_port()
    operator = Operator("requeue-operator", tmp_path / "operator.log")
    operator.start(cluster.kubeconfig(OPERATOR), namespace, http=f"127.0.0.1:{port}")

    def get(endpoint: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{endpoint}", timeout=30) as response:
                return str(response.read().decode())
        except urllib.error.URLError:
            return ""

    with operator:
        create_queue(cluster, namespace)
        cluster.until("it lives", lambda: get("/livez") == "alive\n")
        state = 'requeue_operator_requeuequeues{state="reconciling"} 1.0\n'
        cluster.until("it counts its resources", lambda: state in get("/metrics"))
        assert 'requeue_operator_api_requests_total{method="PATCH",status="201"}' in get("/metrics")
    assert operator.returncode == 0


def test_it_goes_on_after_a_restart_of_the_api_server(
    cluster: ControlPlane, namespace: str, operator: Operator
) -> None:
    create_queue(cluster, namespace)
    cluster.until("it is reconciled", lambda: _is_reconciled(cluster, namespace))
    cluster.restart_api_server()
    patch_spec(cluster, namespace, replicas=2)
    make_pods_ready(cluster, namespace, 2)
    cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))
    assert operator.running


def test_it_sees_what_happened_beyond_the_memory_of_a_watch(
    cluster: ControlPlane, namespace: str, operator: Operator
) -> None:
    create_queue(cluster, namespace)
    cluster.until("it is reconciled", lambda: _is_reconciled(cluster, namespace))
    operator.signal(signal.SIGSTOP)
    cluster.request("DELETE", path(namespace, "orders"))
    cluster.until("it is gone", lambda: cluster.get(path(namespace, "orders")) is None)
    cluster.until("with its children", lambda: children(cluster, namespace) == {})
    create_queue(cluster, namespace, paused=True)
    # The new API server remembers no event from before its start: watches that ask for them are told 410.
    cluster.restart_api_server()
    operator.signal(signal.SIGCONT)
    cluster.until("it is seen", lambda: has_condition(cluster, namespace, "Ready", "True", "Paused"))
    patch_spec(cluster, namespace, paused=False)
    cluster.until("events come again", lambda: _is_reconciled(cluster, namespace))


def test_it_waits_while_it_is_throttled(cluster: ControlPlane, namespace: str, operator: Operator) -> None:
    create_queue(cluster, namespace)
    cluster.until("it is reconciled", lambda: _is_reconciled(cluster, namespace))
    _throttle(cluster)
    try:
        patch_spec(cluster, namespace, networkPolicy={"enabled": True})
        cluster.until("it is told to come later", lambda: _is_throttled(cluster))
        assert "networkpolicies/orders" not in children(cluster, namespace)
    finally:
        for kind in ("flowschemas", "prioritylevelconfigurations"):
            cluster.request("DELETE", f"{_FLOW}/{kind}/no-operator")
    cluster.until("it is made", lambda: "networkpolicies/orders" in children(cluster, namespace))


def _throttle(cluster: ControlPlane) -> None:
    """No seat for the operator's requests: the API server answers 429."""
    limit = {"nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0}
    level = {"type": "Limited", "limited": {**limit, "limitResponse": {"type": "Reject"}}}
    rule = {
        "subjects": [{"kind": "User", "user": {"name": OPERATOR}}],
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}],
    }
    flow = {
        "priorityLevelConfiguration": {"name": "no-operator"},
        "matchingPrecedence": 2,
        "rules": [rule],
    }
    for kind, plural, spec in (
        ("PriorityLevelConfiguration", "prioritylevelconfigurations", level),
        ("FlowSchema", "flowschemas", flow),
    ):
        body = {
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": "no-operator"},
        }
        status, answer = cluster.request("POST", f"{_FLOW}/{plural}", {**body, "spec": spec})
        assert status == 201, answer["message"]


def _is_throttled(cluster: ControlPlane) -> bool:
    counters = cluster.get("/metrics")
    return any(
        line.startswith("apiserver_flowcontrol_rejected_requests_total") and '"no-operator"' in line
        for line in counters.splitlines()
    )


def test_two_operators_at_once_do_no_harm(
    cluster: ControlPlane, namespace: str, operator: Operator, tmp_path: Path
) -> None:
    other = Operator("the other operator", tmp_path / "other.log")
    other.start(cluster.kubeconfig(OPERATOR), namespace)
    with other:
        create_queue(cluster, namespace, replicas=3)
        make_pods_ready(cluster, namespace, 3)
        cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))
        for replicas in (1, 2):
            patch_spec(cluster, namespace, replicas=replicas, storage={"onScaleDown": "Retain"})
            make_pods_ready(cluster, namespace, replicas)
            cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))
        before = _versions(cluster, namespace)
        cluster.until_quiet(lambda: _versions(cluster, namespace), for_s=3.0)
        assert set(_versions(cluster, namespace)) == set(before)
        assert operator.running
        assert other.running
    assert "Traceback" not in operator.log + other.log


def _versions(cluster: ControlPlane, namespace: str) -> dict[str, str]:
    found = {**children(cluster, namespace), "queue": cluster.get(path(namespace, "orders"))}
    return {key: each["metadata"]["resourceVersion"] for key, each in found.items()}


def test_rights_in_its_namespaces_alone_are_enough(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    assert (
        cluster.request("POST", f"{roles}/roles", {"metadata": {"name": "op"}, "rules": IN_A_NAMESPACE})[0]
        == 201
    )
    binding = {
        "metadata": {"name": "op"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "op"},
        "subjects": [{"kind": "User", "name": SOME_NAMESPACES, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    assert cluster.request("POST", f"{roles}/rolebindings", binding)[0] == 201
    operator = Operator("requeue-operator", tmp_path / "operator.log")
    operator.start(cluster.kubeconfig(SOME_NAMESPACES), namespace)
    with operator:
        create_queue(cluster, namespace)
        make_pods_ready(cluster, namespace, 1)
        cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))
        assert "orbidden" not in operator.log
