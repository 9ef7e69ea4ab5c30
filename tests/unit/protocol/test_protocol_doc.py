"""`docs/protocol.md` is true: its bytes, its names and its tables are held against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from requeue_protocol import headers as h
from requeue_protocol import subjects
from requeue_protocol.durations import MAX_NS, format_duration
from requeue_protocol.envelope import Backoff, build_envelope
from requeue_protocol.errors import MalformedMessage, QueueFull, RefusedError
from requeue_protocol.replies import Reply, Verb, read_replay_reply, refusal

DOC = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
FENCES = [fence.strip("\n") for fence in re.findall(r"^```\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)]


def section(title: str) -> str:
    """The text of one section of the page."""
    return DOC.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def first_cells(text: str) -> list[str]:
    """The code in the first cells of the tables in `text`."""
    return [
        name
        for line in re.findall(r"^\| ([^|]*)\|", text, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", line)
    ]


def message(start: str) -> tuple[str, bytes, bytes]:
    """Control line, header block and payload of the example that starts so."""
    (fence,) = [fence for fence in FENCES if fence.startswith(start)]
    control, _, rest = fence.partition("\n")
    head, _, payload = rest.partition("\n\n")
    return control, head.replace("\n", "\r\n").encode() + b"\r\n\r\n", payload.strip("\n").encode()


def test_the_example_of_an_envelope_is_what_is_built() -> None:
    (dump,) = [fence for fence in FENCES if fence.startswith("00  18")]
    lines = re.findall(r"^\d\d  ((?:[0-9a-f]{2} ?){1,8})", dump, re.MULTILINE)
    octets = bytes.fromhex("".join(lines))
    built = build_envelope(
        subject="orders.created", payload=b"hello", retries=5, delay_ns=10**9, backoff=Backoff.FIXED
    )
    assert octets == built


@pytest.mark.parametrize(
    "start", ["HPUB requeue.publish", "HMSG _INBOX.7yGx.1", "HMSG _INBOX.7yGx.2", "HMSG orders.created"]
)
def test_the_sizes_in_the_examples_are_right(start: str) -> None:
    control, block, payload = message(start)
    assert control.split()[-2:] == [str(len(block)), str(len(block) + len(payload))]


def test_the_example_of_a_plain_message_reads_as_it_says() -> None:
    _, block, payload = message("HPUB requeue.publish")
    policy = h.read_intake_headers(block)
    assert (policy.subject, policy.delay_ns, policy.retries) == (b"orders.created", 90 * 10**9, 5)
    assert (policy.backoff, policy.msg_id, payload) == (Backoff.EXPONENTIAL, b"order-7", b"hello")
    replayed = message("HMSG orders.created")[1]
    assert h.travelling_lines(block) == h.travelling_lines(replayed)


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (
            "HMSG _INBOX.7yGx.1",
            MalformedMessage("the original subject 'a..b' has an empty token; tokens are words between dots"),
        ),
        ("HMSG _INBOX.7yGx.2", QueueFull("queue 'orders' holds its max_messages of 1000: send again later")),
    ],
)
def test_the_examples_of_refusals_are_what_is_sent(start: str, error: RefusedError) -> None:
    assert message(start)[1:] == refusal(error, request_had_headers=True)


def test_every_header_is_in_its_table() -> None:
    assert first_cells(section("Intake by headers")) == [*h.POLICY_HEADERS, h.MSG_ID]
    added = [h.ID, h.ATTEMPT, h.MAX_ATTEMPTS, h.QUEUE, h.ENQUEUED_AT, h.DEADLINE, h.LAST_ERROR, h.MSG_ID]
    assert first_cells(section("Replay")) == added
    assert first_cells(section("Dead letters")) == [h.SUBJECT, h.DEAD_REASON, h.DIED_AT]
    assert set(added) | {h.DEAD_REASON, h.DIED_AT, h.DUPLICATE} == {*h.STRIPPED_HEADERS, h.QUEUE, h.MSG_ID}


def test_every_code_is_in_its_table() -> None:
    codes = {
        int(code) for code in re.findall(r"^\| (\d{3}) \|", section("Replies of the intake"), re.MULTILINE)
    }
    assert codes == {400, 403, 413, 429, 500, 503, 507}


def test_the_subjects_are_those_of_the_code() -> None:
    text = section("Subjects")
    for subject in (subjects.INTAKE_DEFAULT, subjects.QUEUE_GROUP, subjects.STATS, subjects.HANDOVER_PREFIX):
        assert f"`{subject}" in text
    assert f"1 to {subjects.MAX_SUBJECT_BYTES} bytes" in DOC
    assert f"at most {format_duration(MAX_NS)}" in DOC


OUTCOMES = {
    "+ACK": Reply(Verb.SETTLED),
    "-NAK": Reply(Verb.NAK),
    '-NAK {"delay": 30000000000}': Reply(Verb.NAK, 30_000_000_000),
    "-NAK database is locked": Reply(Verb.NAK, None, "database is locked"),
    "+WPI": Reply(Verb.WPI),
    "+TERM": Reply(Verb.TERM),
    "+TERM no such user": Reply(Verb.TERM, None, "no such user"),
    '{"error": {"err_code": 10077, "description": "..."}, "stream": "S"}': Reply(
        Verb.FAILED, None, "10077 ..."
    ),
}


def test_every_reply_of_the_table_means_what_it_says() -> None:
    shown = [cell for cell in first_cells(section("Replies of a handler")) if cell[0] in "+-{"]
    assert shown == list(OUTCOMES)
    for payload, outcome in OUTCOMES.items():
        assert read_replay_reply(None, payload.encode()) == outcome
    assert read_replay_reply(None, b'-NAK {"delay": "30s"}').delay_ns == 30_000_000_000
