from __future__ import annotations

import pytest
from requeue_worker.counts import REFUSAL_CODES, Counts, Histogram


def test_a_value_on_a_bound_counts_below_it() -> None:
    histogram = Histogram((0.001, 0.01))
    for value in (0.0, 0.001, 0.002, 0.01, 5.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == pytest.approx(5.013)


def test_a_batch_with_one_value_is_observed_at_once() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(2.0, times=300)
    assert histogram.counts == [0, 300]
    assert histogram.sum == 600.0


def test_the_counters_of_a_queue_start_when_it_is_named_and_go_when_it_is_dropped() -> None:
    counts = Counts()
    assert "orders" not in counts.queues
    counts.queues["orders"].settled += 1
    counts.queues["orders"].dead["exhausted"] += 1
    assert counts.queues["orders"].settled == 1
    assert dict(counts.queues["orders"].dead) == {"exhausted": 1}
    del counts.queues["orders"]
    assert counts.queues["orders"].settled == 0


def test_every_refusal_of_the_protocol_is_counted_from_zero() -> None:
    counts = Counts()
    assert counts.refused == dict.fromkeys(REFUSAL_CODES, 0)
    counts.refused[429] += 1
    assert counts.refused[429] == 1
    assert Counts().refused[429] == 0
