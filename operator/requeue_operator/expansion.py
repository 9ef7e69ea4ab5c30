"""Volumes that grow with `spec.storage.size`: which claims to expand, and what to tell about volumes. Pure.

The claim template of a StatefulSet cannot change: a claim that is made later begins in the first size, and is expanded
like all others (docs/adr/0015-expansion.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from requeue_operator.api import RequeueQueueSpec
from requeue_operator.children import Manifest, Owner
from requeue_operator.drains import claims_of
from requeue_operator.finding import Finding

TYPE: Final = "StorageReady"
TRY_AGAIN_S: Final = 30.0
"""After a refusal: whoever mends a StorageClass or a quota does not touch the RequeueQueue."""

_TOLD: Final = 5
_QUANTITY: Final = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([numkMGTPE]?i?)")
_UNITS: Final = {
    "": Decimal(1),
    **{
        unit: Decimal(10) ** power
        for unit, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)
    },
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}
_FAILED: Final = ("ControllerResizeError", "NodeResizeError")


@dataclass(frozen=True)
class Refusal:
    """The API server does not let a claim grow: a reason in one word, and its sentence."""

    reason: str
    text: str


def growing(owner: Owner, spec: RequeueQueueSpec, claims: tuple[Manifest, ...]) -> tuple[Manifest, ...]:
    """Claims to expand to `spec.storage.size`: those of the fleet's pods that are bound and ask for less. What asks for
    more was given more by somebody, and stays.
    """
    return tuple(
        claim
        for claim in _in_use(owner, spec, claims)
        if _is_small(claim, spec)
        and _phase(claim) == "Bound"
        and "deletionTimestamp" not in claim["metadata"]
    )


def refusal(claim: Manifest, message: str) -> Refusal:
    """What the API server's refusal to expand this claim means."""
    storage_class = claim["spec"].get("storageClassName") or "(none)"
    if "only dynamically provisioned pvc can be resized" in message:
        text = (
            f"StorageClass {storage_class} does not let volumes grow; if its driver can expand them, write "
            f"`allowVolumeExpansion: true` into it; the workers go on with the volumes as they are"
        )
        return Refusal("NotExpandable", text)
    if "exceeded quota" in message:
        return Refusal("QuotaExceeded", f"raise the quota of the namespace: {message}")
    if "cannot patch resource" in message:
        return Refusal("Forbidden", f"the operator lacks a permission; grant it: {message}")
    return Refusal("ExpansionRefused", message)


def report(
    owner: Owner, spec: RequeueQueueSpec, claims: tuple[Manifest, ...], refused: Mapping[str, Refusal]
) -> Finding:
    """The condition StorageReady. `refused`: by the name of the claim, what was refused just now."""
    lost = [_name(claim) for claim in _all(owner, claims) if _phase(claim) == "Lost"]
    if lost:
        return Finding(TYPE, False, "VolumeLost", f"the volume is gone of {', '.join(lost)}")
    moving = [claim for claim in _in_use(owner, spec, claims) if _is_small(claim, spec) or _is_behind(claim)]
    failed = [(claim, why) for claim in moving if (why := refused.get(_name(claim)) or _failure(claim))]
    if failed:
        names = ", ".join(_name(claim) for claim, _ in failed[:_TOLD])
        names += " ..." if len(failed) > _TOLD else ""
        why = failed[0][1]
        return Finding(TYPE, False, why.reason, f"{names} cannot grow to {spec.storage.size}: {why.text}")
    if moving:
        said = [f"{_name(claim)}: {_step(claim, spec)}" for claim in moving[:_TOLD]]
        said += [f"and {len(moving) - _TOLD} more"] if len(moving) > _TOLD else []
        return Finding(TYPE, False, "Expanding", "; ".join(said))
    return Finding(TYPE, True, "Fine")


def bytes_of(quantity: str) -> Decimal:
    """A Kubernetes quantity as the API server writes it (`10Gi`, `1500M`, `5e9`). Raises ValueError."""
    read = _QUANTITY.fullmatch(quantity)
    if read is None or read[2] not in _UNITS:
        raise ValueError(f"{quantity!r} is no quantity")
    return Decimal(read[1]) * _UNITS[read[2]]


def _in_use(owner: Owner, spec: RequeueQueueSpec, claims: tuple[Manifest, ...]) -> list[Manifest]:
    """Without those that no pod has: they grow when one has them again."""
    of_pods = [claim.live for claim in claims_of(owner, claims) if claim.ordinal < spec.replicas]
    return [*_shared(owner, claims), *of_pods]


def _all(owner: Owner, claims: tuple[Manifest, ...]) -> list[Manifest]:
    return [*_shared(owner, claims), *(claim.live for claim in claims_of(owner, claims))]


def _shared(owner: Owner, claims: tuple[Manifest, ...]) -> list[Manifest]:
    return [claim for claim in claims if _name(claim) == owner.shared_claim]


def _name(claim: Manifest) -> str:
    return str(claim["metadata"]["name"])


def _is_small(claim: Manifest, spec: RequeueQueueSpec) -> bool:
    return bytes_of(_request(claim)) < bytes_of(spec.storage.size)


def _is_behind(claim: Manifest) -> bool:
    """Whether the volume is still smaller than its claim asks for."""
    capacity = _status(claim).get("capacity", {}).get("storage")
    return capacity is not None and bytes_of(capacity) < bytes_of(_request(claim))


def _failure(claim: Manifest) -> Refusal | None:
    """What the driver or the kubelet says against it."""
    for each in _status(claim).get("conditions") or []:
        if each["type"] in _FAILED and each["status"] == "True":
            return Refusal("ExpansionFailed", str(each.get("message") or each["type"]))
    state = str((_status(claim).get("allocatedResourceStatuses") or {}).get("storage", ""))
    if state.endswith("Infeasible"):
        return Refusal("ExpansionFailed", f"its driver cannot do that ({state}): see the events of the claim")
    return None


def _step(claim: Manifest, spec: RequeueQueueSpec) -> str:
    if _phase(claim) != "Bound":
        return f"is expanded to {spec.storage.size} when it has a volume"
    for each in _status(claim).get("conditions") or []:
        if each["type"] == "FileSystemResizePending" and each["status"] == "True":
            return f"the node enlarges the file system to {spec.storage.size}"
    return f"grows to {spec.storage.size}"


def _request(claim: Manifest) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])


def _phase(claim: Manifest) -> str:
    return str(_status(claim).get("phase", ""))


def _status(claim: Manifest) -> dict[str, Any]:
    return claim.get("status") or {}
