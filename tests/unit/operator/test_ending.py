"""Deletion with onDelete Drain: each way on, and each way out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from requeue_operator.children import Manifest, children
from requeue_operator.children.naming import EMPTIED
from requeue_operator.drains.actions import Begin
from requeue_operator.ending import FINALIZER, Ending, finalizers
from requeue_operator.plan import Observed, Plan, plan
from requeue_operator.status import status_of

from tests.unit.operator.specs import OWNER, read

_DELETED = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
_TARGET = {"metadata": {"uid": "target-uid"}}


def _queue(**storage: Any) -> Manifest:
    metadata = {
        "name": OWNER.name,
        "namespace": OWNER.namespace,
        "uid": OWNER.uid,
        "generation": 4,
        "deletionTimestamp": "2026-01-02T03:00:00Z",
        "finalizers": [FINALIZER],
    }
    spec = {
        "replicas": 2,
        "nats": {"servers": ["nats"]},
        "storage": {"size": "1Gi", "onDelete": "Drain", **storage},
    }
    return {"metadata": metadata, "spec": spec, "status": {"observedGeneration": 4}}


def _set(replicas: int = 2, pods: int | None = None, **annotations: str) -> Manifest:
    (live,) = [each for each in children(OWNER, read(), image="requeue:1") if each["kind"] == "StatefulSet"]
    live["metadata"] |= {"generation": 7, "uid": "set", "annotations": annotations}
    live["spec"]["replicas"] = replicas
    return {**live, "status": {"observedGeneration": 7, "replicas": replicas if pods is None else pods}}


def _claim(ordinal: int) -> Manifest:
    return {
        "metadata": {"name": f"data-orders-{ordinal}", "uid": f"claim-{ordinal}", "resourceVersion": "1"},
        "spec": {"resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Bound"},
    }


def _planned(
    ending: Ending,
    live: Manifest | None,
    *claims: Manifest,
    queue: Manifest | None = None,
    after_s: float = 60,
) -> Plan:
    children_there = {} if live is None else {("StatefulSet", OWNER.name): live}
    observed = Observed(queue or _queue(), children_there, claims, ending=ending)
    return plan(observed, "requeue:1", _DELETED + timedelta(seconds=after_s))


def _worker_args(planned: Plan) -> list[str]:
    args: list[str] = planned.apply[-1]["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def _drained(planned: Plan, queue: Manifest | None = None) -> tuple[str, str, str]:
    observed = Observed(queue or _queue(), {("StatefulSet", OWNER.name): _set()}, ())
    conditions = status_of(observed, planned, planned.stall, "2026-01-02T03:04:05Z")["conditions"]
    (found,) = [each for each in conditions if each["type"] == "Drained"]
    return found["status"], found["reason"], found["message"]


def test_workers_deliver_and_take_nothing_in_until_nothing_is_left() -> None:
    planned = _planned(Ending(), _set(), _claim(0), _claim(1))
    assert planned.apply[-1]["spec"]["replicas"] == 2
    assert _worker_args(planned)[-2:] == ["--intake", "false"]
    assert (planned.release, planned.drains.actions, planned.growing) == (None, (), ())
    assert _drained(planned)[:2] == ("False", "Deleting")
    assert "2 workers deliver" in _drained(planned)[2]
    assert planned.course is not None
    assert planned.course.again_s == 30


def test_once_empty_the_workers_go_and_stay_away_also_when_nobody_can_say_it_again() -> None:
    planned = _planned(Ending(is_empty=True), _set(), _claim(0), _claim(1))
    assert planned.apply[-1]["spec"]["replicas"] == 0
    assert planned.apply[-1]["metadata"]["annotations"] == {EMPTIED: "true"}
    again = _planned(Ending(), _set(0, 0, **{EMPTIED: "true"}), _claim(0), _claim(1))
    assert again.apply[-1]["spec"]["replicas"] == 0
    assert again.apply[-1]["metadata"]["annotations"] == {EMPTIED: "true"}
    assert [type(action) for action in again.drains.actions] == [Begin, Begin]


def test_a_volume_is_not_drained_while_its_pod_may_be_there() -> None:
    assert _planned(Ending(is_empty=True), _set(2), _claim(0), _claim(1)).drains.actions == ()


@pytest.mark.parametrize("on_scale_down", ["Retain", "Drain"])
def test_volumes_kept_from_before_are_drained_too(on_scale_down: str) -> None:
    queue = _queue(onScaleDown=on_scale_down)
    planned = _planned(Ending(), _set(2), _claim(0), _claim(1), _claim(2), queue=queue)
    (action,) = planned.drains.actions
    assert isinstance(action, Begin)
    assert action.claim.name == "data-orders-2"


def test_it_is_released_when_all_volumes_are_gone_and_no_pod_makes_another() -> None:
    released = _planned(Ending(), _set(0, 0)).release
    assert released is not None
    assert (released.is_warning, released.reason) == (False, "Drained")
    for live in (_set(2), _set(0, 1), {**_set(0, 0), "status": {"observedGeneration": 6}}):
        assert _planned(Ending(), live).release is None
    assert _planned(Ending(), None).release is not None
    assert _planned(Ending(), None, _claim(0)).release is None


def test_with_a_target_everything_goes_to_its_workers_at_once() -> None:
    queue = _queue(drainTo="other")
    planned = _planned(Ending(target=_TARGET), _set(), _claim(0), queue=queue)
    assert planned.apply[-1]["spec"]["replicas"] == 0
    assert planned.course is not None
    assert planned.course.fleet == "target-uid"
    assert "handed over to the workers of other" in _drained(planned)[2]


def test_without_the_target_that_is_named_workers_deliver_and_it_is_told() -> None:
    planned = _planned(Ending(), _set(), _claim(0), queue=_queue(drainTo="other"))
    assert planned.apply[-1]["spec"]["replicas"] == 2
    assert _drained(planned)[:2] == ("False", "NoTarget")
    assert "there is no RequeueQueue other (drainTo): make it, or name another one" in _drained(planned)[2]


def test_after_the_timeout_it_is_released_and_says_what_stays() -> None:
    queue = _queue(drainTimeout="1m30s")
    waiting = _planned(Ending(), _set(), _claim(0), queue=queue, after_s=80)
    assert waiting.release is None
    assert waiting.course is not None
    assert waiting.course.again_s == 10
    released = _planned(Ending(), _set(), _claim(0), queue=queue, after_s=90).release
    assert released is not None
    assert (released.is_warning, released.reason) == (True, "DrainTimeout")
    assert released.message.endswith("data-orders-0")


def test_what_ends_the_waiting_at_once() -> None:
    goes = Ending(namespace_goes=True)
    for queue in (
        _queue(),
        _queue(minBackoff="wrong"),
        {**_queue(), "spec": {**_queue()["spec"], "paused": True}},
    ):
        released = _planned(goes, _set(), _claim(0), queue=queue).release
        assert released is not None
        assert released.reason == "NamespaceGoes"
    released = _planned(Ending(), _set(), _claim(0), queue=_queue(onDelete="Retain")).release
    assert released is not None
    assert released.message == "onDelete is Retain; volumes: data-orders-0"


def test_paused_it_waits_and_nothing_is_done() -> None:
    queue = _queue()
    queue["spec"]["paused"] = True
    planned = _planned(Ending(is_empty=True), _set(), _claim(0), queue=queue)
    assert (planned.apply, planned.drains.actions, planned.release) == ((), (), None)


def test_the_finalizer_is_there_with_drain_alone_and_leaves_others_alone() -> None:
    def of(there: list[str], **storage: Any) -> list[str] | None:
        queue = _queue(**storage)
        queue["metadata"]["finalizers"] = there
        return finalizers(queue)

    assert of([]) == [FINALIZER]
    assert of(["theirs"]) == ["theirs", FINALIZER]
    assert of([FINALIZER]) is None
    assert of(["theirs", FINALIZER], onDelete="Retain") == ["theirs"]
    assert of([], onDelete="Delete") is None
    assert of([], mode="Shared") is None
