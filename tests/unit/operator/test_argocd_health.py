"""What Argo CD makes of a RequeueQueue. tests/cluster/test_kstatus.py has it judge real ones, at every version."""

from __future__ import annotations

from typing import Any

import pytest

from tests.argocd import health


def _queue(*, seen: int = 4, deleted: bool = False, **conditions: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "orders", "generation": 4}
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    said = [{"type": kind, "status": status, "message": f"why {kind}"} for kind, status in conditions.items()]
    return {"metadata": metadata, "spec": {}, "status": {"observedGeneration": seen, "conditions": said}}


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        (_queue(Ready="True", Reconciling="False", Stalled="False"), ("Healthy", "why Ready")),
        (_queue(Ready="False", Reconciling="True", Stalled="False"), ("Progressing", "why Reconciling")),
        (_queue(Ready="False", Reconciling="False", Stalled="True"), ("Degraded", "why Stalled")),
        (_queue(), ("Progressing", "waits for the operator")),
    ],
)
def test_the_three_conditions_decide(queue: dict[str, Any], expected: tuple[str, str]) -> None:
    assert health(queue) == expected


def test_conditions_of_an_older_generation_say_nothing() -> None:
    for seen in (3, -1):
        status, message = health(_queue(seen=seen, Ready="True", Stalled="True"))
        assert (status, message) == ("Progressing", "the operator has not seen this change yet")


def test_an_object_without_status_is_not_healthy() -> None:
    assert health({"metadata": {"generation": 1}, "spec": {}})[0] == "Progressing"


def test_a_deletion_that_waits_says_how_far_it_is() -> None:
    assert health(_queue(deleted=True, Ready="True", Drained="False")) == ("Progressing", "why Drained")
