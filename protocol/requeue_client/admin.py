"""Cancelling and rescheduling by `Nats-Msg-Id`: a request to all worker instances, and the sum of what they
answer.

Which instance holds a message is not known to a client, so each is asked and each answers. Nobody knows how
many there are either: answers are collected until none has come for a short while.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.errors import RefusedError, refusal_for
from requeue_protocol.headers import ERROR, ERROR_CODE
from requeue_protocol.subjects import ADMIN_PREFIX

from requeue_client.errors import Busy, NotConnected, NoWorker, UnexpectedReply
from requeue_client.inbox import ReplyInbox

CANCEL = f"{ADMIN_PREFIX}.admin.cancel"
RESCHEDULE = f"{ADMIN_PREFIX}.admin.reschedule"


@dataclass(frozen=True, slots=True)
class AdminResult:
    """What the instances did, summed.

    `changed`: messages cancelled or rescheduled. `in_flight`: messages with this id that a handler has at the
    moment, which cannot be changed any more. `instances`: who answered.
    """

    changed: int
    in_flight: int
    instances: tuple[str, ...]


async def ask_all(
    nc: Client,
    inbox: ReplyInbox,
    subject: str,
    request: dict[str, str | int],
    changed_key: str,
    *,
    timeout_s: float,
    quiet_s: float,
) -> AdminResult:
    """Ask every instance. The first answer may take `timeout_s`; each later one `quiet_s` after the one
    before.

    Raises:
        NoWorker: nobody answered. NotConnected: no connection. RefusedError: an instance refused, as it says.
    """
    if not nc.is_connected:
        raise NotConnected("there is no connection to NATS; nothing was asked")
    await inbox.open()
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    reply = inbox.expect(answers.put_nowait)
    bodies: list[dict[str, object]] = []
    deadline_s = time.monotonic() + timeout_s
    try:
        await nc.publish(subject, json.dumps(request).encode(), reply)
        while (left_s := deadline_s - time.monotonic()) > 0:
            msg = await asyncio.wait_for(answers.get(), min(left_s, quiet_s) if bodies else left_s)
            bodies.append(_body(subject, msg))
    except TimeoutError:
        pass
    finally:
        inbox.forget(reply)
    if not bodies:
        raise NoWorker(f"no worker answered on {subject}; start one, or check server and permissions")
    return AdminResult(
        sum(_count(body, changed_key) for body in bodies),
        sum(_count(body, "in_flight") for body in bodies),
        tuple(str(body.get("instance", "")) for body in bodies),
    )


def _body(subject: str, msg: Msg) -> dict[str, object]:
    """The JSON object of an answer. Raises RefusedError when it is an error or none of ours."""
    if (msg.headers or {}).get("Status") == "503":
        raise NoWorker(f"no worker listens on {subject}; start one, or check server and permissions")
    refusal = refusal_of(msg, again="others may have done it; ask again")
    if refusal is not None:
        raise refusal
    body = _object(msg.data)
    if body is None:
        raise UnexpectedReply(
            f"{msg.data[:80]!r} is no answer of a worker; see who else listens on {subject}"
        )
    return body


def refusal_of(msg: Msg, again: str = "") -> RefusedError | None:
    """The error that an answer of the admin API stands for: in its body, which says whose it is, or in its headers.

    `again` is added to a text that is not final.
    """
    headers, body = msg.headers or {}, _object(msg.data) or {}
    code, text = body.get("code", headers.get(ERROR_CODE, "")), body.get("error", headers.get(ERROR, ""))
    if "error" not in body and ERROR_CODE not in headers:
        return None
    number = int(str(code)) if str(code).isdecimal() else Busy.code
    whose = f"worker {body['instance']}: " if "instance" in body else ""
    refusal = refusal_for(number, f"{whose}{text}")
    return refusal_for(number, f"{whose}{text} ({again})") if again and not refusal.permanent else refusal


def _object(data: bytes) -> dict[str, object] | None:
    try:
        body = json.loads(data)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _count(body: dict[str, object], key: str) -> int:
    count = body.get(key, 0)
    return count if isinstance(count, int) else 0
