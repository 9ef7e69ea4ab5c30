"""How many messages a queue may send now: slots and bytes in flight, rate tokens, pauses."""

from __future__ import annotations

from typing import Final

from requeue_worker.inflight import InFlight
from requeue_worker.storage.queues import NEVER, QueueState

FAIR_SLOTS: Final = 8  #: of the total that a queue gets even when others hold all the rest
ANY_SLOT: Final = NEVER - 1  #: no time ends the wait: a slot or byte that any queue frees does


class Allowance:
    """Reads what is in flight; keeps a queue's bucket of tokens in `QueueState`."""

    def __init__(self, in_flight: InFlight, *, max_in_flight: int, max_in_flight_bytes: int) -> None:
        self._in_flight = in_flight
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes

    def of(self, queue: QueueState, now_ns: int) -> tuple[int, int]:
        """How many messages the queue may send now; and when to look again once they are sent (Unix ns).

        NEVER: a slot that this queue frees will say; ANY_SLOT: one of any queue will.
        """
        policy = queue.policy
        if queue.paused_until_ns > now_ns:
            return 0, queue.paused_until_ns
        in_flight = self._in_flight
        slots, until_ns = policy.max_in_flight - queue.in_flight, NEVER
        if in_flight.bytes < self._max_in_flight_bytes:
            free = max(self._max_in_flight - len(in_flight), FAIR_SLOTS - queue.in_flight)
        else:
            free = 1 - queue.in_flight
        if free < slots:
            slots, until_ns = free, ANY_SLOT
        if policy.max_rate is not None:
            _earn(queue, policy.max_rate, now_ns)
            if queue.tokens < slots:
                slots = int(queue.tokens)
                until_ns = now_ns + int((slots + 1 - queue.tokens) / policy.max_rate * 1e9) + 1
        return max(slots, 0), until_ns

    def spend(self, queue: QueueState, sent: int) -> None:
        """The queue has sent so many."""
        if queue.policy.max_rate is not None:
            queue.tokens -= sent


def _earn(queue: QueueState, max_rate: float, now_ns: int) -> None:
    """Fill the bucket up to now. It holds a tenth of a second's worth, at least one token."""
    earned = max(now_ns - queue.tokens_at_ns, 0) * max_rate / 1e9
    queue.tokens = min(max(1.0, max_rate / 10), queue.tokens + earned)
    queue.tokens_at_ns = now_ns
