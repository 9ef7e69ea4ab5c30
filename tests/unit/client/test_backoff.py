from __future__ import annotations

from requeue_client.backoff import BackoffShape, ExponentialBackOff


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _middle(low: float, high: float) -> float:
    return (low + high) / 2


def test_waits_grow_by_half_up_to_a_minute_as_in_cenkalti() -> None:
    backoff = ExponentialBackOff(clock=Clock(), uniform=_middle)
    waits = [backoff.next_s() for _ in range(14)]
    assert waits[:4] == [0.5, 0.75, 1.125, 1.6875]
    assert waits[-1] == 60.0
    assert waits == sorted(waits, key=lambda wait: wait or 0.0)


def test_each_wait_is_drawn_from_half_to_one_and_a_half_intervals() -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    backoff = ExponentialBackOff(clock=Clock(), uniform=uniform)
    backoff.next_s()
    backoff.next_s()
    assert drawn == [(0.25, 0.75), (0.375, 1.125)]


def test_a_wait_that_would_end_after_the_elapsed_time_is_not_made() -> None:
    clock = Clock()
    backoff = ExponentialBackOff(clock=clock, uniform=_middle)
    clock.now_s = 15 * 60 - 0.4
    assert backoff.next_s() is None


def test_without_a_limit_it_never_ends() -> None:
    clock = Clock()
    backoff = ExponentialBackOff(BackoffShape(max_elapsed_s=0), clock=clock, uniform=_middle)
    clock.now_s = 1e9
    assert backoff.next_s() == 0.5
