"""The commit and checkpoint protocol holds in every reachable state, and every ordering swapped on purpose is found."""

from __future__ import annotations

import pytest

from tests.model.commit import CommitModel, Size, Swap
from tests.model.explorer import explore

ACK = "no ack before it is durable"
LOST = "nothing acked is lost"
CHECKPOINT = "nothing pending below the checkpoint"
CURSOR = "nothing pending below the cursor but in unsettled"
COUNTERS = "counters agree"
ONCE = "one dispatch at a time"
ASLEEP = "no lane sleeps longer than until its first message"
STALE = "nothing in memory for what is no more"

FOUND_BY = {
    Swap.ACK_BEFORE_FSYNC: {ACK, LOST},
    Swap.ACK_OF_A_FAILED_WRITE: {LOST},
    Swap.REPLAY_BEFORE_FSYNC: {ASLEEP},
    Swap.CHECKPOINT_OVER_IN_FLIGHT: {CHECKPOINT},
    Swap.CHECKPOINT_BEFORE_SETTLEMENT: {CURSOR},
    Swap.CHECKPOINT_NOT_LOWERED: {CHECKPOINT},
    Swap.CHECKPOINT_IN_A_LATER_WRITE: {COUNTERS},
    Swap.CHECKPOINT_OVER_ARRIVED: {CHECKPOINT},
    Swap.INSERT_IN_A_LATER_WRITE: {LOST},
    Swap.CURSOR_NOT_LOWERED: {CURSOR},
    Swap.HEAD_NOT_EARLIER: {ASLEEP},
    Swap.ARRIVED_FORGOTTEN: {CURSOR},
    Swap.RELEASED_FORGOTTEN: {STALE},
    Swap.READ_AGAIN: {ONCE},
    Swap.RETAINED_OVER_UNREAD: {CURSOR},
    Swap.RETAINED_UNCLAIMED: {ONCE},
    Swap.RETAINED_TWICE: {CURSOR},
    Swap.RETAINED_BELOW_CHECKPOINT: {CHECKPOINT},
    Swap.REKEYED_UNKNOWN: {ONCE},
    Swap.REKEYED_TO_RELEASED: {ONCE},
    Swap.REKEY_AFTER_REPLY: {COUNTERS},
    Swap.RESCHEDULE_UNCLAIMED: {ONCE},
    Swap.RESCHEDULE_BY_OLD_LOOK: {STALE},
}
EVERYTHING_ONCE = Size(messages=1, times=2, crashes=1, retries=1, rekeys=1, reschedules=1)


def check(size: Size) -> frozenset[str]:
    found = explore(CommitModel(size))
    assert found.violation is None, found.violation
    return found.kinds


def test_one_message_with_everything_that_can_happen_to_it() -> None:
    every_step = "seal land finish fail ask look deliver dispatch settle retry rekey asked reschedule crash"
    assert check(EVERYTHING_ONCE) == set(every_step.split())


@pytest.mark.parametrize(
    "size",
    [
        Size(messages=2, times=2, retries=0),
        Size(messages=2, times=1),
        Size(messages=2, times=1, crashes=0, reschedules=1),
    ],
    ids=["crash", "crash and retry", "retry and reschedule"],
)
def test_two_messages(size: Size) -> None:
    check(size)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "size",
    [
        Size(messages=2, times=2),
        Size(messages=2, times=2, retries=0, rekeys=1),
        Size(messages=2, times=2, retries=0, reschedules=1),
        Size(messages=2, times=2, crashes=0, rekeys=1),
        Size(messages=2, times=2, crashes=0, reschedules=1),
        Size(messages=1, times=3, crashes=2, retries=2, rekeys=1),
        Size(messages=3, times=1, crashes=1, retries=0),
    ],
    ids=str,
)
def test_larger_sizes(size: Size) -> None:
    check(size)


@pytest.mark.parametrize("swap", [swap for swap in Swap if swap is not Swap.NONE], ids=lambda swap: swap.name)
def test_a_swapped_ordering_is_found(swap: Swap) -> None:
    deep = swap is Swap.REKEYED_TO_RELEASED  # 21 steps: what it needs, and no more
    size = Size(messages=1, crashes=0, retries=0, rekeys=1, reschedules=1) if deep else EVERYTHING_ONCE
    if swap is Swap.RETAINED_OVER_UNREAD:  # by one message, of another
        size = Size(messages=2, crashes=0, retries=0)
    violation = explore(CommitModel(size, swap)).violation
    assert violation is not None, swap
    assert violation.broken >= FOUND_BY[swap], violation
