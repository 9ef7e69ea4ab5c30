"""Messages in flight: which replay waits for which reply, and until when.

Deliveries stand in one map by reply token and in one ordered bucket for each distinct wait, where the first is always
the next to time out: adding, answering and finding the next deadline cost O(1), whatever the number in flight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requeue_worker.storage.queues import Lane

_MS = 1_000_000
_S = 1_000_000_000


class Delivery:
    """One message in flight. Times are monotonic ns but `sent_ns`, which is Unix ns."""

    __slots__ = (
        "ack_deadline_ns",
        "attempt",
        "bucket",
        "client_id",
        "connection",
        "key",
        "lane",
        "sent_ns",
        "size",
        "token",
        "value",
        "wake_ns",
        "work_until_ns",
    )

    bucket: OrderedDict[bytes, Delivery]
    #: when the ack timeout ends
    ack_deadline_ns: int
    #: when the in-flight map looks at it again: the ack deadline, or earlier to re-key a long job
    wake_ns: int
    #: +WPI can't extend it beyond this
    work_until_ns: int

    def __init__(
        self,
        lane: Lane,
        key: bytes,
        value: bytes,
        size: int,
        client_id: bytes | None,
        attempt: int,
        sent_ns: int,
        connection: int,
    ) -> None:
        self.lane = lane
        self.key = key
        self.value = value
        self.size = size
        self.client_id = client_id
        self.attempt = attempt
        self.sent_ns = sent_ns
        #: number of the connection that it went out on
        self.connection = connection
        self.token = b""


def coarse(wait_ns: int) -> int:
    """A wait rounded up to about 1 %, so that a million different ones make few buckets; never shortened."""
    grain = 10 * _MS if wait_ns < 10 * _S else 100 * _MS if wait_ns < 100 * _S else _S
    return -(-wait_ns // grain) * grain


class InFlight:
    """The map of deliveries. Bytes held are counted, so that the scheduler can bound them."""

    def __init__(self) -> None:
        self._by_token: dict[bytes, Delivery] = {}
        self._buckets: dict[int, OrderedDict[bytes, Delivery]] = {}
        self._next_token = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_token)

    def __iter__(self) -> Iterator[Delivery]:
        return iter(self._by_token.values())

    def add(self, delivery: Delivery, wait_ns: int, now_ns: int, wake_after_ns: int) -> bytes:
        """Register a delivery whose ack timeout ends in `wait_ns`. Returns its reply token."""
        self._next_token += 1
        delivery.token = token = b"%x" % self._next_token
        self._by_token[token] = delivery
        delivery.ack_deadline_ns = now_ns + wait_ns
        self._place(delivery, min(wait_ns, wake_after_ns), now_ns)
        self.bytes += len(delivery.value)
        return token

    def get(self, token: bytes) -> Delivery | None:
        """The delivery that waits under this token, if it still does."""
        return self._by_token.get(token)

    def pop(self, token: bytes) -> Delivery | None:
        """Take a delivery out: it was answered or timed out."""
        delivery = self._by_token.pop(token, None)
        if delivery is not None:
            del delivery.bucket[token]
            self.bytes -= len(delivery.value)
        return delivery

    def rearm(self, delivery: Delivery, wait_ns: int, now_ns: int) -> None:
        """Look at this delivery again in `wait_ns`."""
        del delivery.bucket[delivery.token]
        self._place(delivery, wait_ns, now_ns)

    def expired(self, now_ns: int) -> Iterator[Delivery]:
        """Deliveries whose wake time has come. The caller pops or rearms each before it asks for the next."""
        for wait_ns in list(self._buckets):
            bucket = self._buckets[wait_ns]
            while bucket:
                first = next(iter(bucket.values()))
                if first.wake_ns > now_ns:
                    break
                yield first
            if not bucket:
                del self._buckets[wait_ns]

    def next_wake_ns(self) -> int | None:
        """The earliest wake time, or None when nothing waits."""
        heads = [next(iter(bucket.values())).wake_ns for bucket in self._buckets.values() if bucket]
        return min(heads, default=None)

    def _place(self, delivery: Delivery, wait_ns: int, now_ns: int) -> None:
        wait_ns = coarse(wait_ns)
        bucket = self._buckets.get(wait_ns)
        if bucket is None:
            bucket = self._buckets[wait_ns] = OrderedDict()
        delivery.wake_ns = now_ns + wait_ns
        delivery.bucket = bucket
        bucket[delivery.token] = delivery
