"""A PodMonitor where the cluster knows PodMonitors, and nothing wrong where it does not."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import OPERATOR, Operator, children, create_queue, has_condition, patch_spec

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_CRD = {
    "metadata": {
        "name": "podmonitors.monitoring.coreos.com",
        "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
    },
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {"kind": "PodMonitor", "listKind": "PodMonitorList", "plural": "podmonitors"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                },
            }
        ],
    },
}


def test_a_pod_monitor_is_made_once_the_cluster_knows_them(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    where = f"/apis/monitoring.coreos.com/v1/namespaces/{namespace}/podmonitors/orders"
    operator = Operator("requeue-operator", tmp_path / "operator.log")
    operator.start(cluster.kubeconfig(OPERATOR), namespace, resync_s=1)
    with operator:
        create_queue(cluster, namespace, podMonitor={"enabled": True})
        cluster.until("it is made", lambda: "statefulsets/orders" in children(cluster, namespace))
        cluster.until("it is fine", lambda: has_condition(cluster, namespace, "Stalled", "False"))
        assert cluster.request("POST", _CRDS, _CRD)[0] == 201
        try:
            cluster.until("the monitor is made", lambda: cluster.get(where))
            (endpoint,) = cluster.get(where)["spec"]["podMetricsEndpoints"]
            assert endpoint == {"port": "http", "path": "/metrics"}
            patch_spec(cluster, namespace, podMonitor={"enabled": False})
            cluster.until("it is gone", lambda: cluster.get(where) is None)
            cluster.until("it is fine", lambda: has_condition(cluster, namespace, "Stalled", "False"))
        finally:
            cluster.request("DELETE", f"{_CRDS}/podmonitors.monitoring.coreos.com")
