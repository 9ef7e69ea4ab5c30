"""The stored format: what is written is read again, and the wire bytes are never touched."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requeue_protocol.envelope import Backoff
from requeue_protocol.headers import read_intake_headers
from requeue_worker.record import (
    HAS_CLIENT_ID,
    HEAD,
    HEAD_STATIC,
    HEAD_TIMES,
    HISTORY_KEPT,
    MAX_TIME_NS,
    PLAIN,
    RECORD_VERSION,
    UNSET_BACKOFF,
    Attempt,
    Extras,
    backoff_of,
    decode,
    encode,
)

checked = settings(deadline=None)

U64 = st.integers(0, 2**64 - 1)
DURATIONS = st.none() | st.integers(0, MAX_TIME_NS)
ATTEMPTS = st.builds(Attempt, st.integers(0, 2**32), st.integers(0, MAX_TIME_NS), st.text(max_size=60))
EXTRAS = st.builds(
    Extras,
    min_backoff_ns=DURATIONS,
    max_backoff_ns=DURATIONS,
    ack_timeout_ns=DURATIONS,
    backoff_list_ns=st.lists(st.integers(0, MAX_TIME_NS), max_size=5).map(tuple),
    history=st.lists(ATTEMPTS, max_size=5),
    reason=st.none() | st.sampled_from(["exhausted", "invalid"]),
    died_ns=DURATIONS,
)


def value_of(
    *,
    subject: bytes = b"jobs.a",
    payload: bytes = b"payload",
    headers: bytes = b"",
    extras: Extras | None = None,
    flags: int = 0,
    backoff: int = UNSET_BACKOFF,
    attempts: int = 0,
    retries: int = 1,
    delay_ns: int = 0,
    enqueued_ns: int = 0,
    deadline_ns: int = 0,
) -> bytes:
    """A stored value as ingest and transaction make it; the body stands for an envelope."""
    raw = (extras or Extras()).encode()
    body = b"<" + subject + b"|" + payload + b">"
    head = HEAD_STATIC.pack(
        RECORD_VERSION,
        flags,
        backoff,
        attempts,
        len(subject),
        len(raw),
        len(headers),
        len(headers) + 1,
        len(headers) + 2 + len(subject),
        len(payload),
        retries,
        delay_ns,
    )
    return head + HEAD_TIMES.pack(enqueued_ns, deadline_ns) + raw + headers + body


@checked
@given(EXTRAS)
def test_extras_are_read_as_they_were_written(extras: Extras) -> None:
    assert Extras.decode(extras.encode()) == extras


def test_a_message_with_nothing_to_say_has_no_extras_at_all() -> None:
    assert Extras().encode() == b""
    assert Extras.decode(b"") == Extras()


@checked
@given(
    subject=st.binary(min_size=1, max_size=40),
    payload=st.binary(max_size=200),
    headers=st.binary(max_size=80),
    extras=EXTRAS,
    flags=st.sampled_from([0, PLAIN]),
    backoff=st.sampled_from([*Backoff, UNSET_BACKOFF]),
    attempts=st.integers(0, 2**32 - 1),
    retries=U64,
    delay_ns=U64,
    enqueued_ns=U64,
    deadline_ns=U64,
)
def test_a_value_is_read_as_it_was_written(**parts: object) -> None:
    record = decode(value_of(**parts))  # type: ignore[arg-type]
    for name, value in parts.items():
        assert getattr(record, name) == value, name
    assert record.size == len(record.wire)
    assert backoff_of(record) == (None if parts["backoff"] == UNSET_BACKOFF else parts["backoff"])


@checked
@given(
    st.binary(max_size=200),
    st.binary(max_size=80),
    EXTRAS,
    EXTRAS,
    st.integers(0, 2**32 - 1),
    st.none() | U64,
)
def test_new_attempts_extras_and_deadline_leave_everything_else_as_it_was(
    payload: bytes, headers: bytes, before: Extras, after: Extras, attempts: int, deadline_ns: int | None
) -> None:
    old = decode(value_of(payload=payload, headers=headers, extras=before, retries=9, deadline_ns=77))
    new = decode(encode(old, attempts=attempts, extras=after, deadline_ns=deadline_ns))
    assert (new.attempts, new.extras) == (attempts, after)
    assert new.deadline_ns == (77 if deadline_ns is None else deadline_ns)
    assert (new.wire, new.headers, new.payload, new.subject) == (
        old.wire,
        old.headers,
        old.payload,
        old.subject,
    )
    assert new.size == old.size, "what counts for max_bytes never changes"
    same = old._replace(value=b"", attempts=0, extras_len=0, deadline_ns=0)
    assert new._replace(value=b"", attempts=0, extras_len=0, deadline_ns=0) == same


def test_the_header_is_the_static_part_with_the_times_behind_it() -> None:
    assert HEAD.size == HEAD_STATIC.size + HEAD_TIMES.size


def test_history_keeps_the_newest_attempts() -> None:
    extras = Extras()
    for number in range(1, HISTORY_KEPT + 6):
        extras.remember(Attempt(number, number, f"error {number}"))
    assert [attempt.number for attempt in extras.history] == list(range(6, HISTORY_KEPT + 6))
    assert extras.last_error == f"error {HISTORY_KEPT + 5}"


@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_record_of_another_version_is_refused(version: int) -> None:
    with pytest.raises(ValueError, match=f"record version {version}; this release knows 1"):
        decode(bytes((version,)) + value_of()[1:])


@checked
@given(
    st.binary(min_size=1, max_size=40).filter(lambda said: not {*said} & {*b"\r\n"} and said.strip(b" \t"))
)
def test_the_client_id_is_the_one_that_the_intake_has_read(said: bytes) -> None:
    """Its entry in `ids` is made at intake and removed at the end: one left over would dedupe all later messages."""
    headers = b"NATS/1.0\r\nnats-msg-id: other\r\nNats-Msg-Id: " + said + b"\r\nX: 1\r\n\r\n"
    record = decode(value_of(headers=headers, flags=PLAIN | HAS_CLIENT_ID))
    assert record.client_id == read_intake_headers(headers).msg_id == said.strip(b" \t")


def test_a_record_without_the_flag_has_no_client_id() -> None:
    assert decode(value_of(headers=b"NATS/1.0\r\nNats-Msg-Id: x\r\n\r\n")).client_id is None
