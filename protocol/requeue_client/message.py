"""A message as a caller says it, and as it goes over the wire by either intake.

Plain intake (the default): the payload as it is, the policy in headers. Envelope: retries, ttl, delay,
backoff, queue and subject in FlatBuffers, as clients of the original write them, and what an envelope cannot
say in headers. Both carry a `Nats-Msg-Id`: it makes a repeated send harmless, and tells the worker that this
client reads headers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from os import urandom
from typing import Literal, NamedTuple, TypedDict

from requeue_protocol import headers as h
from requeue_protocol.durations import format_duration, ns_to_rfc3339
from requeue_protocol.envelope import Backoff, build_envelope
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.header_values import MAX_MSG_ID_BYTES, MAX_PRIORITY, UNLIMITED_RETRIES
from requeue_protocol.subjects import check_publish_subject, check_queue_name

from requeue_client import tracing
from requeue_client.errors import InvalidMessage, MessageTooLarge
from requeue_client.times import Duration, Instant, duration_ns, instant_ns

Retries = int | Literal["unlimited"]
BackoffChoice = str | Sequence[Duration]

# What a worker keeps free below max_payload, because a replay adds headers.
REPLAY_HEADROOM_BYTES = 4096


class MessageOptions(TypedDict, total=False):
    """Everything about a message but its subject and payload. What is absent, the queue's policy in the
    worker decides.

    Durations: timedelta, Go text (`"1m30s"`) or int ns. Instants: aware datetime, RFC 3339 text or int ns
    since 1970.
    """

    delay: Duration | None  # first due this long after it is on disk; never early
    at: Instant | None  # first due then, instead of `delay`
    ttl: Duration | None  # a dead letter after that long, 0 = never
    retries: Retries | None  # dispatches in all, 1 or more
    backoff: BackoffChoice | None  # "fixed", "exponential", "linear", or the waits: ["1s", "5s", "1m"]
    min_backoff: Duration | None
    max_backoff: Duration | None
    ack_timeout: Duration | None  # how long a handler may take to answer
    queue: str | None
    priority: int | None  # 0 (first) to 9 (last), 4 unless said
    msg_id: str | None  # made up when absent; deduplicates while the message is pending
    headers: Mapping[str, str] | None  # the message's own: a handler gets them too
    envelope: bool  # send as FlatBuffers envelope


@dataclass(frozen=True, slots=True)
class Message:
    """One message to publish: the fields of MessageOptions, with subject and payload."""

    subject: str
    payload: bytes = b""
    delay: Duration | None = field(default=None, kw_only=True)
    at: Instant | None = field(default=None, kw_only=True)
    ttl: Duration | None = field(default=None, kw_only=True)
    retries: Retries | None = field(default=None, kw_only=True)
    backoff: BackoffChoice | None = field(default=None, kw_only=True)
    min_backoff: Duration | None = field(default=None, kw_only=True)
    max_backoff: Duration | None = field(default=None, kw_only=True)
    ack_timeout: Duration | None = field(default=None, kw_only=True)
    queue: str | None = field(default=None, kw_only=True)
    priority: int | None = field(default=None, kw_only=True)
    msg_id: str | None = field(default=None, kw_only=True)
    headers: Mapping[str, str] | None = field(default=None, kw_only=True)
    envelope: bool = field(default=False, kw_only=True)


class Encoded(NamedTuple):
    """A message as it is sent.

    `own_id`: the id was made up here, so that only our own copies bear it. `size`: bytes of header block and
    payload, which count against `max_payload` together.
    """

    headers: dict[str, str]
    data: bytes
    msg_id: str
    own_id: bool
    size: int


def encode(message: Message) -> Encoded:
    """Give the wire form of `message`.

    Raises InvalidMessage, with what would be right, when an argument is wrong.
    """
    if not isinstance(message.payload, bytes | bytearray | memoryview):
        raise InvalidMessage(f"the payload is {type(message.payload).__name__}; give bytes (text.encode())")
    try:
        own, msg_id = _own_headers(message)
        if msg_id is not None:
            own[h.MSG_ID] = msg_id
        tracing.inject(own)
        made_up = msg_id is None
        if msg_id is None:
            msg_id = urandom(16).hex()
        policy, data = _as_envelope(message) if message.envelope else _as_plain(message)
        headers = {**policy, **own, h.MSG_ID: msg_id}
        size = _block_size(own, headers) + len(data)
    except (TypeError, ValueError, MalformedMessage) as wrong:
        raise InvalidMessage(str(wrong)) from None
    return Encoded(headers, data, msg_id, made_up, size)


def _block_size(own: dict[str, str], headers: dict[str, str]) -> int:
    """Bytes of the header block. Raises ValueError where the caller's own headers would break it.

    The rest is made here and safe; the block itself is built once more by nats-py.
    """
    if own:
        h.build_headers(own.items())
    values = "".join(headers.values())
    lines = (
        sum(map(len, headers))
        + 4 * len(headers)
        + (len(values) if values.isascii() else len(values.encode()))
    )
    return len("NATS/1.0\r\n") + lines + len("\r\n")


def check_size(size: int, max_payload: int) -> None:
    """Raise MessageTooLarge when headers and payload exceed the server's limit for both, in bytes.

    nats-py compares the payload alone, and the server closes the connection for the rest.
    """
    if size > max_payload:
        raise MessageTooLarge(
            f"headers and payload are {size} bytes, and the server takes {max_payload}; at most "
            f"{max_payload - REPLAY_HEADROOM_BYTES} fit, since a replay adds headers: "
            "keep the payload elsewhere and send a reference, or raise max_payload on the servers"
        )


# A handler may publish again with the headers that it got: what the replay added says nothing about the new
# message.
_COPIED_FROM_REPLAY = {name.lower() for name in (*h.STRIPPED_HEADERS, h.QUEUE)}


def _own_headers(message: Message) -> tuple[dict[str, str], str | None]:
    """The message's own headers, and its id: the argument, else the header, else None."""
    headers: dict[str, str] = {}
    msg_id = message.msg_id
    for name, value in (message.headers or {}).items():
        lower = name.lower()
        if lower == h.MSG_ID.lower():
            msg_id = value if msg_id is None else msg_id
        elif not lower.startswith("requeue-"):
            headers[name] = value
        elif lower not in _COPIED_FROM_REPLAY:
            raise ValueError(
                f"header {name} is the wire's own; use the argument of publish that says the same"
            )
    if msg_id is not None and (not 0 < len(msg_id.encode()) <= MAX_MSG_ID_BYTES or msg_id != msg_id.strip()):
        raise ValueError(f"msg_id={msg_id[:60]!r}; it is 1 to {MAX_MSG_ID_BYTES} bytes without spaces around")
    return headers, msg_id


def _as_plain(message: Message) -> tuple[dict[str, str], bytes]:
    """Policy headers and payload of the plain intake."""
    if message.delay is not None and message.at is not None:
        raise ValueError("both delay and at are given; give one of them")
    _check_subject(message.subject)
    headers = {h.SUBJECT: message.subject}
    if message.queue is not None:
        check_queue_name(message.queue)
        headers[h.QUEUE] = message.queue
    if message.at is not None:
        headers[h.AT] = ns_to_rfc3339(instant_ns(message.at, "at"))
    retries = _retries(message)
    if retries is not None:
        headers[h.RETRIES] = "unlimited" if retries == UNLIMITED_RETRIES else str(retries)
    backoff = _backoff(message)
    if backoff is not None:
        headers[h.BACKOFF] = backoff
    _add_durations(headers, message, _DURATIONS)
    _add_priority(headers, message)
    return headers, bytes(message.payload)


def _as_envelope(message: Message) -> tuple[dict[str, str], bytes]:
    """What an envelope cannot say as headers, and the envelope.

    It always says retries, ttl and delay, 0 included.
    """
    if message.delay is not None and message.at is not None:
        raise ValueError("both delay and at are given; give one of them")
    delay_ns = 0 if message.delay is None else duration_ns(message.delay, "delay")
    if message.at is not None:
        # An envelope has no instant: counted from now, so due a little after it, by the time that the way to
        # disk takes.
        delay_ns = max(0, instant_ns(message.at, "at") - time.time_ns())
    headers: dict[str, str] = {}
    backoff = _backoff(message)
    strategy = _ENVELOPE_BACKOFF.get((backoff or "").lower(), Backoff.UNDEFINED)
    if backoff is not None and strategy is Backoff.UNDEFINED:
        headers[h.BACKOFF] = backoff
    _add_durations(headers, message, _DURATIONS[2:])
    _add_priority(headers, message)
    data = build_envelope(
        subject=message.subject,
        payload=bytes(message.payload),
        retries=_retries(message) or 0,
        ttl_ns=0 if message.ttl is None else duration_ns(message.ttl, "ttl"),
        delay_ns=delay_ns,
        backoff=strategy,
        queue=message.queue,
    )
    return headers, data


_ENVELOPE_BACKOFF = {"exponential": Backoff.EXPONENTIAL, "fixed": Backoff.FIXED}
# The first two are in an envelope too.
_DURATIONS = (
    ("delay", h.DELAY),
    ("ttl", h.TTL),
    ("min_backoff", h.MIN_BACKOFF),
    ("max_backoff", h.MAX_BACKOFF),
    ("ack_timeout", h.ACK_TIMEOUT),
)


def _add_durations(headers: dict[str, str], message: Message, fields: tuple[tuple[str, str], ...]) -> None:
    for name, header in fields:
        value: Duration | None = getattr(message, name)
        if value is not None:
            headers[header] = _duration_text(value, name)


# Callers that publish a lot say the same few durations and subjects again and again.
@lru_cache(maxsize=1024, typed=True)
def _duration_text(value: Duration, name: str) -> str:
    return format_duration(duration_ns(value, name))


@lru_cache(maxsize=4096)
def _check_subject(subject: str) -> None:
    check_publish_subject(subject.encode())


def _add_priority(headers: dict[str, str], message: Message) -> None:
    if message.priority is None:
        return
    if message.priority not in range(MAX_PRIORITY + 1):
        raise ValueError(f"priority={message.priority!r}; it is 0 (first) to {MAX_PRIORITY} (last)")
    headers[h.PRIORITY] = str(message.priority)


def _retries(message: Message) -> int | None:
    value = message.retries
    if value is None:
        return None
    if value == "unlimited":
        return UNLIMITED_RETRIES
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= UNLIMITED_RETRIES:
        raise ValueError(
            f"retries={value!r}; it is the number of dispatches in all, 1 or more, or 'unlimited'"
        )
    return value


def _backoff(message: Message) -> str | None:
    """The backoff as header text, checked as a worker would check it."""
    value = message.backoff
    if value is None:
        return None
    if not isinstance(value, str):
        value = ",".join(format_duration(duration_ns(step, "backoff")) for step in value)
    h.read_intake_headers(h.build_headers([(h.BACKOFF, value)]))
    return value
