"""The children on the real API server: taken as they are under restricted Pod Security, and the same at the second time."""

from __future__ import annotations

from typing import Any

import pytest
from requeue_operator.children import Manifest, Owner, children
from requeue_operator.children.naming import MANAGER
from requeue_operator.validation import read_spec

from tests.cluster.control_plane import ControlPlane
from tests.cluster.specs import path, requeue_queue

_KEY = {"secretName": "nats", "key": "k"}
SPECS: dict[str, dict[str, Any]] = {
    "least": {},
    "creds and a network policy": {
        "nats": {"credentials": {"creds": _KEY}},
        "networkPolicy": {"enabled": True},
    },
    "nkey": {"nats": {"credentials": {"nkey": _KEY}}},
    "token": {"nats": {"credentials": {"token": _KEY}}},
    "password and mTLS": {
        "nats": {
            "credentials": {"userPassword": {"secretName": "nats"}},
            "tls": {"ca": _KEY, "clientCertificate": {"secretName": "tls"}},
        }
    },
    "overridden": {
        "podTemplate": {
            "metadata": {"labels": {"team": "shop"}},
            "spec": {
                "tolerations": [{"key": "spot", "operator": "Exists"}],
                "containers": [
                    {"name": "worker", "env": [{"name": "TZ", "value": "UTC"}]},
                    {"name": "sidecar", "image": "sidecar:1"},
                ],
            },
        },
        "queues": [{"name": "emails", "backoff": "list", "backoffList": ["1s", "1m"]}],
        "storage": {"onDelete": "Delete", "storageClassName": "fast"},
    },
}
_PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Service": "/api/v1/namespaces/{}/services",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
}


def _apply(cluster: ControlPlane, child: Manifest) -> dict[str, Any]:
    where = _PATHS[child["kind"]].format(child["metadata"]["namespace"])
    where += f"/{child['metadata']['name']}?fieldManager={MANAGER}&force=true&fieldValidation=Strict"
    status, answer = cluster.request("PATCH", where, child, "application/apply-patch+yaml")
    assert status in (200, 201), answer
    applied: dict[str, Any] = answer
    return applied


def _made(cluster: ControlPlane, namespace: str, spec: dict[str, Any]) -> list[Manifest]:
    status, made = cluster.request("POST", path(namespace), requeue_queue(**spec))
    assert status == 201, made
    owner = Owner("orders", namespace, made["metadata"]["uid"])
    return children(owner, read_spec(made["spec"]), image="requeue:1")


@pytest.mark.parametrize("name", SPECS)
def test_a_second_apply_changes_nothing(cluster: ControlPlane, namespace: str, name: str) -> None:
    manifests = _made(cluster, namespace, SPECS[name])
    first = [_apply(cluster, child) for child in manifests]
    second = [_apply(cluster, child) for child in manifests]
    for before, after in zip(first, second, strict=True):
        # Status and what controllers count moves by itself; the operator's own part may not.
        assert after["metadata"].get("generation") == before["metadata"].get("generation")
        assert _own_fields(after) == _own_fields(before)
        assert after.get("spec") == before.get("spec")


def _own_fields(manifest: Manifest) -> list[tuple[Any, Any]]:
    """What the operator manages, and when that last changed."""
    return [
        (entry["fieldsV1"], entry["time"])
        for entry in manifest["metadata"]["managedFields"]
        if entry["manager"] == MANAGER
    ]


def test_restricted_pod_security_takes_the_pods(cluster: ControlPlane, namespace: str) -> None:
    for child in _made(cluster, namespace, {**SPECS["overridden"], "replicas": 2}):
        _apply(cluster, child)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    cluster.until("both pods are made", lambda: len(cluster.get(pods)["items"]) == 2)
    claims = cluster.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims")["items"]
    assert sorted(claim["metadata"]["name"] for claim in claims) == ["data-orders-0", "data-orders-1"]


def test_children_go_with_their_owner_and_volumes_stay(cluster: ControlPlane, namespace: str) -> None:
    for child in _made(cluster, namespace, {}):
        _apply(cluster, child)
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    cluster.until("the volume is claimed", lambda: cluster.get(claims)["items"])
    assert cluster.request("DELETE", path(namespace, "orders"))[0] == 200
    sets = _PATHS["StatefulSet"].format(namespace)
    services = _PATHS["Service"].format(namespace)
    cluster.until("the StatefulSet is gone", lambda: not cluster.get(sets)["items"])
    cluster.until("the Services are gone", lambda: not cluster.get(services)["items"])
    assert [claim["metadata"]["name"] for claim in cluster.get(claims)["items"]] == ["data-orders-0"]
