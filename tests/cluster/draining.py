"""What a kubelet and `requeue-worker drain` would do: drain pods end, with a termination message as the worker writes it."""

from __future__ import annotations

import time
from typing import Any

from requeue_operator.drains import JOB_LABELS
from requeue_operator.drains.claim import MARKS
from requeue_worker.drain.proof import Proof, Remains

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import MERGE, children

VOLUME = "0d7e6f0e-identity"
"""The identity of every volume, unless a test says otherwise."""
_SELECTOR = ",".join(f"{key}={value}" for key, value in JOB_LABELS.items())


def claims_by_name(cluster: ControlPlane, namespace: str) -> dict[str, dict[str, Any]]:
    items = cluster.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims")["items"]
    return {item["metadata"]["name"]: item for item in items}


def uids(cluster: ControlPlane, namespace: str) -> dict[str, str]:
    return {name: each["metadata"]["uid"] for name, each in claims_by_name(cluster, namespace).items()}


def marks(cluster: ControlPlane, namespace: str) -> dict[str, dict[str, str]]:
    """What drains have written on the claims, by their names; nothing of those that have none."""
    found = {}
    for name, claim in claims_by_name(cluster, namespace).items():
        written = claim["metadata"].get("annotations") or {}
        own = {key: value for key, value in written.items() if key in MARKS}
        if own:
            found[name] = own
    return found


def jobs(cluster: ControlPlane, namespace: str) -> dict[str, dict[str, Any]]:
    items = cluster.get(f"/apis/batch/v1/namespaces/{namespace}/jobs")["items"]
    return {item["metadata"]["name"]: item for item in items}


def drain_pods(cluster: ControlPlane, namespace: str) -> dict[str, dict[str, Any]]:
    """Those that have not ended, by the claim that they drain."""
    items = cluster.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={_SELECTOR}")["items"]
    alive = [pod for pod in items if pod["status"].get("phase") not in ("Succeeded", "Failed")]
    return {_claim(pod): pod for pod in alive if "deletionTimestamp" not in pod["metadata"]}


def _claim(pod: dict[str, Any]) -> str:
    (data,) = (each for each in pod["spec"]["volumes"] if each["name"] == "data")
    return str(data["persistentVolumeClaim"]["claimName"])


def told(pod: dict[str, Any], flag: str) -> str:
    """What the drain was given as `flag`."""
    args = pod["spec"]["containers"][0]["args"]
    return str(args[args.index(flag) + 1])


def proof(pod: dict[str, Any], **other: Any) -> Proof:
    """What the worker says that has found nothing left, with `other` over it."""
    said = {"volume": VOLUME, "nonce": told(pod, "--nonce"), "fleet": told(pod, "--fleet"), "dry_run": False}
    return Proof(**{**said, **other})


def remains(reason: str, messages: int | None = 3) -> list[Remains]:
    return [Remains("orders-1", reason, "it is so", messages)]


def end(
    cluster: ControlPlane, pod: dict[str, Any], said: Proof | str, exit_code: int | None = None
) -> tuple[int, Any]:
    """The pod ends. Its exit code is the one of the proof, unless a test says otherwise."""
    code = said.exit_code if isinstance(said, Proof) and exit_code is None else exit_code
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    terminated = {
        "exitCode": code,
        "reason": "Error" if code else "Completed",
        "message": said.encode() if isinstance(said, Proof) else said,
        "startedAt": now,
        "finishedAt": now,
    }
    container = {
        "name": "drain",
        "image": "requeue:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": terminated},
    }
    status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}
    metadata = pod["metadata"]
    where = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
    return cluster.request("PATCH", where, {"metadata": {"uid": metadata["uid"]}, "status": status}, MERGE)


def until_draining(cluster: ControlPlane, namespace: str, *names: str) -> dict[str, dict[str, Any]]:
    """Wait for the drain pods of these claims, and of no others."""
    cluster.until(
        f"{', '.join(names) or 'nothing'} is drained",
        lambda: sorted(drain_pods(cluster, namespace)) == sorted(names),
    )
    return drain_pods(cluster, namespace)


def replicas_of_set(cluster: ControlPlane, namespace: str) -> int:
    live = children(cluster, namespace).get("statefulsets/orders")
    return -1 if live is None else int(live["spec"]["replicas"])
