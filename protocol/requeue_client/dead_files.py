"""Dead letters to lines of JSON and back, over all instances: in pages, so that memory does not grow with their number."""

from __future__ import annotations

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
    for keys in _chunks(page.keys, admin.max_payload - _ROOM):
        request = DeadDeleteRequest(keys=keys)
        deleted += (await admin.ask_one(page.instance, DEAD_DELETE, request, DeadDeleteAnswer)).deleted
    return deleted


def _chunks(keys: list[str], most_bytes: int) -> Iterator[list[str]]:
    """So many of these as fit one request, again and again."""
    chunk: list[str] = []
    room = most_bytes
    for key in keys:
        room -= len(key) + 3
        if chunk and room < 0:
            yield chunk
            chunk, room = [], most_bytes - len(key) - 3
        chunk.append(key)
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
        keys = [letter.key for _, letter in batch]
        for instance in self.instances:
            if instance != target:
                for some in _chunks(keys, self.admin.max_payload - _ROOM):
                    request = DeadKnownRequest(keys=some)
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
