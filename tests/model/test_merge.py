"""The reaper's merge holds in every reachable state, and every ordering swapped on purpose is found."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore
from tests.model.merge import MergeModel, Size, Swap

LOST = "nothing is lost"
TWICE = "nothing is in two live places"
TOUCHED = "a directory in use is never touched"

FOUND_BY = {
    Swap.TRIM_BEFORE_COMMIT: LOST,
    Swap.MARK_AFTER_PAGE: TWICE,
    Swap.MARK_BEFORE_PAGE: LOST,
    Swap.NO_CLAIM: TWICE,
    Swap.NO_LOCK: TOUCHED,
    Swap.UNLOCK_BEFORE_MOVE: TOUCHED,
    Swap.UID_KEPT: LOST,
    Swap.TAKEN_OVER_UNTRIMMED: TWICE,
    Swap.MARKS_LEFT_BEHIND: TWICE,
    Swap.FORGET_BEFORE_MOVE: TWICE,
    Swap.MOVE_BEFORE_LAST_PAGE: LOST,
}


def check(size: Size) -> None:
    found = explore(MergeModel(size))
    assert found.violation is None, found.violation


@pytest.mark.parametrize("size", [Size(kills=1), Size(kills=1, powers=1, returns=0)], ids=str)
def test_two_reapers_and_an_owner_that_comes_back(size: Size) -> None:
    check(size)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "size", [Size(), Size(kills=1, powers=1), Size(records=3, kills=2, returns=0)], ids=str
)
def test_larger_merges(size: Size) -> None:
    check(size)


@pytest.mark.parametrize("swap", [swap for swap in Swap if swap is not Swap.NONE], ids=lambda swap: swap.name)
def test_a_swapped_ordering_is_found(swap: Swap) -> None:
    violation = explore(MergeModel(Size(powers=1), swap)).violation
    assert violation is not None, swap
    assert FOUND_BY[swap] in violation.broken, violation
