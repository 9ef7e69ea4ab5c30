"""Growing volumes on the real API server and controllers. The tests make the volumes and play their driver, which
reports sizes; the expansion itself is the driver's.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import (
    MERGE,
    OPERATOR,
    Operator,
    condition,
    create_queue,
    has_condition,
    patch_spec,
)
from tests.cluster.specs import path


def _storage_class(cluster: ControlPlane, name: str, grows: bool) -> None:
    body = {"metadata": {"name": name}, "provisioner": "example.com/none", "allowVolumeExpansion": grows}
    status, answer = cluster.request("POST", "/apis/storage.k8s.io/v1/storageclasses", body)
    assert status in (201, 409), answer


def _volumes(cluster: ControlPlane, namespace: str, storage_class: str, *ordinals: int) -> None:
    for ordinal in ordinals:
        spec = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/nowhere"},
            "storageClassName": storage_class,
            "claimRef": {"namespace": namespace, "name": f"data-orders-{ordinal}"},
        }
        body = {"metadata": {"name": f"{namespace}-{ordinal}"}, "spec": spec}
        status, answer = cluster.request("POST", "/api/v1/persistentvolumes", body)
        assert status == 201, answer


def _claims(cluster: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = cluster.get(_path(namespace))["items"]
    return sorted(items, key=lambda item: str(item["metadata"]["name"]))


def _path(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims" + (f"/{name}" if name else "")


def _requests(cluster: ControlPlane, namespace: str) -> list[str]:
    return [claim["spec"]["resources"]["requests"]["storage"] for claim in _claims(cluster, namespace)]


def _play_driver(cluster: ControlPlane, namespace: str, size: str) -> None:
    for claim in _claims(cluster, namespace):
        where = f"{_path(namespace, claim['metadata']['name'])}/status"
        assert cluster.request("PATCH", where, {"status": {"capacity": {"storage": size}}}, MERGE)[0] == 200


def _make(
    cluster: ControlPlane, namespace: str, storage_class: str, replicas: int, *, grows: bool = True
) -> None:
    _storage_class(cluster, storage_class, grows)
    _volumes(cluster, namespace, storage_class, *range(replicas))
    create_queue(cluster, namespace, replicas=replicas, storage={"storageClassName": storage_class})
    _until_bound(cluster, namespace, replicas)


def _until_bound(cluster: ControlPlane, namespace: str, count: int) -> None:
    def bound() -> bool:
        phases = [claim["status"].get("phase") for claim in _claims(cluster, namespace)]
        return phases == ["Bound"] * count

    cluster.until("the volumes are bound", bound)


def _reason(cluster: ControlPlane, namespace: str) -> str:
    return str(condition(cluster, namespace, "StorageReady").get("reason"))


@pytest.mark.usefixtures("operator")
def test_volumes_grow_also_those_of_pods_that_come_later(cluster: ControlPlane, namespace: str) -> None:
    _make(cluster, namespace, "growing", 2)
    stateful_set = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/orders"
    before = cluster.get(stateful_set)["metadata"]["uid"]
    patch_spec(cluster, namespace, storage={"size": "2Gi"})
    cluster.until("they ask for more", lambda: _requests(cluster, namespace) == ["2Gi", "2Gi"])
    cluster.until("it says so", lambda: _reason(cluster, namespace) == "Expanding")
    _play_driver(cluster, namespace, "2Gi")
    cluster.until("they have grown", lambda: has_condition(cluster, namespace, "StorageReady", "True"))

    _volumes(cluster, namespace, "growing", 2)
    patch_spec(cluster, namespace, replicas=3)
    cluster.until("the new one grows too", lambda: _requests(cluster, namespace) == ["2Gi"] * 3)
    _play_driver(cluster, namespace, "2Gi")
    cluster.until("it has grown", lambda: has_condition(cluster, namespace, "StorageReady", "True"))
    assert cluster.get(stateful_set)["metadata"]["uid"] == before

    def versions() -> list[str]:
        return [claim["metadata"]["resourceVersion"] for claim in _claims(cluster, namespace)]

    cluster.until_quiet(versions, 3)


def test_killed_after_any_of_the_writes_the_rest_is_done_at_the_next_start(
    cluster: ControlPlane, namespace: str, operator: Operator
) -> None:
    _make(cluster, namespace, "growing", 3)
    for written in range(4):
        operator.kill()
        size = f"{written + 2}Gi"
        patch_spec(cluster, namespace, storage={"size": size})
        for ordinal in range(written):
            body = {"spec": {"resources": {"requests": {"storage": size}}}}
            where = _path(namespace, f"data-orders-{ordinal}")
            assert cluster.request("PATCH", where, body, MERGE)[0] == 200
        operator.start(cluster.kubeconfig(OPERATOR))
        cluster.until(f"all ask for {size}", lambda size=size: _requests(cluster, namespace) == [size] * 3)
        _play_driver(cluster, namespace, size)
        cluster.until("they have grown", lambda: has_condition(cluster, namespace, "StorageReady", "True"))


@pytest.mark.usefixtures("operator")
def test_a_class_that_cannot_expand_is_told_and_mended(cluster: ControlPlane, namespace: str) -> None:
    _make(cluster, namespace, f"rigid-{namespace}", 1, grows=False)
    patch_spec(cluster, namespace, storage={"size": "2Gi"})
    cluster.until("it is told", lambda: _reason(cluster, namespace) == "NotExpandable")
    text = condition(cluster, namespace, "StorageReady")["message"]
    assert f"StorageClass rigid-{namespace} does not let volumes grow" in text
    assert "`allowVolumeExpansion: true`" in text
    assert has_condition(cluster, namespace, "Stalled", "False")
    events = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name=orders"
    cluster.until(
        "an event too", lambda: "NotExpandable" in [e["reason"] for e in cluster.get(events)["items"]]
    )

    where = f"/apis/storage.k8s.io/v1/storageclasses/rigid-{namespace}"
    assert cluster.request("PATCH", where, {"allowVolumeExpansion": True}, MERGE)[0] == 200
    cluster.until("it grows by itself", lambda: _requests(cluster, namespace) == ["2Gi"])


@pytest.mark.usefixtures("operator")
def test_a_quota_that_is_too_small_is_told_and_one_volume_grows(
    cluster: ControlPlane, namespace: str
) -> None:
    _make(cluster, namespace, "growing", 2)
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    body = {"metadata": {"name": "small"}, "spec": {"hard": {"requests.storage": "3Gi"}}}
    assert cluster.request("POST", quotas, body)[0] == 201
    cluster.until("the quota counts", lambda: cluster.get(f"{quotas}/small").get("status", {}).get("used"))
    patch_spec(cluster, namespace, storage={"size": "2Gi"})
    cluster.until("it is told", lambda: _reason(cluster, namespace) == "QuotaExceeded")
    assert sorted(_requests(cluster, namespace)) == ["1Gi", "2Gi"]
    assert "raise the quota" in condition(cluster, namespace, "StorageReady")["message"]
    cluster.request("PATCH", f"{quotas}/small", {"spec": {"hard": {"requests.storage": "4Gi"}}}, MERGE)
    cluster.until("it goes on by itself", lambda: _requests(cluster, namespace) == ["2Gi", "2Gi"])


@pytest.mark.usefixtures("operator")
def test_a_volume_does_not_shrink(cluster: ControlPlane, namespace: str) -> None:
    _make(cluster, namespace, "growing", 1)
    body = {"spec": {"storage": {"size": "512Mi"}}}
    status, answer = cluster.request("PATCH", path(namespace, "orders"), body, MERGE)
    assert status == 422
    assert "volumes cannot shrink; write the old size or a larger one" in answer["message"]
