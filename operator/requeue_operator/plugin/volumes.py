"""`drain status` and `reap --dry-run`: what becomes of each volume, judged as the operator judges it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, Literal

from requeue_operator.drains.actions import Begin, Cancel, Clear, Note, Progress, Remove, Run, State
from requeue_operator.drains.claim import BEGAN, claims_of
from requeue_operator.drains.job import job_name
from requeue_operator.plan import Plan
from requeue_operator.plugin.look import INSTANCE, Fleet, Surroundings, labels_of, name_of
from requeue_operator.plugin.output import Row

Would = Literal["delete", "drain", "take back", "wait", "keep"]

_STATES: Final = {
    State.RETAINED: "Retained",
    State.DRAINING: "Draining",
    State.FAILED: "Failed",
    State.GOING: "Deleting",
    State.LETTING_GO: "TakenBack",
}


@dataclass(frozen=True)
class Verdict:
    """What the operator would do with one claim when it looked now, and why."""

    namespace: str
    name: str
    """Of the RequeueQueue."""
    claim: str
    would: Would
    why: str

    @property
    def row(self) -> Row:
        """As a document."""
        return asdict(self)


def drains_of(fleet: Fleet, now: datetime) -> list[Row]:
    """Each claim without a worker: its state, the Job, since when, and a sentence."""
    planned = fleet.plan(now)
    if planned is None:
        return []
    progress = _progress(planned)
    rows = []
    for claim in claims_of(fleet.owner, fleet.claims):
        told = progress.get(claim.name)
        if told is None:
            continue
        name = job_name(fleet.owner, claim)
        rows.append(
            {
                "namespace": fleet.owner.namespace,
                "name": fleet.owner.name,
                "claim": claim.name,
                "state": _STATES[told.state],
                "reason": told.reason or None,
                "job": name if any(name_of(each) == name for each in fleet.jobs) else None,
                "since": (claim.live["metadata"].get("annotations") or {}).get(BEGAN),
                "message": told.text or (_why_kept(planned) if told.state is State.RETAINED else ""),
            }
        )
    return rows


def verdicts(fleet: Fleet, now: datetime) -> Iterator[Verdict]:
    """One for each claim of the fleet."""
    owner, planned = fleet.owner, fleet.plan(now)
    numbered = {each.name: each for each in claims_of(owner, fleet.claims)}
    for live in fleet.claims:
        claim = numbered.get(name_of(live))
        if planned is None:
            would, why = _of_deleted(fleet)
        elif claim is None:
            would, why = (
                "keep",
                "all workers of the fleet share it; they merge by themselves what gone ones left",
            )
        elif planned.stall is not None:
            would, why = "keep", f"the operator is stalled: {planned.stall.reason}: {planned.stall.message}"
        elif planned.release is not None:
            would, why = "keep", f"the deletion waits no longer: {planned.release.message}"
        else:
            would, why = _judged(planned, claim.name, job_name(owner, claim))
        yield Verdict(owner.namespace, owner.name, name_of(live), would, why)


def left_behind(around: Surroundings) -> Iterator[Verdict]:
    """Claims whose RequeueQueue is gone."""
    known = {name_of(each) for each in around.queues}
    for claim in sorted(around.claims, key=name_of):
        owner = labels_of(claim).get(INSTANCE, "")
        if owner not in known:
            why = f"its RequeueQueue is gone; a new one named {owner} takes it up, and nobody else deletes it"
            yield Verdict(around.namespace, owner, name_of(claim), "keep", why)


def _judged(planned: Plan, claim: str, job: str) -> tuple[Would, str]:
    told = _progress(planned).get(claim)
    if planned.spec is not None and planned.spec.paused:
        return "keep", "paused: the operator changes nothing"
    for action in planned.drains.actions:
        if isinstance(action, Remove) and action.claim.name == claim:
            return "delete", "its drain has proved that nothing remains on it"
        if isinstance(action, Begin | Note) and action.claim.name == claim:
            return "drain", "no worker uses it: a drain begins"
        if isinstance(action, Run) and name_of(action.job) == job:
            return "drain", f"no worker uses it: Job {job} is made"
        if isinstance(action, Clear) and action.claim.name == claim:
            return "take back", "its drain is taken back"
        if isinstance(action, Cancel) and name_of(action.job) == job:
            return "take back", _sentence(told) if told and told.text else "its drain is taken back"
    if told is None:
        return "keep", "a worker of the fleet uses it"
    if told.state is State.RETAINED:
        return "keep", _why_kept(planned)
    return "wait", _sentence(told)


def _sentence(told: Progress) -> str:
    return f"{told.reason}: {told.text}" if told.reason else told.text


def _why_kept(planned: Plan) -> str:
    if planned.spec is not None and planned.spec.storage.on_scale_down == "Retain":
        return "storage.onScaleDown is Retain; scale up to use it again"
    return "no worker is asked for (replicas: 0), so none could take its messages; scale up to use it again"


def _of_deleted(fleet: Fleet) -> tuple[Would, str]:
    if fleet.queue["spec"]["storage"].get("onDelete") == "Delete":
        return (
            "delete",
            "its RequeueQueue is being deleted with storage.onDelete: Delete; the messages on it go, too",
        )
    return "keep", "its RequeueQueue is being deleted; the volume stays (storage.onDelete)"


def _progress(planned: Plan) -> dict[str, Progress]:
    return {each.claim: each for each in planned.drains.progress}
