"""Pods, claims and events → what to do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from requeue_operator.children import Manifest
from requeue_operator.troubles import Scene, Trouble, concerned, is_in_trouble, trouble_of

_NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _pod(
    *, container: Manifest | None = None, conditions: tuple[Manifest, ...] = (), **metadata: Any
) -> Manifest:
    statuses = [] if container is None else [{"name": "worker", "image": "requeue:9", **container}]
    return {
        "metadata": {"name": "orders-0", "uid": "pod", **metadata},
        "spec": {"nodeName": "node-7"},
        "status": {"phase": "Pending", "conditions": list(conditions), "containerStatuses": statuses},
    }


def _waiting(reason: str, message: str = "what the kubelet says", **more: Any) -> Manifest:
    return _pod(container={"state": {"waiting": {"reason": reason, "message": message}}, **more})


def _event(reason: str, message: str, time: str = "2026-01-02T03:00:00Z") -> Manifest:
    return {"reason": reason, "message": message, "lastTimestamp": time}


def _trouble(
    *pods: Manifest,
    claims: tuple[Manifest, ...] = (),
    replicas: int = 1,
    **warnings: tuple[Manifest, ...],
) -> Trouble | None:
    live_set = {
        "metadata": {"name": "orders", "uid": "set"},
        "spec": {"replicas": replicas},
        "status": {"replicas": len(pods)},
    }
    return trouble_of(Scene(pods, claims, live_set, warnings), _NOW)


def _claim(phase: str) -> Manifest:
    return {"metadata": {"name": "data-orders-0", "uid": "claim"}, "status": {"phase": phase}}


_MISSING = 'MountVolume.SetUp failed for volume "credentials" : secret "nats" not found'
_NO_KEY = 'MountVolume.SetUp failed for volume "credentials" : references non-existent secret key: user.creds'


@pytest.mark.parametrize(
    ("found", "reason", "sentence"),
    [
        (_trouble(_pod(), pod=(_event("FailedMount", _MISSING),)), "SecretMissing", "no Secret nats in this"),
        (
            _trouble(_pod(), pod=(_event("FailedMount", _NO_KEY),)),
            "SecretMissing",
            "no key user.creds; add it",
        ),
        (
            _trouble(_pod(), pod=(_event("FailedMount", "disk gone"),)),
            "VolumeNotMounted",
            "mend it: disk gone",
        ),
        (
            _trouble(_waiting("ImagePullBackOff")),
            "ImagePullFailed",
            "image requeue:9 of orders-0 cannot be had",
        ),
        (_trouble(_waiting("InvalidImageName")), "ImagePullFailed", "correct spec.image"),
        (_trouble(_waiting("CreateContainerConfigError", "no user")), "PodRejected", "names: no user"),
        (
            _trouble(
                _waiting("CrashLoopBackOff", lastState={"terminated": {"exitCode": 2, "message": "a\nb"}})
            ),
            "WorkerCrashes",
            "exit code 2: its configuration is wrong; see kubectl logs orders-0 -c worker --previous: a b",
        ),
        (
            _trouble(set=(_event("FailedCreate", "pods is forbidden: exceeded quota: small"),)),
            "QuotaExceeded",
            "raise it, or ask for less",
        ),
        (
            _trouble(set=(_event("FailedCreate", "violates PodSecurity"),)),
            "PodRejected",
            "violates PodSecurity",
        ),
        (
            _trouble(
                _pod(), claims=(_claim("Pending"),), claim=(_event("ProvisioningFailed", "no class fast"),)
            ),
            "VolumeNotProvisioned",
            "mend its StorageClass: no class fast",
        ),
        (
            _trouble(_pod(deletionTimestamp="2026-01-02T03:03:00Z")),
            "PodLost",
            "node-7 does not answer. If that node is gone for good, tell Kubernetes so (kubectl delete node node-7)",
        ),
    ],
)
def test_each_trouble_says_what_to_do(found: Trouble | None, reason: str, sentence: str) -> None:
    assert found is not None
    assert (found.reason, found.is_final) == (reason, True)
    assert sentence in found.message


@pytest.mark.parametrize(
    "found",
    [
        _trouble(_pod()),
        _trouble(_waiting("ContainerCreating")),
        _trouble(_waiting("ErrImagePull")),  # the first attempt: the next one may succeed
        _trouble(_pod(deletionTimestamp="2026-01-02T03:04:00Z")),
        _trouble(_pod(container={"state": {"running": {}}}), pod=(_event("FailedMount", _MISSING),)),
        _trouble(_pod(), set=(_event("FailedCreate", "exceeded quota"),)),
        _trouble(_pod(), claims=(_claim("Bound"),), claim=(_event("ProvisioningFailed", "no class"),)),
        _trouble(_pod(), pod=(_event("Unhealthy", "probe failed"),)),
    ],
)
def test_what_is_on_its_way_or_mended_is_no_trouble(found: Trouble | None) -> None:
    assert found is None


def test_a_pod_without_a_node_waits_and_is_not_given_up() -> None:
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes",
    }
    found = _trouble(_pod(conditions=(unscheduled,)))
    assert found == Trouble("Unschedulable", "no node takes orders-0: 0/3 nodes", is_final=False)


def test_the_last_event_counts() -> None:
    events = (
        _event("FailedMount", _NO_KEY, "2026-01-02T03:03:00Z"),
        _event("FailedMount", _MISSING, "2026-01-02T03:01:00Z"),
    )
    found = _trouble(_pod(), pod=events)
    assert found is not None
    assert "user.creds" in found.message


def test_only_what_is_not_ready_is_asked_about_and_not_too_much() -> None:
    ready = {"type": "Ready", "status": "True"}
    pods = [_pod(uid=str(number), conditions=(ready,) if number % 2 else ()) for number in range(10)]
    live_set = {"metadata": {"uid": "set"}}
    assert concerned(pods, (_claim("Pending"), _claim("Bound")), live_set, 2) == ["set", "0", "2", "claim"]


def test_a_pod_that_tells_by_itself_is_noticed() -> None:
    assert is_in_trouble(_waiting("ImagePullBackOff"))
    assert is_in_trouble(_waiting("CrashLoopBackOff"))
    assert not is_in_trouble(_waiting("ContainerCreating"))
    assert not is_in_trouble({"metadata": {}})
