"""Header blocks as raw bytes, and the policy that a client puts into them.

A block is what NATS carries: `NATS/1.0[ status[ text]]`, lines `Name: value`, an empty line, all ended by
CRLF. Names are compared without case; on repeats the last value wins. Blocks are read with one regular
expression in which no two parts can match the same byte, so that noise costs linear time. Lines that are no
policy travel on untouched.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from requeue_protocol import header_values as values_of
from requeue_protocol.envelope import Backoff
from requeue_protocol.errors import MalformedMessage

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
    ID, ATTEMPT, MAX_ATTEMPTS, ENQUEUED_AT, DEADLINE, LAST_ERROR, DEAD_REASON, DIED_AT, DUPLICATE,
)  # fmt: skip

_BLOCK = re.compile(rb"NATS/1\.0([ \t][^\r\n]*)?\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)*)\r\n")
_OURS = re.compile(rb"\n(requeue-[!-9;-~]*|nats-msg-id):([^\r\n]*)\r", re.IGNORECASE)
_OUR_LINE = re.compile(rb"(?<=\n)requeue-[^\r\n]*\r\n", re.IGNORECASE)
_STATUS = re.compile(rb"NATS/1\.0[ \t]+([0-9]{3})(?:[ \t]+([^\r\n]*))?\r\n")
_NAME = re.compile(r"[!-9;-~]+")
_KNOWN = {name.lower().encode(): name for name in (*POLICY_HEADERS, *STRIPPED_HEADERS, MSG_ID)}


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

# Clients send the same policy again and again: it is read once. Bounded, and refusals are not kept.
_CACHED = 512
_CACHED_BYTES = 1024
_policies: dict[tuple[tuple[bytes, bytes], ...], IntakePolicy] = {}


def read_intake_headers(block: bytes) -> IntakePolicy:
    """The policy in a message's headers. Raises MalformedMessage with header, value and what is right.

    `Requeue-Subject` is checked as a subject by `SubjectRules.check`, which its reader calls anyway.
    """
    if _BLOCK.fullmatch(block) is None:
        raise MalformedMessage(_what_is_wrong(block))
    pairs = tuple(_OURS.findall(block))
    if not pairs:
        return NO_POLICY
    policy = _policies.get(pairs)
    if policy is None:
        policy = _read_policy(pairs)
        if len(block) <= _CACHED_BYTES:
            if len(_policies) >= _CACHED:
                _policies.clear()  # ids or subjects that never repeat: rather read again than grow
            _policies[pairs] = policy
    return policy


def _read_policy(pairs: tuple[tuple[bytes, bytes], ...]) -> IntakePolicy:
    values = {name.lower(): value for name, value in pairs}
    for name in values:
        if name not in _KNOWN:
            raise MalformedMessage(_unknown(name))
    if b"requeue-id" in values:
        values.pop(b"requeue-queue", None)  # copied from a replay along with the id, not meant as policy
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


_Reader = tuple[str, Callable[[bytes], object]]
_READERS: dict[bytes, _Reader] = {
    name.lower().encode(): reader
    for name, reader in (
        (SUBJECT, ("subject", values_of.read_subject)),
        (QUEUE, ("queue", values_of.read_queue)),
        (DELAY, ("delay_ns", values_of.read_duration)),
        (AT, ("at_ns", values_of.read_at)),
        (TTL, ("ttl_ns", values_of.read_duration)),
        (RETRIES, ("retries", values_of.read_retries)),
        (BACKOFF, ("backoff", values_of.read_backoff)),
        (MIN_BACKOFF, ("min_backoff_ns", values_of.read_duration)),
        (MAX_BACKOFF, ("max_backoff_ns", values_of.read_duration)),
        (ACK_TIMEOUT, ("ack_timeout_ns", values_of.read_ack_timeout)),
        (PRIORITY, ("priority", values_of.read_priority)),
        (MSG_ID, ("msg_id", values_of.read_msg_id)),
    )
}


def _unknown(name: bytes) -> str:
    known = {header.removeprefix("Requeue-").lower(): header for header in POLICY_HEADERS}
    near = get_close_matches(name.decode(errors="replace")[8:60].lower(), known, n=1)
    hint = f"did you mean {known[near[0]]}?" if near else f"the headers are {', '.join(POLICY_HEADERS)}"
    return f"unknown header {_shown(name)}; {hint}"


def _shown(raw: bytes) -> str:
    """`raw` for an error message: quoted, escaped, and short."""
    return repr(raw[:60].decode(errors="backslashreplace"))


def _what_is_wrong(block: bytes) -> str:
    if not block.startswith(b"NATS/1.0"):
        return "the headers do not start with NATS/1.0; send a NATS header block"
    if not block.endswith(b"\r\n\r\n"):
        return (
            "the headers do not end with an empty line; end every line with CRLF, and the block with one more"
        )
    for line in block[:-4].split(b"\r\n")[1:]:
        if re.fullmatch(rb"[!-9;-~]+:[^\r\n]*", line) is None:
            return f"header line {_shown(line)}; a line is Name: value, ended by CRLF"
    return "the headers are not a NATS header block; each line is Name: value, ended by CRLF"


def travelling_lines(block: bytes) -> bytes:
    """The lines that go on to the replay, each with its CRLF: all but `Requeue-*`, untouched, in their order.

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
    """A header block. Raises ValueError for a name or value that would break it (CR, LF, space in a name)."""
    first = "NATS/1.0" if status is None else f"NATS/1.0 {status[0]:03d} {status[1]}".rstrip()
    lines = [first]
    for name, value in pairs:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no header name; use printable ASCII without spaces and colons")
        lines.append(f"{name}: {value}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header value holds a line break; put it on one line")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
