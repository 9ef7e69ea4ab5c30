"""Deletion with onDelete Drain on the real API server and controllers. The tests play the drain pods."""

from __future__ import annotations

import random
from typing import Any

import pytest
from requeue_operator.ending import FINALIZER

from tests.cluster.control_plane import ControlPlane
from tests.cluster.draining import drain_pods, end, jobs, proof, replicas_of_set, told, until_draining
from tests.cluster.operating import (
    MERGE,
    OPERATOR,
    Operator,
    children,
    claims,
    condition,
    create_queue,
    make_those_there_ready,
    patch_spec,
)
from tests.cluster.specs import path, requeue_queue
from tests.servers import NatsServer, WorkerFactory

pytestmark = pytest.mark.usefixtures("operator")


def _make(cluster: ControlPlane, namespace: str, replicas: int, **storage: Any) -> None:
    create_queue(cluster, namespace, replicas=replicas, storage={"onDelete": "Drain", **storage})
    cluster.until("volumes are claimed", lambda: len(claims(cluster, namespace)) == replicas)
    cluster.until("the finalizer is there", lambda: FINALIZER in _finalizers(cluster, namespace))


def _finalizers(cluster: ControlPlane, namespace: str) -> list[str]:
    return cluster.get(path(namespace, "orders"))["metadata"].get("finalizers") or []


def _delete(cluster: ControlPlane, namespace: str) -> None:
    assert cluster.request("DELETE", path(namespace, "orders"))[0] == 200


def _until_gone(cluster: ControlPlane, namespace: str) -> None:
    cluster.until("it is gone", lambda: cluster.get(path(namespace, "orders")) is None)
    cluster.until("its children are gone", lambda: children(cluster, namespace) == {})


def _drained(cluster: ControlPlane, namespace: str) -> str:
    return str(condition(cluster, namespace, "Drained").get("reason"))


def _args(cluster: ControlPlane, namespace: str) -> list[str]:
    live = children(cluster, namespace)["statefulsets/orders"]
    args: list[str] = live["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def _hand_over(cluster: ControlPlane, namespace: str, *names: str) -> list[str]:
    """Play the drains of these claims to their ends; the fleets that they handed over to."""
    pods = until_draining(cluster, namespace, *names)
    for pod in pods.values():
        end(cluster, pod, proof(pod))
    return [told(pod, "--fleet") for pod in pods.values()]


def test_it_waits_without_intake_and_another_mind_lets_it_go(
    cluster: ControlPlane, namespace: str, operator: Operator
) -> None:
    _make(cluster, namespace, 2)
    assert "--intake" not in _args(cluster, namespace)
    _delete(cluster, namespace)
    cluster.until("nothing is taken in", lambda: _args(cluster, namespace)[-2:] == ["--intake", "false"])
    cluster.until("it says so", lambda: _drained(cluster, namespace) == "Deleting")
    operator.kill()
    operator.start(cluster.kubeconfig(OPERATOR))
    cluster.until_quiet(lambda: cluster.get(path(namespace, "orders"))["metadata"]["resourceVersion"], 3)
    assert replicas_of_set(cluster, namespace) == 2
    assert jobs(cluster, namespace) == {}
    patch_spec(cluster, namespace, storage={"onDelete": "Retain"})
    _until_gone(cluster, namespace)
    assert claims(cluster, namespace) == ["data-orders-0", "data-orders-1"]


async def test_when_its_worker_has_nothing_left_it_goes_and_its_volume_on_a_proof(
    cluster: ControlPlane,
    namespace: str,
    nats_server: NatsServer,
    worker_factory: WorkerFactory,
) -> None:
    _make(cluster, namespace, 1)
    _delete(cluster, namespace)
    cluster.until("nothing is taken in", lambda: _args(cluster, namespace)[-2:] == ["--intake", "false"])
    address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
    worker_factory(nats_server, "--http", f"{address}:8080", "--intake", "false")

    def is_emptied() -> bool:
        if replicas_of_set(cluster, namespace) != 0:
            make_those_there_ready(cluster, namespace, address=address)
        return replicas_of_set(cluster, namespace) == 0

    cluster.until("the worker goes", is_emptied)
    assert claims(cluster, namespace) == ["data-orders-0"]
    own = cluster.get(path(namespace, "orders"))["metadata"]["uid"]
    assert _hand_over(cluster, namespace, "data-orders-0") == [own]
    _until_gone(cluster, namespace)
    assert claims(cluster, namespace) == []


def test_with_a_target_each_volume_goes_on_its_proof_and_then_all(
    cluster: ControlPlane, namespace: str, operator: Operator
) -> None:
    _make(cluster, namespace, 2, drainTo="other")
    _delete(cluster, namespace)
    cluster.until("the target is missed", lambda: _drained(cluster, namespace) == "NoTarget")
    assert replicas_of_set(cluster, namespace) == 2
    other = requeue_queue("other", replicas=0)
    assert cluster.request("POST", path(namespace), other)[0] == 201
    uid = cluster.get(path(namespace, "other"))["metadata"]["uid"]

    pods = until_draining(cluster, namespace, "data-orders-0", "data-orders-1")
    assert {told(pod, "--fleet") for pod in pods.values()} == {uid}
    own = cluster.get(path(namespace, "orders"))["metadata"]["uid"]
    end(cluster, pods["data-orders-0"], proof(pods["data-orders-0"], fleet=own))
    end(cluster, pods["data-orders-1"], proof(pods["data-orders-1"]))
    cluster.until("one is gone", lambda: claims(cluster, namespace) == ["data-orders-0"])
    cluster.until("the other fleet is told", lambda: _drained(cluster, namespace) == "WrongProof")
    operator.kill()
    operator.start(cluster.kubeconfig(OPERATOR))
    assert _hand_over(cluster, namespace, "data-orders-0") == [uid]
    cluster.until("it is gone", lambda: cluster.get(path(namespace, "orders")) is None)
    assert claims(cluster, namespace) == []
    assert drain_pods(cluster, namespace) == {}


def test_without_workers_each_volume_is_looked_at_and_what_remains_is_told(
    cluster: ControlPlane, namespace: str
) -> None:
    _make(cluster, namespace, 1)
    patch_spec(cluster, namespace, replicas=0)
    cluster.until("it is at 0", lambda: replicas_of_set(cluster, namespace) == 0)
    _delete(cluster, namespace)
    pod = until_draining(cluster, namespace, "data-orders-0")["data-orders-0"]
    end(cluster, pod, "no proof", 1)
    cluster.until("it is told", lambda: _drained(cluster, namespace) == "DrainFailed")
    _hand_over(cluster, namespace, "data-orders-0")
    _until_gone(cluster, namespace)
    assert claims(cluster, namespace) == []


def test_after_the_timeout_it_goes_and_the_volumes_stay(cluster: ControlPlane, namespace: str) -> None:
    _make(cluster, namespace, 1, drainTimeout="2s")
    _delete(cluster, namespace)
    _until_gone(cluster, namespace)
    assert claims(cluster, namespace) == ["data-orders-0"]
    events = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name=orders"
    cluster.until(
        "an event tells", lambda: "DrainTimeout" in [e["reason"] for e in cluster.get(events)["items"]]
    )


def test_a_namespace_with_it_goes(cluster: ControlPlane, namespace: str) -> None:
    _make(cluster, namespace, 1)
    where = f"/api/v1/namespaces/{namespace}"
    assert cluster.request("DELETE", where)[0] == 200
    pods = f"{where}/pods"

    def gone() -> bool:
        # What a kubelet would do: let pods go.
        for pod in (cluster.get(pods) or {"items": []})["items"]:
            body = {"gracePeriodSeconds": 0}
            cluster.request("DELETE", f"{pods}/{pod['metadata']['name']}", body)
        return cluster.get(where) is None

    cluster.until("the namespace is gone", gone)


def test_the_finalizer_comes_and_goes_with_the_mode(cluster: ControlPlane, namespace: str) -> None:
    create_queue(cluster, namespace)
    cluster.until("it is made", lambda: len(claims(cluster, namespace)) == 1)
    body = {"metadata": {"finalizers": ["example.com/theirs"]}}
    assert cluster.request("PATCH", path(namespace, "orders"), body, MERGE)[0] == 200
    patch_spec(cluster, namespace, storage={"onDelete": "Drain"})
    cluster.until("it is held", lambda: FINALIZER in _finalizers(cluster, namespace))
    patch_spec(cluster, namespace, storage={"onDelete": "Delete"})
    cluster.until("it is free", lambda: _finalizers(cluster, namespace) == ["example.com/theirs"])
    body = {"metadata": {"finalizers": None}}
    assert cluster.request("PATCH", path(namespace, "orders"), body, MERGE)[0] == 200
