"""What a drain Job told: the proof is the termination message of its pod (docs/operations.md#drain has its keys)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from requeue_operator.children.naming import Manifest
from requeue_operator.drains.claim import Claim, parse_time
from requeue_operator.drains.job import CONTAINER

_ENDED: Final = ("Succeeded", "Failed")
_TOLD_REASONS: Final = 3
_TEXT_CHARS: Final = 400
_WHAT_TO_DO: Final = {
    "no-survivor": "start a worker of this fleet, and look at the NATS permissions of handovers",
    "target-silent": "bring the worker that is named back",
    "target-full": "make room on the worker that is named, or on another one",
    "target-busy": "make room on the worker that is named, or on another one",
    "in-use": "end whoever is on the volume",
    "no-identity": "run a worker on it once (scale up), or delete the claim by hand if nothing is on it",
    "newer-format": "use the image that wrote it (spec.image)",
}
_ELSE_TO_DO: Final = "scale up to use the volume again, and look at it there"


@dataclass(frozen=True)
class Proven:
    """Nothing remains on the volume."""


@dataclass(frozen=True)
class Failed:
    """It ended without a proof: why, in a word and in a sentence that says what to do. `volume`: if it told one."""

    reason: str
    text: str
    at: datetime | None = None
    volume: str | None = None


@dataclass(frozen=True)
class _Ended:
    """A container that has ended."""

    exit_code: int
    message: str
    reason: str

    def document(self) -> dict[str, Any] | None:
        """The proof that it wrote, of a drain that judged its volume (exit codes 0, 4, 5)."""
        if self.exit_code not in (0, 4, 5):
            return None
        try:
            read = json.loads(self.message)
        except ValueError:
            return None
        return read if isinstance(read, dict) else None


def outcome(job: Manifest, pods: list[Manifest], claim: Claim, fleet: str) -> Proven | Failed | None:
    """What came of `job`, whose pods `pods` are; None while it runs. `fleet`: the UID of the RequeueQueue."""
    finished = _finished(job)
    if any(pod.get("status", {}).get("phase") not in _ENDED for pod in pods) or not (pods or finished):
        return None
    ended = [each for pod in pods for each in _ended(pod)]
    verdicts = [_verdict(each, claim, fleet) for each in ended]
    for verdict in verdicts:
        if isinstance(verdict, Proven):
            return verdict
    at = _at(finished) or max((time for pod in pods if (time := _ended_at(pod)) is not None), default=None)
    for verdict in verdicts:
        if isinstance(verdict, Failed):
            return Failed(verdict.reason, verdict.text, at, verdict.volume)
    why = f"{(finished or {}).get('reason', '')}: {(finished or {}).get('message', '')}".strip(": ")
    return Failed("DrainFailed", f"its Job ended without a word ({why or 'its pod is gone'})", at)


def _verdict(ended: _Ended, claim: Claim, fleet: str) -> Proven | Failed:
    told = ended.document()
    if told is None:
        said = ended.message.strip()[-_TEXT_CHARS:] or ended.reason or "nothing"
        return Failed(
            "DrainFailed", f"it ended with exit code {ended.exit_code} and no proof, saying: {said}"
        )
    volume = told.get("volume")
    volume = volume if isinstance(volume, str) and volume else None
    remaining = told.get("remaining")
    if ended.exit_code != 0 or type(remaining) is not int or remaining != 0:
        return _remains(ended.exit_code, told, volume)
    wrong = {
        "its nonce is another drain's": told.get("nonce") != claim.nonce or claim.nonce is None,
        "it is another fleet's": told.get("fleet") != fleet,
        "it was a dry run": told.get("dry_run") is not False,
        "the volume has no identity": volume is None,
        "the volume is another one than before": claim.volume is not None and volume != claim.volume,
    }
    faults = [sentence for sentence, is_so in wrong.items() if is_so]
    if faults:
        text = f"its proof does not count: {'; '.join(faults)}; check which volume is behind the claim"
        return Failed("WrongProof", text, volume=volume)
    return Proven()


def _remains(exit_code: int, told: dict[str, Any], volume: str | None) -> Failed:
    given = told.get("reasons")
    reasons = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    said = [_said(each) for each in reasons[:_TOLD_REASONS]]
    if len(reasons) > _TOLD_REASONS:
        said.append(f"and {len(reasons) - _TOLD_REASONS} more")
    text = f"{told.get('remaining')} messages remain: {'; '.join(said) or 'no reason was told'}"
    return Failed("NoSurvivor" if exit_code == 5 else "DrainFailed", text, volume=volume)


def _said(reason: dict[str, Any]) -> str:
    kind = str(reason.get("reason"))
    text = str(reason.get("text"))[:_TEXT_CHARS]
    return f"{reason.get('instance')} {kind} ({text}): {_WHAT_TO_DO.get(kind, _ELSE_TO_DO)}"


def _finished(job: Manifest) -> dict[str, Any] | None:
    """The condition that says so."""
    conditions: list[dict[str, Any]] = job.get("status", {}).get("conditions") or []
    return next(
        (c for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None
    )


def _ended(pod: Manifest) -> list[_Ended]:
    statuses: list[dict[str, Any]] = pod.get("status", {}).get("containerStatuses") or []
    states = [(each.get("state") or {}).get("terminated") for each in statuses if each["name"] == CONTAINER]
    return [
        _Ended(state.get("exitCode", -1), state.get("message") or "", state.get("reason") or "")
        for state in states
        if state is not None
    ]


def _at(finished: dict[str, Any] | None) -> datetime | None:
    return parse_time((finished or {}).get("lastTransitionTime"))


def _ended_at(pod: Manifest) -> datetime | None:
    statuses: list[dict[str, Any]] = pod.get("status", {}).get("containerStatuses") or []
    times = [
        parse_time(((each.get("state") or {}).get("terminated") or {}).get("finishedAt")) for each in statuses
    ]
    return max((time for time in times if time is not None), default=None)
