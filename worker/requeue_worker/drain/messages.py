"""What a drain and a worker say to each other: requests in parts below `max_payload`, and answers.

    part      version, uid of the target, uid of the source, session, number of the part, parts | a piece of the request
    request   one line of JSON (verb, marks, ...) | body
    answer    one line of JSON

The body of a page is its records as they lie on disk, and the keys of its dead letters that are still to be published;
of a beginning it is JSON: what a directory has beside records. docs/protocol.md has the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from struct import Struct, pack, unpack_from
from struct import error as struct_error
from typing import Final, NamedTuple

from requeue_worker.errors import WorkerError
from requeue_worker.storage.pages import START, Mark

VERSION: Final = 1
SESSION_LEN: Final = 8
NOBODY: Final = bytes(16)  #: the target of a request that is meant for all
_PART: Final = Struct(">B16s16s8sHH")


class MalformedHandover(WorkerError):
    """The other side said something that is no request or answer of this protocol."""


class Verb(StrEnum):
    """What is asked for."""

    WHO = "who"  #: who would take this over, and is anything of it there already?
    BEGIN = "begin"  #: a session: no earlier one of this source counts any more
    PAGE = "page"
    END = "end"  #: of the session: how far have you come?
    FORGET = "forget"  #: the mark


class Code:
    """Why a request was refused."""

    MALFORMED = 400
    BEGIN_AGAIN = 409  #: no such session, or a page is missing in between
    ANOTHER = 410  #: the directory that was asked is not the one that answers
    FAILED = 500
    CLOSING = 503
    DISK_FULL = 507


class Part(NamedTuple):
    """One message on the wire."""

    target: bytes
    source: bytes
    session: bytes
    number: int
    parts: int
    piece: bytes

    @classmethod
    def parse(cls, payload: bytes) -> Part:
        """Raises MalformedHandover."""
        if len(payload) < _PART.size or payload[0] != VERSION:
            version = payload[0] if payload else None
            raise MalformedHandover(f"handover version {version}; this release knows {VERSION}")
        _, target, source, session, number, parts = _PART.unpack_from(payload)
        return cls(target, source, session, number, parts, payload[_PART.size :])


@dataclass(frozen=True, slots=True)
class Request:
    """A verb with what belongs to it. `after` and `mark`: of a page, where the source stands before and behind it."""

    verb: Verb
    source: bytes
    target: bytes = NOBODY
    session: bytes = bytes(SESSION_LEN)
    instance: str = ""  #: of the source
    skew_ns: int = 0  #: the target's clock less the source's
    after: Mark = START
    mark: Mark = START
    body: bytes = b""

    def parts(self, max_payload: int) -> list[bytes]:
        """The messages to send, in order, each of `max_payload` bytes at most."""
        said: dict[str, object] = {"verb": self.verb}
        if self.instance:
            said["instance"] = self.instance
        if self.skew_ns:
            said["skew_ns"] = self.skew_ns
        if self.verb is Verb.PAGE:
            said |= {"after": self.after.encode().hex(), "mark": self.mark.encode().hex()}
        whole = json.dumps(said, separators=(",", ":")).encode() + b"\n" + self.body
        room = max_payload - _PART.size
        count = -(-len(whole) // room)
        return [
            _PART.pack(VERSION, self.target, self.source, self.session, number, count)
            + whole[number * room : (number + 1) * room]
            for number in range(count)
        ]

    @classmethod
    def read(cls, part: Part, whole: bytes) -> Request:
        """The request of which `part` was the last one. Raises MalformedHandover."""
        line, _, body = whole.partition(b"\n")
        try:
            said = json.loads(line)
            return cls(
                Verb(said["verb"]),
                part.source,
                part.target,
                part.session,
                str(said.get("instance", "")),
                int(said.get("skew_ns", 0)),
                _read_mark(said.get("after", "00")),
                _read_mark(said.get("mark", "00")),
                body,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MalformedHandover(f"no request of a handover: {error}") from None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says. `mark`: everything of the source up to there is on its disk; None: it knows nothing of it."""

    instance: str
    uid: bytes
    time_ns: int
    mark: Mark | None = None
    pending: int = 0
    room: bool = True  #: whether its disk has room
    duplicates: int = 0  #: records of this page that were there already
    more: bool = False  #: the parts so far are there; the others have to follow
    code: int = 0  #: other than 0: refused, `error` says why
    error: str = ""

    def encode(self) -> bytes:
        """One line of JSON."""
        said = {
            "v": VERSION,
            "instance": self.instance,
            "uid": self.uid.hex(),
            "time_ns": self.time_ns,
            "mark": None if self.mark is None else self.mark.encode().hex(),
            "pending": self.pending,
            "room": self.room,
            "duplicates": self.duplicates,
            "more": self.more,
            "code": self.code,
            "error": self.error,
        }
        return json.dumps({key: value for key, value in said.items() if value not in ("", 0, False)}).encode()

    @classmethod
    def parse(cls, raw: bytes) -> Answer:
        """Raises MalformedHandover."""
        try:
            said = json.loads(raw)
            mark = said["mark"]
            return cls(
                str(said["instance"]),
                bytes.fromhex(said["uid"]),
                int(said["time_ns"]),
                None if mark is None else _read_mark(mark),
                int(said.get("pending", 0)),
                bool(said.get("room", False)),
                int(said.get("duplicates", 0)),
                bool(said.get("more", False)),
                int(said.get("code", 0)),
                str(said.get("error", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MalformedHandover(f"no answer of a worker: {raw[:100]!r}: {error}") from None


@dataclass(frozen=True, slots=True)
class Luggage:
    """What a directory has beside records: until when queues are paused (Unix ns), and what it had taken over itself."""

    paused: dict[str, int] = field(default_factory=dict)
    marks: dict[bytes, Mark] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The body of a beginning."""
        marks = {uid.hex(): mark.encode().hex() for uid, mark in self.marks.items()}
        return json.dumps({"paused": self.paused, "marks": marks}).encode()

    @classmethod
    def parse(cls, body: bytes) -> Luggage:
        """Raises MalformedHandover."""
        try:
            said = json.loads(body)
            paused = {str(queue): int(until_ns) for queue, until_ns in said["paused"].items()}
            return cls(paused, {bytes.fromhex(uid): _read_mark(mark) for uid, mark in said["marks"].items()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MalformedHandover(f"no beginning of a handover: {error}") from None


def pack_page(records: Sequence[tuple[bytes, bytes]], unpublished: Sequence[bytes]) -> bytes:
    """The body of a page: the number of records, all lengths, keys and values; then the unpublished keys likewise."""
    flat = [part for record in records for part in record]
    flat += unpublished
    return pack(f">II{len(flat)}I", len(records), len(unpublished), *map(len, flat)) + b"".join(flat)


def unpack_page(body: bytes) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """The reverse of `pack_page`. Raises MalformedHandover."""
    try:
        count, unpublished = unpack_from(">II", body)
        lengths = unpack_from(f">{2 * count + unpublished}I", body, 8)
    except struct_error as error:
        raise MalformedHandover(f"no page: {error}") from None
    at, places = 8 + 4 * len(lengths), []
    for length in lengths:
        places.append(at)
        at += length
    places.append(at)
    if at != len(body):
        raise MalformedHandover(f"a page of {len(body)} bytes that should have {at}")
    flat = [body[start:end] for start, end in pairwise(places)]
    keys, values = flat[0 : 2 * count : 2], flat[1 : 2 * count : 2]
    return list(zip(keys, values, strict=True)), flat[2 * count :]


def _read_mark(text: str) -> Mark:
    raw = bytes.fromhex(text)
    if not raw:
        raise ValueError("an empty mark")
    return Mark.decode(raw)
