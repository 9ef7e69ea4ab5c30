"""Retry policy, pure: what became of a dispatch, and what is to happen with the message now.

Nothing here does I/O or reads a clock; the replayer applies the decision. Edges c, d, e, f, g and h are those of
the state diagram in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
)


@dataclass(frozen=True, slots=True)
class Settle:
    """Edge c: handled; the record goes."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Edge d: failed; due again at `due_ns` (Unix ns), one attempt spent."""

    due_ns: int
    error: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Edge e: nobody could have handled it; due again at `due_ns` with no attempt spent."""

    due_ns: int
    error: str


@dataclass(frozen=True, slots=True)
class Bury:
    """Edges f (exhausted, terminated, too large) and g (expired): becomes a dead letter."""

    reason: DeadReason
    error: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Edge h: exhausted or expired in a queue whose policy drops; the record goes."""

    reason: DeadReason
    error: str


Decision = Settle | Retry | Hold | Bury | Drop


def max_attempts(record: Record, policy: QueuePolicy) -> int:
    """Dispatches in all: the message's own number, else the queue's."""
    return policy.retries if record.retries == UNSET_RETRIES else record.retries


def backoff_ns(
    record: Record, extras: Extras, policy: QueuePolicy, attempt: int, jitter: Callable[[], float]
) -> int:
    """Wait after failed attempt number `attempt` (from 1), in ns.

    fixed: delay; exponential: min(max_backoff, base * 2^(attempt-1)) * U(1, 1+jitter); linear: min(max_backoff,
    base * attempt); list: its entries, the last one repeated. base = delay, or min_backoff when the delay is 0.
    `jitter` draws from [0, 1).
    """
    delay_ns = policy.delay_ns if record.delay_ns == UNSET_DELAY else record.delay_ns
    floor_ns = policy.min_backoff_ns if extras.min_backoff_ns is None else extras.min_backoff_ns
    ceiling_ns = policy.max_backoff_ns if extras.max_backoff_ns is None else extras.max_backoff_ns
    shape = policy.backoff if record.backoff == UNSET_BACKOFF else Backoff(record.backoff)
    base_ns = delay_ns or floor_ns
    if shape is Backoff.LIST:
        steps = extras.backoff_list_ns or policy.backoff_list_ns
        return steps[min(attempt, len(steps)) - 1]
    if shape is Backoff.EXPONENTIAL:
        # 2^62 ns is beyond every ceiling: no need for huge integers on a message retried for ever.
        wait_ns = min(ceiling_ns, base_ns << min(attempt - 1, 62))
        return wait_ns + int(wait_ns * (policy.jitter * jitter()))  # exact: a float has 53 bits
    if shape is Backoff.LINEAR:
        return min(ceiling_ns, base_ns * attempt)
    return base_ns


def decide(
    reply: Reply,
    record: Record,
    policy: QueuePolicy,
    *,
    now_ns: int,
    jitter: Callable[[], float],
    counts: bool = True,
) -> Decision:
    """What a reply (or its absence, as FAILED) means for the message. `counts`: whether this dispatch spends an attempt.

    A +WPI is no end of a dispatch: the replayer handles it.
    """
    if reply.verb is Verb.SETTLED:
        return Settle()
    if reply.verb is Verb.TERM:
        return Bury(DeadReason.TERMINATED, reply.text or "terminated by its handler")
    extras = record.extras
    attempt = record.attempts + 1
    error = reply.text or ("refused by its handler (-NAK)" if reply.verb is Verb.NAK else "failed")
    if not counts:
        wait_ns = policy.min_backoff_ns if extras.min_backoff_ns is None else extras.min_backoff_ns
        return Hold(now_ns + wait_ns, error)
    limit = max_attempts(record, policy)
    if limit != UNLIMITED and attempt >= limit:
        if policy.on_exhausted == "drop":
            return Drop(DeadReason.EXHAUSTED, error)
        return Bury(DeadReason.EXHAUSTED, error)
    if reply.delay_ns is not None:
        if now_ns + reply.delay_ns <= MAX_TIME_NS:
            return Retry(now_ns + reply.delay_ns, error)
        error = f"-NAK with a delay of {reply.delay_ns} ns, beyond the year 2262: retried by the backoff"
    wait_ns = backoff_ns(record, extras, policy, attempt, jitter)
    return Retry(min(now_ns + wait_ns, MAX_TIME_NS), error)


def expire(policy: QueuePolicy) -> Bury | Drop:
    """What happens to a message whose deadline has passed: edge g or edge h."""
    if policy.on_expire == "drop":
        return Drop(DeadReason.EXPIRED, "its deadline passed")
    return Bury(DeadReason.EXPIRED, "its deadline passed")
