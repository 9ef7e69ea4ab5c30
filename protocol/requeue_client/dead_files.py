"""Dead letters to lines of JSON and back, over all instances: in pages, so that memory does not grow with their number."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from pydantic import ValidationError
from requeue_protocol.admin import INSTANCES, InstanceAnswer, InstancesRequest, mistakes_of
from requeue_protocol.dead_letters import (
    DEAD_DELETE,
    DEAD_EXPORT,
    DEAD_IMPORT,
    DEAD_KNOWN,
    LETTERS_LIMIT,
    DeadDeleteAnswer,
    DeadDeleteRequest,
    DeadExportAnswer,
    DeadExportRequest,
    DeadFilter,
    DeadImportAnswer,
    DeadImportRequest,
    DeadKnownAnswer,
    DeadKnownRequest,
    DeadLetter,
    pack,
)

from requeue_client.service import AdminClient

_Known = tuple[str, str | None]  #: key and Nats-Msg-Id of a dead letter
_MOST_REQUEST_BYTES = 256 << 10  #: a worker takes somewhat more
_ROOM = 1024  #: of a message, for what stands around the letters


async def clocks(admin: AdminClient) -> dict[str, int]:
    """The instances, and what time it is there (Unix ns): what dies later is not meant. Raises as `AdminClient.ask`."""
    answers = await admin.ask(INSTANCES, InstancesRequest(), InstanceAnswer)
    return {answer.instance: answer.time_ns for answer in answers}


async def export_pages(
    admin: AdminClient, wanted: DeadFilter, until_ns: dict[str, int]
) -> AsyncIterator[DeadExportAnswer]:
    """Whole dead letters of these instances, dead before those times. Raises as `AdminClient.ask`."""
    for instance, before_ns in until_ns.items():
        request = DeadExportRequest(**_until(wanted, before_ns))
        async for page in admin.pages_of(instance, DEAD_EXPORT, request, DeadExportAnswer):
            yield page


async def delete_pages(
    admin: AdminClient, wanted: DeadFilter, until_ns: dict[str, int]
) -> AsyncIterator[DeadDeleteAnswer]:
    """Delete on these instances what was dead before those times. Raises as `AdminClient.ask`."""
    for instance, before_ns in until_ns.items():
        request = DeadDeleteRequest(**_until(wanted, before_ns))
        async for page in admin.pages_of(instance, DEAD_DELETE, request, DeadDeleteAnswer):
            yield page


async def delete_exported(admin: AdminClient, page: DeadExportAnswer) -> int:
    """Delete what a page holds. Returns how many were there still. Raises as `AdminClient.ask`."""
    deleted = 0
    for chunk in _chunks([(key, None) for key in page.keys], admin.max_payload):
        request = DeadDeleteRequest(keys=[key for key, _ in chunk])
        deleted += (await admin.ask_one(page.instance, DEAD_DELETE, request, DeadDeleteAnswer)).deleted
    return deleted


def _chunks(letters: list[_Known], max_payload: int) -> Iterator[list[_Known]]:
    """So many of these as fit one request, again and again."""
    most = min(max_payload - _ROOM, _MOST_REQUEST_BYTES)
    chunk: list[_Known] = []
    room = most
    for letter in letters:
        taken = len(json.dumps(letter))
        room -= taken
        if chunk and room < 0:
            yield chunk
            chunk, room = [], most - taken
        chunk.append(letter)
    if chunk:
        yield chunk


def line_of(letter: DeadLetter) -> str:
    """One line of an export."""
    return letter.model_dump_json(exclude_none=True) + "\n"


def _until(wanted: DeadFilter, before_ns: int) -> dict[str, Any]:
    return wanted.model_dump(exclude={"after", "keys"}) | {"died_before_ns": before_ns}


@dataclass(slots=True)
class Importing:
    """Lines on their way back, a batch at a time, to each of `targets` in turn; none that any of `instances` has already.

    `mistakes`: line number and text of what is no dead letter, or may not be one there.
    """

    admin: AdminClient
    instances: list[str]
    targets: list[str]
    imported: int = 0
    known: int = 0
    mistakes: list[tuple[int, str]] = field(default_factory=list)
    _batch: list[tuple[int, DeadLetter]] = field(default_factory=list)
    _bytes: int = 0

    async def run(self, lines: Iterable[bytes]) -> None:
        """Import them all. Raises as `AdminClient.ask`; then what was counted is on disk."""
        targets = cycle(self.targets)
        most = self.admin.max_payload - _ROOM
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            letter = self._read(number, line)
            if letter is None:
                continue
            if len(line) > most and len(pack(line, 0)) > most:
                self.mistakes.append((number, f"its {len(line)} bytes do not fit a message of this server"))
                continue
            if self._batch and (self._bytes + len(line) > most or len(self._batch) == LETTERS_LIMIT):
                await self._send(next(targets))
            self._batch.append((number, letter))
            self._bytes += len(line)
        if self._batch:
            await self._send(next(targets))

    def _read(self, number: int, line: bytes) -> DeadLetter | None:
        try:
            return DeadLetter.model_validate_json(line)
        except ValidationError as wrong:
            self.mistakes.append((number, mistakes_of(wrong)))
            return None

    async def _send(self, target: str) -> None:
        batch, self._batch, self._bytes = self._batch, [], 0
        elsewhere: set[str] = set()
        keys = [(letter.key, letter.client_id) for _, letter in batch]
        for instance in self.instances:
            if instance != target:
                for chunk in _chunks(keys, self.admin.max_payload):
                    ids = [client_id for _, client_id in chunk if client_id is not None]
                    request = DeadKnownRequest(keys=[key for key, _ in chunk], ids=ids)
                    answer = await self.admin.ask_one(instance, DEAD_KNOWN, request, DeadKnownAnswer)
                    elsewhere.update(answer.keys)
        fresh = [(number, letter) for number, letter in batch if letter.key not in elsewhere]
        self.known += len(batch) - len(fresh)
        if fresh:
            letters = DeadImportRequest(letters=[letter for _, letter in fresh])
            done = await self.admin.ask_one(target, DEAD_IMPORT, letters, DeadImportAnswer)
            self.imported += done.imported
            self.known += done.known
            self.mistakes += [(fresh[each.index][0], each.error) for each in done.refused]
