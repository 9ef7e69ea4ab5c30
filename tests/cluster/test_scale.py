"""Scaling down and up again on the real control plane: who is drained, and what a claim is deleted for. The tests play
the drain pods (draining.py).
"""

from __future__ import annotations

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.draining import (
    drain_pods,
    end,
    jobs,
    marks,
    proof,
    remains,
    replicas_of_set,
    told,
    uids,
    until_draining,
)
from tests.cluster.operating import (
    MERGE,
    claims,
    condition,
    create_queue,
    has_condition,
    patch_spec,
)
from tests.cluster.specs import path

pytestmark = pytest.mark.usefixtures("operator")


def _make(cluster: ControlPlane, namespace: str, replicas: int) -> None:
    create_queue(cluster, namespace, replicas=replicas)
    cluster.until("volumes are claimed", lambda: len(claims(cluster, namespace)) == replicas)


def _until_drained(cluster: ControlPlane, namespace: str, *left: str) -> None:
    cluster.until("the volumes are gone", lambda: claims(cluster, namespace) == sorted(left))
    cluster.until("it is drained", lambda: has_condition(cluster, namespace, "Drained", "True"))
    cluster.until("no Job is left", lambda: jobs(cluster, namespace) == {})
    assert marks(cluster, namespace) == {}


def test_volumes_of_pods_that_are_gone_are_deleted_on_their_proofs(
    cluster: ControlPlane, namespace: str
) -> None:
    _make(cluster, namespace, 3)
    patch_spec(cluster, namespace, replicas=1)
    pods = until_draining(cluster, namespace, "data-orders-1", "data-orders-2")
    cluster.until("it says so", lambda: has_condition(cluster, namespace, "Drained", "False", "Draining"))
    first, second = pods["data-orders-1"], pods["data-orders-2"]
    queue = cluster.get(path(namespace, "orders"))
    assert told(first, "--fleet") == queue["metadata"]["uid"]
    assert told(first, "--nonce").startswith(f"{uids(cluster, namespace)['data-orders-1']}.")
    end(cluster, first, proof(first))
    cluster.until("one is gone", lambda: "data-orders-1" not in claims(cluster, namespace))
    assert "data-orders-2" in claims(cluster, namespace)
    end(cluster, second, proof(second))
    _until_drained(cluster, namespace, "data-orders-0")

    events = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name=orders"
    cluster.until(
        "an event tells it", lambda: "Drained" in [e["reason"] for e in cluster.get(events)["items"]]
    )


def test_a_proof_of_an_earlier_drain_deletes_nothing(cluster: ControlPlane, namespace: str) -> None:
    _make(cluster, namespace, 3)
    patch_spec(cluster, namespace, replicas=1)
    pods = until_draining(cluster, namespace, "data-orders-1", "data-orders-2")
    old, before = proof(pods["data-orders-2"]), uids(cluster, namespace)

    patch_spec(cluster, namespace, replicas=3)
    cluster.until("it grows again", lambda: replicas_of_set(cluster, namespace) == 3)
    assert (jobs(cluster, namespace), drain_pods(cluster, namespace), marks(cluster, namespace)) == (
        {},
        {},
        {},
    )
    assert uids(cluster, namespace) == before

    patch_spec(cluster, namespace, replicas=1)
    pods = until_draining(cluster, namespace, "data-orders-1", "data-orders-2")
    end(cluster, pods["data-orders-1"], proof(pods["data-orders-1"]))
    end(cluster, pods["data-orders-2"], old)
    cluster.until(
        "the old proof is told", lambda: has_condition(cluster, namespace, "Drained", "False", "WrongProof")
    )
    cluster.until("the other is gone", lambda: "data-orders-1" not in claims(cluster, namespace))
    assert uids(cluster, namespace)["data-orders-2"] == before["data-orders-2"]
    again = until_draining(cluster, namespace, "data-orders-2")["data-orders-2"]
    end(cluster, again, proof(again))
    _until_drained(cluster, namespace, "data-orders-0")


def test_without_a_proof_that_counts_a_volume_stays_and_is_tried_again(
    cluster: ControlPlane, namespace: str
) -> None:
    names = [f"data-orders-{ordinal}" for ordinal in range(1, 9)]
    _make(cluster, namespace, 9)
    patch_spec(cluster, namespace, replicas=1)
    pods = until_draining(cluster, namespace, *names)
    before = uids(cluster, namespace)
    pod = pods["data-orders-1"]
    others_nonce = told(pods["data-orders-2"], "--nonce")
    failures = {
        "data-orders-1": (proof(pod, nonce=others_nonce), 0),
        "data-orders-2": (proof(pods["data-orders-2"], fleet="5f0c6a52"), 0),
        "data-orders-3": (proof(pods["data-orders-3"], volume=None), 0),
        "data-orders-4": (proof(pods["data-orders-4"], dry_run=True), 0),
        "data-orders-5": (proof(pods["data-orders-5"], remains=remains("target-full"), target="orders-0"), 4),
        "data-orders-6": (proof(pods["data-orders-6"], remains=remains("no-survivor"), nobody=True), 5),
        "data-orders-7": ("", 0),
        "data-orders-8": (proof(pods["data-orders-8"]), 1),
    }
    for name, (said, exit_code) in failures.items():
        assert end(cluster, pods[name], said, exit_code)[0] == 200
    cluster.until(
        "all are told", lambda: "and 3 more" in condition(cluster, namespace, "Drained").get("message", "")
    )
    assert uids(cluster, namespace) == before

    pods = until_draining(cluster, namespace, *names)
    assert uids(cluster, namespace) == before
    # The volume of the first run is another one than that of the second.
    end(cluster, pods["data-orders-5"], proof(pods["data-orders-5"], volume="another"))
    for name in set(names) - {"data-orders-5"}:
        end(cluster, pods[name], proof(pods[name]))
    cluster.until("the others go", lambda: claims(cluster, namespace) == ["data-orders-0", "data-orders-5"])
    cluster.until(
        "it is told",
        lambda: "another one than before" in condition(cluster, namespace, "Drained").get("message", ""),
    )
    again = until_draining(cluster, namespace, "data-orders-5")["data-orders-5"]
    end(cluster, again, proof(again))
    _until_drained(cluster, namespace, "data-orders-0")


def test_a_drain_that_hangs_is_ended_told_and_tried_again(cluster: ControlPlane, namespace: str) -> None:
    _make(cluster, namespace, 2)
    patch_spec(cluster, namespace, replicas=1)
    before = until_draining(cluster, namespace, "data-orders-1")["data-orders-1"]["metadata"]["uid"]
    job = f"/apis/batch/v1/namespaces/{namespace}/jobs/orders-drain-1"
    assert cluster.request("PATCH", job, {"spec": {"activeDeadlineSeconds": 1}}, MERGE)[0] == 200
    cluster.until("it is told", lambda: has_condition(cluster, namespace, "Drained", "False", "DrainFailed"))
    assert "DeadlineExceeded" in condition(cluster, namespace, "Drained")["message"]
    events = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name=orders"
    cluster.until(
        "so does an event", lambda: "DrainFailed" in [e["reason"] for e in cluster.get(events)["items"]]
    )
    cluster.until(
        "it is tried again",
        lambda: {pod["metadata"]["uid"] for pod in drain_pods(cluster, namespace).values()} - {before},
    )
    assert claims(cluster, namespace) == ["data-orders-0", "data-orders-1"]


def test_at_zero_and_with_retain_drains_are_taken_back(cluster: ControlPlane, namespace: str) -> None:
    _make(cluster, namespace, 3)
    patch_spec(cluster, namespace, replicas=1)
    until_draining(cluster, namespace, "data-orders-1", "data-orders-2")
    before = uids(cluster, namespace)
    patch_spec(cluster, namespace, replicas=0)
    cluster.until("all are kept", lambda: has_condition(cluster, namespace, "Drained", "False", "Retained"))
    assert (jobs(cluster, namespace), marks(cluster, namespace)) == ({}, {})
    patch_spec(cluster, namespace, replicas=2)
    until_draining(cluster, namespace, "data-orders-2")
    patch_spec(cluster, namespace, storage={"onScaleDown": "Retain"})
    cluster.until("it is kept", lambda: has_condition(cluster, namespace, "Drained", "False", "Retained"))
    assert "data-orders-2" in condition(cluster, namespace, "Drained")["message"]
    assert (jobs(cluster, namespace), marks(cluster, namespace)) == ({}, {})
    assert uids(cluster, namespace) == before


def test_a_volume_that_somebody_uses_is_neither_drained_nor_deleted(
    cluster: ControlPlane, namespace: str
) -> None:
    _make(cluster, namespace, 2)
    user = f"/api/v1/namespaces/{namespace}/pods/user"
    assert cluster.request("POST", user.removesuffix("/user"), _user_of("data-orders-1"))[0] == 201
    patch_spec(cluster, namespace, replicas=1)
    cluster.until(
        "it waits",
        lambda: condition(cluster, namespace, "Drained").get("message", "").endswith("uses it to end: user"),
    )
    assert (jobs(cluster, namespace), marks(cluster, namespace)) == ({}, {})
    assert cluster.request("DELETE", user)[0] == 200
    patch_spec(cluster, namespace, queues=[{"name": "look"}])
    pod = until_draining(cluster, namespace, "data-orders-1")["data-orders-1"]
    end(cluster, pod, proof(pod))
    _until_drained(cluster, namespace, "data-orders-0")


def _user_of(claim: str) -> dict[str, object]:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "metadata": {"name": "user"},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "user", "image": "none", "securityContext": security}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }
