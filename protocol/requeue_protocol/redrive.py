"""The admin API's requests and answers about redrives: dead letters that become pending messages again.

A redrive is a job of each instance. `redrive` starts one and answers at once; `jobs` tells how far it is; `cancel-job`
ends it. Whoever starts one job on several instances gives it one name.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, field_validator

from requeue_protocol.admin import AdminAnswer, AdminRequest, AdminSubject, MessageFilter
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.subjects import check_publish_subject

JobName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]{1,64}$")]
JobState = Literal["running", "done", "cancelled", "failed"]


class RedriveRequest(MessageFilter):
    """Dead letters of whatever queues that are dead by now: make pending messages of them, due at once."""

    job: JobName | None = None  #: absent: the worker makes one up. A name that is known answers that job
    rate: float | None = Field(default=None, gt=0, le=1e9)  #: messages a second at most
    to_subject: str | None = None  #: send them there, and not to their original subjects

    @field_validator("to_subject")
    @classmethod
    def _is_subject(cls, subject: str | None) -> str | None:
        if subject is not None:
            try:
                check_publish_subject(subject.encode())
            except MalformedMessage as wrong:
                raise ValueError(str(wrong)) from None
        return subject


class JobEntry(BaseModel):
    """A job as it stands. `skipped` are dead letters that were meant and can't be redriven; they stay.

    `request` is what was asked for. A job that is not running any more says when it ended, and if it failed, why.
    """

    job: str
    state: JobState
    redriven: int
    skipped: int
    scanned: int
    started_ns: int
    ended_ns: int | None
    error: str | None
    request: dict[str, str | int | float | None]


class RedriveAnswer(AdminAnswer):
    """The job that was started, or is known under that name."""

    job: JobEntry


class JobsRequest(AdminRequest):
    """The jobs of an instance that run, and the newest of those that ended since it started; `job` asks for one."""

    job: JobName | None = None


class JobsAnswer(AdminAnswer):
    """Jobs, the oldest first."""

    jobs: list[JobEntry]


class CancelJobRequest(AdminRequest):
    """End the job of this name; the answer comes when it has ended. What it has done stays done."""

    job: JobName


REDRIVE: Final = AdminSubject("redrive")
JOBS: Final = AdminSubject("jobs")
CANCEL_JOB: Final = AdminSubject("cancel-job")
