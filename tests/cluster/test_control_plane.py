"""The control plane that the other tests of this directory stand on."""

from __future__ import annotations

import time

from tests.cluster.control_plane import ControlPlane


def test_real_controllers_make_the_pods_of_a_stateful_set(cluster: ControlPlane, namespace: str) -> None:
    labels = {"app": "probe"}
    body = {
        "metadata": {"name": "probe"},
        "spec": {
            "replicas": 2,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "serviceName": "probe",
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [
                        {
                            "name": "probe",
                            "image": "none",
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"]},
                            },
                        }
                    ],
                },
            },
        },
    }
    status, answer = cluster.request("POST", f"/apis/apps/v1/namespaces/{namespace}/statefulsets", body)
    assert status == 201, answer

    deadline_s = time.monotonic() + 60
    names: list[str] = []
    while len(names) < 2 and time.monotonic() < deadline_s:
        names = [
            pod["metadata"]["name"] for pod in cluster.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        ]
    assert sorted(names) == ["probe-0", "probe-1"]
