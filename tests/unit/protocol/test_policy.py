from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from requeue_protocol.envelope import Backoff
from requeue_protocol.policy import NamedQueuePolicy, QueuePolicy

from tests.unit.protocol.profile import checked

S = 1_000_000_000

DEFAULTS = {
    "retries": 20,
    "delay_ns": 0,
    "ttl_ns": 0,
    "on_expire": "dead-letter",
    "backoff": Backoff.EXPONENTIAL,
    "backoff_list_ns": (),
    "min_backoff_ns": S,
    "max_backoff_ns": 3600 * S,
    "jitter": 0.2,
    "ack_timeout_ns": 15 * S,
    "max_in_flight": 4096,
    "max_rate": None,
    "weight": 100,
    "max_messages": None,
    "max_bytes": None,
    "on_exhausted": "dead-letter",
    "dead_letter_retention_ns": 14 * 86_400 * S,
    "dead_letter_subject": None,
    "allow_subjects": (),
    "deny_subjects": (),
    "count_no_responders": True,
    "ack_mode": "verbs",
}


def test_the_defaults_are_those_of_the_design() -> None:
    assert QueuePolicy().model_dump() == DEFAULTS


@pytest.mark.parametrize(
    ("key", "value", "attribute", "expected"),
    [
        ("retries", 1, "retries", 1),
        ("retries", "7", "retries", 7),  # from an environment variable
        ("retries", "unlimited", "retries", 2**64 - 1),
        ("delay", "1m30s", "delay_ns", 90 * S),
        ("delay", 5, "delay_ns", 5),
        ("ttl", "0", "ttl_ns", 0),
        ("ttl", "1d12h", "ttl_ns", 36 * 3600 * S),
        ("on_expire", "drop", "on_expire", "drop"),
        ("onExpire", "drop", "on_expire", "drop"),
        ("backoff", "fixed", "backoff", Backoff.FIXED),
        ("backoff", "exponential", "backoff", Backoff.EXPONENTIAL),
        ("backoff", "linear", "backoff", Backoff.LINEAR),
        ("backoff", ["1s", 5], "backoff_list_ns", (S, 5)),
        ("backoff", "1s, 5s,1m", "backoff_list_ns", (S, 5 * S, 60 * S)),
        ("min_backoff", "100ms", "min_backoff_ns", S // 10),
        ("minBackoff", "100ms", "min_backoff_ns", S // 10),
        ("min_backoff_ns", 100, "min_backoff_ns", 100),
        ("max_backoff", "1d", "max_backoff_ns", 86_400 * S),
        ("maxBackoff", "2h", "max_backoff_ns", 7200 * S),
        ("jitter", 0, "jitter", 0.0),
        ("jitter", 1, "jitter", 1.0),
        ("ack_timeout", "12h", "ack_timeout_ns", 43_200 * S),
        ("ackTimeout", "1s", "ack_timeout_ns", S),
        ("max_in_flight", 1, "max_in_flight", 1),
        ("maxInFlight", 1, "max_in_flight", 1),
        ("max_rate", 0.5, "max_rate", 0.5),
        ("maxRate", "unlimited", "max_rate", None),
        ("weight", 10_000, "weight", 10_000),
        ("max_messages", 1, "max_messages", 1),
        ("maxMessages", "unlimited", "max_messages", None),
        ("max_bytes", "512MiB", "max_bytes", 512 * 2**20),
        ("max_bytes", "10Gi", "max_bytes", 10 * 2**30),
        ("max_bytes", "2GB", "max_bytes", 2 * 10**9),
        ("max_bytes", "2K", "max_bytes", 2000),
        ("maxBytes", "17B", "max_bytes", 17),
        ("max_bytes", 17, "max_bytes", 17),
        ("on_exhausted", "drop", "on_exhausted", "drop"),
        ("dead_letter_retention", "14d", "dead_letter_retention_ns", 14 * 86_400 * S),
        ("deadLetterRetention", "1h", "dead_letter_retention_ns", 3600 * S),
        ("dead_letter_subject", "dead.orders", "dead_letter_subject", "dead.orders"),
        ("deadLetterSubject", "dead.orders", "dead_letter_subject", "dead.orders"),
        ("allow_subjects", ["orders.>", "*.mail"], "allow_subjects", ("orders.>", "*.mail")),
        ("denySubjects", ["orders.>"], "deny_subjects", ("orders.>",)),
        ("count_no_responders", False, "count_no_responders", False),
        ("countNoResponders", False, "count_no_responders", False),
        ("ack_mode", "any", "ack_mode", "any"),
        ("ackMode", "any", "ack_mode", "any"),
    ],
)
def test_every_name_is_read(key: str, value: object, attribute: str, expected: object) -> None:
    policy = QueuePolicy.model_validate({key: value})
    assert getattr(policy, attribute) == expected
    others = {name: default for name, default in DEFAULTS.items() if not name.startswith(attribute[:7])}
    assert {name: getattr(policy, name) for name in others} == others


@pytest.mark.parametrize(
    ("given_policy", "where", "wrong"),
    [
        ({"retries": 0}, "retries", "greater than or equal to 1"),
        ({"retries": "many"}, "retries", "'many' is no number of attempts; it is 1 or more, or unlimited"),
        ({"retries": True}, "retries", "True is no number of attempts"),
        (
            {"retries": 2**64},
            "retries",
            "18446744073709551616 attempts are more than 64 bits hold; write unlimited",
        ),
        ({"delay": "5"}, "delay", "'5' is not a duration; every number needs a unit"),
        ({"delay": "-5s"}, "delay", "is negative"),
        ({"delay": -5}, "delay", "-5 ns is out of range"),
        ({"delay": 2**63}, "delay", "out of range"),
        ({"delay": 1.5}, "delay", "1.5 is not a duration; write it with a unit, like 1m30s or 14d"),
        ({"delay": True}, "delay", "True is not a duration"),
        ({"delay": None}, "delay", "None is not a duration"),
        ({"ttl": "200000d"}, "ttl", "the longest duration"),
        ({"on_expire": "keep"}, "on_expire", "'dead-letter' or 'drop'"),
        ({"backoff": "expo"}, "backoff", "it is fixed, exponential, linear, or a list of durations"),
        ({"backoff": 0}, "backoff", "a queue's backoff is fixed, exponential, linear, or a list"),
        ({"backoff": []}, "", "backoff_list is empty; write it like backoff: [1s, 5s, 1m]"),
        ({"backoff": ["soon"]}, "backoff_list.0", "'soon' is not a duration"),
        ({"backoff": ["1s"] * 101}, "backoff_list", "101 steps of backoff; at most 100"),
        ({"backoff": "list"}, "", "backoff_list is empty"),
        ({"backoff_list": ["1s"]}, "", "backoff_list is given and backoff is not list"),
        ({"backoff": ["1s"], "backoffList": ["1s"]}, "", "write one of them"),
        ({"min_backoff": "2h"}, "", "min_backoff 2h0m0s is more than max_backoff 1h0m0s; it is at most that"),
        ({"jitter": 1.5}, "jitter", "less than or equal to 1"),
        ({"jitter": -0.1}, "jitter", "greater than or equal to 0"),
        (
            {"ack_timeout": 0},
            "ack_timeout",
            "ack_timeout 0s is out of range; it is more than 0 and at most 12h",
        ),
        ({"ack_timeout": "13h"}, "ack_timeout", "at most 12h"),
        ({"max_in_flight": 0}, "max_in_flight", "greater than or equal to 1"),
        ({"max_rate": 0}, "max_rate", "greater than 0"),
        ({"max_rate": float("inf")}, "max_rate", "finite"),
        ({"weight": 0}, "weight", "greater than or equal to 1"),
        ({"weight": 10_001}, "weight", "less than or equal to 10000"),
        ({"max_messages": 0}, "max_messages", "greater than or equal to 1"),
        (
            {"max_bytes": "lots"},
            "max_bytes",
            "'lots' is not a size; write it like 512MiB, 10Gi or a number of bytes",
        ),
        ({"max_bytes": "0"}, "max_bytes", "greater than or equal to 1"),
        ({"on_exhausted": "keep"}, "on_exhausted", "'dead-letter' or 'drop'"),
        ({"dead_letter_retention": 0}, "dead_letter_retention", "or on_exhausted: drop"),
        (
            {"dead_letter_subject": "dead.*"},
            "dead_letter_subject",
            "dead_letter_subject 'dead.*' has the wildcard",
        ),
        ({"dead_letter_subject": ""}, "dead_letter_subject", "dead_letter_subject is empty"),
        (
            {"allow_subjects": ["a..b"]},
            "allow_subjects",
            "'a..b' is not a subject pattern; write tokens between dots",
        ),
        ({"deny_subjects": [">.a"]}, "deny_subjects", "'>' stands for the rest and comes last"),
        ({"allow_subjects": "orders.>"}, "allow_subjects", "valid tuple"),
        ({"ack_mode": "all"}, "ack_mode", "'verbs' or 'any'"),
        ({"max_backof": "1h"}, "max_backof", "Extra inputs are not permitted"),
        ({"min_backoff": "1s", "minBackoff": "2s"}, "minBackoff", "Extra inputs are not permitted"),
        ({"delay": "1s", "delay_ns": 5}, "delay_ns", "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_refused_with_its_place_and_what_would_be_right(
    given_policy: dict[str, object], where: str, wrong: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        QueuePolicy.model_validate(given_policy)
    (error,) = refused.value.errors()
    assert ".".join(map(str, error["loc"])) == where
    assert wrong in error["msg"]


def test_a_policy_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        QueuePolicy().retries = 3


def test_attributes_can_be_set_by_their_own_names() -> None:
    policy = QueuePolicy(delay_ns=5, backoff=Backoff.LIST, backoff_list_ns=(1, 2))
    assert (policy.delay_ns, policy.backoff, policy.backoff_list_ns) == (5, Backoff.LIST, (1, 2))


@pytest.mark.parametrize("name", ["", "a b", "q" * 129])
def test_a_named_policy_has_the_name_of_a_queue(name: str) -> None:
    with pytest.raises(ValidationError, match="a queue name is 1 to 128 of"):
        NamedQueuePolicy(name=name)


def test_a_named_queue_inherits_what_it_does_not_say() -> None:
    base = QueuePolicy.model_validate({"retries": 3, "max_backoff": "5h", "weight": 7})
    named = NamedQueuePolicy.model_validate({"name": "slow", "min_backoff": "2h", "weight": 100})
    effective = named.over(base)
    assert type(effective) is QueuePolicy
    expected = {
        **DEFAULTS,
        "retries": 3,
        "max_backoff_ns": 5 * 3600 * S,
        "min_backoff_ns": 2 * 3600 * S,
        "weight": 100,
    }
    assert effective.model_dump() == expected


def test_what_contradicts_the_defaults_is_refused_when_they_meet() -> None:
    named = NamedQueuePolicy.model_validate({"name": "slow", "min_backoff": "2h"})
    with pytest.raises(ValidationError, match="min_backoff 2h0m0s is more than max_backoff 1h0m0s"):
        named.over(QueuePolicy())


def test_what_contradicts_itself_is_refused_at_once() -> None:
    with pytest.raises(ValidationError, match="min_backoff 2s is more than max_backoff 1s"):
        NamedQueuePolicy.model_validate({"name": "slow", "min_backoff": "2s", "max_backoff": "1s"})


def test_a_shape_of_backoff_replaces_the_list_of_the_defaults_and_the_other_way_round() -> None:
    steps = QueuePolicy.model_validate({"backoff": ["1s", "2s"]})
    assert NamedQueuePolicy.model_validate({"name": "a"}).over(steps).backoff_list_ns == (S, 2 * S)
    fixed = NamedQueuePolicy.model_validate({"name": "a", "backoff": "fixed"}).over(steps)
    assert (fixed.backoff, fixed.backoff_list_ns) == (Backoff.FIXED, ())
    other = NamedQueuePolicy.model_validate({"name": "a", "backoff": ["9s"]}).over(steps)
    assert (other.backoff, other.backoff_list_ns) == (Backoff.LIST, (9 * S,))


durations = st.integers(0, 10**15)
policies = st.builds(
    lambda low, high, **rest: QueuePolicy(
        min_backoff_ns=min(low, high), max_backoff_ns=max(low, high), **rest
    ),
    durations,
    durations,
    retries=st.integers(1, 2**64 - 1) | st.just(2**64 - 1),
    delay_ns=durations,
    ttl_ns=durations,
    backoff=st.sampled_from(("fixed", "exponential", "linear", ["1s"], ["1s", "2h"])),
    jitter=st.floats(0, 1),
    max_rate=st.none() | st.floats(0.001, 1e6),
    max_bytes=st.none() | st.integers(1, 2**62),
    allow_subjects=st.sampled_from(((), ("a.>",), ("a", "b.*"))),
    dead_letter_subject=st.none() | st.just("dead"),
)


@checked
@given(policies)
def test_what_is_written_as_json_reads_back_the_same(policy: QueuePolicy) -> None:
    written = json.dumps(policy.model_dump(mode="json", by_alias=True))
    assert QueuePolicy.model_validate_json(written) == policy
    assert QueuePolicy.model_validate(json.loads(written)) == policy


def test_durations_are_written_for_people() -> None:
    written = QueuePolicy.model_validate({"backoff": ["90s"], "retries": "unlimited"}).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    assert written == {"backoff": "list", "backoff_list": ["1m30s"], "retries": "unlimited"}
