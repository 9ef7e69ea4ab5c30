"""Which RequeueQueues take in the same messages."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_operator.children import Manifest
from requeue_operator.overlap import Intakes, overlap, server_names

_LONGEST = 4
_PATTERNS = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]) or "a",
    st.lists(st.sampled_from(["a", "b", "*"]), max_size=_LONGEST - 1),
    st.sampled_from([[], [">"]]),
)
# One more token and one more name than patterns have: what a wildcard could stand for.
_SUBJECTS = [
    subject for count in range(1, _LONGEST + 2) for subject in itertools.product("abc", repeat=count)
]


def _matches(subject: tuple[str, ...], pattern: str) -> bool:
    """The definition: docs.nats.io, "Subject-Based Messaging"."""
    tokens = pattern.split(".")
    if tokens[-1] == ">":
        return len(subject) >= len(tokens) and all(
            want in (token, "*") for token, want in zip(subject, tokens[:-1], strict=False)
        )
    return len(subject) == len(tokens) and all(
        want in (token, "*") for token, want in zip(subject, tokens, strict=True)
    )


@given(_PATTERNS, _PATTERNS)
def test_patterns_overlap_when_there_is_a_subject_that_both_match(one: str, other: str) -> None:
    both = any(_matches(subject, one) and _matches(subject, other) for subject in _SUBJECTS)
    assert overlap(one, other) == both
    assert overlap(other, one) == both


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("nats", "nats://nats.shop:4222", True),
        ("nats://NATS.shop.svc.cluster.local:4222", "tls://nats.shop.svc", True),
        ("nats://user:secret@nats:4222", "nats://nats", True),
        ("nats://nats:4223", "nats://nats:4222", False),
        ("nats://nats.other", "nats", False),
        ("nats://10.0.0.1", "10.0.0.1:4222", True),
        ("wss://nats.example.com", "wss://nats.example.com:443", True),
        ("nats://[fd00::1]", "nats://[FD00::1]:4222", True),
    ],
)
def test_servers_are_the_same_however_they_are_written(one: str, other: str, is_same: bool) -> None:
    assert (server_names([one], "shop") == server_names([other], "shop")) == is_same


def _queue(name: str, namespace: str = "shop", servers: tuple[str, ...] = ("nats",), **spec: Any) -> Manifest:
    metadata = {"name": name, "namespace": namespace}
    return {"metadata": metadata, "spec": {"nats": {"servers": list(servers)}, **spec}}


def _see(intakes: Intakes, queue: Manifest) -> set[tuple[str, str]]:
    return intakes.see(queue["metadata"]["namespace"], queue["metadata"]["name"], queue)


def _state(intakes: Intakes, name: str, namespace: str = "shop") -> tuple[bool | None, str, str]:
    found = intakes.finding(namespace, name)
    assert found is not None
    return found.status, found.reason, found.message


def test_another_queue_group_takes_each_message_twice_and_both_are_told() -> None:
    intakes = Intakes()
    assert _see(intakes, _queue("orders")) == set()
    assert _state(intakes, "orders")[:2] == (True, "Fine")
    assert _see(intakes, _queue("mail", subject="requeue.mail.>", queueGroup="mail")) == {("shop", "orders")}
    for name, other in (("orders", "requeue.mail.> of mail"), ("mail", "requeue.> of orders")):
        status, reason, message = _state(intakes, name)
        assert (status, reason) == (False, "TakenTwice")
        assert f"overlaps with {other} on" in message
        assert "delivered twice" in message


def test_the_same_queue_group_shares_the_messages() -> None:
    intakes = Intakes()
    _see(intakes, _queue("orders"))
    _see(intakes, _queue("orders", "bakery", servers=("nats.shop", "nats-2.shop")))
    assert _state(intakes, "orders")[:2] == (False, "Shared")
    assert "requeue.> of bakery/orders on" in _state(intakes, "orders")[2]


def test_other_servers_or_subjects_do_not_concern_each_other() -> None:
    intakes = Intakes()
    _see(intakes, _queue("orders", subject="orders.>"))
    assert _see(intakes, _queue("mail", subject="mail.>")) == set()
    assert _see(intakes, _queue("orders", "bakery", subject="orders.>")) == set()
    assert _state(intakes, "orders")[0] is True


def test_a_change_concerns_those_from_before_and_those_from_now() -> None:
    intakes = Intakes()
    for name in ("a", "b", "c"):
        _see(intakes, _queue(name, subject=f"{name}.>"))
    assert _see(intakes, _queue("c", subject="a.x")) == {("shop", "a")}
    assert _see(intakes, _queue("c", subject="a.x")) == set()
    assert _see(intakes, _queue("c", subject="b.x")) == {("shop", "a"), ("shop", "b")}
    assert intakes.see("shop", "c", None) == {("shop", "b")}
    assert _state(intakes, "b")[0] is True
    assert intakes.finding("shop", "c") is None


def test_one_that_is_going_counts_no_more() -> None:
    intakes = Intakes()
    _see(intakes, _queue("orders"))
    going = _queue("mail")
    _see(intakes, going)
    going = {**going, "metadata": {**going["metadata"], "deletionTimestamp": "2026-01-02T03:04:05Z"}}
    assert _see(intakes, going) == {("shop", "orders")}
    assert _state(intakes, "orders")[0] is True


def test_the_sentence_stays_when_one_more_joins_many() -> None:
    intakes = Intakes()
    for number in range(10):
        _see(intakes, _queue(f"queue-{number}"))
    before = _state(intakes, "queue-0")
    _see(intakes, _queue("queue-99"))
    assert _state(intakes, "queue-0") == before
