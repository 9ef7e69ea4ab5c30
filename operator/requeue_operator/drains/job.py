"""The Job that drains one claim: the workers' pod, with another command, and the claim as its data."""

from __future__ import annotations

from typing import Final

from requeue_operator.api import RequeueQueueSpec
from requeue_operator.children.naming import MANAGER, Manifest, Owner
from requeue_operator.children.overrides import overridden
from requeue_operator.children.pod import WORKER, pod_template
from requeue_operator.children.pull import PLAIN, Pull
from requeue_operator.children.worker_config import CONFIG_DIR, DATA_DIR, FILE
from requeue_operator.drains.claim import NONCE, Claim

CONTAINER: Final = "drain"
PROOF_FILE: Final = "/dev/termination-log"
# A drain gives up by itself when it gets no further; this ends one whose node or image keeps it from that. It resumes.
_LONGEST_S: Final = 3600
_NAME: Final = "app.kubernetes.io/name"
# Not the workers' name: their Services, disruption budget and StatefulSet would take the pod for one of theirs.
JOB_LABELS: Final = {_NAME: "nats-requeue-drain", "app.kubernetes.io/managed-by": MANAGER}
_OF_WORKERS_ALONE: Final = ("ports", "startupProbe", "readinessProbe", "livenessProbe")


def job_name(owner: Owner, claim: Claim) -> str:
    """One for each claim: two Jobs never drain one claim at a time."""
    return f"{owner.name}-drain-{claim.ordinal}"


def drain_job(
    owner: Owner,
    spec: RequeueQueueSpec,
    image: str,
    claim: Claim,
    nonce: str,
    fleet: str,
    pull: Pull = PLAIN,
) -> Manifest:
    """The manifest. It runs once: whether to try again is judged on what it told. `fleet`: whose workers are to take the
    messages.
    """
    job = owner.child("batch/v1", "Job", job_name(owner, claim))
    labels = {**owner.labels, **JOB_LABELS}
    job["metadata"] |= {"labels": labels, "annotations": {NONCE: nonce}}
    template = overridden(pod_template(owner, spec, image, pull=pull), spec.pod_template)
    pod = template["spec"]
    (worker,) = (each for each in pod["containers"] if each["name"] == WORKER)
    container = {key: value for key, value in worker.items() if key not in _OF_WORKERS_ALONE} | {
        "name": CONTAINER,
        "args": [
            *("drain", "--config", f"{CONFIG_DIR}/{FILE}", "--data-dir", DATA_DIR),
            *("--fleet", fleet, "--nonce", nonce, "--proof-file", PROOF_FILE),
        ],
        "terminationMessagePath": PROOF_FILE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    # Sidecars would never end; init containers may be what the network needs.
    pod |= {"containers": [container], "restartPolicy": "Never"}
    pod.pop("topologySpreadConstraints", None)
    pod["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": claim.name}})
    metadata = {
        "labels": {**template["metadata"]["labels"], **labels},
        "annotations": {**template["metadata"]["annotations"], NONCE: nonce},
    }
    job["spec"] = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": _LONGEST_S,
        "podReplacementPolicy": "Failed",
        "template": {"metadata": metadata, "spec": pod},
    }
    return job
