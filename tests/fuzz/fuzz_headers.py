"""Any bytes as a header block: refused as malformed, or read, and what travels on is a block again that reads alike."""

from __future__ import annotations

from contextlib import suppress

from harness import fuzz, instrumented

with instrumented():
    from requeue_protocol import headers as h
    from requeue_protocol.durations import format_duration, parse_duration
    from requeue_protocol.errors import MalformedMessage, SubjectNotAllowed
    from requeue_protocol.subjects import SubjectRules

RULES = SubjectRules(allow=("orders.>", "$KV.>"), deny=("*.secret",), intake="requeue.>")
SEEDS = [
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0 503 No Responders\r\n\r\n",
    b"NATS/1.0\r\nRequeue-Subject: orders.created\r\nRequeue-Delay: 1h30m5.5s\r\nTrace: 1\r\n\r\n",
    b"NATS/1.0\r\nrequeue-backoff:1s,5ms, 1m\r\nRequeue-Retries: unlimited\r\nRequeue-Id: x\r\n\r\n",
    b"NATS/1.0\r\nRequeue-At: 2030-01-31T18:30:00.5+02:00\r\nRequeue-Priority: 9\r\nNats-Msg-Id: 7\r\n\r\n",
]
WORDS = [name.encode() for name in (*h.POLICY_HEADERS, h.ID, h.MSG_ID)] + [
    b"\r\n",
    b"unlimited",
    b"linear",
    b"\xc2\xb5s",
]


def one_input(data: bytes) -> None:
    for block in (data, b"NATS/1.0\r\n" + data + b"\r\n\r\n"):
        check_block(block)
    check_duration(data)
    with suppress(MalformedMessage, SubjectNotAllowed):
        RULES.check(data)


def check_block(block: bytes) -> None:
    """Only MalformedMessage may come out; the travelling lines hold no policy and read as what they were."""
    h.header_value(block, "Requeue-Subject")
    h.status_of(block)
    try:
        policy = h.read_intake_headers(block)
    except MalformedMessage as refused:
        h.build_headers([(h.ERROR, str(refused))])  # the text is fit to be sent
        return
    assert h.read_intake_headers(block) == policy  # from the cache
    travelled = b"NATS/1.0\r\n" + h.travelling_lines(block) + b"\r\n"
    again = h.read_intake_headers(travelled)
    assert again == h.IntakePolicy(msg_id=policy.msg_id)
    assert h.travelling_lines(travelled) == h.travelling_lines(block)


def check_duration(data: bytes) -> None:
    """What reads as a duration prints as one that reads the same."""
    try:
        ns = parse_duration(data.decode())
    except ValueError:
        return
    assert parse_duration(format_duration(ns)) == ns


if __name__ == "__main__":
    fuzz(one_input, SEEDS, WORDS)
