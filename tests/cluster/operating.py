"""An operator as a child process, and what its tests ask the API server. Pods do not run: tests play their readiness."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from requeue_client.local import LocalProcess, find_executable

from tests.cluster.control_plane import ControlPlane
from tests.cluster.specs import path, requeue_queue

OPERATOR = "requeue-operator"
"""The user that operators log in as, with the rights that the chart ships and no others."""
SOME_NAMESPACES = "requeue-operator-of-some"
"""Another one, without rights until a test gives it some."""
MERGE = "application/merge-patch+json"


class Operator(LocalProcess):
    """`requeue-operator run`; without namespaces for all of them."""

    def start(self, kubeconfig: Path, *namespaces: str, http: str = "", resync_s: float = 600) -> None:
        argv = [
            str(find_executable("requeue-operator", "make install")),
            "run",
            "--image",
            "requeue:1",
            "--resync",
            str(resync_s),
        ]
        argv += [word for each in namespaces for word in ("--namespace", each)] or ["--all-namespaces"]
        argv += ["--http", http] if http else []
        environ = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(argv, env=environ, stdout=log, stderr=log)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def create_queue(cluster: ControlPlane, namespace: str, **spec: Any) -> None:
    status, answer = cluster.request("POST", path(namespace), requeue_queue(**spec))
    assert status == 201, answer


def patch_spec(cluster: ControlPlane, namespace: str, **spec: Any) -> None:
    status, answer = cluster.request("PATCH", path(namespace, "orders"), {"spec": spec}, MERGE)
    assert status == 200, answer


def condition(cluster: ControlPlane, namespace: str, kind: str) -> dict[str, Any]:
    """Of the generation that is there now; nothing before the operator has seen it."""
    queue = cluster.get(path(namespace, "orders"))
    if queue["status"].get("observedGeneration") != queue["metadata"]["generation"]:
        return {}
    return next((each for each in queue["status"]["conditions"] if each["type"] == kind), {})


def has_condition(cluster: ControlPlane, namespace: str, kind: str, status: str, reason: str = "") -> bool:
    found = condition(cluster, namespace, kind)
    return found.get("status") == status and reason in ("", found.get("reason"))


def children(cluster: ControlPlane, namespace: str) -> dict[str, Any]:
    """By kind and name: what the operator made, without what belongs to pods."""
    found = {}
    for kind in ("serviceaccounts", "configmaps", "services"):
        found.update(listed(cluster, kind, f"/api/v1/namespaces/{namespace}/{kind}"))
    found.update(listed(cluster, "statefulsets", f"/apis/apps/v1/namespaces/{namespace}/statefulsets"))
    budgets = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    found.update(listed(cluster, "poddisruptionbudgets", budgets))
    policies = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    found.update(listed(cluster, "networkpolicies", policies))
    return found


def listed(cluster: ControlPlane, kind: str, where: str) -> dict[str, Any]:
    items = cluster.get(f"{where}?labelSelector=app.kubernetes.io/managed-by=requeue-operator")["items"]
    return {f"{kind}/{item['metadata']['name']}": item for item in items}


def claims(cluster: ControlPlane, namespace: str) -> list[str]:
    items = cluster.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims")["items"]
    return sorted(item["metadata"]["name"] for item in items)


def make_pods_ready(
    cluster: ControlPlane, namespace: str, count: int, *, address: str = "", ready: bool = True
) -> None:
    """What a kubelet would do. `address`: the IP that they all have."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    cluster.until(f"{count} pods are made", lambda: len(cluster.get(pods)["items"]) == count)
    assert set(_report_pods(cluster, namespace, address, ready)) <= {200}


def make_those_there_ready(cluster: ControlPlane, namespace: str, *, address: str) -> None:
    """As `make_pods_ready`, while pods may come and go: one that goes meanwhile is no pod any more."""
    assert set(_report_pods(cluster, namespace, address, ready=True)) <= {200, 404}


def _report_pods(cluster: ControlPlane, namespace: str, address: str, ready: bool) -> list[int]:
    """Write the status of each pod that is there; what the API server answered."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    readiness = {"type": "Ready", "status": str(ready), "lastTransitionTime": now}
    status: dict[str, Any] = {"phase": "Running", "conditions": [readiness]}
    if address:
        status |= {"podIP": address, "podIPs": [{"ip": address}]}
    return [
        cluster.request("PATCH", f"{pods}/{pod['metadata']['name']}/status", {"status": status}, MERGE)[0]
        for pod in cluster.get(pods)["items"]
    ]
