"""`podTemplate` over the operator's own pod: merged as Kubernetes merges, with what can't be overridden refused.

Containers, volumes and variables are merged by name, mounts by path; other lists replace. Refused is whatever would
let two processes at the data, take the operator's hold on the workers away, or weaken the pod's security.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

from requeue_operator.api import PodTemplate
from requeue_operator.children.naming import OWN_LABELS, Manifest
from requeue_operator.children.pod import RESTRICTED, WORKER

_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
}
_OWN_PREFIX: Final = "requeue.dev/"
_OWN_VOLUMES: Final = frozenset({"data", "config", "credentials", "tmp"})
_WORKER_KEYS: Final = frozenset({"name", "resources", "env", "volumeMounts", "imagePullPolicy"})
_POD_SECURITY_KEYS: Final = frozenset(
    {"runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "supplementalGroups", "seLinuxOptions"}
)
_REFUSED: Final = {
    "terminationGracePeriodSeconds": "write spec.shutdownGrace",
    "restartPolicy": "workers are always restarted",
    "hostNetwork": "workers stay in their own network",
    "hostPID": "workers stay among their own processes",
    "hostIPC": "workers stay among their own processes",
    "hostname": "it is the name of the data's directory",
    "subdomain": "it is the name of the headless Service",
    "nodeName": "write a nodeSelector or an affinity",
    "automountServiceAccountToken": "workers do not talk to the Kubernetes API",
}


def overridden(template: Manifest, given: PodTemplate) -> Manifest:
    """`template` with `given` over it. Judge `refusals` first."""
    merged = copy.deepcopy(template)
    merged["metadata"]["labels"] = {**given.metadata.labels, **merged["metadata"]["labels"]}
    merged["metadata"]["annotations"] = {**given.metadata.annotations, **merged["metadata"]["annotations"]}
    merged["spec"] = _merge(merged["spec"], given.spec)
    for kind in ("containers", "initContainers"):
        for container in merged["spec"].get(kind, []):
            container["securityContext"] = _merge(RESTRICTED, container.get("securityContext", {}))
    return merged


def _merge(base: Any, over: Any, key: str = "") -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        merged = copy.deepcopy(base)
        for name, value in over.items():
            merged[name] = _merge(merged.get(name), value, name)
        return merged
    if key in _KEYS and isinstance(base, list) and isinstance(over, list):
        by = _KEYS[key]
        merged_items = {item.get(by): item for item in base}
        for item in over:
            merged_items[item.get(by)] = _merge(merged_items.get(item.get(by)), item)
        return list(merged_items.values())
    return copy.deepcopy(over)


def refusals(given: PodTemplate) -> list[str]:
    """A sentence for each thing that can't be overridden."""
    return [f"spec.podTemplate.{sentence}" for sentence in _refusals(given)]


def _refusals(given: PodTemplate) -> Iterator[str]:
    for key in given.metadata.labels:
        if key in OWN_LABELS or key.startswith(_OWN_PREFIX):
            yield f"metadata.labels: {key} is the operator's own; leave it out"
    for key in given.metadata.annotations:
        if key.startswith(_OWN_PREFIX):
            yield f"metadata.annotations: {key} is the operator's own; leave it out"
    for key in given.spec.keys() & _REFUSED.keys():
        yield f"spec.{key} can't be overridden: {_REFUSED[key]}"
    yield from _security_refusals(given.spec.get("securityContext"))
    for volume in _items(given.spec, "volumes"):
        name = volume.get("name")
        if name in _OWN_VOLUMES:
            yield f"spec.volumes: {name} is the operator's own; choose another name"
        if "hostPath" in volume:
            yield f"spec.volumes: {name} is a hostPath, which restricted Pod Security forbids"
    for kind in ("containers", "initContainers"):
        for container in _items(given.spec, kind):
            is_worker = kind == "containers" and container.get("name") == WORKER
            place = f"spec.{kind}[{container.get('name')}]"
            yield from (
                _worker_refusals(place, container) if is_worker else _sidecar_refusals(place, container)
            )


def _security_refusals(context: Any) -> Iterator[str]:
    if not isinstance(context, dict):
        return
    for key in context.keys() - _POD_SECURITY_KEYS:
        yield f"spec.securityContext.{key} can't be overridden: workers run under restricted Pod Security"
    if context.get("runAsUser") == 0:
        yield "spec.securityContext.runAsUser is 0; workers do not run as root"


def _worker_refusals(place: str, container: Manifest) -> Iterator[str]:
    for key in sorted(container.keys() - _WORKER_KEYS):
        hint = (
            "write spec.image"
            if key == "image"
            else f"it may have {', '.join(sorted(_WORKER_KEYS - {'name'}))}"
        )
        yield f"{place}.{key} can't be overridden: {hint}"
    for variable in _items(container, "env"):
        if str(variable.get("name")).startswith("REQUEUE_"):
            yield f"{place}.env: {variable['name']} would go over the configuration; write it into the spec"
    for mount in _items(container, "volumeMounts"):
        if mount.get("name") in _OWN_VOLUMES:
            yield f"{place}.volumeMounts: {mount['name']} is the operator's own; leave it out"


def _sidecar_refusals(place: str, container: Manifest) -> Iterator[str]:
    context = container.get("securityContext")
    context = context if isinstance(context, dict) else {}
    for key in sorted(
        context.keys() & {"privileged", "allowPrivilegeEscalation", "capabilities", "runAsNonRoot"}
    ):
        yield f"{place}.securityContext.{key} can't be overridden: pods run under restricted Pod Security"
    if any(mount.get("name") in ("data", "credentials") for mount in _items(container, "volumeMounts")):
        yield f"{place}.volumeMounts: data and credentials are for the worker alone"


def _items(node: Manifest, key: str) -> list[Manifest]:
    """The objects of a list; what is none of them is left to the API server."""
    value = node.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
