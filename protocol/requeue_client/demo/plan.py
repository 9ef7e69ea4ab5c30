"""The messages of the demo: a seeded mix of every policy that a publisher can ask for, and each one's end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from requeue_client.message import Message, Retries

QUEUES: Final = ("default", "orders", "emails", "reports.eu-west")
WORK_SUBJECT: Final = "demo.work"
DEAD_SUBJECT: Final = "demo.dead"

ACK_TIMEOUT_NS: Final = 1_000_000_000
NAK_DELAY_NS: Final = 700_000_000
ALWAYS: Final = 1_000_000  #: as a number of failing attempts: every one fails
SPARE_ATTEMPTS: Final = 5  #: beyond those that fail on purpose

_MS: Final = 1_000_000
_S: Final = 1_000_000_000


class How(StrEnum):
    """What the handler does with an attempt that is to fail (SLOW: with every attempt)."""

    NAK = "nak"  #: `-NAK`: try again by the message's backoff
    NAK_LATER = "nak-later"  #: `-NAK {"delay": ...}`: try again when the handler says
    ERROR = "error"  #: an error reply as NATS services give it
    SILENT = "silent"  #: no reply: the ack timeout ends the attempt
    TERM = "term"  #: `+TERM`: never again
    SLOW = "slow"  #: `+WPI` beyond the ack timeout, then done


class End(StrEnum):
    """How a message is meant to end."""

    SETTLED = "settled"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class Planned:
    """One message, what its handler will do, and what follows from that. Times in ns."""

    number: int
    message: Message
    fails: int  #: so many attempts fail
    how: How
    end: End
    delay_ns: int
    at_ns: int | None
    #: wait after failed attempt number n, at least
    wait_ns: Callable[[int], int]

    def first_due_ns(self, enqueued_ns: int) -> int:
        """When it may be delivered first, given when it was on disk (Unix ns)."""
        return enqueued_ns + self.delay_ns if self.at_ns is None else self.at_ns

    def retry_due_ns(self, attempt: int, dispatched_ns: int, answered_ns: int) -> int:
        """When it may be delivered again after failed `attempt`, which was sent and answered then (Unix ns).

        Without an answer the attempt lasts for the ack timeout, counted from when it was sent.
        """
        if self.how is How.SILENT:
            return dispatched_ns + ACK_TIMEOUT_NS + self.wait_ns(attempt)
        if self.how is How.NAK_LATER:
            return answered_ns + NAK_DELAY_NS
        return answered_ns + self.wait_ns(attempt)


@dataclass(frozen=True, slots=True)
class _Backoff:
    """A backoff as a publisher says it, and the waits that follow."""

    said: str
    delay_ns: int
    min_ns: int
    wait_ns: Callable[[int], int]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A share of the plan. `ttl_ns` 0 = none; `backoff` False = it is never retried."""

    share: int
    end: End
    fails: tuple[int, int] = (0, 0)
    hows: tuple[How, ...] = (How.NAK,)
    delay_ms: tuple[int, int] = (0, 0)
    ttl_ms: tuple[int, int] = (0, 0)
    instant: bool = False


_KINDS: Final = (
    _Kind(30, End.SETTLED),
    _Kind(21, End.SETTLED, delay_ms=(500, 8_000)),
    _Kind(4, End.SETTLED, delay_ms=(2_000, 8_000), instant=True),
    _Kind(24, End.SETTLED, fails=(1, 3), hows=(How.NAK, How.NAK, How.NAK_LATER, How.ERROR)),
    _Kind(4, End.SETTLED, fails=(1, 1), hows=(How.SILENT,)),
    _Kind(2, End.SETTLED, hows=(How.SLOW,)),
    _Kind(4, End.EXPIRED, delay_ms=(60_000, 90_000), ttl_ms=(1_000, 6_000)),
    _Kind(3, End.EXPIRED, fails=(ALWAYS, ALWAYS), ttl_ms=(2_000, 5_000)),
    _Kind(5, End.EXHAUSTED, fails=(ALWAYS, ALWAYS), hows=(How.NAK, How.ERROR)),
    _Kind(3, End.TERMINATED, fails=(1, 1), hows=(How.TERM,)),
)


def make_plan(count: int, seed: int) -> list[Planned]:
    """`count` messages in the order of publishing; the same for the same seed, but for instants (`Requeue-At`)."""
    rng = random.Random(seed)
    kinds = rng.choices(_KINDS, weights=[kind.share for kind in _KINDS], k=count)
    # Each kind once at least, so that a short demo shows all of them too.
    kinds[: len(_KINDS)] = _KINDS[:count]
    rng.shuffle(kinds)
    return list(_planned(rng, kinds))


def _planned(rng: random.Random, kinds: list[_Kind]) -> Iterator[Planned]:
    began_ns = time.time_ns()
    for number, kind in enumerate(kinds):
        fails, how = rng.randint(*kind.fails), rng.choice(kind.hows)
        backoff = _backoff(rng) if kind.fails[1] else None
        delay_ns = backoff.delay_ns if backoff else rng.randint(*kind.delay_ms) * _MS
        at_ns = began_ns + delay_ns + 2 * _S if kind.instant else None
        queue = rng.choice(QUEUES)
        yield Planned(
            number,
            Message(
                f"{WORK_SUBJECT}.{queue.replace('.', '-')}",
                json.dumps({"number": number, "fails": fails, "how": how}).encode(),
                delay=delay_ns if at_ns is None else None,
                at=at_ns,
                ttl=rng.randint(*kind.ttl_ms) * _MS,
                retries=_retries(kind, fails),
                backoff=backoff.said if backoff else None,
                min_backoff=backoff.min_ns if backoff else None,
                ack_timeout=ACK_TIMEOUT_NS if how in (How.SILENT, How.SLOW) else None,
                queue=queue,
                priority=rng.choice((None, None, 0, 9)),
                headers={"Demo-Number": str(number)},
                # An instant is due to the nanosecond in plain intake only: an envelope has no field for it.
                envelope=number % 2 == 1 and not kind.instant,
            ),
            fails,
            how,
            kind.end,
            delay_ns,
            at_ns,
            backoff.wait_ns if backoff else lambda _: 0,
        )


def _retries(kind: _Kind, fails: int) -> Retries:
    if kind.end is End.EXHAUSTED:
        return 3
    return "unlimited" if fails == ALWAYS else fails + SPARE_ATTEMPTS


def _backoff(rng: random.Random) -> _Backoff:
    """One of the four shapes. Base is the delay, or `min_backoff` when the message has no delay."""
    shape = rng.choice(("fixed", "exponential", "linear", "list"))
    base_ns = rng.randint(200, 600) * _MS
    if shape == "list":
        steps_ms = sorted(rng.randint(200, 1_500) for _ in range(3))
        said = ",".join(f"{step}ms" for step in steps_ms)
        return _Backoff(said, 0, base_ns, lambda n: steps_ms[min(n, 3) - 1] * _MS)
    waits: dict[str, Callable[[int], int]] = {
        "fixed": lambda _: base_ns,
        "exponential": lambda n: base_ns << (n - 1),
        "linear": lambda n: base_ns * n,
    }
    delay_ns = base_ns if rng.random() < 0.5 else 0
    return _Backoff(shape, delay_ns, base_ns, waits[shape])
