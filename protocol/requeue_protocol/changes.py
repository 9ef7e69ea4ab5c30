"""The admin API's requests and answers that change queues and pending messages.

`by` is who asks, by their own account: it goes into the worker's log and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, field_validator, model_validator

from requeue_protocol.admin import AdminAnswer, AdminRequest, AdminSubject, MessageFilter
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.subjects import check_queue_name

UNTIL_RESUMED: Final = 2**63 - 2  #: end of a pause without one: later than any instant that can be asked for
_LAST_NS: Final = UNTIL_RESUMED - 1

MOST_IDS: Final = 100  #: in one request

By = Annotated[str, Field(max_length=256)]
_Id = Annotated[str, Field(min_length=1, max_length=512)]


class QueueRequest(AdminRequest):
    """One queue by its name."""

    queue: str
    by: By | None = None

    @field_validator("queue")
    @classmethod
    def _is_name(cls, name: str) -> str:
        try:
            check_queue_name(name)
        except MalformedMessage as wrong:
            raise ValueError(str(wrong)) from None
        return name


class PauseRequest(QueueRequest):
    """Send nothing of this queue for `for_ns`, or until `until_ns`; with neither until it is resumed.

    A queue that the worker does not know is paused for what will come. A later pause replaces an earlier one.
    """

    for_ns: Annotated[int, Field(gt=0, le=_LAST_NS)] | None = None
    until_ns: Annotated[int, Field(gt=0, le=_LAST_NS)] | None = None

    @model_validator(mode="after")
    def _one_end(self) -> PauseRequest:
        if self.for_ns is not None and self.until_ns is not None:
            raise ValueError("give for_ns or until_ns, or neither")
        return self


class ResumeRequest(QueueRequest):
    """Send what this queue has from now on."""


class PauseAnswer(AdminAnswer):
    """The queue as it is now. `paused_until_ns`: UNTIL_RESUMED without an end, null when it is not paused.

    `known`: whether the worker had this queue before. `was_paused`: whether it was paused.
    """

    queue: str
    known: bool
    was_paused: bool
    paused_until_ns: int | None
    pending: int


PAUSE: Final = AdminSubject("pause")
RESUME: Final = AdminSubject("resume")


class ChangeRequest(MessageFilter):
    """Which pending messages: those for which all of the filter holds, that have one of `ids` if any are given.

    One of both has to be said. `dry_run` changes nothing and counts. The answer's `next` is `after` of the next request
    to the same instance; what was published after the first of them is left alone.
    """

    dry_run: bool
    #: Requeue-Ids or Nats-Msg-Ids
    ids: Annotated[tuple[_Id, ...], Field(max_length=MOST_IDS)] = ()
    by: By | None = None
    after: Annotated[str, Field(max_length=2048)] = ""

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if not self.ids and not self.model_dump(include=set(MessageFilter.model_fields), exclude_none=True):
            raise ValueError("say which messages: ids, or a filter like queue")
        return self


class PurgeRequest(ChangeRequest):
    """Remove them, without a dead letter."""


class MoveRequest(ChangeRequest):
    """Make them due `delay_ns` from now, or at `at_ns`: 0 is at once. Messages that are due by then already stay."""

    delay_ns: Annotated[int, Field(ge=0, le=_LAST_NS)] | None = None
    at_ns: Annotated[int, Field(ge=0, le=_LAST_NS)] | None = None

    @model_validator(mode="after")
    def _one_time(self) -> Self:
        if (self.delay_ns is None) == (self.at_ns is None):
            raise ValueError("give either delay_ns or at_ns")
        return self


class ChangeAnswer(AdminAnswer):
    """How many were changed in this step (in a dry run: would be), and how many are meant and in flight, and stay."""

    changed: int
    in_flight: int
    scanned: int
    next: str | None


PURGE: Final = AdminSubject("purge")
MOVE: Final = AdminSubject("move")
