from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from requeue_protocol.headers import header_value, read_intake_headers, travelling_lines
from requeue_worker.bridge.message import Advisory, Stored, block_for, read_advisory, round_of
from requeue_worker.bridge.settings import BridgedConsumer, BridgeSettings
from requeue_worker.settings import ConfigError, load_settings

ADVISORY = Advisory("ORDERS", "billing", 17, 5)
WANTED = BridgedConsumer(stream="ORDERS", queue="orders")


def block_of(headers: bytes, wanted: BridgedConsumer = WANTED) -> bytes:
    return block_for(ADVISORY, Stored("orders.created", headers, b"x"), wanted)


def test_an_advisory_of_the_server_is_read() -> None:
    # as nats-server 2.15 publishes it
    payload = (
        b'{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"JPvp0YFWHfs2JI1g2zOhtu",'
        b'"timestamp":"2026-11-28T02:59:17.351761691Z","stream":"ORDERS","consumer":"billing","stream_seq":17,"deliveries":5}'
    )
    found = read_advisory(payload)
    assert found == ADVISORY._replace(event="JPvp0YFWHfs2JI1g2zOhtu")
    assert (found.id, found.mark) == ("ORDERS.billing.17", b"ORDERS.billing.17/JPvp0YFWHfs2JI1g2zOhtu")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        json.dumps({"stream": 1, "consumer": "c", "stream_seq": 1}).encode(),
        b"\xff",
    ],
)
def test_what_is_no_advisory_is_told(payload: bytes) -> None:
    with pytest.raises(ValueError):
        read_advisory(payload)


@pytest.mark.parametrize("headers", [b"", b"NATS/1.0\r\n\r\n"])
def test_a_message_without_headers_gets_those_of_the_intake(headers: bytes) -> None:
    policy = read_intake_headers(block_of(headers))
    assert (policy.subject, policy.queue, policy.msg_id) == (
        b"orders.created",
        "orders",
        b"ORDERS.billing.17",
    )


def test_own_headers_travel_and_those_of_the_publication_do_not() -> None:
    block = block_of(
        b"NATS/1.0\r\nTrace: 7\r\nNats-Msg-Id: order-7\r\nNats-Expected-Last-Sequence: 4\r\nNats-Rollup: sub\r\n"
        b"nats-ttl: 1s\r\nRequeue-Id: 00\r\nRequeue-Queue: other\r\nRequeue-Attempt: 3\r\nTrace: 8\r\n\r\n"
    )
    assert read_intake_headers(block).queue == "orders"
    assert travelling_lines(block).decode().splitlines() == [
        "Trace: 7",
        "Trace: 8",
        "Nats-Original-Msg-Id: order-7",
        "Nats-Stream: ORDERS",
        "Nats-Sequence: 17",
        "Nats-Consumer: billing",
        "Nats-Bridge-Round: 1",
        "Nats-Msg-Id: ORDERS.billing.17",
    ]


def test_a_second_round_counts_on_and_keeps_the_first_id() -> None:
    first = block_of(b"NATS/1.0\r\nNats-Msg-Id: order-7\r\n\r\n")
    again = Stored("orders.created", first, b"x")
    assert round_of(again) == 2
    second = block_for(ADVISORY._replace(sequence=18), again, WANTED)
    assert header_value(second, "Nats-Bridge-Round") == "2"
    assert header_value(second, "Nats-Original-Msg-Id") == "order-7"
    assert second.lower().count(b"nats-msg-id") == 1


def test_a_subject_of_the_configuration_goes_before_the_message_s_own() -> None:
    wanted = BridgedConsumer(stream="ORDERS", subject="retry.orders")
    assert read_intake_headers(block_of(b"", wanted)).subject == b"retry.orders"


@pytest.mark.parametrize(
    ("consumers", "says"),
    [
        ([{"stream": "ORDERS"}, {"stream": "ORDERS", "consumer": "billing"}], "overlap"),
        ([{"stream": "ORDERS", "consumer": "b"}, {"stream": "ORDERS", "consumer": "b"}], "overlap"),
        ([{"stream": "OR.DERS"}], "no spaces, dots"),
        ([{"stream": "ORDERS", "subject": "retry.>"}], "wildcard"),
        ([{"stream": "ORDERS", "queue": "a b"}], "queue name"),
        ([{"stream": "ORDERS", "action": "retry"}], "requeue"),
        ([{"stream": "ORDERS", "rounds": 0}], "greater than or equal to 1"),
    ],
)
def test_a_mistake_says_what_would_be_right(consumers: list[dict[str, object]], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        BridgeSettings.model_validate({"consumers": consumers})


def test_named_consumers_and_all_of_another_stream_go_together() -> None:
    settings = BridgeSettings.model_validate(
        {"consumers": [{"stream": "ORDERS", "consumer": "billing"}, {"stream": "MAILS"}]}
    )
    assert settings.for_advisory("ORDERS", "shipping") is None
    assert settings.for_advisory("MAILS", "any") is settings.consumers[1]


def test_consumers_may_stand_in_the_environment_and_mistakes_have_their_line(tmp_path: Path) -> None:
    environ = {"REQUEUE_BRIDGE_CONSUMERS": '[{"stream": "ORDERS", "action": "requeue"}]'}
    settings = load_settings(None, {"data_dir": "d"}, environ=environ)
    assert settings.bridge.consumers == (BridgedConsumer(stream="ORDERS", action="requeue"),)
    file = tmp_path / "worker.yaml"
    file.write_text("data_dir: d\nbridge:\n  consumers:\n    - stream: ORDERS\n      acton: requeue\n")
    with pytest.raises(
        ConfigError, match=r"worker.yaml:5: bridge.consumers\[0\].acton: .* did you mean action"
    ):
        load_settings(file, {}, environ={})
