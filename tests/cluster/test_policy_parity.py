"""The custom resource and the worker judge queue policies alike: what the API server takes, a worker runs with."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from requeue_operator.validation import InvalidSpec, read_spec
from requeue_protocol.policy import NamedQueuePolicy, QueuePolicy

from tests.cluster.control_plane import ControlPlane
from tests.cluster.specs import path, requeue_queue

#: spellings that a worker takes and the custom resource does not, since a schema needs one type and one order
NARROWER = [
    {"delay": 5},
    {"delay": "1m1h"},
    {"backoff": ["1s"]},
    {"min_backoff": "1s"},
    {"maxRate": "unlimited"},
]

_GOOD_DURATIONS = [
    "0",
    "0s",
    "1s",
    "1.5s",
    "90s",
    "1m",
    "2h",
    "12h",
    "13h",
    "1d",
    "14d",
    "1d2h",
    "99999d",
    "1ns",
]
_BAD_DURATIONS = ["", "5", "-1s", "1 s", "1m1h", "1x", "999999d", "0d", "0.0000000001s", ".5s", "∞"]
_DURATIONS = st.sampled_from(_GOOD_DURATIONS + _BAD_DURATIONS)
_WORDS = ["a", "a.b", "a.*", ">", "a.>", "a.>.b", "*", "a*.b", "a..b", ".a", "a.", "é.x", "$JS.a", ""]
_SUBJECTS = st.sampled_from([*_WORDS, "a b", "a\u00a0b", "a\u2028b", "a\tb"])
_POLICIES = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "A.b-c_1", "a b", "", "a" * 128, "a" * 129, "é"])},
    optional={
        "retries": st.sampled_from([0, 1, 20, 2**62, "unlimited", "1", "x", -1]),
        "delay": _DURATIONS,
        "ttl": _DURATIONS,
        "onExpire": st.sampled_from(["dead-letter", "drop", "Drop"]),
        "backoff": st.sampled_from(["fixed", "exponential", "linear", "list", "undefined", ""]),
        "backoffList": st.lists(_DURATIONS, max_size=3),
        "minBackoff": _DURATIONS,
        "maxBackoff": _DURATIONS,
        "jitter": st.sampled_from([0, 0.5, 1, 1.1, -0.1]),
        "ackTimeout": _DURATIONS,
        "maxInFlight": st.sampled_from([0, 1, 1_000_000, 1_000_001]),
        "maxRate": st.sampled_from([0, 0.5, 10, -1]),
        "weight": st.sampled_from([0, 1, 10_000, 10_001]),
        "maxMessages": st.sampled_from([0, 1, "unlimited", "many"]),
        "maxBytes": st.sampled_from(
            [0, 1, "1", "0", "0Ki", "512MiB", "10Gi", "2GB", "unlimited", "1 GiB", "x"]
        ),
        "onExhausted": st.sampled_from(["dead-letter", "drop", "keep"]),
        "deadLetterRetention": _DURATIONS,
        "deadLetterSubject": _SUBJECTS,
        "allowSubjects": st.lists(_SUBJECTS, max_size=2),
        "denySubjects": st.lists(_SUBJECTS, max_size=2),
        "countNoResponders": st.booleans(),
        "ackMode": st.sampled_from(["verbs", "any", "none"]),
    },
)


def _refusal_of_the_worker(policy: dict[str, Any]) -> str | None:
    try:
        NamedQueuePolicy.model_validate(policy).over(QueuePolicy())
    except ValidationError as error:
        return str(error)
    return None


def _refusal_of_the_api_server(cluster: ControlPlane, namespace: str, policy: dict[str, Any]) -> str | None:
    body = requeue_queue(queues=[policy])
    status, answer = cluster.request("POST", f"{path(namespace)}?dryRun=All&fieldValidation=Strict", body)
    assert status in (201, 400, 422), answer
    return None if status == 201 else answer["message"]


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(policy=_POLICIES)
@example(policy={"name": "a", "minBackoff": "2d", "maxBackoff": "1d"})
@example(policy={"name": "a", "minBackoff": "2h"})
def test_what_the_api_server_and_the_operator_take_a_worker_takes(
    cluster: ControlPlane, namespace: str, policy: dict[str, Any]
) -> None:
    if _refusal_of_the_api_server(cluster, namespace, policy) is not None:
        return
    refusal = _refusal_of_the_worker(policy)
    try:
        read_spec(requeue_queue(queues=[policy])["spec"])
    except InvalidSpec:
        assert refusal is not None
    else:
        assert refusal is None


#: each value alone: only a contradiction with another value may be left to the operator
_SINGLE = [
    {"name": "a", key: value}
    for key, values in {
        "delay": ["0", "1.5s", "14d", "1d2h3m4s5ms6us7ns", "99999d", "soon", "", "-1s", "1e3s"],
        "ackTimeout": ["1ns", "12h", "0s", "13h", "1d"],
        "deadLetterRetention": ["1ns", "14d", "0", "0d0h"],
        "retries": [1, "unlimited", 0, "x"],
        "backoff": ["fixed", "exponential", "linear", "undefined"],
        "maxBytes": ["1", "512MiB", "10Gi", "2GB", "5B", "5K", "0", "0MiB", "x"],
        "maxMessages": [1, "unlimited", 0],
        "maxRate": [0.5, 0, -1],
        "jitter": [0, 1, 1.01],
        "weight": [1, 10_000, 0, 10_001],
        "deadLetterSubject": ["a.b", "$a", "é", "a.*", "a..b", "", "a b", "a\u00a0b", "a\u2028b"],
        "allowSubjects": [["a.>"], ["*"], [">"], ["a*b"], ["a.>.b"], [""], ["a."], ["a\tb"]],
        "name": ["A.b-c_1", "a" * 128, "", "a b", "é", "a" * 129],
    }.items()
    for value in values
]


@pytest.mark.parametrize("policy", _SINGLE, ids=str)
def test_a_value_by_itself_is_judged_alike_by_both(
    cluster: ControlPlane, namespace: str, policy: dict[str, Any]
) -> None:
    worker = _refusal_of_the_worker(policy)
    server = _refusal_of_the_api_server(cluster, namespace, policy)
    assert (worker is None) == (server is None), f"worker: {worker}; API server: {server}"


@pytest.mark.parametrize("policy", NARROWER, ids=str)
def test_spellings_that_the_custom_resource_does_not_take(
    cluster: ControlPlane, namespace: str, policy: dict[str, Any]
) -> None:
    assert _refusal_of_the_worker({"name": "a", **policy}) is None
    assert _refusal_of_the_api_server(cluster, namespace, {"name": "a", **policy}) is not None
