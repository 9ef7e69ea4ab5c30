"""Dispatch: messages that are due as the protocol bytes of their replays, and their entry into what is in flight."""

from __future__ import annotations

import time
from binascii import hexlify
from collections.abc import Callable
from typing import Final

from requeue_worker.inflight import Delivery, InFlight
from requeue_worker.record import DELAY, HEAD, HEAD_STATIC, DeadReason, Record, decode
from requeue_worker.replay import (
    BARE_BLOCK_BYTES,
    bare_middle,
    block_for,
    read_head,
    read_times,
    travelling,
)
from requeue_worker.retry import Bury, Drop, expire
from requeue_worker.storage.keys import ID_LEN
from requeue_worker.storage.queues import Lane

REKEY_AFTER_NS: Final = 60 * 10**9  #: in flight for longer: the message moves to its ack deadline

_HEAD_SIZE = HEAD.size
_TIMES_AT = HEAD_STATIC.size
_DELAY_AT = _TIMES_AT - DELAY.size


class Dispatcher:
    """Makes replays. Runs on the event loop and never blocks."""

    def __init__(
        self,
        in_flight: InFlight,
        *,
        inbox: Callable[[], bytes],
        connection: Callable[[], int],
        max_payload: Callable[[], int],
        refuse: Callable[[Lane, bytes, Record, Bury | Drop], None],
    ) -> None:
        """`refuse` gets what can't be replayed: lane, key, record and what is to become of it."""
        self._in_flight = in_flight
        self._inbox = inbox
        self._connection = connection
        self._max_payload = max_payload
        self._refuse = refuse

    def send(self, lane: Lane, items: list[tuple[bytes, bytes]], now_ns: int, out: list[bytes]) -> int:
        """Edge b. Put these messages in flight and append their protocol bytes to `out`. Returns the bytes appended.

        One whose deadline or size forbids a replay is buried or dropped instead.
        """
        connection, max_payload, queue = self._connection(), self._max_payload(), lane.queue
        unsettled, inbox, retries = lane.unsettled, self._inbox(), queue.policy.retries
        sent: list[Delivery] = []
        parts: list[bytes] = []
        total, deadline_ns, size = 0, 0, -1
        head, times, own, subject, start = b"", b"", b"", b"", b""
        for key, value in items:
            # What is worked out once for messages with equal heads, whatever their delay, took half of a dispatch's time.
            if value[:_DELAY_AT] != head:
                head, size, own = value[:_DELAY_AT], -1, b""
                is_bare, headers_end, subject_at, subject_end, payload_at, payload_end, attempt = read_head(
                    head, queue.name, retries
                )
            if value[_TIMES_AT:_HEAD_SIZE] != times:
                times, size = value[_TIMES_AT:_HEAD_SIZE], -1
                deadline_ns, enqueued = read_times(times)
            if deadline_ns and deadline_ns <= now_ns:
                self._refuse(lane, key, decode(value), expire(queue.policy))
                continue
            if not is_bare:
                self._send_one(lane, key, decode(value), out)
                continue
            if headers_end > _HEAD_SIZE and (its_own := travelling(value[_HEAD_SIZE:headers_end])) != own:
                own, size = its_own, -1
            if size < 0:
                lines = attempt + enqueued
                block_size = BARE_BLOCK_BYTES + len(lines) + len(own)
                size = block_size + payload_end - payload_at
                middle = bare_middle(block_size, size, own)
            if size > max_payload:
                self._too_large(lane, key, decode(value), size)
                continue
            if value[subject_at:subject_end] != subject:
                subject = value[subject_at:subject_end]
                start = b"HPUB %b %b" % (subject, inbox)
            unsettled[key] = delivery = Delivery(lane, key, value, len(value) - _HEAD_SIZE, None, connection)
            sent.append(delivery)
            message_id = hexlify(key[-ID_LEN:])
            payload = value[payload_at:payload_end]
            parts += (start, b"", middle, message_id, lines, message_id, b"\r\n\r\n", payload, b"\r\n")
            total += size
        if sent:
            self._launch(sent, queue.policy.ack_timeout_ns)
            parts[1::9] = [delivery.token for delivery in sent]
            out.append(b"".join(parts))
        return total

    def _send_one(self, lane: Lane, key: bytes, record: Record, out: list[bytes]) -> None:
        """`send` for a message with an id, policy of its own, or a history."""
        block = block_for(record, key, record.attempts + 1, lane.queue)
        payload = record.payload
        size = len(block) + len(payload)
        if size > self._max_payload():
            self._too_large(lane, key, record, size)
            return
        delivery = Delivery(lane, key, record.value, record.size, record.client_id, self._connection())
        lane.unsettled[key] = delivery
        self._launch([delivery], wait_ns_of(delivery))
        out.append(
            b"HPUB %b %b%b %d %d\r\n%b%b\r\n"
            % (record.subject, self._inbox(), delivery.token, len(block), size, block, payload)
        )

    def _launch(self, deliveries: list[Delivery], wait_ns: int) -> None:
        """Deliveries of one lane and one ack timeout are in flight from now on."""
        queue = deliveries[0].lane.queue
        self._in_flight.add(deliveries, wait_ns, REKEY_AFTER_NS, time.monotonic_ns())
        queue.in_flight += len(deliveries)
        queue.counts.replays += len(deliveries)

    def _too_large(self, lane: Lane, key: bytes, record: Record, size: int) -> None:
        error = (
            f"{size} bytes with the headers of a replay; the server's max_payload is {self._max_payload()}"
        )
        self._refuse(lane, key, record, Bury(DeadReason.TOO_LARGE, error))


def wait_ns_of(delivery: Delivery) -> int:
    """Its ack timeout: its own, or its queue's."""
    own_ns = decode(delivery.value).extras.ack_timeout_ns
    return delivery.lane.queue.policy.ack_timeout_ns if own_ns is None else own_ns
