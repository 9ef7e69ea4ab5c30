"""The workers' pod, before `podTemplate` goes over it: restricted Pod Security, read-only root, spread out."""

from __future__ import annotations

import math
from typing import Any, Final

from requeue_protocol.durations import NS_PER_S

from requeue_operator.api import RequeueQueueSpec
from requeue_operator.children.naming import Manifest, Owner
from requeue_operator.children.pull import PLAIN, Pull
from requeue_operator.children.worker_config import (
    CONFIG_DIR,
    CREDENTIALS_DIR,
    DATA_DIR,
    FILE,
    HTTP_PORT,
    restart_hash,
    secret_files,
)

WORKER: Final = "worker"
CONFIG_HASH: Final = "requeue.dev/config-hash"
RESTRICTED: Final[Manifest] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_USER: Final = 65532
# The store and the NATS connection are closed after the grace period, whose end a silent server can delay by 6 s.
_BEYOND_GRACE_S: Final = 15


def pod_template(
    owner: Owner, spec: RequeueQueueSpec, image: str, *, pull: Pull = PLAIN, intake: bool = True
) -> Manifest:
    """metadata and spec of the pods. Without `intake` they take in no new messages."""
    spread = [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": owner.selector},
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]
    return {
        "metadata": {"labels": owner.labels, "annotations": {CONFIG_HASH: restart_hash(owner, spec)}},
        "spec": {
            "serviceAccountName": owner.service_account,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": math.ceil(spec.shutdown_grace_ns / NS_PER_S) + _BEYOND_GRACE_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **pull.of_pod,
            "topologySpreadConstraints": spread,
            "containers": [_worker(spec, image, pull, intake)],
            "volumes": _volumes(owner, spec),
        },
    }


def _worker(spec: RequeueQueueSpec, image: str, pull: Pull, intake: bool) -> Manifest:
    mounts: list[dict[str, Any]] = [
        {"name": "data", "mountPath": DATA_DIR},
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if secret_files(spec.nats):
        # The directory, without subPath: only then do the files follow the Secrets.
        mounts.append({"name": "credentials", "mountPath": CREDENTIALS_DIR, "readOnly": True})
    return {
        "name": WORKER,
        "image": image,
        **pull.of_container,
        "command": ["requeue-worker"],
        # A flag, not the ConfigMap: a pod with it is known to go by it.
        "args": ["run", "--config", f"{CONFIG_DIR}/{FILE}", *([] if intake else ["--intake", "false"])],
        "ports": [{"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"}],
        "volumeMounts": mounts,
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        # A long log is replayed before the store is open: that is no reason to be killed.
        "startupProbe": _probe("/livez", period_s=5, failures=120),
        "readinessProbe": _probe("/readyz", period_s=5, failures=2),
        "livenessProbe": _probe("/livez", period_s=10, failures=6),
    }


def _probe(path: str, *, period_s: int, failures: int) -> Manifest:
    get = {"path": path, "port": "http", "scheme": "HTTP"}
    return {"httpGet": get, "periodSeconds": period_s, "timeoutSeconds": 5, "failureThreshold": failures}


def _volumes(owner: Owner, spec: RequeueQueueSpec) -> list[Manifest]:
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": owner.config_map}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]
    if spec.storage.mode == "Shared":
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": owner.shared_claim}})
    files = secret_files(spec.nats)
    if files:
        sources = [
            {"secret": {"name": each.secret_name, "items": [{"key": each.key, "path": file}]}}
            for file, each in files.items()
        ]
        volumes.append({"name": "credentials", "projected": {"sources": sources, "defaultMode": 0o440}})
    return volumes
