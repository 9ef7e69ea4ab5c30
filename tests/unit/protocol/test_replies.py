from __future__ import annotations

import json
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_protocol.errors import (
    Busy,
    CommitFailed,
    DiskFull,
    Draining,
    MalformedMessage,
    MessageTooLarge,
    NoWorker,
    PermanentRefusal,
    QueueFull,
    RefusedError,
    SubjectNotAllowed,
    TransientRefusal,
    UnexpectedReply,
)
from requeue_protocol.headers import build_headers, header_value, status_of
from requeue_protocol.replies import (
    Ack,
    Reply,
    Verb,
    ack,
    nak,
    one_line,
    parse_intake_reply,
    read_replay_reply,
    refusal,
    term,
)

from tests.unit.protocol.profile import checked

PERMANENT = [
    MalformedMessage("bad bytes; good ones"),
    SubjectNotAllowed("no"),
    MessageTooLarge("2 MiB; 1 MiB"),
]
TRANSIENT = [QueueFull("full"), CommitFailed("io"), Draining("stopping"), Busy("later"), DiskFull("disk")]


# ---- intake


def test_an_ack_is_an_empty_payload_without_headers() -> None:
    assert ack() == (None, b"")
    assert parse_intake_reply(*ack()) == Ack(duplicate=False)


def test_a_duplicate_is_acked_with_a_header() -> None:
    assert ack(duplicate=True) == (b"NATS/1.0\r\nRequeue-Duplicate: true\r\n\r\n", b"")
    assert parse_intake_reply(*ack(duplicate=True)) == Ack(duplicate=True)


@pytest.mark.parametrize("error", PERMANENT)
@pytest.mark.parametrize("request_had_headers", [True, False])
def test_a_permanent_refusal_is_an_err_payload_with_error_headers(
    error: RefusedError, request_had_headers: bool
) -> None:
    answer = refusal(error, request_had_headers)
    assert answer is not None
    headers, payload = answer
    assert payload == f"-ERR {error.code} {error}".encode()
    assert headers == (
        f"NATS/1.0\r\nNats-Service-Error: {error}\r\nNats-Service-Error-Code: {error.code}\r\n\r\n".encode()
    )


@pytest.mark.parametrize("error", TRANSIENT)
def test_a_transient_refusal_is_silence_for_a_client_without_headers(error: RefusedError) -> None:
    assert refusal(error, request_had_headers=False) is None


@pytest.mark.parametrize("error", TRANSIENT)
def test_a_transient_refusal_is_a_503_status_line_for_a_client_with_headers(error: RefusedError) -> None:
    answer = refusal(error, request_had_headers=True)
    assert answer is not None
    headers, payload = answer
    assert payload == b""
    assert headers == (
        f"NATS/1.0 503 {error}\r\nNats-Service-Error: {error}\r\n"
        f"Nats-Service-Error-Code: {error.code}\r\n\r\n".encode()
    )
    assert status_of(headers) == (503, str(error))


@pytest.mark.parametrize("error", [*PERMANENT, *TRANSIENT])
def test_the_client_gets_the_refusal_as_the_type_that_the_worker_meant(error: RefusedError) -> None:
    answer = refusal(error, request_had_headers=True)
    assert answer is not None
    with pytest.raises(RefusedError) as refused:
        parse_intake_reply(*answer)
    assert isinstance(error, type(refused.value))  # Draining arrives as Busy
    assert (refused.value.code, refused.value.permanent, str(refused.value)) == (
        error.code,
        error.permanent,
        str(error),
    )


def test_a_refusal_whose_headers_were_stripped_is_still_one() -> None:
    with pytest.raises(SubjectNotAllowed, match="no such luck"):
        parse_intake_reply(None, b"-ERR 403 no such luck")
    with pytest.raises(MalformedMessage):
        parse_intake_reply(None, b"-ERR 400")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("418", PermanentRefusal),
        ("499", PermanentRefusal),
        ("599", TransientRefusal),
        ("nonsense", CommitFailed),
    ],
)
def test_an_unknown_code_falls_back_to_its_class(code: str, kind: type[RefusedError]) -> None:
    with pytest.raises(kind) as refused:
        parse_intake_reply(
            build_headers([("Nats-Service-Error-Code", code), ("Nats-Service-Error", "text")]), b""
        )
    assert type(refused.value) is kind
    assert "text" in str(refused.value)


def test_no_responders_means_that_no_worker_listens() -> None:
    with pytest.raises(NoWorker):
        parse_intake_reply(b"NATS/1.0 503\r\n\r\n", b"")
    with pytest.raises(NoWorker):
        parse_intake_reply(b"NATS/1.0 503 No Responders\r\n\r\n", b"")


def test_another_error_status_is_an_error() -> None:
    with pytest.raises(TransientRefusal):
        parse_intake_reply(b"NATS/1.0 504 Timeout\r\n\r\n", b"")


@pytest.mark.parametrize("payload", [b'{"stream":"S","seq":1}', b"+OK", b"\x00\xff", b"-ERR 4000 x", b"-ERR"])
def test_an_answer_of_somebody_else_is_no_ack(payload: bytes) -> None:
    with pytest.raises(UnexpectedReply, match="no answer of a worker"):
        parse_intake_reply(None, payload)


def test_a_long_text_with_line_breaks_is_sent_as_one_short_line() -> None:
    answer = refusal(MalformedMessage("a\r\nNats-Msg-Id: forged\r\n" + "ü" * 5000), request_had_headers=True)
    assert answer is not None and answer[0] is not None
    assert answer[0].count(b"\r\n") == 4
    text = header_value(answer[0], "Nats-Service-Error")
    assert text is not None
    assert len(text.encode()) <= 512


# ---- replay: the reply table


SETTLED = Reply(Verb.SETTLED)


@dataclass(frozen=True)
class Row:
    """A reply and what it means; `any_means` under `ack_mode: any`."""

    payload: bytes
    means: Reply
    headers: bytes | None = None
    any_means: Reply = SETTLED


def header(*pairs: tuple[str, str], status: tuple[int, str] | None = None) -> bytes:
    return build_headers(pairs, status)


NO_RESPONDERS = Reply(Verb.NO_RESPONDERS, None, "no responders")
SERVICE_ERROR = header(("Nats-Service-Error", "db is down"), ("Nats-Service-Error-Code", "500"))
FULL_STREAM = {"error": {"code": 400, "err_code": 10077, "description": "maximum messages exceeded"}}
NO_STREAM = b"NATS/1.0 503\r\n\r\n"

TABLE = {
    "empty": Row(b"", SETTLED),
    "+ACK": Row(b"+ACK", SETTLED),
    "any other text": Row(b"done", SETTLED),
    "any other bytes": Row(b"\x00\xff\x80", SETTLED),
    "any other headers": Row(b"", SETTLED, header(("Trace", "1"))),
    "a flow control status": Row(b"", SETTLED, b"NATS/1.0 100 Idle Heartbeat\r\n\r\n"),
    "-NAK": Row(b"-NAK", Reply(Verb.NAK)),
    "-NAK with line end": Row(b"-NAK\r\n", Reply(Verb.NAK)),
    "-NAK with delay": Row(b'-NAK {"delay":30000000000}', Reply(Verb.NAK, 30_000_000_000)),
    "-NAK with delay and space": Row(b'-NAK { "delay": 5 }', Reply(Verb.NAK, 5)),
    "-NAK with delay and reason": Row(
        b'-NAK {"delay": 5, "reason": "locked\\nby another"}', Reply(Verb.NAK, 5, "locked by another")
    ),
    "-NAK with delay and a reason that is no text": Row(
        b'-NAK {"delay": 5, "reason": 7}', Reply(Verb.NAK, 5)
    ),
    "-NAK now": Row(b'-NAK {"delay": 0}', Reply(Verb.NAK, 0)),
    "-NAK with Go duration": Row(b'-NAK {"delay": "1m30s"}', Reply(Verb.NAK, 90_000_000_000)),
    "-NAK with reason": Row(b"-NAK db is\nlocked", Reply(Verb.NAK, None, "db is locked")),
    "-NAK is a word": Row(b"-NAKED", SETTLED),
    "+WPI": Row(b"+WPI", Reply(Verb.WPI)),
    "+WPI is a word": Row(b"+WPIX", SETTLED),
    "+TERM": Row(b"+TERM", Reply(Verb.TERM)),
    "+TERM with reason": Row(b"+TERM no such user", Reply(Verb.TERM, None, "no such user")),
    "+NXT": Row(b"+NXT", SETTLED),
    "-ERR of another system": Row(b"-ERR no", SETTLED),
    "lower case is no verb": Row(b"-nak", SETTLED),
    "PubAck": Row(b'{"stream":"S","seq":7}', SETTLED),
    "PubAck with error": Row(
        json.dumps({**FULL_STREAM, "stream": "S", "seq": 0}).encode(),
        Reply(Verb.FAILED, None, "10077 maximum messages exceeded"),
    ),
    "PubAck with error of an old server": Row(
        b'{"error":{"code":503,"description":"no space"},"stream":"S"}',
        Reply(Verb.FAILED, None, "503 no space"),
    ),
    "JSON with an error of the handler's own": Row(
        b'{"error":{"code":-32601,"message":"no method"}}', SETTLED
    ),
    "JSON with an error text": Row(b'{"error":"none"}', SETTLED),
    "JSON without error": Row(b'{"error":null}', SETTLED),
    "JSON list": Row(b'[{"error":{"err_code":1}}]', SETTLED),
    "broken JSON": Row(b'{"error":{"err_code":1}', SETTLED),
    "service error": Row(b"", Reply(Verb.FAILED, None, "500 db is down"), SERVICE_ERROR),
    "service error with payload": Row(b'{"x":1}', Reply(Verb.FAILED, None, "500 db is down"), SERVICE_ERROR),
    "service error without text": Row(
        b"the text", Reply(Verb.FAILED, None, "404 the text"), header(("nats-service-error-code", "404"))
    ),
    "service error beside +ACK": Row(b"+ACK", Reply(Verb.FAILED, None, "500 db is down"), SERVICE_ERROR),
    "no responders": Row(b"", NO_RESPONDERS, NO_STREAM, NO_RESPONDERS),
    "no responders with text": Row(b"", NO_RESPONDERS, b"NATS/1.0 503 No Responders\r\n\r\n", NO_RESPONDERS),
    "no responders as header": Row(b"", NO_RESPONDERS, header(("Status", "503")), NO_RESPONDERS),
    "a status header of the handler's own": Row(b"ok", SETTLED, header(("Status", "503"))),
    "a refusing worker": Row(
        b"",
        Reply(Verb.FAILED, None, "429 full"),
        header(("Nats-Service-Error", "full"), ("Nats-Service-Error-Code", "429"), status=(503, "full")),
    ),
    "another error status": Row(
        b"", Reply(Verb.FAILED, None, "408 Timeout"), b"NATS/1.0 408 Timeout\r\n\r\n"
    ),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
def test_a_reply_means_what_the_table_says(row: Row) -> None:
    assert read_replay_reply(row.headers, row.payload) == row.means


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
def test_with_ack_mode_any_every_reply_of_a_handler_settles(row: Row) -> None:
    assert read_replay_reply(row.headers, row.payload, any_reply_settles=True) == row.any_means


@pytest.mark.parametrize(
    "delay",
    [
        b"-1",
        b"1.5",
        b"true",
        b"null",
        b'"soon"',
        b'"-5s"',
        b"9223372036854775808",
        b"9" * 5000,
        b"[" * 2000,
        b"",
    ],
)
def test_a_nak_with_an_unreadable_delay_is_a_nak_by_backoff_that_says_so(delay: bytes) -> None:
    reply = read_replay_reply(None, b'-NAK {"delay": ' + delay + b"}")
    assert (reply.verb, reply.delay_ns) == (Verb.NAK, None)
    assert reply.text.startswith("-NAK with an unreadable delay: {")
    assert len(reply.text) <= 512


def test_deeply_nested_json_is_no_crash() -> None:
    nested = b'{"error":' * 1700
    assert read_replay_reply(None, nested).verb is Verb.SETTLED
    assert read_replay_reply(None, b"-NAK " + nested).verb is Verb.NAK


def test_a_text_is_one_line_of_at_most_512_bytes() -> None:
    reply = read_replay_reply(None, b"+TERM a\r\nb\x00c\xff " + "ü".encode() * 1000)
    assert reply.text.startswith("a  b c\ufffd ü")
    assert len(reply.text.encode()) <= 512
    build_headers([("Requeue-Last-Error", reply.text)])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("  a ", "a"),
        ("a\nb", "a b"),
        ("a\u2028b\x1bc", "a b c"),
        ("x" * 600, "x" * 512),
        ("\ud800", ""),
    ],
)
def test_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


some_headers = st.none() | st.binary(max_size=80) | st.sampled_from([row.headers for row in TABLE.values()])
some_payload = (
    st.binary(max_size=200)
    | st.sampled_from([row.payload for row in TABLE.values()])
    | st.tuples(
        st.sampled_from([b"-NAK ", b"+TERM ", b"+WPI ", b'{"error":', b"-ERR 4"]), st.binary(max_size=60)
    ).map(b"".join)
)


@checked
@given(some_headers, some_payload, st.booleans())
def test_any_reply_is_read_without_raising(
    headers: bytes | None, payload: bytes, any_reply_settles: bool
) -> None:
    reply = read_replay_reply(headers, payload, any_reply_settles)
    assert len(reply.text.encode()) <= 512
    build_headers([("Requeue-Last-Error", reply.text)])


@checked
@given(some_headers, some_payload)
def test_any_intake_answer_is_an_ack_or_a_refusal(headers: bytes | None, payload: bytes) -> None:
    try:
        parse_intake_reply(headers, payload)
    except RefusedError as refused:
        assert 100 <= refused.code < 600
    else:
        assert payload == b""


def test_ten_megabytes_of_noise_settle() -> None:
    noise = random.Random(13).randbytes(10 * 2**20)
    for prefix in (b"", b"{", b'{"error":', b"-NAK", b"-NAKED"):
        assert read_replay_reply(None, prefix + b"\x01" + noise).verb is Verb.SETTLED
    assert read_replay_reply(None, b"-NAK " + noise).verb is Verb.NAK
    assert read_replay_reply(b"NATS/1.0\r\n" + noise, b"").verb is Verb.SETTLED


# ---- replay, the handler's side


@pytest.mark.parametrize(
    ("payload", "read"),
    [
        (nak(), Reply(Verb.NAK)),
        (nak(None, "locked\nby another"), Reply(Verb.NAK, None, "locked by another")),
        (nak(None, '{"delay": 5}'), Reply(Verb.NAK, None, '"delay": 5}')),
        (nak(0), Reply(Verb.NAK, 0)),
        (nak(30, "ü" * 600), Reply(Verb.NAK, 30, "ü" * 256)),
        (term(), Reply(Verb.TERM)),
        (term("no such user"), Reply(Verb.TERM, None, "no such user")),
    ],
)
def test_a_verb_is_read_as_it_was_written(payload: bytes, read: Reply) -> None:
    assert read_replay_reply(None, payload) == read
