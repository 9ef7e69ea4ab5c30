"""Requests that are tried again, and requests that are queued when nobody answers them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.durations import NS_PER_S
from requeue_protocol.replies import Verb, read_replay_reply

from requeue_client.backoff import BackoffShape, ExponentialBackOff
from requeue_client.errors import NotConnected, RequestTimeout
from requeue_client.inbox import ReplyInbox, answer_of
from requeue_client.publisher import Ack
from requeue_client.times import Duration, duration_s

CENKALTI_DEFAULTS = BackoffShape()


class Reply(NamedTuple):
    """Somebody answered the request."""

    payload: bytes
    headers: Mapping[str, str]
    msg: Msg


class Requeued(NamedTuple):
    """Nobody answered in time, or the handler asked for a retry: the message is on disk and will be replayed.

    `reason`: `no responders`, `timeout`, `nak` or `not connected`.
    """

    ack: Ack
    reason: str


class Unanswered(NamedTuple):
    """Why a single request brought no reply.

    `retry_delay_ns`: when the handler wants it again, None = unsaid.
    """

    reason: str
    retry_delay_ns: int | None = None


async def request_once(
    nc: Client,
    inbox: ReplyInbox,
    subject: str,
    payload: bytes,
    *,
    timeout_s: float,
    headers: Mapping[str, str],
) -> Reply | Unanswered:
    """One request. A `+WPI` starts the timeout again, a `-NAK` is no answer.

    All else that comes is the reply.
    """
    if not nc.is_connected:
        return Unanswered("not connected")
    await inbox.open()
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    reply = inbox.expect(answers.put_nowait)
    try:
        await nc.publish(subject, payload, reply, dict(headers) or None)
        while True:
            msg = await asyncio.wait_for(answers.get(), timeout_s)
            outcome = read_replay_reply(*answer_of(msg))
            if outcome.verb is Verb.NO_RESPONDERS:
                return Unanswered("no responders")
            if outcome.verb is Verb.NAK:
                return Unanswered("nak", outcome.delay_ns)
            if outcome.verb is not Verb.WPI:
                return Reply(msg.data, msg.headers or {}, msg)
    except TimeoutError:
        return Unanswered("timeout")
    except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError):
        return Unanswered("not connected")
    finally:
        inbox.forget(reply)


async def retry_request(
    nc: Client,
    subject: str,
    payload: bytes = b"",
    timeout: Duration = "2s",  # noqa: ASYNC109 - of one attempt, not of the call
    times: int = 10,
    *,
    headers: Mapping[str, str] | None = None,
    shape: BackoffShape = CENKALTI_DEFAULTS,
) -> Msg:
    """Request until somebody answers: the original's `RetryRequest`, with its backoff.

    `timeout` is for each attempt (timedelta, Go text or int ns), `times` the attempts at most (the original
    took it and did not heed it). Between attempts 500 ms, growing by half each time up to 60 s, each by ±50 %
    at random, 15 minutes in all. Any answer ends it, except the server's no-responders. For use without a
    RequeueClient on a connection.

    Raises:
        RequestTimeout: nobody answered, in `times` attempts or 15 minutes.
        NotConnected: the connection was closed for good.
    """
    if times < 1:
        raise ValueError(f"times={times}; it is the number of attempts, 1 or more")
    timeout_s = duration_s(timeout, "timeout")
    backoff = ExponentialBackOff(shape)
    started_s = time.monotonic()
    for attempt in range(1, times + 1):
        if nc.is_closed:
            raise NotConnected("the connection to NATS is closed; make a new one")
        if nc.is_connected:
            try:
                return await nc.request(
                    subject, payload, timeout_s, headers=dict(headers) if headers else None
                )
            except (nats.errors.NoRespondersError, nats.errors.TimeoutError, TimeoutError):
                pass
            except nats.errors.ConnectionClosedError:
                raise NotConnected("the connection to NATS is closed; make a new one") from None
        wait_s = backoff.next_s()
        if wait_s is None or attempt == times:
            break
        await asyncio.sleep(wait_s)
    took_s = time.monotonic() - started_s
    raise RequestTimeout(f"nobody answered on {subject} in {attempt} attempts over {took_s:.1f} s")


def delay_for(unanswered: Unanswered) -> Duration | None:
    """The delay that a handler's nak asked for, as a policy argument."""
    if unanswered.retry_delay_ns is None:
        return None
    return f"{unanswered.retry_delay_ns // NS_PER_S}s{unanswered.retry_delay_ns % NS_PER_S}ns"
