"""A stand-in for the worker's intake, on a real nats-server: for answers that a real worker gives only when
it is ill.

What a healthy worker does is tested on the real one. This one answers from a script, with the very codec that
the worker uses, and remembers what it was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.errors import RefusedError
from requeue_protocol.replies import ack, refusal

from tests.servers import settle

Answer = RefusedError | bool | None
"""A refusal, an ack (True: as duplicate), or None for silence."""


class ScriptedIntake:
    """Answers the n-th message with the n-th entry of `script`, and acks what comes after it."""

    def __init__(self, nc: Client, script: list[Answer]) -> None:
        self._nc = nc
        self._script = list(script)
        self.received: list[Msg] = []
        self.hold: asyncio.Event | None = None
        self.unanswered = 0
        self.most_unanswered = 0

    async def on_message(self, msg: Msg) -> None:
        self.received.append(msg)
        answer = self._script.pop(0) if self._script else False
        self.unanswered += 1
        self.most_unanswered = max(self.most_unanswered, self.unanswered)
        if self.hold is not None:
            asyncio.get_running_loop().call_later(0.01, asyncio.ensure_future, self._answer(msg, answer))
        else:
            await self._answer(msg, answer)

    async def _answer(self, msg: Msg, answer: Answer) -> None:
        self.unanswered -= 1
        if answer is None:
            return
        reply = refusal(answer, msg.headers is not None) if isinstance(answer, RefusedError) else ack(answer)
        if reply is not None:
            await self.respond_raw(msg.reply, *reply)

    async def respond_raw(self, subject: str, headers: bytes | None, payload: bytes) -> None:
        """Send a raw header block, status line and all: nats-py's publish knows headers as a dict only."""
        if headers is None:
            await self._nc.publish(subject, payload)
            return
        head = f"HPUB {subject} {len(headers)} {len(headers) + len(payload)}\r\n".encode()
        await self._nc._send_command(head + headers + payload + b"\r\n")
        await self._nc.flush()

    def ids(self) -> list[str]:
        return [(msg.headers or {})["Nats-Msg-Id"] for msg in self.received]


@asynccontextmanager
async def scripted_intake(url: str, *script: Answer) -> AsyncIterator[ScriptedIntake]:
    nc = await nats.connect(url)
    intake = ScriptedIntake(nc, list(script))
    await nc.subscribe("requeue.>", "requeue-workers", cb=intake.on_message)
    await settle(nc)
    yield intake
    await nc.close()


ScriptedIntakeFactory = Callable[..., ScriptedIntake]
