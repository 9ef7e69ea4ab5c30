"""What is made of the server's permission errors."""

from __future__ import annotations

import pytest
from requeue_worker.broker import permissions
from requeue_worker.broker.permissions import Permissions, Violation, read_violation

MINUTE_NS = permissions.LOGGED_EVERY_NS


class Clock:
    now_ns = 1

    def __call__(self) -> int:
        return self.now_ns


def publish(subject: str) -> Violation:
    found = read_violation(f'nats: Permissions Violation for Publish to "{subject}"')
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("error", "subscription", "subject"),
    [
        ('nats: Permissions Violation for Publish to "Orders.new"', False, "orders.new"),
        ('Permissions Violation for Publish with Reply of "_INBOX.a"', False, "_inbox.a"),
        ('permissions violation for subscription to "requeue.>" using queue "w"', True, "requeue.>"),
        ("'Permissions Violation'", False, ""),
    ],
)
def test_a_violation_is_read(error: str, subscription: bool, subject: str) -> None:
    found = read_violation(error)
    assert found is not None
    assert (found.is_subscription, found.subject) == (subscription, subject)


@pytest.mark.parametrize("error", ["nats: Authorization Violation", "Maximum Payload Violation", ""])
def test_another_error_is_none(error: str) -> None:
    assert read_violation(error) is None


def test_each_first_token_is_logged_once_a_minute() -> None:
    clock = Clock()
    seen = Permissions(clock)
    assert [seen.note(publish(f"_INBOX.{number}")) for number in range(3)] == [True, False, False]
    assert seen.note(publish("orders.new"))
    clock.now_ns += MINUTE_NS
    assert seen.note(publish("_INBOX.9"))


def test_a_denied_publish_is_shown_for_a_while_and_the_latest_first() -> None:
    clock = Clock()
    seen = Permissions(clock)
    assert seen.lately() is None
    seen.note(publish("orders.new"))
    clock.now_ns += 1
    seen.note(publish("dead.letters"))
    assert seen.lately() == 'Permissions Violation for Publish to "dead.letters"'
    clock.now_ns += permissions.SHOWN_FOR_NS + 1
    assert seen.lately() is None


def test_denials_are_counted_by_subject_until_the_next_connection() -> None:
    seen = Permissions()
    seen.note(publish("orders.new"))
    seen.note(publish("orders.new"))
    denials = seen.publish(b"Orders.NEW")
    assert denials is not None and denials.count == 2
    assert seen.publish(b"orders.old") is None
    seen.new_connection()
    assert seen.publish(b"orders.new") is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissions, "MAX_ENTRIES", 10)
    seen = Permissions()
    for number in range(100):
        seen.note(publish(f"t{number}.x"))
    assert len(seen._publishes) == len(seen._first_tokens) == 10
    assert len(seen._logged_ns) <= 10
    assert seen.publish(b"t99.x") is not None


def test_many_denials_of_others_say_nothing_of_a_subject_that_was_denied_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of acks: each has a subject of its own. Else every page of dead letters would be published again."""
    monkeypatch.setattr(permissions, "MAX_ENTRIES", 10)
    denied = Permissions()
    denied.note(publish("dead.letters"))
    mark = denied.denied
    for number in range(10):
        denied.note(publish(f"_INBOX.{number}"))
    assert denied.publish(b"dead.letters") is None, "forgotten: there are too many"
    assert not denied.denied_since(b"dead.letters", mark)
    assert denied.denied_since(b"_INBOX.9", mark)

    mark = denied.denied
    denied.note(publish("dead.letters"))
    assert denied.denied_since(b"dead.letters", mark)
    for number in range(10):
        denied.note(publish(f"_INBOX.{number}"))
    assert denied.denied_since(b"dead.letters", mark), "forgotten since then: who can't know says denied"
