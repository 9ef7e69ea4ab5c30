"""All instances of the admin API, asked from within one of them.

    own instance ── in this process          others ── over NATS, each by its id
                                             who they are: `instances`, asked of everybody every few seconds

An answer stays the bytes that it came as: whoever looks adds them up. So a look costs a worker no more than its own
answer, however many others there are.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from requeue_protocol.admin import INSTANCES, AdminSubject
from requeue_protocol.dead_letters import unpack

DISCOVER_EVERY_S: Final = 5.0
DISCOVER_QUIET_S: Final = 0.25
TIMEOUT_S: Final = 3.0
MOST_BYTES: Final = 256 << 20  #: of an answer, decompressed


class Own(Protocol):
    """The admin API of this instance."""

    async def answer(self, endpoint: str, payload: bytes) -> bytes:
        """Its answer as JSON."""


class Asks(Protocol):
    """Requests over NATS."""

    async def ask(
        self, subjects: list[str], payload: bytes, *, timeout_s: float, quiet_s: float | None = None
    ) -> list[bytes]:
        """What came in answer."""


@dataclass(frozen=True, slots=True)
class Answers:
    """JSON objects, an instance each, and how many instances did not answer in time."""

    bodies: list[bytes]
    silent: int

    def as_json(self) -> bytes:
        """One object with all of them."""
        return b'{"answers":[%b],"silent":%d}' % (b",".join(self.bodies), self.silent)


class Fleet:
    """Asks every instance, or one."""

    def __init__(
        self, instance_id: str, own: Own, asking: Callable[[], Asks], connected: Callable[[], bool]
    ) -> None:
        self._instance_id = instance_id
        self._own = own
        self._make_asking = asking
        self._asking: Asks | None = None
        self._connected = connected
        self._others: set[str] = set()
        self._discovered_s = -DISCOVER_EVERY_S
        self._discovering: asyncio.Task[None] | None = None

    async def ask(self, endpoint: str, payload: bytes, instance: str | None = None) -> Answers:
        """Answers of all instances that are known, or of this one. Raises KeyError for an endpoint that is none."""
        if instance == self._instance_id:
            return Answers([_json(await self._own.answer(endpoint, payload))], 0)
        if instance is not None:
            others = [instance]
            return await self._of(others, endpoint, payload)
        await self._discover()
        own, answers = await asyncio.gather(
            self._own.answer(endpoint, payload), self._of(sorted(self._others), endpoint, payload)
        )
        return Answers([_json(own), *answers.bodies], answers.silent)

    async def _of(self, others: list[str], endpoint: str, payload: bytes) -> Answers:
        if not others or not self._connected():
            return Answers([], len(others))
        subjects = [AdminSubject(endpoint).one(instance) for instance in others]
        found = await self._over_nats(subjects, payload)
        found = [body for body in map(_json, found) if _instance_of(body) is not None]
        return Answers(found, len(others) - len(found))

    async def _discover(self) -> None:
        """Know who is there, as of a few seconds ago. Those who ask at a time wait for one look."""
        if time.monotonic() - self._discovered_s < DISCOVER_EVERY_S or not self._connected():
            return
        if self._discovering is None or self._discovering.done():
            self._discovering = asyncio.create_task(self._look_around(), name="web: who is there")
        await asyncio.shield(self._discovering)

    async def _look_around(self) -> None:
        bodies = await self._over_nats([INSTANCES.everybody], b"", quiet_s=DISCOVER_QUIET_S)
        found = {_instance_of(body) for body in bodies}
        self._others = {each for each in found if each is not None and each != self._instance_id}
        self._discovered_s = time.monotonic()

    async def _over_nats(
        self, subjects: list[str], payload: bytes, quiet_s: float | None = None
    ) -> list[bytes]:
        if self._asking is None:
            self._asking = self._make_asking()
        return await self._asking.ask(subjects, payload, timeout_s=TIMEOUT_S, quiet_s=quiet_s)


def _json(body: bytes) -> bytes:
    """The JSON of an answer, which is compressed where it would not fit a message; empty for what is neither."""
    try:
        return unpack(body, MOST_BYTES)
    except ValueError:
        return b""


def _instance_of(body: bytes) -> str | None:
    """Who answered; None for what is no answer of a worker. A large one is not parsed: it begins with its instance."""
    if not body.startswith(b'{"instance":') or not body.endswith(b"}"):
        return None
    try:
        name: Any = json.JSONDecoder().raw_decode(body[12:400].decode(errors="replace").lstrip())[0]
    except ValueError:
        return None
    return name if isinstance(name, str) else None
