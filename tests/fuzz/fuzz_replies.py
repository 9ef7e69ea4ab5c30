"""Any headers and payload as a reply: a replay's outcome without an exception, an intake's ack or a refusal."""

from __future__ import annotations

from harness import fuzz, instrumented

with instrumented():
    from requeue_protocol.errors import RefusedError
    from requeue_protocol.headers import LAST_ERROR, build_headers
    from requeue_protocol.replies import parse_intake_reply, read_replay_reply, refusal

SEPARATOR = b"\x00\x00"  # headers, payload
SEEDS = [
    b"",
    b"+ACK",
    b'-NAK {"delay":30000000000}',
    b'-NAK {"delay": "1m30s"}',
    b"+TERM no such user",
    b"+WPI",
    b"-ERR 403 subject not allowed",
    b'{"error":{"code":400,"err_code":10077,"description":"full"},"stream":"S","seq":0}',
    b"NATS/1.0 503\r\n\r\n" + SEPARATOR,
    b"NATS/1.0 503 full\r\nNats-Service-Error: full\r\nNats-Service-Error-Code: 429\r\n\r\n" + SEPARATOR,
    b"NATS/1.0\r\nRequeue-Duplicate: true\r\n\r\n" + SEPARATOR,
]
WORDS = [
    b"-NAK ",
    b"+TERM ",
    b"+WPI",
    b"-ERR 4",
    b'"delay"',
    b'"error"',
    b'"err_code"',
    b"Nats-Service-Error-Code: ",
    b"503",
]


def one_input(data: bytes) -> None:
    first, found, rest = data.partition(SEPARATOR)
    headers, payload = (first, rest) if found else (None, data)
    for any_reply_settles in (False, True):
        reply = read_replay_reply(headers, payload, any_reply_settles)
        assert len(reply.text.encode()) <= 512
        build_headers([(LAST_ERROR, reply.text)])  # the text is fit for the next replay's headers
        assert reply.delay_ns is None or 0 <= reply.delay_ns < 2**63
    try:
        parse_intake_reply(headers, payload)
    except RefusedError as refused:
        check_refusal(refused)
    else:
        assert not payload, "what is no empty answer is no ack"


def check_refusal(refused: RefusedError) -> None:
    """A refusal that is passed on arrives as itself."""
    answer = refusal(refused, request_had_headers=True)
    assert answer is not None
    try:
        parse_intake_reply(*answer)
    except RefusedError as again:
        assert again.permanent == refused.permanent
    else:
        raise AssertionError("a refusal was read as an ack")


if __name__ == "__main__":
    fuzz(one_input, SEEDS, WORDS)
