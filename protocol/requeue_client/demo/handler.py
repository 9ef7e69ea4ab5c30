"""The other end: a subscriber that handles, refuses, keeps silent or gives up, as each message asks it to.

It knows nothing but the message: how often to fail stands in the payload, and which attempt this is in the header
`Requeue-Attempt`. Its answers are nats-py's own `ack`, `nak`, `term` and `in_progress`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol import headers as h
from requeue_protocol.durations import rfc3339_to_ns

from requeue_client.demo.ledger import Ledger, Seen
from requeue_client.demo.plan import ACK_TIMEOUT_NS, DEAD_SUBJECT, NAK_DELAY_NS, WORK_SUBJECT, How

_NO_LIMIT: Final = 0
_WORKING_S: Final = ACK_TIMEOUT_NS * 0.6 / 1e9


class Handler:
    """Answers what comes to `demo.work.>`, and reads the dead letters on `demo.dead`."""

    def __init__(self, nc: Client, ledger: Ledger, say: Callable[[str], None]) -> None:
        """`say` gets a line about each message that is none of the plan's (published by hand)."""
        self._nc = nc
        self._ledger = ledger
        self._say = say
        self._working: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Subscribe; on return the server has both subscriptions."""
        for subject, handle in ((f"{WORK_SUBJECT}.>", self._on_work), (DEAD_SUBJECT, self._on_dead)):
            await self._nc.subscribe(
                subject, cb=handle, pending_msgs_limit=_NO_LIMIT, pending_bytes_limit=_NO_LIMIT
            )
        # nats-py 2.16's flush overtakes commands that still wait for its flusher: the second one is behind them.
        await self._nc.flush()
        await self._nc.flush()

    async def _on_work(self, msg: Msg) -> None:
        received_ns = time.time_ns()
        headers = msg.headers or {}
        number = _number(msg)
        if number is None or h.ID not in headers:
            await self._by_hand(msg, headers)
            return
        seen = Seen(
            number,
            headers[h.ID],
            int(headers[h.ATTEMPT]),
            rfc3339_to_ns(headers[h.ENQUEUED_AT]),
            received_ns,
        )
        self._ledger.delivery(seen)
        asked = json.loads(msg.data)
        how = How(asked["how"])
        if how is How.SLOW:
            task = asyncio.create_task(self._work_long(msg, seen))
            self._working.add(task)
            task.add_done_callback(self._working.discard)
        else:
            await self._answer(msg, seen, how, fails=seen.attempt <= asked["fails"])

    async def _answer(self, msg: Msg, seen: Seen, how: How, fails: bool) -> None:
        self._ledger.answered(seen, time.time_ns(), settles=not fails)
        if not fails:
            await msg.ack()
        elif how is How.NAK:
            await msg.nak()
        elif how is How.NAK_LATER:
            await msg.nak(delay=NAK_DELAY_NS / 1e9)
        elif how is How.TERM:
            await msg.term()
        elif how is How.ERROR:
            error = {h.ERROR: "the stock service is away", h.ERROR_CODE: "500"}
            await self._nc.publish(msg.reply, b"", headers=error)

    async def _work_long(self, msg: Msg, seen: Seen) -> None:
        """Work for longer than the ack timeout, and say so in time."""
        for _ in range(3):
            await msg.in_progress()
            await asyncio.sleep(_WORKING_S)
        await self._answer(msg, seen, How.SLOW, fails=False)

    async def _on_dead(self, msg: Msg) -> None:
        headers = msg.headers or {}
        number, reason = _number(msg), headers.get(h.DEAD_REASON, "")
        if number is not None:
            self._ledger.buried(number, headers[h.ID], reason)
        else:
            last = headers.get(h.LAST_ERROR, "no error")
            self._say(f"dead letter ({reason}), after {headers.get(h.ATTEMPT)} attempts: {last}")

    async def _by_hand(self, msg: Msg, headers: dict[str, str]) -> None:
        attempt, limit = headers.get(h.ATTEMPT, "1"), headers.get(h.MAX_ATTEMPTS, "1")
        fails = msg.data.startswith(b"fail")
        done = "refused" if fails else "settled"
        self._say(f"{msg.subject} {msg.data[:60]!r}, attempt {attempt} of {limit}: {done}")
        if msg.reply:
            await (msg.nak() if fails else msg.ack())


def _number(msg: Msg) -> int | None:
    """The number of a message of the plan, None for any other."""
    number = (msg.headers or {}).get("Demo-Number")
    return int(number) if number is not None else None
