"""Autoscalers own `replicas` when the manifest leaves it out: the real HorizontalPodAutoscaler controller, real kubectl."""

from __future__ import annotations

import json

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.draining import replicas_of_set
from tests.cluster.specs import path, requeue_queue

pytestmark = pytest.mark.usefixtures("operator")


def _apply(cluster: ControlPlane, namespace: str, *flags: str) -> None:
    manifest = requeue_queue()
    assert "replicas" not in manifest["spec"]
    cluster.kubectl("apply", "--namespace", namespace, *flags, "-f", "-", stdin=json.dumps(manifest))


def _replicas(cluster: ControlPlane, namespace: str) -> int:
    return int(cluster.get(path(namespace, "orders"))["spec"]["replicas"])


@pytest.mark.parametrize("flags", [(), ("--server-side",)], ids=["client-side", "server-side"])
def test_applying_again_without_replicas_leaves_them_to_the_autoscaler(
    cluster: ControlPlane, namespace: str, flags: tuple[str, ...]
) -> None:
    _apply(cluster, namespace, *flags)
    cluster.until("one worker is asked for", lambda: replicas_of_set(cluster, namespace) == 1)
    scale = f"{path(namespace, 'orders')}/scale"
    found = cluster.get(scale)
    assert found["spec"]["replicas"] == 1
    found["spec"]["replicas"] = 3
    status, answer = cluster.request("PUT", scale, found)
    assert status == 200, answer
    cluster.until("the fleet grows", lambda: replicas_of_set(cluster, namespace) == 3)
    cluster.until("the scale tells it", lambda: cluster.get(scale)["status"]["replicas"] == 3)
    _apply(cluster, namespace, *flags)
    assert _replicas(cluster, namespace) == 3


def test_a_horizontal_pod_autoscaler_scales_the_fleet(cluster: ControlPlane, namespace: str) -> None:
    _apply(cluster, namespace)
    cluster.until("one worker is asked for", lambda: replicas_of_set(cluster, namespace) == 1)
    # No metrics server is needed to lift a fleet to the fewest that are allowed.
    autoscaler = {
        "metadata": {"name": "orders"},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "requeue.dev/v1alpha1",
                "kind": "RequeueQueue",
                "name": "orders",
            },
            "minReplicas": 2,
            "maxReplicas": 4,
        },
    }
    where = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
    status, answer = cluster.request("POST", where, autoscaler)
    assert status == 201, answer
    cluster.until("the autoscaler has scaled", lambda: _replicas(cluster, namespace) == 2)
    cluster.until("the fleet grows", lambda: replicas_of_set(cluster, namespace) == 2)
    _apply(cluster, namespace)
    assert _replicas(cluster, namespace) == 2
