from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_protocol import headers as h
from requeue_protocol.envelope import Backoff
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.headers import (
    NO_POLICY,
    IntakePolicy,
    build_headers,
    header_value,
    read_intake_headers,
    status_of,
    travelling_lines,
)

from tests.unit.protocol.profile import checked

S = 1_000_000_000


def block(*lines: str | bytes) -> bytes:
    """A header block of these lines, each as it is."""
    raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
    return b"".join(line + b"\r\n" for line in (b"NATS/1.0", *raw)) + b"\r\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Requeue-Subject: orders.created", IntakePolicy(subject=b"orders.created")),
        ("Requeue-Queue: slow-1.eu_A", IntakePolicy(queue="slow-1.eu_A")),
        ("Requeue-Queue:", NO_POLICY),
        ("Requeue-Delay: 1m30s", IntakePolicy(delay_ns=90 * S)),
        ("Requeue-Delay: 0", IntakePolicy(delay_ns=0)),
        ("Requeue-At: 2030-01-31T18:30:00Z", IntakePolicy(at_ns=1_896_114_600 * S)),
        ("Requeue-TTL: 24h", IntakePolicy(ttl_ns=86_400 * S)),
        ("Requeue-Retries: 1", IntakePolicy(retries=1)),
        ("Requeue-Retries: 18446744073709551615", IntakePolicy(retries=2**64 - 1)),
        ("Requeue-Retries: unlimited", IntakePolicy(retries=2**64 - 1)),
        ("Requeue-Backoff: fixed", IntakePolicy(backoff=Backoff.FIXED)),
        ("Requeue-Backoff: Exponential", IntakePolicy(backoff=Backoff.EXPONENTIAL)),
        ("Requeue-Backoff: linear", IntakePolicy(backoff=Backoff.LINEAR)),
        (
            "Requeue-Backoff: 1s,5s, 1m",
            IntakePolicy(backoff=Backoff.LIST, backoff_list_ns=(S, 5 * S, 60 * S)),
        ),
        ("Requeue-Backoff: 5s", IntakePolicy(backoff=Backoff.LIST, backoff_list_ns=(5 * S,))),
        ("Requeue-Min-Backoff: 100ms", IntakePolicy(min_backoff_ns=S // 10)),
        ("Requeue-Max-Backoff: 1h", IntakePolicy(max_backoff_ns=3600 * S)),
        ("Requeue-Ack-Timeout: 12h", IntakePolicy(ack_timeout_ns=43_200 * S)),
        ("Requeue-Priority: 0", IntakePolicy(priority=0)),
        ("Requeue-Priority: 9", IntakePolicy(priority=9)),
        ("Nats-Msg-Id: order-7", IntakePolicy(msg_id=b"order-7")),
        (b"Nats-Msg-Id: \xff\x00\xfe", IntakePolicy(msg_id=b"\xff\x00\xfe")),
        ("Nats-Msg-Id: " + "x" * 512, IntakePolicy(msg_id=b"x" * 512)),
        ("Nats-Msg-Id:", NO_POLICY),
        ("Nats-Msg-Id-Other: x", NO_POLICY),
        ("Trace: Requeue-Delay: 5s", NO_POLICY),
    ],
)
def test_every_policy_header_is_read(line: str | bytes, expected: IntakePolicy) -> None:
    assert read_intake_headers(block(line)) == expected
    assert read_intake_headers(block("A: 1", line, "Z: 2")) == expected


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("Requeue-Subject:", "Requeue-Subject: is empty; name the subject"),
        ("Requeue-Queue: a b", "Requeue-Queue: queue name 'a b'; a queue name is 1 to 128 of"),
        (b"Requeue-Queue: \xff", "Requeue-Queue: b'\\xff' is not UTF-8"),
        ("Requeue-Delay:", "Requeue-Delay: '' is not a duration"),
        ("Requeue-Delay: 5", "Requeue-Delay: '5' is not a duration; every number needs a unit"),
        ("Requeue-Delay: -5s", "Requeue-Delay: '-5s' is negative"),
        ("Requeue-Delay: 5d", "Requeue-Delay: '5d' has the unknown unit 'd'; the units are h, m, s"),
        ("Requeue-Delay: 3000000h", "the longest duration"),
        ("Requeue-At: tomorrow", "Requeue-At: 'tomorrow' is not an RFC 3339 time; write it like"),
        ("Requeue-At: 2300-01-01T00:00:00Z", "2262-04-11T23:47:16.854775807Z"),
        ("Requeue-TTL: 1 h", "Requeue-TTL: '1 h' has the unknown unit"),
        (
            "Requeue-Retries: 0",
            "Requeue-Retries: '0' is no number of attempts; it is 1 or more, or unlimited",
        ),
        ("Requeue-Retries: -1", "it is 1 or more"),
        ("Requeue-Retries: 1e3", "it is 1 or more"),
        ("Requeue-Retries: ٣", "it is 1 or more"),
        ("Requeue-Retries: 18446744073709551616", "it is 1 or more"),
        ("Requeue-Retries: " + "9" * 5000, "it is 1 or more"),
        ("Requeue-Backoff: expo", "a backoff is fixed, exponential, linear, or a list like 1s,5s,1m"),
        ("Requeue-Backoff: 1s,,2s", "a backoff is fixed"),
        ("Requeue-Backoff: " + "1s," * 100 + "1s", "more than 100 steps"),
        ("Requeue-Min-Backoff: soon", "Requeue-Min-Backoff: 'soon'"),
        ("Requeue-Max-Backoff: 1", "Requeue-Max-Backoff: '1'"),
        (
            "Requeue-Ack-Timeout: 0s",
            "Requeue-Ack-Timeout: '0s' is out of range; it is more than 0 and at most 12h",
        ),
        ("Requeue-Ack-Timeout: 12h0m1s", "at most 12h"),
        ("Requeue-Priority: 10", "Requeue-Priority: '10' is no priority; it is 0 (first) to 9 (last)"),
        ("Requeue-Priority: -1", "is no priority"),
        (b"Requeue-Priority: \xb2", "is no priority"),
        ("Nats-Msg-Id: " + "x" * 513, "Nats-Msg-Id: 513 bytes; at most 512"),
        ("Requeue-Dealy: 5s", "unknown header 'requeue-dealy'; did you mean Requeue-Delay?"),
        ("Requeue-Retry: 5", "did you mean Requeue-Retries?"),
        ("Requeue-: 5", "unknown header 'requeue-'"),
        ("Requeue-Zzzzzzzzzzzz: 5", "the headers are Requeue-Subject, Requeue-Queue"),
    ],
)
def test_a_wrong_value_is_refused_with_header_value_and_what_is_right(line: str | bytes, wrong: str) -> None:
    with pytest.raises(MalformedMessage) as refused:
        read_intake_headers(block(line))
    assert wrong in str(refused.value)
    assert len(str(refused.value)) < 400


def test_names_are_compared_without_case_and_need_no_space_after_the_colon() -> None:
    expected = IntakePolicy(subject=b"a.b", delay_ns=5 * S, msg_id=b"7")
    assert read_intake_headers(block("requeue-subject:a.b", "REQUEUE-DELAY:5s", "nats-msg-id:7")) == expected
    assert (
        read_intake_headers(block("Requeue-Subject: \t a.b \t", "Requeue-Delay:  5s ", "Nats-MSG-Id: 7"))
        == expected
    )


def test_on_repeated_names_the_last_value_wins() -> None:
    repeated = block("Requeue-Delay: nonsense", "Requeue-Delay: 1s", "requeue-delay: 2s")
    assert read_intake_headers(repeated).delay_ns == 2 * S
    assert header_value(repeated, "Requeue-Delay") == "2s"


def test_a_policy_that_was_read_before_is_not_taken_for_another() -> None:
    lines = ["Requeue-Subject: a", "Requeue-Delay: 1s", "Requeue-Retries: 3"]
    for _ in range(2):
        assert read_intake_headers(block(*lines)) == IntakePolicy(subject=b"a", delay_ns=S, retries=3)
        assert read_intake_headers(block(*lines[:2])) == IntakePolicy(subject=b"a", delay_ns=S)
        assert read_intake_headers(block(lines[0])) == IntakePolicy(subject=b"a")
        assert read_intake_headers(block(*lines[1:])) == IntakePolicy(delay_ns=S, retries=3)


def test_the_cache_of_policies_is_bounded_and_never_changes_one() -> None:
    for number in range(3_000):
        unique = block(f"Nats-Msg-Id: {number}", "Requeue-Delay: 1s", "X: " + "x" * (number % 2 * 2000))
        for _ in range(2):
            assert read_intake_headers(unique) == IntakePolicy(msg_id=str(number).encode(), delay_ns=S)
        with pytest.raises(MalformedMessage):
            read_intake_headers(block("Requeue-Delay: 1s", f"Requeue-Priority: 1{number}"))
    assert 0 < len(h._policies) <= 512


def test_delay_and_at_exclude_each_other() -> None:
    with pytest.raises(MalformedMessage, match="both Requeue-Delay and Requeue-At"):
        read_intake_headers(block("Requeue-Delay: 1s", "Requeue-At: 2030-01-01T00:00:00Z"))


def test_min_backoff_is_at_most_max_backoff() -> None:
    with pytest.raises(MalformedMessage, match="Requeue-Min-Backoff is more than Requeue-Max-Backoff"):
        read_intake_headers(block("Requeue-Min-Backoff: 2s", "Requeue-Max-Backoff: 1s"))


def test_a_queue_that_was_copied_from_a_replay_is_ignored() -> None:
    copied = block("Requeue-Id: 0198", "Requeue-Queue: slow", "Requeue-Attempt: 3", "Requeue-Delay: 1s")
    assert read_intake_headers(copied) == IntakePolicy(delay_ns=S)
    assert read_intake_headers(block("Requeue-Id: 0198", "Requeue-Queue: not a name")) == NO_POLICY


def test_headers_that_a_replay_adds_are_accepted_and_say_nothing() -> None:
    assert read_intake_headers(block(*(f"{name}: whatever" for name in h.STRIPPED_HEADERS))) == NO_POLICY


@pytest.mark.parametrize(
    "empty", [b"NATS/1.0\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0 503 No Responders\r\n\r\n"]
)
def test_a_block_without_headers_says_nothing(empty: bytes) -> None:
    assert read_intake_headers(empty) is NO_POLICY
    assert travelling_lines(empty) == b""


@pytest.mark.parametrize(
    ("raw", "wrong"),
    [
        (b"", "do not start with NATS/1.0"),
        (b"HTTP/1.1 200\r\n\r\n", "do not start with NATS/1.0"),
        (b"NATS/1.0", "do not end with an empty line"),
        (b"NATS/1.0\r\n", "do not end with an empty line"),
        (b"NATS/1.0\r\nA: b\r\n", "do not end with an empty line"),
        (b"NATS/1.0\nA: b\n\n", "do not end with an empty line"),
        (b"NATS/1.01\r\n\r\n", "are not a NATS header block"),
        (block("no colon"), "header line 'no colon'; a line is Name: value"),
        (block(": no name"), "header line ': no name'"),
        (block("A : b"), "header line 'A : b'"),
        (block("A: b", " folded"), "header line ' folded'"),
        (block("A: b\nRequeue-Id: forged"), "header line 'A: b\\nRequeue-Id: forged'"),
        (block("A: b\rRequeue-Id: forged"), "header line"),
        (block("Ä: b"), "header line 'Ä: b'"),
        (block("A: b") + block("C: d"), "header line ''"),
    ],
)
def test_a_block_that_others_would_read_differently_is_refused(raw: bytes, wrong: str) -> None:
    with pytest.raises(MalformedMessage) as refused:
        read_intake_headers(raw)
    assert wrong in str(refused.value)


def test_what_is_no_policy_travels_untouched_and_in_order() -> None:
    lines = [
        b"X:1",
        b"x:  2  ",
        b"Nats-Msg-Id: 7",
        b"Trace: \xff\x00\xfe",
        b"Empty:",
        b"Not-Requeue-Delay: 1s",
    ]
    ours = [f"{name.swapcase()}: 1s" for name in (*h.POLICY_HEADERS, *h.STRIPPED_HEADERS)]
    mixed = block(*ours[:5], *lines[:3], *ours[5:9], *lines[3:], *ours[9:])
    assert travelling_lines(mixed) == b"".join(line + b"\r\n" for line in lines)
    assert travelling_lines(block(*lines)) == b"".join(line + b"\r\n" for line in lines)


def test_the_status_line_does_not_travel() -> None:
    assert travelling_lines(b"NATS/1.0 503 Busy\r\nA: b\r\n\r\n") == b"A: b\r\n"


names = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=":"), min_size=1, max_size=30
)
values = st.binary(max_size=40).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))


@checked
@given(st.lists(st.tuples(names, values), max_size=8))
def test_any_headers_of_others_travel_as_they_are(pairs: list[tuple[str, bytes]]) -> None:
    lines = [name.encode() + b":" + value for name, value in pairs if not name.lower().startswith("requeue-")]
    raw = block(*lines)
    if not any(line.lower().startswith(b"nats-msg-id:") for line in lines):
        assert read_intake_headers(raw) is NO_POLICY
    assert travelling_lines(raw) == b"".join(line + b"\r\n" for line in lines)


def read_all(raw: bytes) -> None:
    """Call every reader; only MalformedMessage may come out."""
    try:
        read_intake_headers(raw)
        travelling_lines(raw)
    except MalformedMessage as refused:
        build_headers([(h.ERROR, str(refused))])  # the text is fit to be sent
    header_value(raw, h.ERROR)
    status_of(raw)


pieces = st.sampled_from(
    [
        b"NATS/1.0",
        b"\r\n",
        b"\n",
        b"\r",
        b":",
        b" ",
        b"503",
        b"\x00",
        b"\xff",
        b",",
        b"5s",
        b"9" * 30,
        b"unlimited",
    ]
    + [name.encode() for name in (*h.POLICY_HEADERS, h.MSG_ID, h.ID)]
)


@checked
@given(st.binary(max_size=200) | st.lists(pieces | st.binary(max_size=10), max_size=30).map(b"".join))
def test_noise_is_refused_as_malformed_or_read_and_nothing_else(raw: bytes) -> None:
    read_all(raw)
    read_all(b"NATS/1.0\r\n" + raw + b"\r\n\r\n")


@checked
@given(
    st.sampled_from(h.POLICY_HEADERS), values | st.text(max_size=30).map(lambda t: t.encode(errors="replace"))
)
def test_any_value_of_a_policy_header_is_read_or_refused(name: str, value: bytes) -> None:
    read_all(block(name.encode() + b": " + value))


def test_ten_megabytes_of_noise_are_refused() -> None:
    noise = random.Random(11).randbytes(10 * 2**20)
    read_all(noise)
    read_all(b"NATS/1.0\r\n" + noise + b"\r\n\r\n")
    read_all(b"NATS/1.0\r\n" + noise.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n\r\n")
    read_all(
        block(
            b"Requeue-Backoff: " + b"1" * 2**20,
            b"Requeue-At:" + b" " * 2**20,
            b"Nats-Msg-Id: " + b"x" * 2**20,
        )
    )


def test_many_headers_are_read_in_linear_time() -> None:
    """The pattern cannot backtrack: 200,000 lines and 4 MB of spaces end at once, where it could they never would."""
    assert read_intake_headers(block(*["A: b"] * 200_000)) is NO_POLICY
    with pytest.raises(MalformedMessage):
        read_intake_headers(block(*["A: b"] * 200_000, "no colon"))
    with pytest.raises(MalformedMessage):
        read_intake_headers(block("Requeue-Subject:" + " " * 2**22))


def test_header_value_finds_the_last_value_without_case() -> None:
    raw = block("A: 1", "a:2 ", "B-A: 3", b"C: \xff")
    assert header_value(raw, "A") == "2"
    assert header_value(raw, "b-a") == "3"
    assert header_value(raw, "C") == "\ufffd"
    assert header_value(raw, "D") is None
    assert header_value(raw, ".") is None


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (b"NATS/1.0", None),
        (b"NATS/1.0 503", (503, "")),
        (b"NATS/1.0 503 No Responders", (503, "No Responders")),
        (b"NATS/1.0  100   Idle Heartbeat ", (100, "Idle Heartbeat")),
        (b"NATS/1.0 50", None),
        (b"NATS/1.0 5033", None),
        (b"NATS/1.0 abc", None),
        (b"NATS/2.0 503", None),
    ],
)
def test_status_line(first: bytes, expected: tuple[int, str] | None) -> None:
    assert status_of(first + b"\r\n\r\n") == expected


def test_build_headers_writes_what_is_read_back() -> None:
    built = build_headers([("Requeue-Subject", "a.b"), ("X", "ü")], status=(503, "busy; try later"))
    assert built == "NATS/1.0 503 busy; try later\r\nRequeue-Subject: a.b\r\nX: ü\r\n\r\n".encode()
    assert read_intake_headers(built) == IntakePolicy(subject=b"a.b")
    assert status_of(built) == (503, "busy; try later")
    assert build_headers([]) == b"NATS/1.0\r\n\r\n"


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([("A", "b\r\nRequeue-Id: forged")], None),
        ([("A", "b\nc")], None),
        ([("A b", "c")], None),
        ([("A:", "c")], None),
        ([("", "c")], None),
        ([("Ä", "c")], None),
        ([], (503, "a\r\nb")),
    ],
)
def test_build_headers_refuses_what_would_break_the_block(
    pairs: list[tuple[str, str]], status: tuple[int, str] | None
) -> None:
    with pytest.raises(ValueError):
        build_headers(pairs, status=status)
