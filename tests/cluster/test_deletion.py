"""What is left after a deletion, and that each deletion ends."""

from __future__ import annotations

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import (
    children,
    claims,
    create_queue,
    make_pods_ready,
    patch_spec,
)
from tests.cluster.specs import path

pytestmark = pytest.mark.usefixtures("operator")


def _make(cluster: ControlPlane, namespace: str, on_delete: str) -> None:
    storage = {"size": "1Gi", "onDelete": on_delete}
    create_queue(cluster, namespace, replicas=2, storage=storage)
    cluster.until("volumes are claimed", lambda: len(claims(cluster, namespace)) == 2)


def _delete(cluster: ControlPlane, namespace: str) -> None:
    assert cluster.request("DELETE", path(namespace, "orders"))[0] == 200
    cluster.until("it is gone", lambda: cluster.get(path(namespace, "orders")) is None)
    cluster.until("its children are gone", lambda: children(cluster, namespace) == {})


def test_with_retain_the_volumes_stay_and_a_successor_takes_them_up(
    cluster: ControlPlane, namespace: str
) -> None:
    _make(cluster, namespace, "Retain")
    where = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/data-orders-1"
    before = cluster.get(where)["metadata"]["uid"]
    _delete(cluster, namespace)
    assert claims(cluster, namespace) == ["data-orders-0", "data-orders-1"]
    _make(cluster, namespace, "Retain")
    make_pods_ready(cluster, namespace, 2)
    wait = ("wait", "--namespace", namespace, "--for=condition=Ready", "rq/orders", "--timeout=100s")
    cluster.kubectl(*wait)
    assert cluster.get(where)["metadata"]["uid"] == before


def test_with_delete_the_volumes_go_too(cluster: ControlPlane, namespace: str) -> None:
    _make(cluster, namespace, "Delete")
    _delete(cluster, namespace)
    cluster.until("the volumes are gone", lambda: claims(cluster, namespace) == [])


@pytest.mark.parametrize("on_delete", ["Retain", "Delete"])
def test_a_namespace_goes_with_everything_in_it(
    cluster: ControlPlane, namespace: str, on_delete: str
) -> None:
    _make(cluster, namespace, on_delete)
    patch_spec(cluster, namespace, replicas=1)
    where = f"/api/v1/namespaces/{namespace}"
    assert cluster.request("DELETE", where)[0] == 200
    cluster.until("the namespace is gone", lambda: cluster.get(where) is None)
