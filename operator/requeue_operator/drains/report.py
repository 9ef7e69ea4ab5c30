"""The condition `Drained`: what becomes of volumes that no worker uses, the worst first."""

from __future__ import annotations

from typing import Final

from requeue_operator.drains.actions import Drains, Progress, State
from requeue_operator.finding import Finding

_TYPE: Final = "Drained"
_TOLD: Final = 5
_GOES_ITS_WAY: Final = ("Fine", "Retained", "Draining", "Deleting")


def report(drains: Drains) -> Finding:
    """A sentence for each claim, of the first few."""
    by_state: dict[State, list[Progress]] = {state: [] for state in State}
    for each in drains.progress:
        by_state[each.state].append(each)
    failed = by_state[State.FAILED]
    if failed:
        return Finding(_TYPE, False, failed[0].reason, _sentences(failed))
    moving = [*by_state[State.LETTING_GO], *by_state[State.DRAINING], *by_state[State.GOING]]
    if moving:
        return Finding(_TYPE, False, "Draining", _sentences(moving))
    kept = [each.claim for each in by_state[State.RETAINED]]
    if kept:
        text = "volumes with data that no worker uses; scale up to use them again: "
        return Finding(_TYPE, False, "Retained", text + ", ".join(kept))
    return Finding(_TYPE, True, "Fine")


def is_alarming(reason: str) -> bool:
    """Whether somebody should look at it."""
    return reason not in _GOES_ITS_WAY


def _sentences(progress: list[Progress]) -> str:
    said = [f"{each.claim}: {each.text}" for each in progress[:_TOLD]]
    if len(progress) > _TOLD:
        said.append(f"and {len(progress) - _TOLD} more")
    return "; ".join(said)
