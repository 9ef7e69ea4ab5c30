"""Why pods do not come up, in a sentence that says what to do. Pure: from pods, claims and their events.

Secrets are never read: the kubelet tells in the pod's events which one is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from requeue_operator.children import Manifest
from requeue_operator.children.pod import WORKER

_LOST_AFTER: Final = timedelta(seconds=60)
_LONGEST_QUOTE: Final = 500
_IMAGE_REASONS: Final = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_START_REASONS: Final = ("CrashLoopBackOff", "CreateContainerConfigError")
_SECRET: Final = re.compile(
    r'secret "(?P<name>[^"]+)" not found|references non-existent secret key: (?P<key>[^\s,;]+)'
)
_EXIT_CODES: Final = {
    2: "its configuration is wrong",
    3: "its data directory cannot be used",
}


@dataclass(frozen=True)
class Trouble:
    """A reason in one word, and a sentence. `is_final`: nothing goes on until somebody does something."""

    reason: str
    message: str
    is_final: bool = True


@dataclass(frozen=True)
class Scene:
    """The pods of a fleet, and warnings by the UID of what they are about: pods, claims and the StatefulSet."""

    pods: tuple[Manifest, ...]
    claims: tuple[Manifest, ...]
    stateful_set: Manifest
    warnings: Mapping[str, tuple[Manifest, ...]]


def concerned(
    pods: list[Manifest], claims: tuple[Manifest, ...], stateful_set: Manifest, most: int
) -> list[str]:
    """UIDs whose events are worth reading, at most so many: pods that are not ready, claims that are not bound."""
    waiting = [pod for pod in pods if not _is_ready(pod)]
    unbound = [claim for claim in claims if (claim.get("status") or {}).get("phase") == "Pending"]
    return [_uid(stateful_set), *(_uid(each) for each in (*waiting[:most], *unbound[:most]))]


def is_in_trouble(pod: Mapping[str, Any]) -> bool:
    """Whether a pod itself tells something that its StatefulSet does not."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    reasons = {((each.get("state") or {}).get("waiting") or {}).get("reason") for each in statuses}
    return not reasons.isdisjoint((*_IMAGE_REASONS, *_START_REASONS))


def trouble_of(scene: Scene, now: datetime) -> Trouble | None:
    """The one to mend first. None: there is none, or none to be seen yet."""
    found = [*_lost(scene, now), *_containers(scene), *_mounts(scene), *_claims(scene)]
    found += [*_refused(scene), *_unscheduled(scene)]
    return next(iter(found), None)


def _lost(scene: Scene, now: datetime) -> Iterator[Trouble]:
    for pod in scene.pods:
        until = pod["metadata"].get("deletionTimestamp")
        if until is None or now - _time(until) < _LOST_AFTER:
            continue
        node = pod["spec"].get("nodeName", "its node")
        yield Trouble(
            "PodLost",
            f"{_name(pod)} was to end at {until} and has not: {node} does not answer. If that node is gone for good, tell "
            f"Kubernetes so (kubectl delete node {node}); see the runbook of a lost node in docs/operator.md",
        )


def _containers(scene: Scene) -> Iterator[Trouble]:
    for pod in scene.pods:
        for container in (pod.get("status") or {}).get("containerStatuses") or []:
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason, text = waiting.get("reason"), _quote(waiting.get("message"))
            if reason in _IMAGE_REASONS:
                what = f"the image {container.get('image')} of {_name(pod)} cannot be had"
                yield Trouble(
                    "ImagePullFailed", f"{what}; correct spec.image, or give access to its registry: {text}"
                )
            elif reason == "CrashLoopBackOff":
                yield Trouble("WorkerCrashes", _crash(pod, container))
            elif reason == "CreateContainerConfigError":
                yield Trouble(
                    "PodRejected", f"the kubelet cannot start {_name(pod)}; mend what it names: {text}"
                )


def _crash(pod: Manifest, container: Mapping[str, Any]) -> str:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    code = ended.get("exitCode")
    why = f": {_EXIT_CODES[code]}" if container.get("name") == WORKER and code in _EXIT_CODES else ""
    told = f": {_quote(ended['message'])}" if ended.get("message") else ""
    see = f"kubectl logs {_name(pod)} -c {container.get('name')} --previous"
    return f"{container.get('name')} in {_name(pod)} ends again and again with exit code {code}{why}; see {see}{told}"


def _mounts(scene: Scene) -> Iterator[Trouble]:
    for pod in scene.pods:
        warning = _last(scene, pod, "FailedMount")
        if warning is None or _has_begun(pod):
            continue
        text = _quote(warning.get("message"))
        missing = _SECRET.search(text)
        if missing is None:
            yield Trouble("VolumeNotMounted", f"a volume of {_name(pod)} cannot be mounted; mend it: {text}")
        elif missing["key"]:
            yield Trouble(
                "SecretMissing", f"a Secret has no key {missing['key']}; add it, or name another: {text}"
            )
        else:
            yield Trouble(
                "SecretMissing", f"there is no Secret {missing['name']} in this namespace; create it: {text}"
            )


def _claims(scene: Scene) -> Iterator[Trouble]:
    for claim in scene.claims:
        warning = _last(scene, claim, "ProvisioningFailed")
        if warning is not None and (claim.get("status") or {}).get("phase") == "Pending":
            text = _quote(warning.get("message"))
            yield Trouble(
                "VolumeNotProvisioned", f"no volume is made for {_name(claim)}; mend its StorageClass: {text}"
            )


def _refused(scene: Scene) -> Iterator[Trouble]:
    told = scene.stateful_set.get("status") or {}
    warning = _last(scene, scene.stateful_set, "FailedCreate")
    if warning is None or told.get("replicas", 0) >= scene.stateful_set["spec"]["replicas"]:
        return
    text = _quote(warning.get("message"))
    if "exceeded quota" in text:
        yield Trouble("QuotaExceeded", f"the namespace's quota is used up; raise it, or ask for less: {text}")
    else:
        yield Trouble(
            "PodRejected", f"the API server refuses a pod or its claim; change what it names: {text}"
        )


def _unscheduled(scene: Scene) -> Iterator[Trouble]:
    for pod in scene.pods:
        for each in (pod.get("status") or {}).get("conditions") or []:
            if each["type"] == "PodScheduled" and each.get("reason") == "Unschedulable":
                text = _quote(each.get("message"))
                # Not final: a node that an autoscaler adds helps.
                yield Trouble("Unschedulable", f"no node takes {_name(pod)}: {text}", is_final=False)


def _last(scene: Scene, about: Manifest, reason: str) -> Manifest | None:
    warnings = [each for each in scene.warnings.get(_uid(about), ()) if each.get("reason") == reason]
    return max(warnings, key=_when, default=None)


def _when(event: Manifest) -> str:
    series = (event.get("series") or {}).get("lastObservedTime")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or "")


def _has_begun(pod: Manifest) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return any((each.get("state") or {}).keys() & {"running", "terminated"} for each in statuses)


def _is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _quote(text: object) -> str:
    return " ".join(str(text or "no reason is told").split())[:_LONGEST_QUOTE]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def _name(live: Manifest) -> str:
    return str(live["metadata"]["name"])


def _uid(live: Manifest) -> str:
    return str(live["metadata"]["uid"])
