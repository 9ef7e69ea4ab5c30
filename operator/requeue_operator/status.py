"""What the operator says about a RequeueQueue: status and conditions, from live objects. Pure.

Ready, Reconciling and Stalled follow kstatus: of the three one at most is True, and all are about the generation in
`observedGeneration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from requeue_operator import expansion
from requeue_operator.children import Manifest
from requeue_operator.drains import is_alarming, report
from requeue_operator.finding import Finding
from requeue_operator.heard import Heard, nats_connected
from requeue_operator.overlap import TYPE as INTAKE
from requeue_operator.plan import Observed, Plan, Stall

_LISTED_CLAIMS: Final = 100
_WORDS: Final[dict[bool | None, str]] = {True: "True", False: "False", None: "Unknown"}


@dataclass(frozen=True)
class Event:
    """Something that changed and is worth telling once."""

    is_warning: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Known:
    """What the operator knows beside live objects; nothing yet just after its start."""

    heard: Heard | None = None
    intake: Finding | None = None
    awaited: str | None = None
    """What a fleet that is not ready waits for, where the pods tell more than the StatefulSet."""
    refused: Mapping[str, expansion.Refusal] = field(default_factory=dict)
    """Claims that may not grow, by name."""


def status_of(
    observed: Observed, plan: Plan, stall: Stall | None, now: str, known: Known | None = None
) -> Manifest:
    """The status to write, but for the backlog (collector.py). `observed` is the state after the plan was carried out;
    `now` an RFC 3339 time.
    """
    live_set = observed.stateful_set
    told = (live_set or {}).get("status", {})
    status: dict[str, Any] = {
        "observedGeneration": observed.queue["metadata"]["generation"],
        "replicas": told.get("replicas", 0),
        "readyReplicas": told.get("readyReplicas", 0),
        "selector": ",".join(f"{key}={value}" for key, value in observed.owner.selector.items()),
        "conditions": _conditions(observed, _findings(observed, plan, stall, known or Known()), now),
        "retainedClaims": _retained(observed, plan)[:_LISTED_CLAIMS],
    }
    if plan.image is not None:
        status["effective"] = {"image": plan.image}
    return status


def changed(observed: Observed, status: Manifest) -> Manifest:
    """The part of `status` that differs from the one written last."""
    before = observed.queue.get("status") or {}
    return {key: value for key, value in status.items() if before.get(key) != value}


def transitions(observed: Observed, status: Manifest) -> list[Event]:
    """An event for each condition that is another one than before."""
    before = {each["type"]: each for each in _written(observed)}
    events = []
    for now in status["conditions"]:
        if now["type"] == "Drained":
            events += _drained(before.get("Drained"), now)
        past = before.get(now["type"], {"status": "False", "reason": ""})
        same = (past["status"], past["reason"]) == (now["status"], now["reason"])
        is_told = now["type"] == INTAKE or (now["type"] == expansion.TYPE and now["reason"] != "Expanding")
        if is_told and now["status"] == "False" and not same:
            events.append(Event(True, now["reason"], now["message"]))
        if now["type"] == "Stalled" and now["status"] == "True" and not same:
            events.append(Event(True, now["reason"], now["message"]))
        if now["type"] == "Ready" and past["status"] != now["status"] and now["status"] == "True":
            events.append(Event(False, now["reason"], now["message"]))
    return events


def _drained(past: Manifest | None, now: Manifest) -> list[Event]:
    before = past or {"status": "True", "reason": "Fine"}
    if (before["status"], before["reason"]) == (now["status"], now["reason"]):
        return []
    if is_alarming(now["reason"]):
        return [Event(True, now["reason"], now["message"])]
    if now["status"] == "True":
        return [Event(False, "Drained", "no volume waits without a worker")]
    return []


def _written(observed: Observed) -> list[Manifest]:
    conditions: list[Manifest] = (observed.queue.get("status") or {}).get("conditions") or []
    return conditions


def _conditions(observed: Observed, findings: list[Finding], now: str) -> list[Manifest]:
    before = {each["type"]: each for each in _written(observed)}
    conditions = []
    for each in findings:
        status = _WORDS[each.status]
        past = before.get(each.type)
        since = past["lastTransitionTime"] if past is not None and past["status"] == status else now
        conditions.append(
            {
                "type": each.type,
                "status": status,
                "reason": each.reason,
                "message": each.message,
                "observedGeneration": observed.queue["metadata"]["generation"],
                "lastTransitionTime": since,
            }
        )
    return conditions


def _findings(observed: Observed, plan: Plan, stall: Stall | None, known: Known) -> list[Finding]:
    waiting = None if stall else waiting_for(observed, plan)
    waiting = waiting and (known.awaited or waiting)
    if stall is not None:
        ready = Finding("Ready", False, stall.reason, stall.message)
    elif waiting is not None:
        ready = Finding("Ready", False, "Progressing", waiting)
    else:
        ready = _ready(observed, plan)
    return [
        ready,
        Finding("Reconciling", waiting is not None, "Progressing" if waiting else "Done", waiting or ""),
        Finding(
            "Stalled", stall is not None, stall.reason if stall else "Fine", stall.message if stall else ""
        ),
        *_storage(observed, plan, known),
        _connected(observed, plan, known),
        *([] if known.intake is None else [known.intake]),
    ]


def _connected(observed: Observed, plan: Plan, known: Known) -> Finding:
    """What was written last stays until the workers were asked anew."""
    if plan.spec is not None and known.heard is not None:
        return nats_connected(known.heard, plan.spec.replicas)
    words = {word: status for status, word in _WORDS.items()}
    for past in _written(observed):
        if past["type"] == "NatsConnected":
            return Finding("NatsConnected", words[past["status"]], past["reason"], past.get("message", ""))
    return Finding("NatsConnected", None, "NoWorker", "no worker runs yet")


def _ready(observed: Observed, plan: Plan) -> Finding:
    replicas = plan.spec.replicas if plan.spec else 0
    if plan.spec is not None and plan.spec.paused:
        return Finding("Ready", True, "Paused", "the operator changes nothing while spec.paused is true")
    if replicas == 0:
        return Finding("Ready", True, "ScaledToZero", f"no worker runs; {_waiting(observed)}")
    return Finding("Ready", True, "WorkersReady", f"all workers are ready: {replicas}")


def _waiting(observed: Observed) -> str:
    backlog = (observed.queue.get("status") or {}).get("backlog")
    if backlog is None:
        return "messages wait on their volumes"
    return f"{backlog.get('pending', 0)} messages and {backlog.get('dead', 0)} dead letters wait on their volumes"


def unready_since(observed: Observed) -> str | None:
    """Since when it was written that it is not ready; None when it was, or nothing was written yet."""
    for past in _written(observed):
        if past["type"] == "Ready" and past["status"] == "False":
            return str(past["lastTransitionTime"])
    return None


def waiting_for(observed: Observed, plan: Plan) -> str | None:
    """What is not as asked for yet, in a sentence."""
    if plan.spec is None or plan.spec.paused:
        return None
    live_set = observed.stateful_set
    if live_set is None:
        return "the StatefulSet is being made"
    told, wanted = live_set.get("status", {}), plan.spec.replicas
    if told.get("observedGeneration", 0) < live_set["metadata"]["generation"]:
        return "the StatefulSet's controller has not seen the change yet"
    updated, ready = told.get("updatedReplicas", 0), told.get("readyReplicas", 0)
    if told.get("replicas", 0) != wanted:
        return f"{told.get('replicas', 0)} pods are there; {wanted} are asked for"
    if told.get("updateRevision") != told.get("currentRevision") and updated < wanted:
        return f"{updated} of {wanted} pods are of the new revision"
    if ready < wanted:
        return f"{ready} of {wanted} workers are ready"
    return None


def _storage(observed: Observed, plan: Plan, known: Known) -> list[Finding]:
    if plan.spec is None:
        return []
    return [
        expansion.report(observed.owner, plan.spec, observed.claims, known.refused),
        _drains(plan),
    ]


def _drains(plan: Plan) -> Finding:
    """Of a deletion that waits, its course; but what keeps a volume from being drained is told before."""
    drained = report(plan.drains)
    if plan.course is None or is_alarming(drained.reason):
        return drained
    text = drained.message if drained.reason == "Draining" else ""
    return Finding("Drained", False, plan.course.reason, "; ".join(filter(None, (plan.course.told, text))))


def _claims(observed: Observed) -> dict[str, Manifest]:
    claims = sorted(observed.claims, key=lambda claim: _ordinal(claim, observed))
    return {claim["metadata"]["name"]: claim for claim in claims}


def _retained(observed: Observed, plan: Plan) -> list[str]:
    replicas = plan.spec.replicas if plan.spec is not None else observed.queue["spec"]["replicas"]
    return [name for name, claim in _claims(observed).items() if _ordinal(claim, observed) >= replicas]


def _ordinal(claim: Manifest, observed: Observed) -> int:
    suffix = str(claim["metadata"]["name"]).removeprefix(f"data-{observed.owner.name}-")
    return int(suffix) if suffix.isdecimal() else -1
