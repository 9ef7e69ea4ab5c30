"""One message through the whole: published on a subject of its own, on disk at a worker, replayed, and back here."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass
from typing import Final

from nats.aio.msg import Msg
from requeue_protocol import headers as h

from requeue_client.client import RequeueClient
from requeue_client.errors import RequeueError

QUEUE: Final = "requeue-check"
SUBJECT: Final = "requeue-check"
"""First token of the subjects: each check adds one of its own."""
# What is given up while it is in flight cannot be cancelled: it expires.
_TTL: Final = "5m"


class NotReplayed(RequeueError, TimeoutError):
    """The message is on disk, and did not come back in time."""


@dataclass(frozen=True)
class RoundTrip:
    """A message came back as it was sent: its subject, and seconds from the publishing on."""

    subject: str
    on_disk_s: float
    back_s: float


async def check(
    client: RequeueClient, *, subject: str = SUBJECT, queue: str = QUEUE, timeout_s: float
) -> RoundTrip:
    """Send one message through `queue` to a fresh subject below `subject`, and wait for its replay.

    Both together have `timeout_s`, a worker that is not there yet included. What does not come back is cancelled, or
    expires after five minutes.
    Raises what `RequeueClient.publish` raises, and NotReplayed.
    """
    loop = asyncio.get_running_loop()
    own, payload = f"{subject}.{secrets.token_hex(8)}", secrets.token_bytes(16)
    back: asyncio.Future[Msg] = loop.create_future()

    async def on_replay(msg: Msg) -> None:
        await msg.ack()
        if not back.done():
            back.set_result(msg)

    subscription = await client.nc.subscribe(own, cb=on_replay)
    # nats-py's flush overtakes a command that still waits for its flusher: the second one is behind it.
    await client.nc.flush()
    await client.nc.flush()
    began_s = loop.time()
    try:
        # Attempts in plenty: our subscription takes a moment to reach every server of a NATS cluster.
        ack = await client.publish(
            own,
            payload,
            timeout=f"{timeout_s:.3f}s",
            queue=queue,
            delay="0s",
            ttl=_TTL,
            retries="unlimited",
            backoff="fixed",
            min_backoff="250ms",
        )
        on_disk_s = loop.time() - began_s
        try:
            async with asyncio.timeout(max(0.001, timeout_s - on_disk_s)):
                msg = await back
        except TimeoutError:
            with contextlib.suppress(RequeueError):
                await client.cancel(ack.msg_id)
            raise NotReplayed(
                f"the message for {own} is on disk, and was not replayed within {timeout_s:.0f} s: may the worker publish"
                " there, and does it reach the subscribers of this NATS server? Its log and /readyz say more"
            ) from None
    finally:
        await subscription.unsubscribe()
    if msg.data != payload or (msg.headers or {}).get(h.QUEUE) != queue:
        raise RequeueError(f"what came back on {own} is not what was sent")
    return RoundTrip(own, on_disk_s, loop.time() - began_s)
