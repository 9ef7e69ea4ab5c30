"""Which claims grow, and what is told of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_operator.children import Manifest
from requeue_operator.expansion import Refusal, bytes_of, growing, refusal, report

from tests.unit.operator.specs import OWNER, read


def _claim(ordinal: int, size: str, **status: Any) -> Manifest:
    return {
        "metadata": {"name": f"data-orders-{ordinal}"},
        "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": size}}},
        "status": {"phase": "Bound", "capacity": {"storage": size}, **status},
    }


def _spec(size: str = "2Gi", replicas: int = 3) -> Any:
    return read(replicas=replicas, storage={"size": size})


def _told(*claims: Manifest, replicas: int = 3, **refused: Refusal) -> tuple[bool | None, str, str]:
    names = {f"data-orders-{key.removeprefix('of_')}": why for key, why in refused.items()}
    found = report(OWNER, _spec(replicas=replicas), claims, names)
    return found.status, found.reason, found.message


@given(st.lists(st.sampled_from(["1Gi", "1536Mi", "2Gi", "2048Mi", "3Gi"]), max_size=6), st.integers(0, 7))
def test_wherever_an_expansion_was_cut_off_those_that_lack_it_go_on(sizes: list[str], replicas: int) -> None:
    claims = tuple(_claim(ordinal, size) for ordinal, size in enumerate(sizes))
    left = [claim["metadata"]["name"] for claim in growing(OWNER, _spec(replicas=replicas), claims)]
    lacking = [
        f"data-orders-{ordinal}"
        for ordinal, size in enumerate(sizes[:replicas])
        if bytes_of(size) < bytes_of("2Gi")
    ]
    assert left == lacking
    assert (report(OWNER, _spec(replicas=replicas), claims, {}).status is True) == (lacking == [])


def test_what_is_not_bound_or_going_or_somebody_elses_is_left_alone() -> None:
    going = _claim(1, "1Gi")
    going["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    other = _claim(0, "1Gi")
    other["metadata"]["name"] = "data-orders-other-0"
    assert growing(OWNER, _spec(), (_claim(0, "1Gi", phase="Pending"), going, other)) == ()
    assert (
        _told(_claim(0, "1Gi", phase="Pending"))[2]
        == "data-orders-0: is expanded to 2Gi when it has a volume"
    )


def test_a_claim_that_asks_is_ready_when_its_volume_has_grown() -> None:
    behind = _claim(0, "2Gi", capacity={"storage": "1Gi"})
    assert growing(OWNER, _spec(), (behind,)) == ()
    assert _told(behind) == (False, "Expanding", "data-orders-0: grows to 2Gi")
    pending = [{"type": "FileSystemResizePending", "status": "True"}]
    behind = _claim(0, "2Gi", capacity={"storage": "1Gi"}, conditions=pending)
    assert _told(behind)[2] == "data-orders-0: the node enlarges the file system to 2Gi"
    assert _told(_claim(0, "2Gi"))[:2] == (True, "Fine")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"conditions": [{"type": "ControllerResizeError", "status": "True", "message": "no room"}]},
            "no room",
        ),
        ({"conditions": [{"type": "NodeResizeError", "status": "True"}]}, "NodeResizeError"),
        (
            {"allocatedResourceStatuses": {"storage": "ControllerResizeInfeasible"}},
            "ControllerResizeInfeasible",
        ),
    ],
)
def test_the_words_of_a_driver_that_fails_are_told(status: dict[str, Any], words: str) -> None:
    found = _told(_claim(0, "2Gi", capacity={"storage": "1Gi"}, **status))
    assert found[:2] == (False, "ExpansionFailed")
    assert words in found[2]


def test_of_many_volumes_five_are_named() -> None:
    text = _told(*(_claim(ordinal, "1Gi") for ordinal in range(8)), replicas=8)[2]
    assert text.count("grows to") == 5
    assert text.endswith("; and 3 more")


def test_a_refusal_is_told_before_what_goes_on() -> None:
    why = Refusal("QuotaExceeded", "raise it")
    found = _told(_claim(0, "1Gi"), _claim(1, "1Gi"), of_1=why)
    assert found == (False, "QuotaExceeded", "data-orders-1 cannot grow to 2Gi: raise it")


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        (
            'persistentvolumeclaims "x" is forbidden: only dynamically provisioned pvc can be resized and ...',
            "NotExpandable",
            "StorageClass fast",
        ),
        (
            'persistentvolumeclaims "x" is forbidden: exceeded quota: q, ...',
            "QuotaExceeded",
            "raise the quota",
        ),
        (
            '"x" is forbidden: User "u" cannot patch resource "persistentvolumeclaims"',
            "Forbidden",
            "grant it",
        ),
        ("admission webhook denied the request: no", "ExpansionRefused", "denied the request: no"),
    ],
)
def test_each_refusal_says_what_to_do(message: str, reason: str, words: str) -> None:
    found = refusal(_claim(0, "1Gi"), message)
    assert found.reason == reason
    assert words in found.text


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("1Gi", 2**30), ("1536Mi", 3 * 2**29), ("5G", 5 * 10**9), ("5e9", 5 * 10**9), ("1.5Ti", 3 * 2**39),
     ("1E", 10**18), ("12", 12), ("100m", Decimal("0.1"))],
)  # fmt: skip
def test_quantities(quantity: str, number: Decimal) -> None:
    assert bytes_of(quantity) == number


@pytest.mark.parametrize("wrong", ["", "Gi", "1i", "1mi", "1 Gi", "1GiB"])
def test_what_is_no_quantity(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        bytes_of(wrong)
