"""The bytes of replays that go out together: each says what its own record says, whatever went out right before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_protocol.envelope import build_envelope
from requeue_protocol.headers import build_headers, travelling_lines
from requeue_worker.broker.parser import Raw
from requeue_worker.record import decode
from requeue_worker.replay import block_for, travelling

from tests.property.virtual import VirtualWorker

TRACE = {"Traceparent": "00-aa-bb-01"}


def bare(subject: str, payload: bytes, headers: dict[str, str] | None = None, **said: int) -> Raw:
    block = build_headers(headers.items()) if headers else None
    return b"requeue.x", b"", block, build_envelope(subject=subject, payload=payload, **said)


def plain(subject: str, payload: bytes, **headers: str) -> Raw:
    lines = {"Requeue-Subject": subject, **{name.replace("_", "-"): text for name, text in headers.items()}}
    return b"requeue.x", b"", build_headers(lines.items()), payload


#: neighbours differ in one thing each: length, subject of one length, headers or none, id, history, deadline, delay
MESSAGES = [
    bare("jobs.a", b"one"),
    bare("jobs.a", b"two"),
    bare("jobs.b", b"six"),
    bare("jobs.b", b"longer"),
    bare("jobs.b", b"longer", TRACE),
    bare("jobs.b", b"longer"),
    bare("jobs.b", b"longer", ttl_ns=60 * 10**9),
    bare("jobs.b", b"longer", retries=12345),
    bare("jobs.b", b"longer123", retries=12),
    plain("jobs.a", b"plain"),
    plain("jobs.a", b"plain", Traceparent="00-aa-bb-01"),
    plain("jobs.a", b"plain", Traceparent="00-aa-bb-02"),
    plain("jobs.a", b"plain", Nats_Msg_Id="an-id"),
    plain("jobs.a", b"plain", Requeue_Ack_Timeout="7s"),
    plain("jobs.a", b"plain", Requeue_Delay="1ms"),
    plain("jobs.a", b"plain", Big="x" * 2000),
    bare("jobs.a", b"one"),
]


@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[::-1]], ids=["there", "back"])
def test_each_replay_of_a_tick_is_what_its_record_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[Raw]
) -> None:
    with VirtualWorker(tmp_path) as worker:
        chunks: list[bytes] = []
        on_sent = worker.on_sent

        def noting(chunk: bytes, messages: int) -> None:
            chunks.append(chunk)
            on_sent(chunk, messages)

        monkeypatch.setattr(worker, "on_sent", noting)
        worker.queue().paused_until_ns = worker.clock() + 10**9
        worker.call(lambda: worker.broker.intake(messages))  # type: ignore[misc]
        worker.run_for(2 * 10**9)

        operations = [
            b"HPUB %b %b%b %d %d\r\n%b%b\r\n"
            % (
                record.subject,
                worker.broker.inbox_prefix,
                token,
                len(block),
                len(block) + record.payload_len,
                block,
                record.payload,
            )
            for token, delivery in worker.worker._replayer.in_flight._by_token.items()
            for record in [decode(delivery.value)]
            for block in [block_for(record, delivery.key, 1, worker.queue())]
        ]
        assert len(operations) == len(messages)
        (chunk,) = [chunk for chunk in chunks if b"Requeue-Attempt" in chunk]
        assert all(operation in chunk for operation in operations)
        assert len(chunk) == sum(map(len, operations))


LINES = st.lists(
    st.sampled_from([b"Requeue-At: 2030", b"requeue-at: 2030", b"X: Requeue-At: 1", b"Requeue-X: y", b"X: y"])
)


@given(LINES)
def test_what_travels_is_what_travels_without_a_memory(lines: list[bytes]) -> None:
    block = b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    assert travelling(block) == travelling_lines(block)
