"""The admin API's requests and answers that delete, export and import dead letters, and a dead letter as one line of JSON.

An export says all that a dead letter is, so that an import makes the same of it, on whatever worker. JSON that does
not fit a message of NATS goes compressed (zlib): base64 takes a third more than the payload that came in one message.
"""

from __future__ import annotations

import zlib
from base64 import b64decode
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from requeue_protocol.admin import AdminAnswer, AdminRequest, AdminSubject, AttemptEntry, MessageFilter
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.headers import read_intake_headers
from requeue_protocol.replies import one_line
from requeue_protocol.subjects import check_publish_subject, check_queue_name

LETTERS_LIMIT: Final = 256  #: of one import
KEYS_LIMIT: Final = 512
REFUSED_QUEUE: Final = "$invalid"  #: holds refused messages: they have no subject, and headers of any kind
HISTORY_LIMIT: Final = 32
_MAX_TIME_NS: Final = 2**63 - 1
_MAX_NUMBER: Final = 2**64 - 1

Key = Annotated[str, Field(pattern=r"^[0-9a-f]{2,512}$")]
_Time = Annotated[int, Field(ge=0, le=_MAX_TIME_NS)]
_Number = Annotated[int, Field(ge=0, le=_MAX_NUMBER)]
_Id = Annotated[str, Field(min_length=1, max_length=512)]
_Reason = Annotated[str, Field(pattern=r"^[a-z\-]{1,32}$")]


class DeadLetter(BaseModel):
    """A dead letter: one line of an export.

    `headers` are the lines that came with it, joined by CRLF; those that are not UTF-8 stand in `headers_base64`. What is
    absent was not said by its publisher: there the policy of its queue counts. `retries` 2^64-1 is without end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    queue: str
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    died_ns: _Time
    reason: _Reason
    subject: str
    attempts: Annotated[int, Field(ge=0, lt=2**32)]
    enqueued_ns: _Time
    deadline_ns: _Time | None = None
    retries: _Number | None = None
    delay_ns: _Number | None = None
    ttl_ns: _Number | None = None
    backoff: Literal["exponential", "fixed", "linear", "list"] | None = None
    backoff_list_ns: list[_Time] = Field(default_factory=list, max_length=100)
    min_backoff_ns: _Time | None = None
    max_backoff_ns: _Time | None = None
    ack_timeout_ns: _Time | None = None
    history: list[AttemptEntry] = Field(default_factory=list, max_length=HISTORY_LIMIT)
    headers: str | None = None
    headers_base64: str | None = None
    payload: str  #: base64

    @property
    def key(self) -> str:
        """What a worker knows it by: queue, death and id, in hexadecimal."""
        name = self.queue.encode()
        return (bytes((len(name),)) + name + self.died_ns.to_bytes(8, "big")).hex() + self.id

    @property
    def client_id(self) -> str | None:
        """Its publisher's Nats-Msg-Id: by this a worker finds it when it is pending again."""
        block = self.headers_block
        if not block or self.queue == REFUSED_QUEUE:
            return None
        try:
            return (read_intake_headers(block).msg_id or b"").decode() or None
        except UnicodeDecodeError:
            return None

    @property
    def headers_block(self) -> bytes:
        """The headers as they came, empty where there were none."""
        if self.headers_base64 is not None:
            return b64decode(self.headers_base64)
        return b"" if self.headers is None else b"NATS/1.0\r\n" + self.headers.encode() + b"\r\n\r\n"

    @field_validator("history")
    @classmethod
    def _on_one_line(cls, history: list[AttemptEntry]) -> list[AttemptEntry]:
        return [entry.model_copy(update={"error": one_line(entry.error)}) for entry in history]

    @field_validator("payload", "headers_base64")
    @classmethod
    def _is_base64(cls, text: str | None) -> str | None:
        if text is not None:
            b64decode(text, validate=True)
        return text

    @model_validator(mode="after")
    def _is_message(self) -> DeadLetter:
        if self.deadline_ns is not None and self.deadline_ns < self.enqueued_ns:
            raise ValueError("deadline_ns is before enqueued_ns")
        if self.backoff == "list" and not self.backoff_list_ns:
            raise ValueError("backoff list has no backoff_list_ns")
        if self.queue == REFUSED_QUEUE:
            return self
        try:
            check_queue_name(self.queue)
            check_publish_subject(self.subject.encode())
            if block := self.headers_block:
                read_intake_headers(block)
        except MalformedMessage as wrong:
            raise ValueError(str(wrong)) from None
        return self


class DeadFilter(MessageFilter):
    """Dead letters; `died_before_ns` leaves out what died later."""

    died_before_ns: _Time | None = None
    after: Annotated[str, Field(max_length=2048)] = ""


class DeadDeleteRequest(DeadFilter):
    """Delete what a bounded look finds, page by page; with `keys` (of an export) those that are there still, at once.

    One of all that has to be said: nobody deletes everything by an empty request.
    """

    keys: Annotated[list[Key], Field(max_length=KEYS_LIMIT)] | None = None

    @model_validator(mode="after")
    def _says_which(self) -> DeadDeleteRequest:
        if not self.model_dump(exclude={"after"}, exclude_none=True):
            raise ValueError("say which dead letters: keys, a filter like queue, or died_before_ns")
        return self


class DeadDeleteAnswer(AdminAnswer):
    """What was deleted in this page."""

    deleted: int
    scanned: int
    next: str | None


class DeadExportRequest(DeadFilter):
    """Whole dead letters, page by page."""


class DeadExportAnswer(AdminAnswer):
    """A page. `keys` are those of `letters`, one each. `too_large`: ids of those that fit no message of this server."""

    letters: list[DeadLetter]
    keys: list[Key]
    too_large: list[str]
    next: str | None


class DeadKnownRequest(AdminRequest):
    """Which of these dead letters are there, dead or pending again? `ids` are the Nats-Msg-Ids of those that have one."""

    keys: list[Key] = Field(max_length=KEYS_LIMIT)
    ids: list[_Id] = Field(default_factory=list, max_length=KEYS_LIMIT)


class DeadKnownAnswer(AdminAnswer):
    """Those that are there."""

    keys: list[Key]


class DeadImportRequest(AdminRequest):
    """Make dead letters of these; those that are there already, dead or pending again, stay as they are."""

    letters: list[DeadLetter] = Field(max_length=LETTERS_LIMIT)


class RefusedLetter(BaseModel):
    """A letter that can't be one here: its place in the request, and why."""

    index: int
    error: str


class DeadImportAnswer(AdminAnswer):
    """How many are new, how many were there, and what was refused; all others are on disk."""

    imported: int
    known: int
    refused: list[RefusedLetter]


DEAD_DELETE: Final = AdminSubject("dead-delete")
DEAD_EXPORT: Final = AdminSubject("dead-export")
DEAD_KNOWN: Final = AdminSubject("dead-known")
DEAD_IMPORT: Final = AdminSubject("dead-import")


def pack(body: bytes, limit: int) -> bytes:
    """JSON for a message of `limit` bytes: as it is, or compressed where it does not fit. It may not fit even so."""
    return body if len(body) <= limit else zlib.compress(body)


def unpack(raw: bytes, most: int) -> bytes:
    """The reverse of `pack`. Raises ValueError for what is neither, or more than `most` bytes."""
    if not raw or raw.lstrip()[:1] == b"{":
        return raw
    reader = zlib.decompressobj()
    try:
        body = reader.decompress(raw, most)
    except zlib.error:
        raise ValueError("neither JSON nor JSON compressed by zlib") from None
    if reader.unconsumed_tail:
        raise ValueError(f"more than {most} bytes of JSON")
    return body
