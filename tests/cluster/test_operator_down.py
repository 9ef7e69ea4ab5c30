"""What goes on without the operator."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import OPERATOR, Operator, children, claims, create_queue
from tests.cluster.specs import path


def test_deletion_ends_while_the_operator_is_down_and_keeps_the_volumes(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    operator = Operator("requeue-operator", tmp_path / "operator.log")
    operator.start(cluster.kubeconfig(OPERATOR), namespace)
    create_queue(cluster, namespace)
    cluster.until("a volume is claimed", lambda: claims(cluster, namespace) == ["data-orders-0"])
    operator.kill()
    assert cluster.request("DELETE", path(namespace, "orders"))[0] == 200
    cluster.until("its children are gone", lambda: children(cluster, namespace) == {})
    assert cluster.get(path(namespace, "orders")) is None
    assert claims(cluster, namespace) == ["data-orders-0"]
