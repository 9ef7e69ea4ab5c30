"""Messages in flight: reply tokens, timeouts, and what a long time of them leaves behind."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from requeue_worker.inflight import RANGE_NS, Delivery, InFlight, coarse

from tests.unit.worker.test_queues import queue_of

checked = settings(deadline=None)

MS = 1_000_000
S = 1_000_000_000
FAR = 10**6 * S


def deliveries(number: int, value: bytes = b"value") -> list[Delivery]:
    lane = queue_of().lane()
    return [Delivery(lane, b"key", value, len(value), None, 1) for _ in range(number)]


def expire(in_flight: InFlight, now_ns: int) -> list[Delivery]:
    """Take out everything whose wake time has come."""
    ended = []
    for delivery in in_flight.expired(now_ns):
        in_flight.pop(delivery.token)
        ended.append(delivery)
    return ended


def test_every_delivery_has_a_token_of_its_own_and_is_found_by_it() -> None:
    in_flight = InFlight()
    first, second = deliveries(3), deliveries(2)
    in_flight.add(first, S, FAR, 0)
    in_flight.add(second, 9 * S, FAR, 0)
    assert len({delivery.token for delivery in first + second}) == 5
    for delivery in first + second:
        assert in_flight.get(delivery.token) is delivery


def test_a_delivery_is_taken_out_once() -> None:
    in_flight = InFlight()
    [delivery] = deliveries(1)
    in_flight.add([delivery], S, FAR, 0)
    assert in_flight.pop(delivery.token) is delivery
    assert in_flight.pop(delivery.token) is None
    assert in_flight.pop(b"no token of ours") is None
    assert (len(in_flight), in_flight.bytes) == (0, 0)


def test_bytes_are_those_of_the_values_held() -> None:
    in_flight = InFlight()
    few, more = deliveries(2, b"x" * 100), deliveries(3, b"x" * 1000)
    in_flight.add(few, S, FAR, 0)
    in_flight.add(more, S, FAR, 0)
    in_flight.pop(few[0].token)
    assert in_flight.bytes == 100 + 3000


@checked
@given(
    st.lists(
        st.tuples(
            st.integers(1, 20), st.integers(1, 40 * S), st.integers(0, 3 * S), st.sets(st.integers(0, 19))
        ),
        max_size=12,
    )
)
def test_a_timeout_is_never_early_and_late_by_a_grain_at_most(
    batches: list[tuple[int, int, int, set[int]]],
) -> None:
    """Whatever went out together, with whatever waits, and whichever were answered meanwhile."""
    in_flight, now_ns, due = InFlight(), 0, {}
    for number, wait_ns, pause_ns, answered in batches:
        batch = deliveries(number)
        in_flight.add(batch, wait_ns, FAR, now_ns)
        for index, delivery in enumerate(batch):
            if index in answered:
                in_flight.pop(delivery.token)
            else:
                due[delivery.token] = now_ns + wait_ns
        now_ns += pause_ns
    woken_ns = 0
    while (wake_ns := in_flight.next_wake_ns()) is not None:
        assert wake_ns >= woken_ns
        woken_ns = max(wake_ns, woken_ns + 1)
        for delivery in expire(in_flight, woken_ns):
            expected_ns = due.pop(delivery.token)
            assert expected_ns <= woken_ns, "early"
            assert woken_ns <= expected_ns + max(10 * MS, (expected_ns + 40 * S) // 90) + RANGE_NS, "late"
    assert due == {}, "every timeout comes"
    assert (len(in_flight), in_flight.bytes) == (0, 0)


def test_what_is_rearmed_is_looked_at_then_and_not_at_its_old_time() -> None:
    in_flight = InFlight()
    short, long = deliveries(2)
    in_flight.add([short, long], 5 * S, FAR, 0)
    in_flight.rearm(long, 60 * S, S)
    assert expire(in_flight, 6 * S) == [short]
    assert expire(in_flight, 60 * S) == []
    assert expire(in_flight, 62 * S) == [long]


def test_what_is_put_off_again_and_again_is_watched_once() -> None:
    in_flight = InFlight()
    first, second = deliveries(2)
    in_flight.add([first, second], 15 * S, FAR, 0)
    for number in range(10_000):
        for delivery in (first, second):
            in_flight.rearm(delivery, 15 * S, number * MS)
    assert sum(len(ranges) for ranges in in_flight._ranges.values()) <= 3
    assert expire(in_flight, 24 * S) == []
    assert expire(in_flight, 26 * S) == [first, second]


def test_what_is_put_forward_is_looked_at_earlier() -> None:
    in_flight = InFlight()
    [delivery] = deliveries(1)
    in_flight.add([delivery], 60 * S, FAR, 0)
    in_flight.rearm(delivery, 5 * S, S)
    assert expire(in_flight, 7 * S) == [delivery]


def test_a_delivery_may_be_rearmed_while_it_is_looked_at() -> None:
    in_flight = InFlight()
    batch = deliveries(5)
    in_flight.add(batch, 5 * S, FAR, 0)
    looked_at = []
    for delivery in in_flight.expired(6 * S):
        looked_at.append(delivery)
        in_flight.rearm(delivery, 5 * S, 6 * S)
    assert looked_at == batch, "each once"
    assert expire(in_flight, 10 * S) == []
    assert expire(in_flight, 12 * S) == batch


def test_a_job_longer_than_the_re_key_interval_is_looked_at_in_between() -> None:
    in_flight = InFlight()
    [delivery] = deliveries(1)
    in_flight.add([delivery], 3600 * S, 60 * S, 0)
    assert in_flight.next_wake_ns() == 60 * S
    assert delivery.ack_deadline_ns == 3600 * S
    assert delivery.rekey_ns == 60 * S


def test_a_million_messages_with_one_timeout_leave_a_few_ranges() -> None:
    in_flight = InFlight()
    now_ns = 0
    for _ in range(10_000):
        batch = deliveries(1)
        in_flight.add(batch, 15 * S, FAR, now_ns)
        in_flight.pop(batch[0].token)
        now_ns += MS // 10
        in_flight.next_wake_ns()
    kept = deliveries(1)
    in_flight.add(kept, 15 * S, FAR, now_ns)
    for _ in range(10_000):
        batch = deliveries(100)
        in_flight.add(batch, 15 * S, FAR, now_ns)
        for delivery in batch:
            in_flight.pop(delivery.token)
        now_ns += MS // 10
    assert sum(len(ranges) for ranges in in_flight._ranges.values()) < 120


@checked
@given(st.integers(0, 12 * 3600 * S))
def test_waits_are_rounded_up_by_one_percent_at_most(wait_ns: int) -> None:
    rounded = coarse(wait_ns)
    assert wait_ns <= rounded <= wait_ns + max(10 * MS, wait_ns // 100 + 1)


def test_when_nothing_is_in_flight_nothing_wakes() -> None:
    in_flight = InFlight()
    batch = deliveries(3)
    in_flight.add(batch, S, FAR, 0)
    for delivery in batch:
        in_flight.pop(delivery.token)
    assert in_flight.next_wake_ns() is None
    assert in_flight._ranges == {}
