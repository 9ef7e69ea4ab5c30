"""The drain's handover holds in every reachable state, and every ordering swapped on purpose is found."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore
from tests.model.handover import HandoverModel, Size, Swap

LOST = "nothing is lost"
TWICE = "nothing comes twice"
CLEAN = "let go of a target means that nothing is in both"
PROOF = "remaining 0 means all is durable elsewhere"

FOUND_BY = {
    Swap.TRIM_BEFORE_ACK: LOST,
    Swap.ACK_BEFORE_FSYNC: LOST,
    Swap.MARK_AFTER_RECORDS: CLEAN,
    Swap.MARK_BEFORE_RECORDS: LOST,
    Swap.TARGET_NOT_WRITTEN: CLEAN,
    Swap.GAP_ACCEPTED: LOST,
    Swap.MARK_IGNORED: TWICE,
    Swap.GIVE_UP_ON_SILENCE: TWICE,
    Swap.LET_GO_WITHOUT_END: CLEAN,
    Swap.LET_GO_WITHOUT_TRIM: CLEAN,
    Swap.SENT_BEFORE_NOTED: TWICE,
    Swap.PROOF_WHEN_SENT: PROOF,
}


def check(size: Size) -> None:
    found = explore(HandoverModel(size))
    assert found.violation is None, found.violation


@pytest.mark.parametrize(
    "size",
    [Size(), Size(losses=2, kills=0), Size(losses=0, kills=2, stops=0), Size(stops=0, disks=1)],
    ids=str,
)
def test_the_handover(size: Size) -> None:
    check(size)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [Size(pages=3, losses=2, kills=2), Size(pages=3, disks=1)], ids=str)
def test_larger_handovers(size: Size) -> None:
    check(size)


@pytest.mark.parametrize("swap", [swap for swap in Swap if swap is not Swap.NONE], ids=lambda swap: swap.name)
def test_a_swapped_ordering_is_found(swap: Swap) -> None:
    violation = explore(HandoverModel(Size(losses=2), swap)).violation
    assert violation is not None, swap
    assert FOUND_BY[swap] in violation.broken, violation
