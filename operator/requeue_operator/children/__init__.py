"""What a RequeueQueue owns, as pure builders in one ordered list: spec in, manifests out.

Ordered so that what a pod needs is there before it is. Every manifest holds the fields that the operator wants and no
others: it is applied server-side, and what others add stays.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from requeue_operator.api import RequeueQueueSpec
from requeue_operator.children.naming import EMPTIED, Manifest, Owner
from requeue_operator.children.overrides import overridden
from requeue_operator.children.pod import pod_template
from requeue_operator.children.pull import PLAIN, Pull
from requeue_operator.children.worker_config import FILE, HTTP_PORT, config_text

__all__ = ["MONITORING", "Manifest", "Owner", "Pull", "children", "port_of"]

MONITORING = "monitoring.coreos.com/v1"
"""API of PodMonitors, which not every cluster has."""
_DEFAULT_PORTS = {"nats": 4222, "tls": 4222, "ws": 80, "wss": 443}


def children(
    owner: Owner,
    spec: RequeueQueueSpec,
    *,
    image: str,
    pull: Pull = PLAIN,
    volume_size: str | None = None,
    shared_size: str | None = None,
    intake: bool = True,
    is_emptied: bool = False,
) -> list[Manifest]:
    """Every child, in the order to apply. `volume_size` goes over the spec's where a StatefulSet has it already,
    since its claim templates cannot change; `shared_size` where the shared claim is there, which grows by itself.
    Without `intake` workers only deliver; `is_emptied` is noted at the StatefulSet.
    """
    monitor = [_pod_monitor(owner)] if spec.pod_monitor.enabled else []
    policy = [_network_policy(owner, spec)] if spec.network_policy.enabled else []
    return [
        owner.child("v1", "ServiceAccount", owner.service_account, automountServiceAccountToken=False),
        owner.child("v1", "ConfigMap", owner.config_map, data={FILE: config_text(owner, spec)}),
        _headless_service(owner),
        _metrics_service(owner),
        *policy,
        *monitor,
        _disruption_budget(owner),
        *([_shared_claim(owner, spec, shared_size)] if spec.storage.mode == "Shared" else []),
        _stateful_set(
            owner,
            spec,
            overridden(pod_template(owner, spec, image, pull=pull, intake=intake), spec.pod_template),
            volume_size or spec.storage.size,
            {**pull.note, **({EMPTIED: "true"} if is_emptied else {})},
        ),
    ]


def _headless_service(owner: Owner) -> Manifest:
    spec = {
        "clusterIP": "None",
        "selector": owner.selector,
        "publishNotReadyAddresses": True,
        "ports": [{"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"}],
    }
    return owner.child("v1", "Service", owner.name, spec=spec)


def _metrics_service(owner: Owner) -> Manifest:
    ports = [{"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"}]
    return owner.child(
        "v1", "Service", f"{owner.name}-metrics", spec={"selector": owner.selector, "ports": ports}
    )


def _pod_monitor(owner: Owner) -> Manifest:
    spec = {
        "selector": {"matchLabels": owner.selector},
        "podMetricsEndpoints": [{"port": "http", "path": "/metrics"}],
    }
    return owner.child(MONITORING, "PodMonitor", owner.name, spec=spec)


def _disruption_budget(owner: Owner) -> Manifest:
    # maxUnavailable, not minAvailable: with one replica that would block the drain of a node for ever.
    spec = {
        "maxUnavailable": 1,
        # All are unready while NATS is away, and what is on disk moves with the pod: that is no reason to block a node.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": owner.selector},
    }
    return owner.child("policy/v1", "PodDisruptionBudget", owner.name, spec=spec)


def _network_policy(owner: Owner, spec: RequeueQueueSpec) -> Manifest:
    dns = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    servers = [
        {"port": port, "protocol": "TCP"} for port in sorted({port_of(url) for url in spec.nats.servers})
    ]
    # Without the name of the pods: those of drain Jobs have to reach NATS too.
    pods = {key: value for key, value in owner.labels.items() if key != "app.kubernetes.io/name"}
    rules = {
        "podSelector": {"matchLabels": pods},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": [{"port": HTTP_PORT, "protocol": "TCP"}]}],
        "egress": [{"ports": [*dns, *servers]}],
    }
    return owner.child("networking.k8s.io/v1", "NetworkPolicy", owner.name, spec=rules)


def port_of(server: str) -> int:
    """Of a NATS server's URL."""
    url = urlsplit(server if "://" in server else f"nats://{server}")
    return url.port or _DEFAULT_PORTS[url.scheme]


def _shared_claim(owner: Owner, spec: RequeueQueueSpec, live_size: str | None) -> Manifest:
    """Owned by the RequeueQueue only if it is to go with it."""
    content = _claim_spec(spec, "ReadWriteMany", live_size or spec.storage.size)
    claim = owner.child("v1", "PersistentVolumeClaim", owner.shared_claim, spec=content)
    if spec.storage.on_delete != "Delete":
        del claim["metadata"]["ownerReferences"]
    return claim


def _claim_spec(spec: RequeueQueueSpec, access_mode: str, size: str) -> Manifest:
    claim: Manifest = {"accessModes": [access_mode], "resources": {"requests": {"storage": size}}}
    if spec.storage.storage_class_name is not None:
        claim["storageClassName"] = spec.storage.storage_class_name
    return claim


def _stateful_set(
    owner: Owner, spec: RequeueQueueSpec, template: Manifest, volume_size: str, annotations: dict[str, str]
) -> Manifest:
    content = {
        "replicas": spec.replicas,
        "serviceName": owner.name,
        "podManagementPolicy": "Parallel",  # immutable; and a worker that can't start holds no other one back
        "selector": {"matchLabels": owner.selector},
        "template": template,
        **({} if spec.storage.mode == "Shared" else _claim_of_each_pod(owner, spec, volume_size)),
    }
    made = owner.child("apps/v1", "StatefulSet", owner.name, spec=content)
    if annotations:
        made["metadata"]["annotations"] = annotations
    return made


def _claim_of_each_pod(owner: Owner, spec: RequeueQueueSpec, volume_size: str) -> Manifest:
    when_deleted = "Delete" if spec.storage.on_delete == "Delete" else "Retain"
    template = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "labels": owner.labels},
        "spec": _claim_spec(spec, "ReadWriteOnce", volume_size),
    }
    return {
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when_deleted, "whenScaled": "Retain"},
        "volumeClaimTemplates": [template],
    }
