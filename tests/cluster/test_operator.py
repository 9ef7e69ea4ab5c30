"""The operator on the real control plane, looking after all namespaces."""

from __future__ import annotations

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import (
    MERGE,
    children,
    claims,
    condition,
    create_queue,
    has_condition,
    make_pods_ready,
    patch_spec,
)
from tests.cluster.specs import path, requeue_queue

pytestmark = pytest.mark.usefixtures("operator")


def test_a_fleet_is_made_becomes_ready_and_is_left_alone(cluster: ControlPlane, namespace: str) -> None:
    create_queue(cluster, namespace, replicas=2)
    cluster.until("it is reconciling", lambda: has_condition(cluster, namespace, "Reconciling", "True"))
    assert has_condition(cluster, namespace, "Ready", "False")
    make_pods_ready(cluster, namespace, 2)
    wait = ("wait", "--for=condition=Ready", "rq/orders", "--timeout=60s")
    cluster.kubectl("-n", namespace, *wait)

    before = {key: each["metadata"]["resourceVersion"] for key, each in children(cluster, namespace).items()}
    queue = cluster.get(path(namespace, "orders"))
    assert set(before) == {
        "serviceaccounts/orders-worker",
        "configmaps/orders-config",
        "services/orders",
        "services/orders-metrics",
        "statefulsets/orders",
        "poddisruptionbudgets/orders",
    }
    assert "finalizers" not in queue["metadata"]
    assert (queue["status"]["replicas"], queue["status"]["readyReplicas"]) == (2, 2)

    # Three more reconciles, each poked by a change that asks for nothing.
    for number in range(3):
        mark = {"metadata": {"annotations": {"poked": str(number)}}}
        poked = cluster.request("PATCH", path(namespace, "orders"), mark, MERGE)[1]
        cluster.until("a probe is reconciled", lambda: _probe_is_reconciled(cluster, namespace))
        assert (
            cluster.get(path(namespace, "orders"))["metadata"]["resourceVersion"]
            == poked["metadata"]["resourceVersion"]
        )
    after = {key: each["metadata"]["resourceVersion"] for key, each in children(cluster, namespace).items()}
    assert {key: after.get(key) for key in before} == before


def _probe_is_reconciled(cluster: ControlPlane, namespace: str) -> bool:
    """Another RequeueQueue, made anew and looked at after: by then the events before it were taken too."""
    where = path(namespace, "probe")
    probe = cluster.get(where)
    if probe is None:
        cluster.request("POST", path(namespace), requeue_queue("probe", subject="probe.>", shards=2))
        return False
    if probe["status"].get("observedGeneration") != 1:
        return False
    cluster.request("DELETE", where)
    return True


def test_scaling_down_with_retain_keeps_the_volumes_and_says_so(
    cluster: ControlPlane, namespace: str
) -> None:
    create_queue(cluster, namespace, replicas=3, storage={"onScaleDown": "Retain"})
    make_pods_ready(cluster, namespace, 3)
    cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))
    patch_spec(cluster, namespace, replicas=1)
    cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))
    cluster.until(
        "volumes are retained", lambda: has_condition(cluster, namespace, "Drained", "False", "Retained")
    )
    assert cluster.get(path(namespace, "orders"))["status"]["retainedClaims"] == [
        "data-orders-1",
        "data-orders-2",
    ]
    patch_spec(cluster, namespace, replicas=0)
    cluster.until("it is at zero", lambda: has_condition(cluster, namespace, "Ready", "True", "ScaledToZero"))
    assert claims(cluster, namespace) == ["data-orders-0", "data-orders-1", "data-orders-2"]


def test_a_policy_reaches_the_config_map_and_restarts_nothing(cluster: ControlPlane, namespace: str) -> None:
    create_queue(cluster, namespace)
    cluster.until("it is made", lambda: "statefulsets/orders" in children(cluster, namespace))
    before = children(cluster, namespace)["statefulsets/orders"]["metadata"]["generation"]
    patch_spec(cluster, namespace, queues=[{"name": "emails", "retries": 7}])

    def written() -> bool:
        return "retries: 7" in children(cluster, namespace)["configmaps/orders-config"]["data"]["worker.yaml"]

    cluster.until("the policy is written", written)
    assert children(cluster, namespace)["statefulsets/orders"]["metadata"]["generation"] == before
    patch_spec(cluster, namespace, subject="jobs.>")

    def restarts() -> bool:
        return bool(children(cluster, namespace)["statefulsets/orders"]["metadata"]["generation"] > before)

    cluster.until("the pods are replaced", restarts)


def test_what_cannot_be_done_is_stalled_with_a_sentence_until_it_is_mended(
    cluster: ControlPlane, namespace: str
) -> None:
    create_queue(cluster, namespace, queues=[{"name": "a", "minBackoff": "2h"}])
    cluster.until(
        "it is stalled", lambda: has_condition(cluster, namespace, "Stalled", "True", "InvalidSpec")
    )
    assert "does not go with spec.defaults" in condition(cluster, namespace, "Stalled")["message"]
    assert children(cluster, namespace) == {}
    patch_spec(cluster, namespace, queues=[])
    cluster.until("it goes on", lambda: has_condition(cluster, namespace, "Stalled", "False"))
    cluster.until("it is made", lambda: "statefulsets/orders" in children(cluster, namespace))


def test_a_child_of_somebody_else_is_left_alone(cluster: ControlPlane, namespace: str) -> None:
    services = f"/api/v1/namespaces/{namespace}/services"
    body = {"metadata": {"name": "orders"}, "spec": {"ports": [{"port": 80}]}}
    assert cluster.request("POST", services, body)[0] == 201
    create_queue(cluster, namespace)
    cluster.until("it is stalled", lambda: has_condition(cluster, namespace, "Stalled", "True", "NameTaken"))
    assert "Service orders exists" in condition(cluster, namespace, "Stalled")["message"]
    assert cluster.get(f"{services}/orders")["spec"]["ports"][0]["port"] == 80


def test_a_child_that_is_deleted_or_changed_by_hand_comes_back(cluster: ControlPlane, namespace: str) -> None:
    create_queue(cluster, namespace, networkPolicy={"enabled": True})
    budget = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/orders"
    cluster.until("it is made", lambda: "statefulsets/orders" in children(cluster, namespace))
    assert cluster.request("DELETE", budget)[0] == 200
    cluster.until("it is made again", lambda: cluster.get(budget) is not None)
    config = f"/api/v1/namespaces/{namespace}/configmaps/orders-config"
    assert cluster.request("PATCH", config, {"data": {"worker.yaml": "{}"}}, MERGE)[0] == 200
    cluster.until("it is as before", lambda: "data_dir" in cluster.get(config)["data"]["worker.yaml"])
    patch_spec(cluster, namespace, networkPolicy={"enabled": False})
    cluster.until("it is gone", lambda: "networkpolicies/orders" not in children(cluster, namespace))


def test_nothing_is_changed_while_it_is_paused(cluster: ControlPlane, namespace: str) -> None:
    create_queue(cluster, namespace, paused=True)
    cluster.until("it is paused", lambda: has_condition(cluster, namespace, "Ready", "True", "Paused"))
    assert children(cluster, namespace) == {}
    patch_spec(cluster, namespace, paused=False)
    cluster.until("it is made", lambda: "statefulsets/orders" in children(cluster, namespace))


def test_events_tell_transitions_once(cluster: ControlPlane, namespace: str) -> None:
    create_queue(cluster, namespace, queues=[{"name": "a", "minBackoff": "2h"}])
    cluster.until(
        "it is stalled", lambda: has_condition(cluster, namespace, "Stalled", "True", "InvalidSpec")
    )
    for replicas in (2, 3):
        patch_spec(cluster, namespace, replicas=replicas)
        cluster.until(
            "it is looked at", lambda: has_condition(cluster, namespace, "Stalled", "True", "InvalidSpec")
        )
    events = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name=orders"
    cluster.until("an event tells it", lambda: cluster.get(events)["items"])
    (event,) = cluster.get(events)["items"]
    assert (event["type"], event["reason"]) == ("Warning", "InvalidSpec")
    assert "spec.queues[0]" in event["message"]


def test_what_the_api_server_refuses_is_stalled_and_mended_by_itself(
    cluster: ControlPlane, namespace: str
) -> None:
    quota = f"/api/v1/namespaces/{namespace}/resourcequotas"
    body = {"metadata": {"name": "none"}, "spec": {"hard": {"count/services": "0"}}}
    assert cluster.request("POST", quota, body)[0] == 201
    cluster.until("the quota holds", lambda: cluster.get(f"{quota}/none")["status"].get("hard"))
    create_queue(cluster, namespace)
    cluster.until("it is stalled", lambda: has_condition(cluster, namespace, "Stalled", "True", "Rejected"))
    assert "exceeded quota" in condition(cluster, namespace, "Stalled")["message"]
    assert cluster.request("DELETE", f"{quota}/none")[0] == 200
    cluster.until("it goes on by itself", lambda: has_condition(cluster, namespace, "Stalled", "False"))
