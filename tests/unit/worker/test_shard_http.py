"""Metrics of several shards as one text."""

from __future__ import annotations

from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from requeue_worker.counts import Counts, QueueSnapshot
from requeue_worker.metrics import Metrics
from requeue_worker.shard_http import merged


def _text(pending: int, name: str) -> str:
    queues = [QueueSnapshot(name, pending, 7, 0, 0, 1, None)]
    return generate_latest(Metrics(Counts(), lambda: queues, lambda: True).registry()).decode()


def test_each_family_is_whole_and_each_sample_says_whose_it_is() -> None:
    odd = 'a b{c="d",} e'
    text = merged({0: _text(3, "mail"), 1: _text(4, odd)})
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(names) == len(set(names))
    found = {family.name: family.samples for family in text_string_to_metric_families(text)}
    assert len(found) == len(names)
    pending = {(s.labels["shard"], s.labels["queue"]): s.value for s in found["requeue_pending_messages"]}
    assert pending == {("0", "mail"): 3, ("1", odd): 4}
    assert {s.labels["shard"]: s.value for s in found["requeue_nats_connected"]} == {"0": 1, "1": 1}


def test_without_a_shard_that_answers_there_is_nothing() -> None:
    assert merged({}) == ""
