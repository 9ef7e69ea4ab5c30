"""Storage mode Shared on the real API server and controllers. What workers do on the one volume, tests/integration shows."""

from __future__ import annotations

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.draining import jobs
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
from tests.cluster.specs import path

pytestmark = pytest.mark.usefixtures("operator")


def _claim(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/orders-shared"


def _delete(cluster: ControlPlane, namespace: str) -> None:
    assert cluster.request("DELETE", path(namespace, "orders"))[0] == 200
    cluster.until("it is gone", lambda: cluster.get(path(namespace, "orders")) is None)
    cluster.until("its children are gone", lambda: children(cluster, namespace) == {})


def test_all_pods_have_the_one_claim_and_scaling_down_drains_nothing(
    cluster: ControlPlane, namespace: str
) -> None:
    create_queue(cluster, namespace, replicas=3, storage={"mode": "Shared"})
    make_pods_ready(cluster, namespace, 3)
    cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))
    uid = cluster.get(_claim(namespace))["metadata"]["uid"]
    patch_spec(cluster, namespace, replicas=1)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    cluster.until("it shrinks", lambda: len(cluster.get(pods)["items"]) == 1)
    cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))
    assert has_condition(cluster, namespace, "Drained", "True")
    assert (claims(cluster, namespace), jobs(cluster, namespace)) == (["orders-shared"], {})
    assert cluster.get(_claim(namespace))["metadata"]["uid"] == uid

    def versions() -> list[str]:
        live = [*children(cluster, namespace).values(), cluster.get(_claim(namespace))]
        return [
            each["metadata"]["resourceVersion"] for each in [*live, cluster.get(path(namespace, "orders"))]
        ]

    cluster.until_quiet(versions, 3)


def test_the_claim_stays_with_retain_and_goes_with_delete(cluster: ControlPlane, namespace: str) -> None:
    create_queue(cluster, namespace, storage={"mode": "Shared", "onDelete": "Delete"})
    cluster.until("it is claimed", lambda: cluster.get(_claim(namespace)))
    uid = cluster.get(_claim(namespace))["metadata"]["uid"]
    patch_spec(cluster, namespace, storage={"onDelete": "Retain"})
    cluster.until(
        "it is let go of", lambda: "ownerReferences" not in cluster.get(_claim(namespace))["metadata"]
    )
    _delete(cluster, namespace)
    assert cluster.get(_claim(namespace))["metadata"]["uid"] == uid

    create_queue(cluster, namespace, storage={"mode": "Shared", "onDelete": "Delete"})
    cluster.until("it is taken up", lambda: cluster.get(_claim(namespace))["metadata"].get("ownerReferences"))
    assert cluster.get(_claim(namespace))["metadata"]["uid"] == uid
    _delete(cluster, namespace)
    cluster.until("the claim goes too", lambda: claims(cluster, namespace) == [])


def test_a_claim_of_somebody_else_is_left_alone(cluster: ControlPlane, namespace: str) -> None:
    body = {
        "metadata": {"name": "orders-shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    where = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    assert cluster.request("POST", where, body)[0] == 201
    create_queue(cluster, namespace, storage={"mode": "Shared"})
    cluster.until("it is told", lambda: has_condition(cluster, namespace, "Stalled", "True", "NameTaken"))
    assert "PersistentVolumeClaim orders-shared" in condition(cluster, namespace, "Stalled")["message"]
    assert "labels" not in cluster.get(_claim(namespace))["metadata"]


def test_the_one_volume_grows(cluster: ControlPlane, namespace: str) -> None:
    storage_class = {
        "metadata": {"name": "growing"},
        "provisioner": "example.com/none",
        "allowVolumeExpansion": True,
    }
    assert cluster.request("POST", "/apis/storage.k8s.io/v1/storageclasses", storage_class)[0] in (201, 409)
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "hostPath": {"path": "/nowhere"},
        "storageClassName": "growing",
        "claimRef": {"namespace": namespace, "name": "orders-shared"},
    }
    volume = {"metadata": {"name": f"{namespace}-shared"}, "spec": spec}
    assert cluster.request("POST", "/api/v1/persistentvolumes", volume)[0] == 201
    create_queue(cluster, namespace, storage={"mode": "Shared", "storageClassName": "growing"})
    cluster.until("it is claimed", lambda: cluster.get(_claim(namespace)))
    cluster.until("it is bound", lambda: cluster.get(_claim(namespace))["status"].get("phase") == "Bound")
    patch_spec(cluster, namespace, storage={"size": "2Gi"})

    def request() -> str:
        return str(cluster.get(_claim(namespace))["spec"]["resources"]["requests"]["storage"])

    cluster.until("it asks for more", lambda: request() == "2Gi")
    capacity = {"status": {"capacity": {"storage": "2Gi"}}}
    assert cluster.request("PATCH", f"{_claim(namespace)}/status", capacity, MERGE)[0] == 200
    cluster.until("it has grown", lambda: has_condition(cluster, namespace, "StorageReady", "True"))
    assert has_condition(cluster, namespace, "Stalled", "False")
    assert request() == "2Gi"
