"""The admin API's requests and answers: JSON on `_requeue.admin.<endpoint>`, the same models on both ends.

Every instance answers `_requeue.admin.<endpoint>`; `_requeue.admin.<endpoint>.<instance>` asks one. Times are Unix
nanoseconds. What is long comes in pages: `next` of an answer is `after` of the next request to that instance, null at
the end.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from requeue_protocol.subjects import ADMIN_PREFIX, check_pattern

SERVICE_NAME: Final = "requeue"
PING_TYPE: Final = "io.nats.micro.v1.ping_response"
INFO_TYPE: Final = "io.nats.micro.v1.info_response"
STATS_TYPE: Final = "io.nats.micro.v1.stats_response"

QUEUES_LIMIT: Final = 1000
MESSAGES_LIMIT: Final = 200
SHOWN_PAYLOAD_BYTES: Final = 64 << 10

State = Literal["pending", "in-flight", "dead"]
_Text = Annotated[str, Field(max_length=2048)]
_Time = Annotated[int, Field(ge=0)]


class AdminSubject(NamedTuple):
    """Where an endpoint listens: for all instances, and for one."""

    endpoint: str

    @property
    def everybody(self) -> str:
        """Each instance answers."""
        return f"{ADMIN_PREFIX}.admin.{self.endpoint}"

    def one(self, instance: str) -> str:
        """This instance answers. Dots of its id are escaped, as in the handover's subjects."""
        return f"{self.everybody}.{instance_token(instance)}"


def instance_token(instance: str) -> str:
    """An instance id as one token of a subject: `%` is in no id, so that two never meet."""
    return instance.replace(".", "%2E")


class AdminRequest(BaseModel):
    """A request; what it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdminAnswer(BaseModel):
    """An answer; what a newer worker adds is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    instance: str


class InstancesRequest(AdminRequest):
    """Who is there, and how is it?"""


class InstanceAnswer(AdminAnswer):
    """One worker."""

    fleet: str
    version: str
    started_ns: int
    time_ns: int
    ready: bool
    state: str
    queues: int
    pending: int
    pending_bytes: int
    in_flight: int
    dead: int
    dead_bytes: int
    disk_free_bytes: int
    disk_full: bool


class QueuesRequest(AdminRequest):
    """The queues of an instance, by name; `queue` asks for one."""

    queue: _Text | None = None
    after: _Text = ""
    limit: int = Field(default=QUEUES_LIMIT, ge=1, le=QUEUES_LIMIT)


class QueueEntry(BaseModel):
    """One queue as it stands. `next_due_ns` is null when nothing is pending, or not known yet."""

    name: str
    pending: int
    pending_bytes: int
    in_flight: int
    dead: int
    dead_bytes: int
    next_due_ns: int | None
    paused_until_ns: int | None


class QueuesAnswer(AdminAnswer):
    """A page of queues."""

    queues: list[QueueEntry]
    next: str | None


class StatsRequest(QueuesRequest):
    """What happened since the start, in all and for each queue."""


class QueueTotals(BaseModel):
    """What happened to the messages of one queue since the worker started; `dead` and `dropped` by reason."""

    name: str
    accepted: int = 0  #: new messages; a worker before this field does not tell
    replays: int
    settled: int
    retried: int
    held: int
    expired: int
    dead: dict[str, int]
    dropped: dict[str, int]


class Buckets(BaseModel):
    """A histogram: `counts[i]` is what was at most `bounds_s[i]` and above the bound before; the last, above them all."""

    bounds_s: list[float]
    counts: list[int]


class StatsAnswer(AdminAnswer):
    """A page of totals. `refused` is by code."""

    started_ns: int
    time_ns: int
    intake_messages: int
    intake_bytes: int
    duplicates: int
    refused: dict[str, int]
    commits: int
    lateness: Buckets  #: of replays, against the time when they were due
    queues: list[QueueTotals]
    next: str | None


class MessageFilter(AdminRequest):
    """Which messages are meant: those for which all holds that is said here. Nothing said: all of them."""

    queue: _Text | None = None
    #: a Requeue-Id (32 hexadecimal digits), or the publisher's Nats-Msg-Id
    id: _Text | None = None
    subject: _Text | None = None  #: a pattern, like orders.*
    reason: _Text | None = None
    enqueued_before_ns: _Time | None = None
    enqueued_after_ns: _Time | None = None

    @field_validator("subject")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            check_pattern(pattern)
        return pattern


class ListRequest(MessageFilter):
    """Messages in one state, in the order of their queues and due times (dead letters: of death)."""

    state: State = "pending"
    payload_bytes: int = Field(default=0, ge=0, le=1024)  #: of each payload
    limit: int = Field(default=50, ge=1, le=MESSAGES_LIMIT)
    after: _Text = ""


class CountRequest(MessageFilter):
    """How many messages in one state, page by page; the pages add up."""

    state: State = "pending"
    after: _Text = ""


class CountAnswer(AdminAnswer):
    """What was counted in this page. `bytes` are those that count for `max_bytes`."""

    messages: int
    bytes: int
    scanned: int
    next: str | None


class GetRequest(AdminRequest):
    """Everything about the messages with this id, whatever their state; pages go on until `next` is null."""

    queue: _Text | None = None
    id: Annotated[str, Field(min_length=1, max_length=2048)]
    after: _Text = ""


class MessageEntry(BaseModel):
    """One message. `due_ns` is its next attempt, or its deadline where that is earlier; of dead letters it is null.

    `payload` is base64, as much as was asked for. `key` of a dead letter is what `dead-delete` takes.
    """

    id: str
    key: str | None = None
    state: State
    queue: str
    priority: int | None
    subject: str
    client_id: str | None
    attempts: int
    enqueued_ns: int
    due_ns: int | None
    deadline_ns: int | None
    died_ns: int | None
    reason: str | None
    last_error: str | None
    payload_size: int
    payload: str


class ListAnswer(AdminAnswer):
    """A page of messages; it may be empty and not the last: a page ends after a bounded look, too."""

    messages: list[MessageEntry]
    scanned: int
    next: str | None


class AttemptEntry(BaseModel):
    """An attempt that did not settle. `number` is 0 for a refusal at the intake."""

    number: int
    at_ns: int
    error: str


class MessageDetail(MessageEntry):
    """One message with its headers as they came and the history of its attempts, the newest 32 of them."""

    headers: str
    history: list[AttemptEntry]


class GetAnswer(AdminAnswer):
    """What was found in this page."""

    messages: list[MessageDetail]
    next: str | None


class IdRequest(AdminRequest):
    """The publisher's Nats-Msg-Id."""

    id: Annotated[str, Field(min_length=1, max_length=512)]


class RescheduleRequest(IdRequest):
    """Either `delay_ns` from now or `at_ns` since 1970."""

    delay_ns: _Time | None = None
    at_ns: _Time | None = None


class CancelAnswer(AdminAnswer):
    """How many went, and how many with this id are in flight and stay."""

    cancelled: int
    in_flight: int


class RescheduleAnswer(AdminAnswer):
    """How many moved, and how many with this id are in flight and stay."""

    rescheduled: int
    in_flight: int


INSTANCES: Final = AdminSubject("instances")
QUEUES: Final = AdminSubject("queues")
STATS: Final = AdminSubject("stats")
LIST: Final = AdminSubject("list")
COUNT: Final = AdminSubject("count")
GET: Final = AdminSubject("get")


def mistakes_of(error: ValidationError) -> str:
    """A validation's mistakes as one line for the one who asked."""
    return "; ".join(
        f"{'.'.join(map(str, mistake['loc'])) or 'request'}: {mistake['msg']}" for mistake in error.errors()
    )
