"""Deletion with `onDelete: Drain`: what its finalizer waits for. Pure.

    deleted ─▶ no intake, workers deliver ─▶ nothing is left ─▶ replicas 0 ─▶ a proof for each claim ─▶ released
        ├─ drainTo is there: its workers take everything over ──────▲
        └─ drainTimeout, the namespace goes, onDelete is another one now ──▶ released, the volumes stay

That nothing is left is judged by what workers say, and latched at the StatefulSet; a claim is deleted on a proof alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from requeue_protocol.durations import NS_PER_S, format_duration

from requeue_operator.api import GROUP, RequeueQueueSpec
from requeue_operator.children import Manifest, Owner
from requeue_operator.children.naming import EMPTIED
from requeue_operator.drains import claims_of
from requeue_operator.drains.claim import parse_time

FINALIZER: Final = f"{GROUP}/drain"
_LOOK_EVERY_S: Final = 30.0


@dataclass(frozen=True)
class Ending:
    """What is known beside the live children. `target`: the RequeueQueue that `drainTo` names, if it is there to stay.
    `is_empty`: every worker says that it takes nothing in and has nothing left.
    """

    target: Manifest | None = None
    is_empty: bool = False
    namespace_goes: bool = False


@dataclass(frozen=True)
class Release:
    """Take the finalizer off, and say why."""

    is_warning: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Course:
    """How many workers deliver meanwhile; whose workers take over what they leave (a UID); what to say of it."""

    replicas: int
    fleet: str
    is_emptied: bool
    reason: str
    told: str
    again_s: float


def finalizers(queue: Manifest) -> list[str] | None:
    """What the finalizers have to be as long as it is not deleted; None when they are that."""
    storage: dict[str, Any] = queue["spec"]["storage"]
    wants = storage.get("onDelete") == "Drain" and storage.get("mode") != "Shared"
    there: list[str] = queue["metadata"].get("finalizers") or []
    if wants == (FINALIZER in there):
        return None
    return [*there, FINALIZER] if wants else others(queue)


def others(queue: Manifest) -> list[str]:
    """The finalizers of everybody else."""
    return [each for each in queue["metadata"].get("finalizers") or [] if each != FINALIZER]


def holds(queue: Manifest) -> bool:
    """Whether its deletion waits for us."""
    return FINALIZER in (queue["metadata"].get("finalizers") or [])


def release(
    queue: Manifest,
    spec: RequeueQueueSpec | None,
    live_set: Manifest | None,
    claims: tuple[Manifest, ...],
    ending: Ending,
    now: datetime,
) -> Release | None:
    """Whether the deletion goes on now. `spec`: None when it can't be read."""
    if ending.namespace_goes:
        return Release(
            True, "NamespaceGoes", "the namespace is being deleted with all volumes: nothing is drained"
        )
    if spec is None:
        return None
    left = [claim.name for claim in claims_of(Owner.of(queue), claims)]
    if spec.storage.on_delete != "Drain":
        return Release(False, "NotDrained", f"onDelete is {spec.storage.on_delete}; volumes: {_names(left)}")
    if _left_s(queue, spec, now) <= 0:
        text = f"not drained within drainTimeout ({format_duration(spec.storage.drain_timeout_ns or 0)}); "
        return Release(True, "DrainTimeout", f"{text}volumes that stay, with their messages: {_names(left)}")
    if not left and (live_set is None or _is_at_rest(live_set)):
        return Release(False, "Drained", "no message is left, and no volume")
    return None


def course(
    queue: Manifest, spec: RequeueQueueSpec, live_set: Manifest | None, ending: Ending, now: datetime
) -> Course:
    """What goes on until then."""
    again_s = min(_LOOK_EVERY_S, max(_left_s(queue, spec, now), 0.0))
    own = Owner.of(queue).uid
    emptied = ending.is_empty or _is_emptied(live_set)
    if spec.storage.drain_to is not None and ending.target is not None:
        told = f"its messages are handed over to the workers of {spec.storage.drain_to}"
        return Course(0, ending.target["metadata"]["uid"], emptied, "Deleting", told, again_s)
    if emptied or spec.replicas == 0:
        return Course(
            0, own, emptied, "Deleting", "each volume is looked at once more, then deleted", again_s
        )
    delivering = f"nothing is taken in; {spec.replicas} workers deliver what is pending"
    if spec.storage.drain_to is not None:
        told = f"there is no RequeueQueue {spec.storage.drain_to} (drainTo): make it, or name another one; {delivering}"
        return Course(spec.replicas, own, False, "NoTarget", told, again_s)
    told = f"{delivering}, and dead letters wait: for drainTo, the end of their retention, or drainTimeout"
    return Course(spec.replicas, own, False, "Deleting", told, again_s)


def _left_s(queue: Manifest, spec: RequeueQueueSpec, now: datetime) -> float:
    """Until `drainTimeout` is over."""
    since = parse_time(queue["metadata"].get("deletionTimestamp"))
    if spec.storage.drain_timeout_ns is None or since is None:
        return math.inf
    return spec.storage.drain_timeout_ns / NS_PER_S - (now - since).total_seconds()


def _is_at_rest(live_set: Manifest) -> bool:
    """No pod is there, and none is made: a claim that is missing was not merely not made yet."""
    status = live_set.get("status") or {}
    seen = status.get("observedGeneration", 0) >= live_set["metadata"]["generation"]
    return seen and live_set["spec"]["replicas"] == 0 and not status.get("replicas")


def _is_emptied(live_set: Manifest | None) -> bool:
    return live_set is not None and EMPTIED in (live_set["metadata"].get("annotations") or {})


def _names(claims: list[str]) -> str:
    return ", ".join(claims) or "none"
