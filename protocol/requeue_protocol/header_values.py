"""The values of the policy headers: one reader per kind, from raw bytes.

Each raises ValueError (MalformedMessage for a queue name) with what was wrong and what would be right; the
caller adds the name of the header.
"""

from functools import lru_cache

from requeue_protocol.durations import NS_PER_S, parse_duration, rfc3339_to_ns
from requeue_protocol.envelope import MAX_U64, Backoff
from requeue_protocol.subjects import check_queue_name

UNLIMITED_RETRIES = MAX_U64
MAX_MSG_ID_BYTES = 512
MAX_BACKOFF_STEPS = 100
MAX_ACK_TIMEOUT_NS = 12 * 3600 * NS_PER_S
MAX_PRIORITY = 9

_SHAPES = {"fixed": Backoff.FIXED, "exponential": Backoff.EXPONENTIAL, "linear": Backoff.LINEAR}


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{value[:60]!r} is not UTF-8") from None


def read_subject(value: bytes) -> bytes:
    """The subject as it is; what a subject may be is checked with the rules of its queue."""
    if not value:
        raise ValueError("is empty; name the subject that the message belongs to")
    return value


def read_queue(value: bytes) -> str | None:
    """A queue name; None when empty, as an empty name in an envelope is none."""
    if not value:
        return None
    queue = _text(value)
    check_queue_name(queue)
    return queue


def read_retries(value: bytes) -> int:
    """Dispatches in all, 1 or more; `unlimited` is 2^64-1."""
    text = _text(value)
    if text.lower() == "unlimited":
        return UNLIMITED_RETRIES
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and 1 <= int(text) <= MAX_U64):
        raise ValueError(f"{text[:60]!r} is no number of attempts; it is 1 or more, or unlimited")
    return int(text)


@lru_cache(maxsize=512)
def read_duration(value: bytes) -> int:
    """Nanoseconds of a Go duration."""
    return parse_duration(_text(value))


def read_at(value: bytes) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time."""
    return rfc3339_to_ns(_text(value))


def read_backoff(value: bytes) -> Backoff | tuple[int, ...]:
    """A shape, or the steps of a list in nanoseconds."""
    text = _text(value)
    shape = _SHAPES.get(text.lower())
    if shape is not None:
        return shape
    steps = [step.strip(" \t") for step in text.split(",", MAX_BACKOFF_STEPS)]
    if len(steps) > MAX_BACKOFF_STEPS:
        raise ValueError(
            f"more than {MAX_BACKOFF_STEPS} steps; the last one repeats, so that a few are enough"
        )
    try:
        return tuple(parse_duration(step) for step in steps)
    except ValueError as wrong:
        raise ValueError(
            f"{wrong}; a backoff is fixed, exponential, linear, or a list like 1s,5s,1m"
        ) from None


def read_ack_timeout(value: bytes) -> int:
    """Nanoseconds, more than 0 and at most 12 h."""
    ns = read_duration(value)
    if not 0 < ns <= MAX_ACK_TIMEOUT_NS:
        raise ValueError(f"{_text(value)!r} is out of range; it is more than 0 and at most 12h")
    return ns


def read_priority(value: bytes) -> int:
    """0 (first) to 9 (last)."""
    if len(value) != 1 or not value.isdigit():
        raise ValueError(
            f"{value[:60].decode(errors='backslashreplace')!r} is no priority; it is 0 (first) to 9 (last)"
        )
    return int(value)


def read_msg_id(value: bytes) -> bytes | None:
    """The client's id as raw bytes; None when empty."""
    if len(value) > MAX_MSG_ID_BYTES:
        raise ValueError(f"{len(value)} bytes; at most {MAX_MSG_ID_BYTES} are allowed")
    return value or None
