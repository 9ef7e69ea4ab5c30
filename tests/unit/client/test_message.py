from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from requeue_client.errors import InvalidMessage, MessageTooLarge
from requeue_client.message import Message, check_size, encode
from requeue_protocol.envelope import Backoff, read_envelope
from requeue_protocol.headers import build_headers, read_intake_headers

EVERYTHING = Message(
    "orders.created",
    b"payload",
    delay="1m30s",
    ttl=timedelta(hours=1),
    retries=7,
    backoff=["1s", timedelta(seconds=5), "1m"],
    min_backoff="1s",
    max_backoff="1h",
    ack_timeout="10s",
    queue="orders",
    priority=1,
    msg_id="order-7",
    headers={"Trace": "ü"},
)


def test_every_option_reaches_the_worker_by_headers() -> None:
    encoded = encode(EVERYTHING)
    policy = read_intake_headers(build_headers(encoded.headers.items()))
    assert (policy.subject, policy.queue, policy.retries) == (b"orders.created", "orders", 7)
    assert (policy.delay_ns, policy.at_ns, policy.ttl_ns) == (90 * 10**9, None, 3600 * 10**9)
    assert (policy.backoff, policy.backoff_list_ns) == (Backoff.LIST, (10**9, 5 * 10**9, 60 * 10**9))
    assert (policy.min_backoff_ns, policy.max_backoff_ns) == (10**9, 3600 * 10**9)
    assert (policy.ack_timeout_ns, policy.priority, policy.msg_id) == (10 * 10**9, 1, b"order-7")
    assert encoded.data == b"payload"
    assert encoded.headers["Trace"] == "ü"


def test_an_instant_is_sent_to_the_nanosecond() -> None:
    encoded = encode(Message("a.b", at=datetime(2030, 1, 1, tzinfo=UTC)))
    assert encoded.headers["Requeue-At"] == "2030-01-01T00:00:00.000000000Z"


def test_what_is_not_said_is_left_to_the_queue() -> None:
    assert set(encode(Message("a.b")).headers) == {"Requeue-Subject", "Nats-Msg-Id"}


def test_an_envelope_says_what_it_can_and_headers_the_rest() -> None:
    message = Message(
        "a.b",
        b"p",
        delay="2s",
        ttl="1m",
        retries=3,
        backoff="exponential",
        queue="q.1",
        priority=0,
        envelope=True,
    )
    encoded = encode(message)
    envelope = read_envelope(encoded.data)
    assert (envelope.subject, envelope.queue, envelope.retries) == (b"a.b", "q.1", 3)
    assert (envelope.delay_ns, envelope.ttl_ns, envelope.backoff) == (
        2 * 10**9,
        60 * 10**9,
        Backoff.EXPONENTIAL,
    )
    assert set(encoded.headers) == {"Requeue-Priority", "Nats-Msg-Id"}


def test_an_envelope_leaves_other_backoffs_to_the_header() -> None:
    encoded = encode(Message("a.b", backoff="linear", envelope=True))
    assert read_envelope(encoded.data).backoff is Backoff.UNDEFINED
    assert encoded.headers["Requeue-Backoff"] == "linear"


def test_an_instant_becomes_the_delay_of_an_envelope() -> None:
    past = encode(Message("a.b", at="2020-01-01T00:00:00Z", envelope=True))
    assert read_envelope(past.data).delay_ns == 0
    future = encode(Message("a.b", at="2200-01-01T00:00:00Z", envelope=True))
    assert read_envelope(future.data).delay_ns > 10**18


def test_unlimited_retries_have_their_number_in_an_envelope() -> None:
    assert encode(Message("a.b", retries="unlimited")).headers["Requeue-Retries"] == "unlimited"
    assert read_envelope(encode(Message("a.b", retries="unlimited", envelope=True)).data).retries == 2**64 - 1


def test_an_id_comes_from_the_argument_then_the_header_then_chance() -> None:
    both = Message("a.b", msg_id="argument", headers={"nats-msg-id": "header"})
    assert encode(both)[2:4] == ("argument", False)
    assert encode(Message("a.b", headers={"nats-msg-id": "header"}))[2:4] == ("header", False)
    first, second = encode(Message("a.b")), encode(Message("a.b"))
    assert first.own_id
    assert first.msg_id != second.msg_id


def test_headers_of_a_replay_can_be_published_again() -> None:
    copied = {"Requeue-Id": "1", "Requeue-Attempt": "3", "Requeue-Queue": "old", "Trace": "t"}
    encoded = encode(Message("a.b", headers=copied, msg_id="x"))
    assert encoded.headers == {"Requeue-Subject": "a.b", "Trace": "t", "Nats-Msg-Id": "x"}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Message("a.b", "text"), "text.encode"),  # type: ignore[arg-type]
        (Message(""), "empty"),
        (Message("a b"), "whitespace"),
        (Message("a.*"), "wildcard"),
        (Message("a.*", envelope=True), "wildcard"),
        (Message("a.b", delay="1s", at="2030-01-01T00:00:00Z"), "give one of them"),
        (Message("a.b", delay="1s", at="2030-01-01T00:00:00Z", envelope=True), "give one of them"),
        (Message("a.b", delay=30), "'30s'"),
        (Message("a.b", delay=1.5), "a timedelta"),  # type: ignore[arg-type]
        (Message("a.b", retries=0), "1 or more, or 'unlimited'"),
        (Message("a.b", retries=True), "1 or more"),
        (Message("a.b", backoff="cubic"), "fixed, exponential, linear"),
        (Message("a.b", backoff=[]), "backoff"),
        (Message("a.b", queue="no spaces"), "queue name"),
        (Message("a.b", priority=10), "0 \\(first\\) to 9"),
        (Message("a.b", msg_id=""), "1 to 512 bytes"),
        (Message("a.b", msg_id="x" * 513), "1 to 512 bytes"),
        (Message("a.b", headers={"Requeue-Delay": "1s"}), "use the argument"),
        (Message("a.b", headers={"X": "a\r\nb"}), "line break"),
        (Message("a.b", headers={"X Y": "a"}), "no header name"),
    ],
)
def test_a_wrong_argument_says_what_is_right(message: Message, says: str) -> None:
    with pytest.raises(InvalidMessage, match=says):
        encode(message)


def test_size_counts_the_header_block_as_it_is_sent() -> None:
    encoded = encode(Message("a.b", b"12345", msg_id="x"))
    assert encoded.size == len(b"NATS/1.0\r\nRequeue-Subject: a.b\r\nNats-Msg-Id: x\r\n\r\n12345")
    check_size(encoded.size, encoded.size)
    with pytest.raises(MessageTooLarge, match="since a replay adds headers"):
        check_size(encoded.size, encoded.size - 1)
