"""Header blocks as raw bytes, and the policy that a client puts into them.

A block is what NATS carries: `NATS/1.0[ status[ text]]`, lines `Name: value`, an empty line, all ended by CRLF. Names are
compared without case; on repeats the last value wins. Blocks are read with one regular expression in which no two
parts can match the same byte, so that noise costs linear time. Lines that are not policy travel on untouched.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from requeue_protocol.durations import NS_PER_S, parse_duration, rfc3339_to_ns
from requeue_protocol.envelope import MAX_U64, Backoff
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.subjects import check_queue_name

# What a client says about its message.
SUBJECT = "Requeue-Subject"
QUEUE = "Requeue-Queue"
DELAY = "Requeue-Delay"
AT = "Requeue-At"
TTL = "Requeue-TTL"
RETRIES = "Requeue-Retries"
BACKOFF = "Requeue-Backoff"
MIN_BACKOFF = "Requeue-Min-Backoff"
MAX_BACKOFF = "Requeue-Max-Backoff"
ACK_TIMEOUT = "Requeue-Ack-Timeout"
PRIORITY = "Requeue-Priority"
# What a replay adds, with QUEUE.
ID = "Requeue-Id"
ATTEMPT = "Requeue-Attempt"
MAX_ATTEMPTS = "Requeue-Max-Attempts"
ENQUEUED_AT = "Requeue-Enqueued-At"
DEADLINE = "Requeue-Deadline"
LAST_ERROR = "Requeue-Last-Error"
# What a dead letter adds where it is published, with the above.
DEAD_REASON = "Requeue-Dead-Reason"
DIED_AT = "Requeue-Died-At"
# What a worker answers.
DUPLICATE = "Requeue-Duplicate"
MSG_ID = "Nats-Msg-Id"
ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"

POLICY_HEADERS = (
    SUBJECT, QUEUE, DELAY, AT, TTL, RETRIES, BACKOFF, MIN_BACKOFF, MAX_BACKOFF, ACK_TIMEOUT, PRIORITY,
)  # fmt: skip
STRIPPED_HEADERS = (
    ID,
    ATTEMPT,
    MAX_ATTEMPTS,
    ENQUEUED_AT,
    DEADLINE,
    LAST_ERROR,
    DEAD_REASON,
    DIED_AT,
    DUPLICATE,
)

UNLIMITED_RETRIES = MAX_U64
MAX_MSG_ID_BYTES = 512
MAX_BACKOFF_STEPS = 100
MAX_ACK_TIMEOUT_NS = 12 * 3600 * NS_PER_S
MAX_PRIORITY = 9

_BLOCK = re.compile(rb"NATS/1\.0([ \t][^\r\n]*)?\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)*)\r\n")
_OURS = re.compile(rb"\n(requeue-[!-9;-~]*|nats-msg-id):([^\r\n]*)\r", re.IGNORECASE)
_OUR_LINE = re.compile(rb"(?<=\n)requeue-[^\r\n]*\r\n", re.IGNORECASE)
_STATUS = re.compile(rb"NATS/1\.0[ \t]+([0-9]{3})(?:[ \t]+([^\r\n]*))?\r\n")
_NAME = re.compile(r"[!-9;-~]+")
_KNOWN = {name.lower().encode(): name for name in (*POLICY_HEADERS, *STRIPPED_HEADERS, MSG_ID)}
_SHAPES = {"fixed": Backoff.FIXED, "exponential": Backoff.EXPONENTIAL, "linear": Backoff.LINEAR}


@dataclass(frozen=True, slots=True)
class IntakePolicy:
    """What the headers of one message say. None (or an empty list) where they say nothing."""

    subject: bytes | None = None
    queue: str | None = None
    delay_ns: int | None = None
    at_ns: int | None = None
    ttl_ns: int | None = None
    retries: int | None = None
    backoff: Backoff | None = None
    backoff_list_ns: tuple[int, ...] = ()
    min_backoff_ns: int | None = None
    max_backoff_ns: int | None = None
    ack_timeout_ns: int | None = None
    priority: int | None = None
    msg_id: bytes | None = None


NO_POLICY = IntakePolicy()


def read_intake_headers(block: bytes) -> IntakePolicy:
    """The policy in a message's headers. Raises MalformedMessage, with header, value and what is right; nothing else.

    `Requeue-Subject` is checked as a subject by `SubjectRules.check`, which its reader calls anyway.
    """
    if _BLOCK.fullmatch(block) is None:
        raise MalformedMessage(_what_is_wrong(block))
    values = {name.lower(): value for name, value in _OURS.findall(block)}
    if not values:
        return NO_POLICY
    for name in values:
        if name not in _KNOWN:
            raise MalformedMessage(_unknown(name))
    if (
        b"requeue-id" in values
    ):  # copied from a replay: so is the queue, and it need not be the one that is meant now
        values.pop(b"requeue-queue", None)
    fields: dict[str, object] = {}
    for name, value in values.items():
        reader = _READERS.get(name)
        if reader is not None:
            _read_field(fields, _KNOWN[name], reader, value.strip(b" \t"))
    return _checked(fields)


def _read_field(fields: dict[str, object], header: str, reader: "_Reader", value: bytes) -> None:
    field, read = reader
    try:
        read_value = read(value)
    except (ValueError, MalformedMessage) as wrong:
        raise MalformedMessage(f"{header}: {wrong}") from None
    if field == "backoff" and isinstance(read_value, tuple):
        fields["backoff"], fields["backoff_list_ns"] = Backoff.LIST, read_value
    else:
        fields[field] = read_value


def _checked(fields: dict[str, object]) -> IntakePolicy:
    """Build the policy and check what concerns two headers at once."""
    policy = IntakePolicy(**fields)  # type: ignore[arg-type]
    if policy.delay_ns is not None and policy.at_ns is not None:
        raise MalformedMessage(f"both {DELAY} and {AT} are set; send one of them")
    low, high = policy.min_backoff_ns, policy.max_backoff_ns
    if low is not None and high is not None and low > high:
        raise MalformedMessage(f"{MIN_BACKOFF} is more than {MAX_BACKOFF}; it is at most that")
    return policy


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{value[:60]!r} is not UTF-8") from None


def _subject(value: bytes) -> bytes:
    if not value:
        raise ValueError("is empty; name the subject that the message belongs to")
    return value


def _queue(value: bytes) -> str | None:
    if not value:
        return None
    queue = _text(value)
    check_queue_name(queue)
    return queue


def _retries(value: bytes) -> int:
    text = _text(value)
    if text.lower() == "unlimited":
        return UNLIMITED_RETRIES
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and 1 <= int(text) <= MAX_U64):
        raise ValueError(f"{text[:60]!r} is no number of attempts; it is 1 or more, or unlimited")
    return int(text)


def _duration(value: bytes) -> int:
    return parse_duration(_text(value))


def _at(value: bytes) -> int:
    return rfc3339_to_ns(_text(value))


def _backoff(value: bytes) -> Backoff | tuple[int, ...]:
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


def _ack_timeout(value: bytes) -> int:
    ns = _duration(value)
    if not 0 < ns <= MAX_ACK_TIMEOUT_NS:
        raise ValueError(f"{_text(value)!r} is out of range; it is more than 0 and at most 12h")
    return ns


def _priority(value: bytes) -> int:
    if len(value) != 1 or not value.isdigit():
        raise ValueError(
            f"{value[:60].decode(errors='backslashreplace')!r} is no priority; it is 0 (first) to 9 (last)"
        )
    return int(value)


def _msg_id(value: bytes) -> bytes | None:
    if len(value) > MAX_MSG_ID_BYTES:
        raise ValueError(f"{len(value)} bytes; at most {MAX_MSG_ID_BYTES} are allowed")
    return value or None


_Reader = tuple[str, Callable[[bytes], object]]
_READERS: dict[bytes, _Reader] = {
    name.lower().encode(): reader
    for name, reader in (
        (SUBJECT, ("subject", _subject)),
        (QUEUE, ("queue", _queue)),
        (DELAY, ("delay_ns", _duration)),
        (AT, ("at_ns", _at)),
        (TTL, ("ttl_ns", _duration)),
        (RETRIES, ("retries", _retries)),
        (BACKOFF, ("backoff", _backoff)),
        (MIN_BACKOFF, ("min_backoff_ns", _duration)),
        (MAX_BACKOFF, ("max_backoff_ns", _duration)),
        (ACK_TIMEOUT, ("ack_timeout_ns", _ack_timeout)),
        (PRIORITY, ("priority", _priority)),
        (MSG_ID, ("msg_id", _msg_id)),
    )
}


def _unknown(name: bytes) -> str:
    near = get_close_matches(
        name.decode(errors="replace")[:60], [known.decode() for known in _KNOWN], n=1, cutoff=0.5
    )
    hint = (
        f"did you mean {_KNOWN[near[0].encode()]}?"
        if near
        else f"the headers are {', '.join(POLICY_HEADERS)}"
    )
    return f"unknown header {name[:60].decode(errors='backslashreplace')}; {hint}"


def _what_is_wrong(block: bytes) -> str:
    if not block.startswith(b"NATS/1.0"):
        return "the headers do not start with NATS/1.0; send a NATS header block"
    if not block.endswith(b"\r\n\r\n"):
        return "the headers do not end with an empty line; end each line with CRLF and the block with an empty one"
    for line in block[:-4].split(b"\r\n")[1:]:
        if re.fullmatch(rb"[!-9;-~]+:[^\r\n]*", line) is None:
            return f"header line {line[:60].decode(errors='backslashreplace')!r}; a line is Name: value, ended by CRLF"
    return "the headers are not a NATS header block; each line is Name: value, ended by CRLF"


def travelling_lines(block: bytes) -> bytes:
    """The lines that go on to the replay, each with its CRLF: everything but `Requeue-*`, untouched, in its order.

    For a block that `read_intake_headers` has taken. Raises MalformedMessage where there is no first line.
    """
    start = block.find(b"\r\n")
    if start < 0:
        raise MalformedMessage(_what_is_wrong(block))
    return _OUR_LINE.sub(b"", block[start:-2])[2:]


def header_value(block: bytes, name: str) -> str | None:
    """The last value of a header, None when absent. Bytes that are not UTF-8 come as U+FFFD."""
    found = re.findall(rb"\n" + re.escape(name.encode()) + rb":[ \t]*([^\r\n]*)", block, re.IGNORECASE)
    return found[-1].rstrip(b" \t").decode(errors="replace") if found else None


def status_of(block: bytes) -> tuple[int, str] | None:
    """Code and text of a block's status line (`NATS/1.0 503 text`), None when it has none."""
    found = _STATUS.match(block)
    if found is None:
        return None
    return int(found[1]), (found[2] or b"").strip(b" \t").decode(errors="replace")


def build_headers(pairs: Iterable[tuple[str, str]], status: tuple[int, str] | None = None) -> bytes:
    """A header block. Raises ValueError for a name or value that would break it (CR, LF, spaces in a name)."""
    first = "NATS/1.0" if status is None else f"NATS/1.0 {status[0]:03d} {status[1]}".rstrip()
    lines = [first]
    for name, value in pairs:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no header name; use printable ASCII without spaces and colons")
        lines.append(f"{name}: {value}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header value holds a line break; put it on one line")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
