"""One redrive over all instances: counted, begun under one name, watched, cancelled."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

from requeue_protocol.admin import CountRequest
from requeue_protocol.redrive import (
    CANCEL_JOB,
    JOBS,
    REDRIVE,
    CancelJobRequest,
    JobEntry,
    JobsAnswer,
    JobsRequest,
    RedriveAnswer,
    RedriveRequest,
)

from requeue_client.errors import NoWorker, RequeueError
from requeue_client.service import AdminClient

REFUSED_QUEUE = "$invalid"  #: refused messages: no redrive takes them


@dataclass(slots=True)
class Redriving:
    """A job of this name on the instances that have something to redrive. `entries`: how far each is.

    An instance in `gone` does not know the job any more: it started anew, or is not there. Its entry is the last known.
    """

    admin: AdminClient
    request: RedriveRequest
    name: str = field(default_factory=lambda: os.urandom(8).hex())
    entries: dict[str, JobEntry] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    @property
    def running(self) -> bool:
        """Whether any instance is at it."""
        return any(entry.state == "running" for name, entry in self.entries.items() if name not in self.gone)

    @property
    def redriven(self) -> int:
        """By all of them together."""
        return sum(entry.redriven for entry in self.entries.values())

    async def count(self) -> tuple[dict[str, int], int]:
        """Dead letters that are meant, by instance, and how many refused messages that can't be redriven."""
        fields = self.request.model_dump(exclude={"job", "rate", "to_subject"})
        counts = await self.admin.count(CountRequest(**fields, state="dead"))
        refused: dict[str, int] = {}
        if self.request.queue is None:
            refused = await self.admin.count(CountRequest(**{**fields, "queue": REFUSED_QUEUE}, state="dead"))
        left = {name: max(number - refused.get(name, 0), 0) for name, number in counts.items()}
        return left, sum(refused.values())

    async def begin(self, counts: dict[str, int]) -> None:
        """Begin on each instance that has some; a rate is shared out by these counts, so that all end together.

        Raises as `AdminClient.ask`; then none goes on.
        """
        total = sum(counts.values())
        try:
            for instance, number in counts.items():
                if number:
                    rate = None if self.request.rate is None else self.request.rate * number / total
                    request = self.request.model_copy(update={"job": self.name, "rate": rate})
                    answer = await self.admin.ask_one(instance, REDRIVE, request, RedriveAnswer)
                    self.entries[instance] = answer.job
        except RequeueError:
            await self.cancel()
            raise

    async def look(self) -> None:
        """Learn how far each instance is."""
        await self._tell(JobsRequest(job=self.name))

    async def cancel(self) -> None:
        """End the job wherever it runs, and learn how far it came."""
        await self._tell(CancelJobRequest(job=self.name))

    async def _tell(self, request: JobsRequest | CancelJobRequest) -> None:
        subject = CANCEL_JOB if isinstance(request, CancelJobRequest) else JOBS
        asked = [name for name in self.entries if name not in self.gone]
        answers = await asyncio.gather(
            *(self.admin.ask_one(name, subject, request, JobsAnswer) for name in asked),
            return_exceptions=True,
        )
        for name, answer in zip(asked, answers, strict=True):
            if isinstance(answer, NoWorker) or (isinstance(answer, JobsAnswer) and not answer.jobs):
                self.gone.add(name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self.entries[name] = answer.jobs[0]
