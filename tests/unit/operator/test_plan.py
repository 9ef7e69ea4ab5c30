"""Observed state → plan and status, without a cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from requeue_operator.children import Manifest, children
from requeue_operator.plan import Observed, Plan, plan
from requeue_operator.status import changed, status_of, transitions

from tests.unit.operator.specs import OWNER, read

_NOW = "2026-01-02T03:04:05Z"
_WRONG = {"storage": {"size": "1Gi", "mode": "Shared", "onDelete": "Drain"}}


def _observed(
    spec: dict[str, Any],
    *,
    live: tuple[Manifest, ...] = (),
    claims: tuple[Manifest, ...] = (),
    status: Manifest | None = None,
) -> Observed:
    metadata = {"name": OWNER.name, "namespace": OWNER.namespace, "uid": OWNER.uid, "generation": 4}
    whole = {
        "replicas": 1,
        "nats": {"servers": ["nats"]},
        "storage": {"size": "1Gi", "onDelete": "Retain"},
        **spec,
    }
    queue = {"metadata": metadata, "spec": whole, "status": status or {"observedGeneration": -1}}
    return Observed(queue, {(each["kind"], each["metadata"]["name"]): each for each in live}, claims)


def _live(image: str = "requeue:1", **given: Any) -> tuple[Manifest, ...]:
    return tuple(children(OWNER, read(**given), image=image))


def _set(status: Manifest, **given: Any) -> Manifest:
    (live,) = [each for each in _live(**given) if each["kind"] == "StatefulSet"]
    live["metadata"]["generation"] = 2
    return {**live, "status": {"observedGeneration": 2, **status}}


def _claim(ordinal: int, size: str = "1Gi", phase: str = "Bound") -> Manifest:
    return {
        "metadata": {"name": f"data-orders-{ordinal}"},
        "spec": {"resources": {"requests": {"storage": size}}},
        "status": {"phase": phase},
    }


def _planned(observed: Observed) -> Plan:
    return plan(observed, "requeue:2", datetime(2026, 1, 2, tzinfo=UTC))


def _images(planned: Plan) -> list[str]:
    sets = [each for each in planned.apply if each["kind"] == "StatefulSet"]
    return [each["spec"]["template"]["spec"]["containers"][0]["image"] for each in sets]


def _conditions(observed: Observed) -> dict[str, tuple[str, str, str]]:
    planned = _planned(observed)
    status = status_of(observed, planned, planned.stall, _NOW)
    return {each["type"]: (each["status"], each["reason"], each["message"]) for each in status["conditions"]}


def test_an_upgrade_of_the_operator_keeps_the_image_of_a_fleet_that_runs() -> None:
    assert _images(_planned(_observed({}))) == ["requeue:2"]
    assert _images(_planned(_observed({}, live=_live("requeue:1")))) == ["requeue:1"]
    assert _images(_planned(_observed({"image": "mine:3"}, live=_live("requeue:1")))) == ["mine:3"]


def test_claim_templates_that_cannot_change_are_left_as_they_are() -> None:
    planned = _planned(_observed({"storage": {"size": "5Gi"}}, live=_live()))
    (claim,) = planned.apply[-1]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"


def test_what_is_no_longer_asked_for_is_deleted_if_it_is_ours() -> None:
    live = _live(networkPolicy={"enabled": True})
    assert [each["kind"] for each in _planned(_observed({}, live=live)).delete] == ["NetworkPolicy"]
    for each in live:
        if each["kind"] == "NetworkPolicy":
            each["metadata"]["ownerReferences"] = []
    assert _planned(_observed({}, live=live)).delete == ()


def test_paused_does_nothing() -> None:
    planned = _planned(_observed({"paused": True}, live=_live(networkPolicy={"enabled": True})))
    assert (planned.apply, planned.delete, planned.stall) == ((), (), None)


def test_ready_is_never_said_for_a_change_that_the_controller_has_not_seen() -> None:
    done = {
        "replicas": 1,
        "readyReplicas": 1,
        "updatedReplicas": 1,
        "currentRevision": "a",
        "updateRevision": "a",
    }
    assert _conditions(_observed({}, live=(_set(done),)))["Ready"][:2] == ("True", "WorkersReady")
    stale = {**done, "observedGeneration": 1}
    assert _conditions(_observed({}, live=(_set(stale),)))["Ready"][:2] == ("False", "Progressing")
    rolling = {**done, "updateRevision": "b", "updatedReplicas": 0}
    assert _conditions(_observed({}, live=(_set(rolling),)))["Reconciling"] == (
        "True",
        "Progressing",
        "0 of 1 pods are of the new revision",
    )


def test_of_the_three_conditions_of_kstatus_one_at_most_is_true() -> None:
    for spec, live in (({}, ()), (_WRONG, ()), ({"paused": True}, ()), ({"replicas": 0}, (_set({}),))):
        found = _conditions(_observed(spec, live=live))
        assert [found[each][0] for each in ("Ready", "Reconciling", "Stalled")].count("True") == 1, found


def test_volumes_are_told_by_their_ordinals() -> None:
    claims = tuple(_claim(ordinal) for ordinal in (10, 2, 0))
    storage = {"size": "1Gi", "onScaleDown": "Retain"}
    found = _conditions(_observed({"replicas": 2, "storage": storage}, claims=claims))["Drained"]
    assert found[:2] == ("False", "Retained")
    assert found[2].endswith(": data-orders-2, data-orders-10")


def test_volumes_that_are_gone_or_of_another_size_are_told() -> None:
    lost = _conditions(_observed({}, claims=(_claim(0, phase="Lost"),)))["StorageReady"]
    assert lost == ("False", "VolumeLost", "the volume is gone of data-orders-0")
    smaller = _conditions(_observed({"storage": {"size": "2Gi"}}, claims=(_claim(0),)))["StorageReady"]
    assert smaller == ("False", "Expanding", "data-orders-0: grows to 2Gi")


def test_a_paused_requeuequeue_expands_nothing() -> None:
    storage = {"size": "2Gi"}
    assert len(_planned(_observed({"storage": storage}, claims=(_claim(0),))).growing) == 1
    assert _planned(_observed({"storage": storage, "paused": True}, claims=(_claim(0),))).growing == ()


def test_a_status_that_says_the_same_is_not_written_again() -> None:
    first = _observed(_WRONG)
    planned = _planned(first)
    status = status_of(first, planned, planned.stall, _NOW)
    assert [event.reason for event in transitions(first, status)] == ["InvalidSpec"]
    again = _observed(_WRONG, status=status)
    later = status_of(again, planned, planned.stall, "2027-01-01T00:00:00Z")
    assert changed(again, later) == {}
    assert transitions(again, later) == []
