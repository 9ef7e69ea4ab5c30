"""What the API server lets through and no worker could use: refused with a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from requeue_operator.validation import InvalidSpec, read_spec

_LEAST: dict[str, Any] = {"nats": {"servers": ["nats://nats:4222"]}, "storage": {"size": "1Gi"}}


def test_least_spec_is_read_with_the_defaults_of_the_project() -> None:
    spec = read_spec(_LEAST)
    assert (spec.replicas, spec.subject, spec.queue_group) == (1, "requeue.>", "requeue-workers")
    assert (spec.defaults.retries, spec.storage.on_delete) == (20, "Retain")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"queues": [{"name": "a", "minBackoff": "2h"}]},
            "spec.queues[0] (a) does not go with spec.defaults: min_backoff 2h0m0s is more than max_backoff",
        ),
        (
            {"defaults": {"minBackoff": "1d", "maxBackoff": "2h"}},
            "spec.defaults: min_backoff 24h0m0s is more than",
        ),
        ({"storage": {"size": "1Gi", "sizes": "2Gi"}}, "spec.storage.sizes: Extra inputs are not permitted"),
        (
            {"queues": [{"name": "a", "ackTimeout": "13h"}]},
            "spec.queues[0].ackTimeout: ack_timeout 13h0m0s is out of range; it is more than 0 and at most 12h",
        ),
    ],
)
def test_contradictions_are_named_with_their_place(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidSpec) as wrong:
        read_spec({**_LEAST, **given})
    assert any(sentence in each for each in wrong.value.sentences), wrong.value.sentences


def test_the_one_volume_of_all_pods_is_not_drained() -> None:
    with pytest.raises(
        InvalidSpec, match=r"spec\.storage\.onDelete: the one volume of mode Shared is not drained"
    ):
        read_spec({**_LEAST, "storage": {"size": "1Gi", "mode": "Shared", "onDelete": "Drain"}})
