"""The reply codec, both directions.

Intake: what a worker answers to a message (empty = on disk), and what the client reads from that.
Replay: what a handler answers to a replayed message, as an outcome. The verbs are JetStream's, so that
`ack`, `nak`, `in_progress` and `term` of any NATS client work on a replayed message.
"""

import json
import re
from enum import Enum
from typing import NamedTuple

from requeue_protocol.durations import MAX_NS, parse_duration
from requeue_protocol.errors import NoWorker, RefusedError, UnexpectedReply, refusal_for
from requeue_protocol.headers import DUPLICATE, ERROR, ERROR_CODE, build_headers, header_value, status_of

MAX_TEXT_BYTES = 512
NO_RESPONDERS_STATUS = 503
_MAX_JSON_BYTES = 16_384
_DUPLICATE_BLOCK = build_headers([(DUPLICATE, "true")])
_ERR = re.compile(rb"-ERR ([0-9]{3})(?: (.*))?", re.DOTALL)
_VERB = re.compile(rb"(-NAK|\+WPI|\+TERM)(?:[ \t\r\n]+(.*))?", re.DOTALL)


def one_line(text: str, limit_bytes: int = MAX_TEXT_BYTES) -> str:
    """`text` fit for a header: control characters become spaces, at most `limit_bytes` of UTF-8."""
    flat = "".join(char if char.isprintable() else " " for char in text[:limit_bytes]).strip()
    return flat.encode(errors="replace")[:limit_bytes].decode(errors="ignore")


# ---- intake: worker's side


def ack(duplicate: bool = False) -> tuple[bytes | None, bytes]:
    """Headers and payload of the answer "on disk"; `duplicate` when its `Nats-Msg-Id` was pending already."""
    return (_DUPLICATE_BLOCK if duplicate else None), b""


def refusal(err: RefusedError, request_had_headers: bool) -> tuple[bytes | None, bytes] | None:
    """Headers and payload of a refusal; None means that no answer may be sent.

    Permanent: payload `-ERR <code> <text>` and the two error headers. Transient: no client may take it for
    an ack. One that knows headers gets the status line of the server's own no-responders, which all clients
    raise as an error (the code stands in a header); one that does not gets silence, and its request times
    out.
    """
    text = one_line(str(err))
    errors = [(ERROR, text), (ERROR_CODE, str(err.code))]
    if err.permanent:
        return build_headers(errors), f"-ERR {err.code} {text}".encode()
    if not request_had_headers:
        return None
    return build_headers(errors, status=(NO_RESPONDERS_STATUS, text)), b""


# ---- intake: client's side


class Ack(NamedTuple):
    """The message is on disk. `duplicate`: it was already, by its `Nats-Msg-Id`, and was not added again."""

    duplicate: bool


def parse_intake_reply(headers: bytes | None, payload: bytes) -> Ack:
    """The ack, or raise the RefusedError that the answer stands for.

    NoWorker when the server says that nobody listens; UnexpectedReply when somebody answered who is no
    worker (a stream on the intake subject, say): then nothing is known to be on disk.
    """
    if headers is not None:
        code = header_value(headers, ERROR_CODE)
        if code is not None:
            text = header_value(headers, ERROR) or payload[:MAX_TEXT_BYTES].decode(errors="replace")
            raise refusal_for(int(code) if re.fullmatch("[0-9]{3}", code) else 500, text)
        status = status_of(headers)
        if status is not None and status[0] == NO_RESPONDERS_STATUS:
            raise NoWorker(
                "nobody listens on the intake subject; start a worker, or check server and subject"
            )
        if status is not None and status[0] >= 400:
            raise refusal_for(*status)
    err = _ERR.fullmatch(payload)
    if err is not None:
        raise refusal_for(int(err[1]), (err[2] or b"").decode(errors="replace"))
    if payload:
        shown = one_line(payload[:80].decode(errors="replace"))
        raise UnexpectedReply(
            f"{shown!r} is no answer of a worker; see who else listens on the intake subject"
        )
    return Ack(headers is not None and (header_value(headers, DUPLICATE) or "").lower() == "true")


# ---- replay: handler's side


ACK = b""
WPI = b"+WPI"


def nak(delay_ns: int | None = None, reason: str = "") -> bytes:
    """Payload of "failed": again after `delay_ns`, by backoff when that is None. `reason` is the next last error."""
    text = one_line(reason)
    if delay_ns is not None:
        return b"-NAK " + json.dumps({"delay": delay_ns, **({"reason": text} if text else {})}).encode()
    # A text that looks like the JSON of a delay would be read as one.
    return f"-NAK {text.lstrip('{')}".rstrip().encode()


def term(reason: str = "") -> bytes:
    """Payload of "never again": a dead letter with this reason."""
    return f"+TERM {one_line(reason)}".rstrip().encode()


# ---- replay: worker's side


class Verb(Enum):
    """The outcome that a reply to a replay stands for."""

    SETTLED = "settled"
    FAILED = "failed"
    NAK = "nak"
    WPI = "wpi"
    TERM = "term"
    NO_RESPONDERS = "no responders"


class Reply(NamedTuple):
    """An outcome. `delay_ns`: when to try again (None: by backoff). `text`: one line, at most 512 bytes."""

    verb: Verb
    delay_ns: int | None = None
    text: str = ""


_SETTLED = Reply(Verb.SETTLED)
_NO_RESPONDERS = Reply(Verb.NO_RESPONDERS, None, "no responders")


def read_replay_reply(headers: bytes | None, payload: bytes, any_reply_settles: bool = False) -> Reply:
    """What a reply to a replay means. Never raises: what is no verb and no error settles.

    `any_reply_settles` is `ack_mode: any`; the server's no-responders is no reply of a handler even then.
    """
    if headers is not None:
        negative = _read_reply_headers(headers, payload)
        if negative is not None and (negative.verb is Verb.NO_RESPONDERS or not any_reply_settles):
            return negative
    if any_reply_settles or not payload:
        return _SETTLED
    first = payload[0]
    if first == 0x7B:  # {
        return _read_pub_ack(payload)
    if first in b"-+":
        verb = _VERB.fullmatch(payload.rstrip())
        if verb is not None:
            return _read_verb(verb[1], verb[2] or b"")
    return _SETTLED


def _read_reply_headers(headers: bytes, payload: bytes) -> Reply | None:
    """The negative outcome that stands in the headers, None when there is none."""
    code = header_value(headers, ERROR_CODE)
    if code is not None:
        text = header_value(headers, ERROR) or payload[:MAX_TEXT_BYTES].decode(errors="replace")
        return Reply(Verb.FAILED, None, one_line(f"{code} {text}"))
    status = status_of(headers)
    if not payload and (
        status[0] == NO_RESPONDERS_STATUS if status is not None else header_value(headers, "Status") == "503"
    ):
        return _NO_RESPONDERS
    if status is not None and status[0] >= 400:
        return Reply(Verb.FAILED, None, one_line(f"{status[0]} {status[1]}"))
    return None


def _read_verb(verb: bytes, argument: bytes) -> Reply:
    if verb == b"+WPI":
        return Reply(Verb.WPI)
    text = one_line(argument[: 2 * MAX_TEXT_BYTES].decode(errors="replace"))
    if verb == b"+TERM":
        return Reply(Verb.TERM, None, text)
    if not argument.startswith(b"{"):
        return Reply(Verb.NAK, None, text)
    body = _json_object(argument)
    delay_ns, reason = _nak_delay(body), body.get("reason")
    if delay_ns is None:
        return Reply(Verb.NAK, None, one_line(f"-NAK with an unreadable delay: {text}"))
    return Reply(Verb.NAK, delay_ns, one_line(reason) if isinstance(reason, str) else "")


def _nak_delay(body: dict[str, object]) -> int | None:
    """Nanoseconds of `{"delay": ns}` (a Go duration as text is read too), None when it cannot be read."""
    delay = body.get("delay")
    if isinstance(delay, str):
        try:
            return parse_duration(delay)
        except ValueError:
            return None
    return delay if type(delay) is int and 0 <= delay <= MAX_NS else None


def _read_pub_ack(payload: bytes) -> Reply:
    """A JetStream PubAck with an error failed; any other JSON is a handler's answer and settles."""
    if b'"error"' not in payload[:_MAX_JSON_BYTES]:
        return _SETTLED
    body = _json_object(payload)
    problem = body.get("error")
    if not isinstance(problem, dict):
        return _SETTLED
    # A handler may answer JSON with an "error" of its own: JetStream's has an err_code (of old servers: a
    # stream).
    if type(problem.get("err_code")) is not int and not (
        type(problem.get("code")) is int and isinstance(body.get("stream"), str)
    ):
        return _SETTLED
    code = problem.get("err_code", problem.get("code"))
    return Reply(Verb.FAILED, None, one_line(f"{code} {problem.get('description', '')}"))


def _json_object(raw: bytes) -> dict[str, object]:
    """A JSON object, empty for whatever is none."""
    if len(raw) > _MAX_JSON_BYTES:
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
