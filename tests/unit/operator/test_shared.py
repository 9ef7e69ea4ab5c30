"""Storage mode Shared: one claim for all pods, which outlives its RequeueQueue unless it is to go with it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from requeue_operator.children import Manifest, Owner, children
from requeue_operator.children.pod import pod_template
from requeue_operator.children.worker_config import DATA_DIR
from requeue_operator.expansion import growing, report
from requeue_operator.plan import Observed, Plan, plan

from tests.unit.operator.specs import OWNER, built, read


def _storage(**given: Any) -> dict[str, Any]:
    return {"storage": {"size": "1Gi", "mode": "Shared", **given}}


def _claim(size: str = "1Gi", **given: Any) -> Manifest:
    (claim,) = built("PersistentVolumeClaim", **_storage(**given))
    claim["spec"]["resources"]["requests"]["storage"] = size
    return {**claim, "status": {"phase": "Bound", "capacity": {"storage": size}}}


def _planned(live: tuple[Manifest, ...], owner: Owner = OWNER, **given: Any) -> Plan:
    metadata = {"name": owner.name, "namespace": owner.namespace, "uid": owner.uid, "generation": 1}
    queue = {
        "metadata": metadata,
        "spec": {"replicas": 2, "nats": {"servers": ["nats"]}, **_storage(**given)},
    }
    claims = tuple(each for each in live if each["kind"] == "PersistentVolumeClaim")
    by_key = {(each["kind"], each["metadata"]["name"]): each for each in live}
    return plan(Observed(queue, by_key, claims), "requeue:1", datetime(2026, 1, 2, tzinfo=UTC))


def test_each_pod_mounts_the_one_claim_and_has_none_of_its_own() -> None:
    (stateful_set,) = built("StatefulSet", **_storage())
    assert "volumeClaimTemplates" not in stateful_set["spec"]
    assert "persistentVolumeClaimRetentionPolicy" not in stateful_set["spec"]
    pod = pod_template(OWNER, read(**_storage()), "requeue:1")["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "data"]
    assert volume["persistentVolumeClaim"] == {"claimName": "orders-shared"}
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "data"]
    assert mount == {"name": "data", "mountPath": DATA_DIR}


def test_the_claim_is_of_many_nodes_and_made_before_the_pods() -> None:
    made = children(OWNER, read(**_storage(storageClassName="nfs")), image="requeue:1")
    kinds = [each["kind"] for each in made]
    assert kinds.index("PersistentVolumeClaim") < kinds.index("StatefulSet")
    claim = made[kinds.index("PersistentVolumeClaim")]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "nfs",
    }
    assert built("PersistentVolumeClaim") == []


def test_only_with_delete_does_the_claim_belong_to_the_requeuequeue() -> None:
    assert "ownerReferences" not in _claim()["metadata"]
    (owner,) = _claim(onDelete="Delete")["metadata"]["ownerReferences"]
    assert owner["uid"] == OWNER.uid


def test_a_successor_takes_up_the_claim_and_nobody_elses() -> None:
    successor = Owner(OWNER.name, OWNER.namespace, "another")
    assert _planned((_claim(),), successor).stall is None
    foreign = _claim()
    foreign["metadata"]["labels"] = {}
    stall = _planned((foreign,)).stall
    assert stall is not None
    assert (stall.reason, "PersistentVolumeClaim orders-shared" in stall.message) == ("NameTaken", True)


def test_it_grows_like_others_also_when_no_pod_runs_and_is_not_applied_larger() -> None:
    spec = read(replicas=0, **_storage(size="2Gi"))
    assert [each["metadata"]["name"] for each in growing(OWNER, spec, (_claim(),))] == ["orders-shared"]
    assert report(OWNER, spec, (_claim(),), {}).message == "orders-shared: grows to 2Gi"
    assert report(OWNER, spec, (_claim("2Gi"),), {}).status is True
    (applied,) = [
        each for each in _planned((_claim(),), size="2Gi").apply if "shared" in each["metadata"]["name"]
    ]
    assert applied["spec"]["resources"]["requests"]["storage"] == "1Gi"


def test_a_shared_volume_that_is_lost_is_told() -> None:
    lost = {**_claim(), "status": {"phase": "Lost"}}
    found = report(OWNER, read(**_storage()), (lost,), {})
    assert (found.reason, found.message) == ("VolumeLost", "the volume is gone of orders-shared")


def test_nothing_is_drained() -> None:
    planned = _planned((_claim(),))
    assert (planned.drains.actions, planned.drains.progress) == ((), ())
