"""The admin API's requests and answers that change queues and pending messages.

`by` is who asks, by their own account: it goes into the worker's log and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, field_validator, model_validator

from requeue_protocol.admin import AdminAnswer, AdminRequest, AdminSubject
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.subjects import check_queue_name

UNTIL_RESUMED: Final = 2**63 - 2  #: end of a pause without one: later than any instant that can be asked for
_LAST_NS: Final = UNTIL_RESUMED - 1

By = Annotated[str, Field(max_length=256)]


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
