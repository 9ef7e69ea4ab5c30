"""What the conditions say at each moment while specs and pods change, judged on every version that ever was."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from tests.argocd import health
from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import MERGE, OPERATOR, Operator, create_queue, has_condition, patch_spec
from tests.cluster.recording import Event, Recording, recorded
from tests.cluster.specs import path

_KINDS = ("requeuequeues", "statefulsets")
_KSTATUS = ("Ready", "Reconciling", "Stalled")


def _play_pods(cluster: ControlPlane, namespace: str, ready: bool) -> None:
    """What a kubelet would do, with the pods that there are just now."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": now}
    for pod in cluster.get(pods)["items"]:
        body = {"status": {"phase": "Running", "conditions": [condition]}}
        cluster.request("PATCH", f"{pods}/{pod['metadata']['name']}/status", body, MERGE)


def _of(recording: Recording, kind: str, namespace: str) -> list[Event]:
    events = [each for each in recording.events(kind) if each.object["metadata"]["namespace"] == namespace]
    return [each for each in events if each.type != "DELETED"]


def _is_complete(live_set: dict[str, Any], spec: dict[str, Any]) -> bool:
    status, (container,) = live_set["status"], live_set["spec"]["template"]["spec"]["containers"]
    return (
        status.get("observedGeneration", 0) >= live_set["metadata"]["generation"]
        and container["image"] == spec.get("image", "requeue:1")
        and live_set["spec"]["replicas"] == spec["replicas"]
        and status.get("replicas", 0) == status.get("readyReplicas", 0) == spec["replicas"]
        and status.get("updateRevision") == status.get("currentRevision")
    )


def test_it_is_ready_only_when_all_of_that_generation_is(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    chance = random.Random(7)
    operator = Operator("requeue-operator", tmp_path / "operator.log")
    operator.start(cluster.kubeconfig(OPERATOR), namespace)
    with operator, recorded(cluster, tmp_path, *_KINDS) as recording:
        create_queue(cluster, namespace, replicas=2)
        cluster.until("the recording has begun", lambda: _of(recording, "statefulsets", namespace))
        for number in range(25):
            change = chance.choice(("image", "replicas", "queues", "ready", "ready", "unready"))
            if change == "image":
                patch_spec(cluster, namespace, image=f"requeue:{number}")
            elif change == "replicas":
                patch_spec(cluster, namespace, replicas=chance.randint(1, 3))
            elif change == "queues":
                patch_spec(cluster, namespace, queues=[{"name": "a", "retries": number + 1}])
            else:
                _play_pods(cluster, namespace, change == "ready")
            time.sleep(chance.uniform(0, 1))

        def is_ready() -> bool:
            _play_pods(cluster, namespace, True)
            return has_condition(cluster, namespace, "Ready", "True")

        cluster.until("it is ready in the end", is_ready)
        last = int(cluster.get(path(namespace, "orders"))["metadata"]["resourceVersion"])
        cluster.until(
            "all is recorded", lambda: _of(recording, "requeuequeues", namespace)[-1].version >= last
        )
        queues = _of(recording, "requeuequeues", namespace)
        sets = _of(recording, "statefulsets", namespace)

    began: dict[int, int] = {}
    said_ready = 0
    for version, _, queue in queues:
        generation, status = queue["metadata"]["generation"], queue["status"]
        began.setdefault(generation, version)
        conditions = {each["type"]: each for each in status.get("conditions", [])}
        true = [kind for kind in _KSTATUS if conditions.get(kind, {}).get("status") == "True"]
        assert len(true) <= 1, (version, true)
        assert {each["observedGeneration"] for each in conditions.values()} <= {status["observedGeneration"]}
        assert status["observedGeneration"] <= generation
        is_of_now = status["observedGeneration"] == generation
        assert (health(queue)[0] == "Healthy") == (is_of_now and true == ["Ready"]), version
        if is_of_now and true == ["Ready"]:
            said_ready += 1
            # Pods may be another thing again a moment later: it was so once, before it was said.
            assert any(_is_complete(each.object, queue["spec"]) for each in sets if each.version < version), (
                version
            )
    assert said_ready
    assert len(began) > 5
