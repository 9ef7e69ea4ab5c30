"""Messages in flight: which replay waits for which reply, and until when.

Deliveries stand in one map by reply token. Tokens count up, so everything sent in the same few milliseconds with the
same wait is one range of tokens: only that range is remembered for the timeout, and a reply costs one look-up, whatever
the number in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from requeue_worker.storage.queues import Lane

_MS: Final = 1_000_000
_S: Final = 1_000_000_000
RANGE_NS: Final = 10 * _MS  #: deliveries of so long a time share a range: a timeout is late by this at most


class Delivery:
    """One message in flight. Times are monotonic ns; `InFlight.add` sets them, and the token."""

    token: bytes
    ack_deadline_ns: int  #: when the ack timeout ends
    rekey_ns: (
        int  #: when its record is to move to its ack deadline, so that a long job does not pin the checkpoint
    )
    wake_ns: int  #: when the in-flight map is to look at it again: the earlier of the two
    watched_ns: int  #: when it does look: not later; what is not due by then is watched further

    __slots__ = (
        "ack_deadline_ns",
        "client_id",
        "connection",
        "key",
        "lane",
        "rekey_ns",
        "size",
        "token",
        "value",
        "wake_ns",
        "watched_ns",
        "work_until_ns",
    )

    def __init__(
        self, lane: Lane, key: bytes, value: bytes, size: int, client_id: bytes | None, connection: int
    ) -> None:
        self.lane = lane
        self.key = key
        self.value = value
        self.size = size
        self.client_id = client_id
        #: number of the connection that it went out on
        self.connection = connection
        #: +WPI can't extend the ack timeout beyond this
        self.work_until_ns = 0


class TokenRange(NamedTuple):
    """Deliveries `first` to `last` are to be looked at when `wake_ns` has come."""

    wake_ns: int
    began_ns: int
    first: int
    last: int


def coarse(wait_ns: int) -> int:
    """A wait rounded up to about 1 %, so that a million different ones make few classes; never shortened."""
    grain = 10 * _MS if wait_ns < 10 * _S else 100 * _MS if wait_ns < 100 * _S else _S
    return -(-wait_ns // grain) * grain


class InFlight:
    """The map of deliveries. Bytes held are counted, so that the scheduler can bound them."""

    def __init__(self) -> None:
        self._by_token: dict[bytes, Delivery] = {}
        #: by wait; in each the ranges stand in order of their wake time
        self._ranges: dict[int, deque[TokenRange]] = {}
        self._last = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_token)

    def add(self, deliveries: list[Delivery], wait_ns: int, rekey_after_ns: int, now_ns: int) -> None:
        """Register deliveries whose ack timeout ends in `wait_ns`, and give each its reply token.

        They are looked at in `rekey_after_ns` at the latest, to re-key them.
        """
        wake_ns = self._watch(
            self._last + 1, self._last + len(deliveries), min(wait_ns, rekey_after_ns), now_ns
        )
        number, deadline_ns, rekey_ns, size = self._last, now_ns + wait_ns, now_ns + rekey_after_ns, 0
        for delivery in deliveries:
            number += 1
            delivery.token = token = b"%d" % number
            self._by_token[token] = delivery
            delivery.ack_deadline_ns = deadline_ns
            delivery.rekey_ns = rekey_ns
            delivery.wake_ns = delivery.watched_ns = wake_ns
            size += len(delivery.value)
        self._last = number
        self.bytes += size

    def get(self, token: bytes) -> Delivery | None:
        """The delivery that waits under this token, if it still does."""
        return self._by_token.get(token)

    def pop(self, token: bytes) -> Delivery | None:
        """Take a delivery out: it was answered or timed out."""
        delivery = self._by_token.pop(token, None)
        if delivery is not None:
            self.bytes -= len(delivery.value)
        return delivery

    def pop_all(self, tokens: list[bytes]) -> list[Delivery]:
        """As `pop`, for many at once: those that still waited."""
        pop = self._by_token.pop
        popped = [delivery for token in tokens if (delivery := pop(token, None)) is not None]
        self.bytes -= sum([len(delivery.value) for delivery in popped])
        return popped

    def rearm(self, delivery: Delivery, wait_ns: int, now_ns: int) -> None:
        """Look at this delivery again in `wait_ns`.

        However often it is put off (+WPI), it is watched once.
        """
        delivery.wake_ns = now_ns + coarse(wait_ns)
        if not now_ns < delivery.watched_ns <= delivery.wake_ns:
            self._watch_one(delivery, now_ns)

    def expired(self, now_ns: int) -> Iterator[Delivery]:
        """Deliveries whose wake time has come. The caller pops or rearms each before it asks for the next."""
        for wait_ns, ranges in list(self._ranges.items()):
            while ranges and ranges[0].wake_ns <= now_ns:
                due = ranges.popleft()
                for number in range(due.first, due.last + 1):
                    delivery = self._by_token.get(b"%d" % number)
                    if delivery is None:
                        continue
                    if delivery.wake_ns <= now_ns:
                        yield delivery
                    elif delivery.watched_ns <= now_ns:
                        self._watch_one(delivery, now_ns)
            if not ranges:
                self._ranges.pop(wait_ns, None)

    def next_wake_ns(self) -> int | None:
        """The earliest time at which something may have to be looked at, or None when nothing waits."""
        if not self._by_token:
            self._ranges.clear()
            return None
        return min([ranges[0].wake_ns for ranges in self._ranges.values() if ranges], default=None)

    def _watch_one(self, delivery: Delivery, now_ns: int) -> None:
        number = int(delivery.token)
        delivery.watched_ns = self._watch(number, number, delivery.wake_ns - now_ns, now_ns)

    def _watch(self, first: int, last: int, wait_ns: int, now_ns: int) -> int:
        """Remember to look at these tokens in `wait_ns`. Returns when that is."""
        wait_ns = coarse(wait_ns)
        wake_ns = now_ns + wait_ns
        ranges = self._ranges.setdefault(wait_ns, deque())
        if ranges and ranges[-1].last + 1 == first and wake_ns - ranges[-1].began_ns <= RANGE_NS:
            _, began_ns, first, _ = ranges.pop()
        else:
            began_ns = wake_ns
        ranges.append(TokenRange(wake_ns, began_ns, first, last))
        return wake_ns
