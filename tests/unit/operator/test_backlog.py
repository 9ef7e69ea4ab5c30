"""Workers' metrics → `status.backlog`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest
from requeue_operator.api import LISTED_QUEUES, Backlog
from requeue_operator.backlog import QueueNumbers, Told, Unreadable, backlog_of, read_metrics
from requeue_worker.counts import Counts, QueueSnapshot
from requeue_worker.metrics import Metrics
from requeue_worker.shard_http import merged

_NAMES = st.text("abcXYZ019_.-", min_size=1, max_size=6)
_NUMBERS = st.builds(
    QueueNumbers,
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.none() | st.integers(0, 4 * 10**9).map(float),
)
_TOLD = st.builds(Told, st.booleans(), st.dictionaries(_NAMES, _NUMBERS, max_size=30), st.booleans())


def _snapshot(name: str, numbers: QueueNumbers) -> QueueSnapshot:
    due_ns = None if numbers.next_due_s is None else int(numbers.next_due_s) * 10**9
    return QueueSnapshot(name, numbers.pending, 7, numbers.dead, 7, 1, due_ns)


@given(_TOLD)
def test_what_a_worker_exposes_is_read_as_it_was_meant(told: Told) -> None:
    metrics = Metrics(
        Counts(),
        lambda: [_snapshot(name, each) for name, each in told.queues.items()],
        lambda: told.is_connected,
        build_version="1",
        intake=told.takes_in,
    )
    assert read_metrics(generate_latest(metrics.registry()).decode()) == told


def test_what_the_shards_of_a_worker_say_is_added_up() -> None:
    one = Told(True, {"a": QueueNumbers(3, 1, 50.0), "b": QueueNumbers(1, 0, None)}, False)
    other = Told(False, {"a": QueueNumbers(4, 0, 40.0)}, True)

    def text(told: Told) -> str:
        queues = [_snapshot(name, each) for name, each in told.queues.items()]
        metrics = Metrics(Counts(), lambda: queues, lambda: told.is_connected, intake=told.takes_in)
        return generate_latest(metrics.registry()).decode()

    read = read_metrics(merged({0: text(one), 1: text(other)}))
    assert read == Told(False, {"a": QueueNumbers(7, 1, 40.0), "b": QueueNumbers(1, 0, None)}, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>hello</html>",
        "requeue_nats_connected yes",
        "requeue_nats_connected 1\nrequeue_pending_messages 3\n",
        'requeue_nats_connected 1\nrequeue_pending_messages{queue="a"} NaN\n',
        'requeue_nats_connected 1\nrequeue_pending_messages{queue="a"} +Inf\n',
        'requeue_nats_connected 1\nrequeue_pending_messages{queue="a\n',
    ],
)
def test_what_no_worker_says_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        read_metrics(text)


@given(st.lists(_TOLD, max_size=4))
def test_the_sum_misses_nothing_and_lists_the_largest(all_told: list[Told]) -> None:
    backlog = backlog_of(all_told)
    assert Backlog.model_validate(backlog)
    every = [(name, each) for told in all_told for name, each in told.queues.items()]
    assert backlog["pending"] == sum(each.pending for _, each in every)
    assert backlog["dead"] == sum(each.dead for _, each in every)
    assert (backlog["nextDue"] is None) == all(each.next_due_s is None for _, each in every)
    busy = {name for name, each in every if each.pending or each.dead}
    listed = {each["name"]: (each["pending"], each["dead"]) for each in backlog["queues"]}
    assert len(listed) == min(LISTED_QUEUES, len(busy))
    for name in busy - listed.keys():
        numbers = [each for other, each in every if other == name]
        size = (sum(each.pending for each in numbers), sum(each.dead for each in numbers))
        assert size <= min(listed.values())


def test_the_next_due_is_the_earliest_of_all_workers() -> None:
    told = [
        Told(True, {"a": QueueNumbers(1, 0, 1_767_323_045.9)}),
        Told(True, {"a": QueueNumbers(1, 0, 1_767_323_050.0)}),
    ]
    assert backlog_of(told) == {
        "workers": 2,
        "pending": 2,
        "dead": 0,
        "nextDue": "2026-01-02T03:04:05Z",
        "queues": [{"name": "a", "pending": 2, "dead": 0}],
    }
