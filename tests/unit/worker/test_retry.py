"""Retry policy against a table: what a dispatch that did not settle leads to, and how long the wait is."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requeue_protocol.envelope import Backoff
from requeue_protocol.policy import QueuePolicy
from requeue_protocol.replies import Reply, Verb
from requeue_worker.record import (
    MAX_TIME_NS,
    UNLIMITED,
    UNSET_BACKOFF,
    UNSET_DELAY,
    UNSET_RETRIES,
    DeadReason,
    Extras,
    Record,
    decode,
)
from requeue_worker.retry import Bury, Decision, Drop, Hold, Retry, Settle, backoff_ns, decide, expire

from tests.unit.worker.test_record import value_of

checked = settings(deadline=None)

MS = 1_000_000
S = 1_000_000_000
H = 3600 * S
NOW_NS = 1_700_000_000 * S
FIXED, EXPONENTIAL, LINEAR, LIST = Backoff.FIXED, Backoff.EXPONENTIAL, Backoff.LINEAR, Backoff.LIST
LOW, HIGH = (lambda: 0.0), (lambda: math.nextafter(1.0, 0.0))

FAILED = Reply(Verb.FAILED, None, "no reply")


def policy_of(**said: Any) -> QueuePolicy:
    return QueuePolicy.model_validate({"jitter": 0, **said})


def message(extras: Extras | None = None, **said: Any) -> Record:
    """A message that leaves everything to its queue, but for what is said."""
    unset = {"retries": UNSET_RETRIES, "delay_ns": UNSET_DELAY, "backoff": UNSET_BACKOFF}
    return decode(value_of(extras=extras, **{**unset, **said}))


def wait_ns(
    attempt: int, policy: QueuePolicy, extras: Extras | None = None, jitter: Any = LOW, **said: Any
) -> int:
    record = message(extras, **said)
    return backoff_ns(record, record.extras, policy, attempt, jitter)


# shape, delay of the message, policy, attempts -> waits
TABLE = [
    ("fixed waits for the delay", FIXED, 5 * S, {}, {1: 5 * S, 2: 5 * S, 100: 5 * S}),
    ("fixed without delay waits for min_backoff", FIXED, 0, {"min_backoff": "2s"}, {1: 2 * S, 9: 2 * S}),
    ("fixed has no ceiling: the delay is the publisher's", FIXED, 2 * H, {"max_backoff": "1h"}, {1: 2 * H}),
    ("fixed is never below what was asked", FIXED, 1, {"min_backoff": "2s"}, {1: 1, 2: 1}),
    ("exponential doubles", EXPONENTIAL, S, {}, {1: S, 2: 2 * S, 3: 4 * S, 4: 8 * S, 12: 2048 * S}),
    (
        "exponential ends at max_backoff",
        EXPONENTIAL,
        S,
        {"max_backoff": "10s"},
        {4: 8 * S, 5: 10 * S, 6: 10 * S},
    ),
    ("exponential starts at min_backoff", EXPONENTIAL, 0, {"min_backoff": "20ms"}, {1: 20 * MS, 3: 80 * MS}),
    ("exponential goes by the delay, not the floor", EXPONENTIAL, 5 * MS, {"min_backoff": "1s"}, {1: 5 * MS}),
    ("exponential never overflows", EXPONENTIAL, 1, {"max_backoff": MAX_TIME_NS}, {63: 2**62, 64: 2**62}),
    ("exponential of many attempts is the ceiling", EXPONENTIAL, S, {}, {40: H, 1000: H, 2**32: H}),
    ("linear grows by the delay", LINEAR, 3 * S, {}, {1: 3 * S, 2: 6 * S, 5: 15 * S}),
    ("linear grows by min_backoff", LINEAR, 0, {"min_backoff": "1s"}, {1: S, 7: 7 * S}),
    ("linear ends at max_backoff", LINEAR, S, {"max_backoff": "3s"}, {3: 3 * S, 4: 3 * S, 2**32: 3 * S}),
    ("a delay beyond the ceiling is cut", LINEAR, 2 * H, {"max_backoff": "1h"}, {1: H}),
]


@pytest.mark.parametrize(
    ("shape", "delay_ns", "policy", "waits"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_wait_after_a_failed_attempt(
    shape: Backoff, delay_ns: int, policy: dict[str, Any], waits: dict[int, int]
) -> None:
    for attempt, expected_ns in waits.items():
        assert wait_ns(attempt, policy_of(**policy), backoff=shape, delay_ns=delay_ns) == expected_ns, attempt


def test_a_list_is_followed_and_its_last_step_repeats() -> None:
    policy = policy_of(backoff=["1s", "5s", "1m"])
    assert [wait_ns(attempt, policy) for attempt in (1, 2, 3, 4, 99)] == [S, 5 * S, 60 * S, 60 * S, 60 * S]


def test_a_messages_own_list_goes_before_the_queues() -> None:
    policy = policy_of(backoff=["1s", "5s"])
    own = Extras(backoff_list_ns=(7, 8))
    assert [wait_ns(attempt, policy, own, backoff=LIST) for attempt in (1, 2, 3)] == [7, 8, 8]


def test_what_a_message_says_goes_before_its_queues_policy() -> None:
    policy = policy_of(delay="9s", backoff="exponential", min_backoff="1s", max_backoff="1h")
    own = Extras(min_backoff_ns=3 * S, max_backoff_ns=4 * S)
    assert wait_ns(1, policy) == 9 * S
    assert wait_ns(1, policy, own, delay_ns=0) == 3 * S
    assert wait_ns(2, policy, own, delay_ns=0) == 4 * S
    assert wait_ns(5, policy, backoff=FIXED, delay_ns=2 * S) == 2 * S


@checked
@given(
    shape=st.sampled_from([FIXED, EXPONENTIAL, LINEAR, LIST]),
    delay_ns=st.integers(0, MAX_TIME_NS) | st.just(UNSET_DELAY),
    policy_delay_ns=st.integers(0, MAX_TIME_NS),
    bounds=st.tuples(st.integers(0, MAX_TIME_NS), st.integers(0, MAX_TIME_NS)).map(sorted),
    attempt=st.integers(1, 2**32),
    jitter=st.floats(0, 1, exclude_max=True),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_every_wait_keeps_its_floor_and_ceiling(
    shape: Backoff,
    delay_ns: int,
    policy_delay_ns: int,
    bounds: list[int],
    attempt: int,
    jitter: float,
    draw: float,
) -> None:
    low_ns, high_ns = bounds
    policy = policy_of(jitter=jitter, delay=policy_delay_ns, min_backoff=low_ns, max_backoff=high_ns)
    extras = Extras(backoff_list_ns=(1, 2)) if shape is LIST else None
    waited = wait_ns(attempt, policy, extras, lambda: draw, backoff=shape, delay_ns=delay_ns)
    base_ns = (policy_delay_ns if delay_ns == UNSET_DELAY else delay_ns) or low_ns
    if shape is FIXED:
        assert waited == base_ns
    elif shape is LIST:
        assert waited in (1, 2)
    else:
        assert waited >= min(base_ns, high_ns)
        assert waited <= high_ns + (math.ceil(high_ns * jitter) if shape is EXPONENTIAL else 0)


def test_jitter_multiplies_exponential_waits_alone() -> None:
    policy = policy_of(jitter=0.5)
    assert wait_ns(1, policy, jitter=LOW, backoff=EXPONENTIAL, delay_ns=S) == S
    assert wait_ns(1, policy, jitter=lambda: 0.5, backoff=EXPONENTIAL, delay_ns=S) == 1250 * MS
    assert S <= wait_ns(1, policy, jitter=HIGH, backoff=EXPONENTIAL, delay_ns=S) <= 1500 * MS
    for shape in (FIXED, LINEAR):
        assert wait_ns(1, policy, jitter=HIGH, backoff=shape, delay_ns=S) == S


def test_a_long_wait_is_exact_to_the_nanosecond() -> None:
    """A float would round 104 days and more, and downwards too: earlier than promised."""
    long_ns = 2**53 + 1
    assert wait_ns(1, policy_of(max_backoff=MAX_TIME_NS), backoff=EXPONENTIAL, delay_ns=long_ns) == long_ns


# ---- decisions


def decision(
    reply: Reply = FAILED,
    policy: QueuePolicy | None = None,
    extras: Extras | None = None,
    *,
    counts: bool = True,
    **said: Any,
) -> Decision:
    said = {"delay_ns": 2 * S, "backoff": FIXED, **said}
    return decide(
        reply, message(extras, **said), policy or policy_of(), now_ns=NOW_NS, jitter=LOW, counts=counts
    )


NAK = Reply(Verb.NAK)
DROPS = {"on_exhausted": "drop"}
NO_ANSWER = "no reply"
REFUSED = "refused by its handler (-NAK)"

DECISIONS = [
    ("settled", Reply(Verb.SETTLED), {}, {}, Settle()),
    ("settled although it was the last attempt", Reply(Verb.SETTLED), {"retries": 1}, {}, Settle()),
    ("failed", FAILED, {}, {}, Retry(NOW_NS + 2 * S, NO_ANSWER)),
    ("failed without a text", Reply(Verb.FAILED), {}, {}, Retry(NOW_NS + 2 * S, "failed")),
    ("nak", NAK, {}, {}, Retry(NOW_NS + 2 * S, REFUSED)),
    ("nak with a delay", Reply(Verb.NAK, 7 * S, ""), {}, {}, Retry(NOW_NS + 7 * S, REFUSED)),
    ("nak now", Reply(Verb.NAK, 0, ""), {}, {}, Retry(NOW_NS, REFUSED)),
    ("nak with a text", Reply(Verb.NAK, None, "busy"), {}, {}, Retry(NOW_NS + 2 * S, "busy")),
    ("nak until the end of time", Reply(Verb.NAK, MAX_TIME_NS - NOW_NS, ""), {}, {}, Retry(MAX_TIME_NS, REFUSED)),
    (
        "nak beyond the end of time",
        Reply(Verb.NAK, MAX_TIME_NS, ""),
        {},
        {},
        Retry(
            NOW_NS + 2 * S,
            f"-NAK with a delay of {MAX_TIME_NS} ns, beyond the year 2262: retried by the backoff",
        ),
    ),
    ("last but one", FAILED, {"retries": 3, "attempts": 1}, {}, Retry(NOW_NS + 2 * S, NO_ANSWER)),
    ("last", FAILED, {"retries": 3, "attempts": 2}, {}, Bury(DeadReason.EXHAUSTED, NO_ANSWER)),
    ("last, by a delayed nak", Reply(Verb.NAK, S, "x"), {"retries": 1}, {}, Bury(DeadReason.EXHAUSTED, "x")),
    ("beyond the last", FAILED, {"retries": 3, "attempts": 9}, {}, Bury(DeadReason.EXHAUSTED, NO_ANSWER)),
    ("last of the queue's", FAILED, {"attempts": 4}, {"retries": 5}, Bury(DeadReason.EXHAUSTED, NO_ANSWER)),
    ("last, dropped", FAILED, {"retries": 1}, DROPS, Drop(DeadReason.EXHAUSTED, NO_ANSWER)),
    (
        "unlimited",
        FAILED,
        {"retries": UNLIMITED, "attempts": 2**32 - 2},
        {},
        Retry(NOW_NS + 2 * S, NO_ANSWER),
    ),
    (
        "unlimited by the queue",
        FAILED,
        {"attempts": 2**31},
        {"retries": "unlimited"},
        Retry(NOW_NS + 2 * S, NO_ANSWER),
    ),
    ("term", Reply(Verb.TERM, None, "bad"), {}, {}, Bury(DeadReason.TERMINATED, "bad")),
    ("term without a text", Reply(Verb.TERM), {}, {}, Bury(DeadReason.TERMINATED, "terminated by its handler")),
    ("term is kept where exhausted is dropped", Reply(Verb.TERM, None, "bad"), {}, DROPS,
     Bury(DeadReason.TERMINATED, "bad")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "said", "policy", "expected"), [row[1:] for row in DECISIONS], ids=[row[0] for row in DECISIONS]
)
def test_what_a_reply_leads_to(
    reply: Reply, said: dict[str, Any], policy: dict[str, Any], expected: Decision
) -> None:
    assert decision(reply, policy_of(**policy), **said) == expected


@pytest.mark.parametrize("said", [{}, {"retries": 1}, {"retries": 3, "attempts": 9}])
def test_a_dispatch_that_nobody_could_handle_is_held_and_spends_nothing(said: dict[str, Any]) -> None:
    reply = Reply(Verb.NO_RESPONDERS, None, "no responders")
    assert decision(reply, policy_of(min_backoff="3s"), counts=False, **said) == Hold(
        NOW_NS + 3 * S, "no responders"
    )
    own = Extras(min_backoff_ns=4 * S)
    assert decision(reply, policy_of(min_backoff="3s"), own, counts=False, **said) == Hold(
        NOW_NS + 4 * S, "no responders"
    )


def test_a_retry_is_never_due_beyond_the_end_of_the_clock() -> None:
    assert decision(delay_ns=MAX_TIME_NS, backoff=FIXED) == Retry(MAX_TIME_NS, NO_ANSWER)


def test_an_expired_message_is_kept_or_dropped_by_policy() -> None:
    assert expire(policy_of()) == Bury(DeadReason.EXPIRED, "its deadline passed")
    assert expire(policy_of(on_expire="drop")) == Drop(DeadReason.EXPIRED, "its deadline passed")
