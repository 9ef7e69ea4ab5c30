"""`kubectl requeue reap --dry-run`: each verdict, from live objects alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from requeue_operator.children import Manifest
from requeue_operator.drains import JOB_LABELS
from requeue_operator.drains.claim import BEGAN, NONCE, SET, Claim
from requeue_operator.drains.job import drain_job
from requeue_operator.ending import FINALIZER
from requeue_operator.plugin.look import Fleet, Surroundings
from requeue_operator.plugin.volumes import Verdict, drains_of, left_behind, verdicts
from requeue_worker.drain.proof import Proof

from tests.unit.operator.specs import OWNER, read

_NOW = datetime(2026, 1, 2, 3, 1, tzinfo=UTC)
_GOING = "2026-01-02T03:00:00Z"
_OF_OWNER = [{"uid": OWNER.uid, "controller": True}]


def _claim(ordinal: int = 1, name: str = "", **marks: str) -> Manifest:
    metadata = {
        "name": name or f"data-orders-{ordinal}",
        "uid": f"claim-{ordinal}",
        "labels": OWNER.labels,
        "annotations": marks,
    }
    return {"metadata": metadata, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}


def _marked(nonce: str = "claim-1.abc") -> Manifest:
    return _claim(1, **{NONCE: nonce, SET: "set.7", BEGAN: _GOING})


def _job() -> Manifest:
    job = drain_job(OWNER, read(), "requeue:1", Claim(_claim(1), 1), "claim-1.abc", OWNER.uid)
    job["metadata"] |= {"uid": "job", "creationTimestamp": _GOING}
    return job


def _pod(said: str | None = None) -> Manifest:
    status: Manifest = {"phase": "Running" if said is None else "Succeeded"}
    if said is not None:
        ended = {"exitCode": 0, "message": said, "finishedAt": _GOING}
        status["containerStatuses"] = [{"name": "drain", "state": {"terminated": ended}}]
    metadata = {
        "name": "orders-drain-1-x",
        "labels": {**OWNER.labels, **JOB_LABELS},
        "ownerReferences": [{"uid": "job", "controller": True}],
        "creationTimestamp": _GOING,
    }
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data-orders-1"}}]
    return {"metadata": metadata, "spec": {"volumes": volumes}, "status": status}


def _fleet(
    *claims: Manifest,
    jobs: tuple[Manifest, ...] = (),
    pods: tuple[Manifest, ...] = (),
    metadata: dict[str, Any] | None = None,
    storage: dict[str, Any] | None = None,
    **spec: Any,
) -> Fleet:
    """Scaled down to one worker, unless `spec` says otherwise."""
    given = {
        "nats": {"servers": ["nats://nats:4222"]},
        "replicas": 1,
        **spec,
        "storage": {"size": "1Gi", **(storage or {})},
    }
    own = {"name": OWNER.name, "namespace": OWNER.namespace, "uid": OWNER.uid, **(metadata or {})}
    queue = {"metadata": own, "spec": given}
    live_set = {
        "metadata": {"name": OWNER.name, "uid": "set", "generation": 7, "ownerReferences": _OF_OWNER},
        "spec": {
            "replicas": given["replicas"],
            "template": {"spec": {"containers": [{"name": "worker", "image": "requeue:1"}]}},
        },
        "status": {"observedGeneration": 7},
    }
    return Fleet(queue, Surroundings(OWNER.namespace, (queue,), (live_set,), claims, jobs, pods))


def _judged(fleet: Fleet) -> list[tuple[str, str]]:
    return [(each.would, each.why) for each in verdicts(fleet, _NOW)]


def _first(fleet: Fleet) -> Verdict:
    return next(iter(verdicts(fleet, _NOW)))


def test_a_volume_with_a_worker_is_kept_and_one_without_is_drained() -> None:
    assert _judged(_fleet(_claim(0), _claim(1))) == [
        ("keep", "a worker of the fleet uses it"),
        ("drain", "no worker uses it: a drain begins"),
    ]
    assert _judged(_fleet(_marked())) == [("drain", "no worker uses it: Job orders-drain-1 is made")]


def test_one_that_is_being_drained_waits_and_is_deleted_on_its_proof() -> None:
    running = _fleet(_marked(), jobs=(_job(),), pods=(_pod(),))
    assert _judged(running) == [("wait", "Job orders-drain-1 drains it")]
    (row,) = drains_of(running, _NOW)
    assert (row["state"], row["job"], row["since"]) == ("Draining", "orders-drain-1", _GOING)

    said = Proof(volume="0d7e", nonce="claim-1.abc", fleet=OWNER.uid, dry_run=False).encode()
    proved = _fleet(_marked(), jobs=(_job(),), pods=(_pod(said),))
    assert _judged(proved) == [("delete", "its drain has proved that nothing remains on it")]
    lied = _fleet(_marked("claim-1.another"), jobs=(_job(),), pods=(_pod(said),))
    assert [would for would, _ in _judged(lied)] == ["take back"]


def test_a_drain_is_taken_back_when_the_fleet_grows_into_its_volume() -> None:
    grown = _fleet(_marked(), jobs=(_job(),), pods=(_pod(),), replicas=2)
    assert _judged(grown) == [("take back", "its drain is being taken back")]
    assert [row["state"] for row in drains_of(grown, _NOW)] == ["TakenBack"]


def test_what_is_to_stay_is_kept_with_the_reason() -> None:
    retained = _fleet(_claim(1), storage={"onScaleDown": "Retain"})
    assert _judged(retained) == [("keep", "storage.onScaleDown is Retain; scale up to use it again")]
    at_zero = _first(_fleet(_claim(1), replicas=0))
    assert (at_zero.would, at_zero.why[:42]) == ("keep", "no worker is asked for (replicas: 0), so n")
    assert _judged(_fleet(_claim(1), paused=True)) == [("keep", "paused: the operator changes nothing")]
    shared = _first(_fleet(_claim(0, name="orders-shared"), storage={"mode": "Shared"}))
    assert (shared.would, shared.why[:34]) == ("keep", "all workers of the fleet share it;")
    stalled = _first(_fleet(_claim(1), queues=[{"name": "slow", "minBackoff": "2h"}]))
    assert stalled.would == "keep"
    assert stalled.why.startswith("the operator is stalled: InvalidSpec: ")


def test_of_a_deletion_it_says_which_volumes_go() -> None:
    going = {"deletionTimestamp": _GOING}
    assert _first(_fleet(_claim(0), metadata=going)).would == "keep"
    assert _first(_fleet(_claim(0), metadata=going, storage={"onDelete": "Delete"})).would == "delete"
    held = {**going, "finalizers": [FINALIZER]}
    delivering = _fleet(_claim(0), metadata=held, storage={"onDelete": "Drain"})
    assert _first(delivering).would == "keep"
    late = _fleet(_claim(0), metadata=held, storage={"onDelete": "Drain", "drainTimeout": "10s"})
    assert _first(late).why.startswith("the deletion waits no longer: not drained within drainTimeout (10s)")


def test_a_volume_whose_requeuequeue_is_gone_is_kept() -> None:
    around = Surroundings(OWNER.namespace, (), (), (_claim(0),), (), ())
    (left,) = left_behind(around)
    assert (left.name, left.claim, left.would) == ("orders", "data-orders-0", "keep")
