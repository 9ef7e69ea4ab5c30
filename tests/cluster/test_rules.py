"""Every rule of the custom resource on the real API server: what it accepts, what it rejects, and what it says then."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from requeue_operator import cel

from tests.cluster.control_plane import ControlPlane
from tests.cluster.specs import path, requeue_queue


class Case(NamedTuple):
    rule: str
    good: dict[str, Any]
    bad: dict[str, Any]


def _queue(**policy: Any) -> dict[str, Any]:
    return {"queues": [{"name": "a", **policy}]}


def _login(**ways: Any) -> dict[str, Any]:
    return {"nats": {"credentials": ways}}


_SECRET = {"secretName": "nats", "key": "user.creds"}
CASES = [
    Case("DURATION_SHAPE", _queue(delay="1d2h30m1.5s"), _queue(delay="soon")),
    Case(
        "DURATION_SHAPE",
        _queue(backoff="list", backoffList=["0"]),
        _queue(backoff="list", backoffList=["1s", ""]),
    ),
    Case("DURATION_SHAPE", {"shutdownGrace": "1m"}, {"shutdownGrace": "1m1h"}),
    Case("DURATION_POSITIVE", _queue(deadLetterRetention="14d"), _queue(deadLetterRetention="0s")),
    Case("ACK_TIMEOUT", _queue(ackTimeout="12h"), _queue(ackTimeout="12h0m1s")),
    Case("ACK_TIMEOUT", {"defaults": {"ackTimeout": "1ms"}}, {"defaults": {"ackTimeout": "0s"}}),
    Case(
        "MIN_MAX_BACKOFF",
        _queue(minBackoff="60s", maxBackoff="1m"),
        _queue(minBackoff="61s", maxBackoff="1m"),
    ),
    Case("BACKOFF_STEPS", _queue(backoff="list", backoffList=["1s", "1m"]), _queue(backoff="list")),
    Case("BACKOFF_SHAPE", _queue(backoff="fixed"), _queue(backoff="fixed", backoffList=["1s"])),
    Case("RETRIES", _queue(retries="unlimited"), _queue(retries=0)),
    Case("RETRIES", _queue(retries=1), _queue(retries="twice")),
    Case("COUNT_OR_UNLIMITED", _queue(maxMessages=1), _queue(maxMessages=0)),
    Case("SIZE_OR_UNLIMITED", _queue(maxBytes="512MiB"), _queue(maxBytes="512 megs")),
    Case("SIZE_OR_UNLIMITED", _queue(maxBytes=1), _queue(maxBytes="0Gi")),
    Case("QUEUE_NAME", {"queues": [{"name": "Orders_1.eu-west"}]}, {"queues": [{"name": "orders eu"}]}),
    Case("PUBLISH_SUBJECT", _queue(deadLetterSubject="orders.dead"), _queue(deadLetterSubject="orders.*")),
    Case("PUBLISH_SUBJECT", _queue(deadLetterSubject="a*.b"), _queue(deadLetterSubject="a..b")),
    Case("SUBJECT_PATTERN", _queue(allowSubjects=["*.b", "a.>", ">"]), _queue(allowSubjects=["a.>.b"])),
    Case("SUBJECT_PATTERN", _queue(denySubjects=["a"]), _queue(denySubjects=["a b"])),
    Case("SUBJECT_PATTERN", {"subject": "jobs.*.in.>"}, {"subject": "jobs."}),
    Case("INTAKE", {"subject": "jobs.>"}, {"subject": ">"}),
    Case("INTAKE", {"subject": "jobs"}, {"subject": "$JS.API.>"}),
    Case("QUEUE_GROUP", {"queueGroup": "workers-2"}, {"queueGroup": "my workers"}),
    Case("SERVER", {"nats": {"servers": ["tls://[::1]:4222"]}}, {"nats": {"servers": ["http://nats:4222"]}}),
    Case("SERVER", {"nats": {"servers": ["nats"]}}, {"nats": {"servers": ["nats://me:secret@nats:4222"]}}),
    Case(
        "ONE_KIND_OF_SERVER",
        {"nats": {"servers": ["ws://a", "wss://b"]}},
        {"nats": {"servers": ["ws://a", "nats://b"]}},
    ),
    Case("ONE_LOGIN", _login(creds=_SECRET), _login(creds=_SECRET, token=_SECRET)),
    Case("ONE_LOGIN", _login(userPassword={"secretName": "nats"}), _login()),
    Case("SECRET_NAME", _login(nkey=_SECRET), _login(nkey={"secretName": "My_Secret", "key": "seed"})),
    Case("SECRET_KEY", _login(token=_SECRET), _login(token={"secretName": "nats", "key": "../token"})),
    Case("STORAGE_SIZE", {"storage": {"size": "64Mi"}}, {"storage": {"size": "63Mi"}}),
    Case("STORAGE_SIZE", {"storage": {"size": "1.5G"}}, {"storage": {"size": "big"}}),
    Case(
        "DRAIN_TO",
        {"storage": {"onDelete": "Drain", "drainTo": "other", "drainTimeout": "1h"}},
        {"storage": {"drainTo": "other"}},
    ),
    Case(
        "DRAIN_TO_OTHER",
        {"storage": {"onDelete": "Drain", "drainTo": "other"}},
        {"storage": {"onDelete": "Drain", "drainTo": "orders"}},
    ),
]
CHANGES = [
    Case("STORAGE_NO_SHRINK", {"storage": {"size": "2Gi"}}, {"storage": {"size": "1023Mi"}}),
    Case("STORAGE_MODE_FIXED", {"storage": {"mode": "PerPod"}}, {"storage": {"mode": "Shared"}}),
    Case("STORAGE_CLASS_FIXED", {"replicas": 3}, {"storage": {"storageClassName": "fast"}}),
]
NAMES = [("orders", "orders.eu"), ("a" * 40, "a" * 41), ("a-1", "1-a")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule_accepts_the_right_and_says_what_would_be_right(
    cluster: ControlPlane, namespace: str, case: Case
) -> None:
    status, answer = cluster.request("POST", f"{path(namespace)}?dryRun=All", requeue_queue(**case.good))
    assert status == 201, answer
    status, answer = cluster.request("POST", f"{path(namespace)}?dryRun=All", requeue_queue(**case.bad))
    assert status == 422, answer
    assert _message(case.rule) in answer["message"]


@pytest.mark.parametrize("case", CHANGES, ids=lambda case: case.rule)
def test_rule_about_a_change_accepts_the_right_one(cluster: ControlPlane, namespace: str, case: Case) -> None:
    assert cluster.request("POST", path(namespace), requeue_queue())[0] == 201
    merge = "application/merge-patch+json"
    status, answer = cluster.request(
        "PATCH", f"{path(namespace, 'orders')}?dryRun=All", {"spec": case.good}, merge
    )
    assert status == 200, answer
    status, answer = cluster.request(
        "PATCH", f"{path(namespace, 'orders')}?dryRun=All", {"spec": case.bad}, merge
    )
    assert status == 422, answer
    assert _message(case.rule) in answer["message"]


@pytest.mark.parametrize(("good", "bad"), NAMES)
def test_name_leaves_room_for_the_names_of_pods(
    cluster: ControlPlane, namespace: str, good: str, bad: str
) -> None:
    assert cluster.request("POST", f"{path(namespace)}?dryRun=All", requeue_queue(good))[0] == 201
    status, answer = cluster.request("POST", f"{path(namespace)}?dryRun=All", requeue_queue(bad))
    assert status == 422, answer
    assert cel.NAME.message in answer["message"]


def test_every_rule_has_a_case() -> None:
    rules = {name for name, value in vars(cel).items() if isinstance(value, cel.Rule)}
    assert rules == {case.rule for case in (*CASES, *CHANGES)} | {"NAME"}


def _message(rule: str) -> str:
    value: cel.Rule = getattr(cel, rule)
    return value.message
