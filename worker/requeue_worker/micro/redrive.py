"""Endpoints `redrive`, `jobs` and `cancel-job`: dead letters become pending messages again, as a job.

A job walks the dead letters of each queue once, in the order of their deaths, up to those that were dead when it
began: what dies meanwhile, redriven or not, is not redriven by it. It goes on in bounded steps:

    its turn ──> look (browse thread) ──> what each becomes (there, too) ──> one transaction ──> its rate
       ▲                                                                                         │
       └─────────────────────────────────────────────────────────────────────────────────────────┘

The turns (`micro/turns.py`) give way to the intake. The transaction removes the dead letters and writes the messages, so
that a crash at any moment leaves each of them in exactly one place. A job ends with the process: what it has redriven
stays so, the rest stays dead. Edge m of docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from requeue_protocol.errors import Busy, DiskFull, RefusedError
from requeue_protocol.redrive import (
    CancelJobRequest,
    JobEntry,
    JobsAnswer,
    JobsRequest,
    JobState,
    RedriveAnswer,
    RedriveRequest,
)
from requeue_worker.changes import Redrive
from requeue_worker.counts import Counts
from requeue_worker.deadletters import DeadLetters
from requeue_worker.faults import fault_point
from requeue_worker.micro.filters import wanted_by
from requeue_worker.micro.scans import look
from requeue_worker.micro.turns import Turns
from requeue_worker.record import DeadReason
from requeue_worker.registry import QueueRegistry
from requeue_worker.revival import Revived, revive
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.keys import TIME, queue_prefix
from requeue_worker.storage.queues import INVALID_QUEUE, QueueState
from requeue_worker.storage.rocksdb import DEAD, Engine
from requeue_worker.storage.store import Store

log = logging.getLogger(__name__)

STEP_MESSAGES: Final = 512  #: a transaction takes so many at most: some milliseconds of the event loop
STEP_S: Final = 0.1  #: with a rate, a step takes what the rate allows in this time
MOST_RUNNING: Final = 8
ENDED_KEPT: Final = 32


@dataclass(slots=True)
class Job:
    """A redrive under way, or ended."""

    name: str
    request: RedriveRequest
    started_ns: int
    state: JobState = "running"
    redriven: int = 0
    skipped: int = 0
    scanned: int = 0
    ended_ns: int | None = None
    error: str | None = None
    #: with a rate, no step begins before
    next_s: float = field(default_factory=time.monotonic)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def entry(self) -> JobEntry:
        """For an answer."""
        return JobEntry(
            job=self.name,
            state=self.state,
            redriven=self.redriven,
            skipped=self.skipped,
            scanned=self.scanned,
            started_ns=self.started_ns,
            ended_ns=self.ended_ns,
            error=self.error,
            request=self.request.model_dump(exclude_none=True),
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """What a look found: the messages to be, how many can't be any, and where the next look begins (None: nowhere)."""

    letters: list[Revived]
    skipped: int
    scanned: int
    stopped: bytes | None
    now_ns: int


class Redrives:
    """The jobs of one instance."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        registry: QueueRegistry,
        dead_letters: DeadLetters,
        instance_id: str,
        clock: Callable[[], int],
        counts: Counts,
        turns: Turns,
        *,
        has_room: Callable[[], bool],
    ) -> None:
        self._turns = turns
        self._store = store
        self._committer = committer
        self._registry = registry
        self._dead_letters = dead_letters
        self._instance_id = instance_id
        self._clock = clock
        self._counts = counts
        self._has_room = has_room
        self._jobs: dict[str, Job] = {}
        self._stopped = False

    # -- endpoints -------------------------------------------------------------------------------------------

    async def redrive(self, request: RedriveRequest) -> RedriveAnswer:
        """Begin a job. Raises ValueError for what no job can do, and Busy."""
        known = self._jobs.get(request.job or "")
        if known is None:
            known = self._begin(request)
        return RedriveAnswer(instance=self._instance_id, job=known.entry)

    async def jobs(self, request: JobsRequest) -> JobsAnswer:
        """What runs, and what ran lately."""
        entries = [job.entry for name, job in self._jobs.items() if request.job in (None, name)]
        return JobsAnswer(instance=self._instance_id, jobs=entries)

    async def cancel(self, request: CancelJobRequest) -> JobsAnswer:
        """End a job, and tell how far it came."""
        job = self._jobs.get(request.job)
        if job is not None:
            job.cancelled.set()
            if job.task is not None:
                await asyncio.wait([job.task])
        return await self.jobs(JobsRequest(job=request.job))

    async def stop(self) -> None:
        """End all jobs; none begins any more."""
        self._stopped = True
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for job in self._jobs.values():
            job.cancelled.set()
        if tasks:
            await asyncio.wait(tasks)

    # -- jobs ------------------------------------------------------------------------------------------------

    def _begin(self, request: RedriveRequest) -> Job:
        running = [job for job in self._jobs.values() if job.state == "running"]
        if self._stopped:
            raise Busy("this worker is shutting down: redrive again when it is back")
        if len(running) >= MOST_RUNNING:
            raise Busy(f"{len(running)} jobs run already: wait for one of them, or cancel one")
        if not self._has_room():
            raise Busy(_FULL)
        queues = self._queues(request)
        self._check_subject(request.to_subject, queues)
        ended = [name for name, job in self._jobs.items() if job.state != "running"]
        for name in ended[: max(len(ended) - ENDED_KEPT, 0)]:
            del self._jobs[name]
        job = Job(request.job or os.urandom(8).hex(), request, self._clock())
        self._jobs[job.name] = job
        log.info("redrive begins", extra={"job": job.name, "request": job.entry.request})
        job.task = asyncio.get_running_loop().create_task(self._run(job, queues), name=f"redrive {job.name}")
        return job

    def _queues(self, request: RedriveRequest) -> list[QueueState]:
        if request.queue == INVALID_QUEUE or request.reason == DeadReason.INVALID:
            raise ValueError(
                "refused messages were never taken in and can't be redriven: export them (requeue dead export "
                "'$invalid'), and publish them mended (requeue publish --file)"
            )
        return [
            queue
            for queue in sorted(self._registry, key=lambda queue: queue.name)
            if queue.dead and queue.name != INVALID_QUEUE and request.queue in (None, queue.name)
        ]

    def _check_subject(self, subject: str | None, queues: list[QueueState]) -> None:
        for queue in queues if subject is not None else ():
            try:
                queue.rules.check((subject or "").encode())
            except RefusedError as error:
                raise ValueError(f"queue {queue.name}: {error}") from None

    async def _run(self, job: Job, queues: list[QueueState]) -> None:
        state: JobState = "failed"
        try:
            for queue in queues:
                await self._redrive_queue(job, queue)
            state = "cancelled" if job.cancelled.is_set() else "done"
        except Exception as error:
            job.error = str(error) or repr(error)
            log.warning("redrive failed", extra={"job": job.name, "error": job.error})
        finally:
            job.state, job.ended_ns, job.task = state, self._clock(), None
            log.info("redrive ends", extra={"job": job.name, "state": state, "redriven": job.redriven})

    async def _redrive_queue(self, job: Job, queue: QueueState) -> None:
        prefix = queue_prefix(queue.name)
        start: bytes | None = prefix
        end = prefix + TIME.pack(job.started_ns + 1)
        while start is not None and not job.cancelled.is_set():
            async with self._turns.turn(), self._dead_letters.leaving:
                if job.cancelled.is_set():
                    return
                if not self._has_room():
                    raise DiskFull(_FULL)
                step = await self._store.browse(self._look(job.request, queue, start, end))
                fault_point("redrive: step read")
                if step.letters and self._registry.by_name.get(queue.name) is queue:
                    await self._committer.commit(Redrive(queue, step.letters, step.now_ns))
                    fault_point("redrive: step durable")
                    job.redriven += len(step.letters)
                    self._counts.redriven += len(step.letters)
            job.scanned += step.scanned
            job.skipped += step.skipped
            start = step.stopped
            await self._pace(job, len(step.letters))

    def _look(
        self, request: RedriveRequest, queue: QueueState, start: bytes, end: bytes
    ) -> Callable[[Engine], _Step]:
        """A look for the browse thread: it touches nothing of the event loop's."""
        rate, wanted = request.rate, wanted_by(request)
        most, is_short = self._turns.most(STEP_MESSAGES), self._turns.beside_intake
        if rate is not None:
            most = min(max(int(rate * STEP_S), 1), most)
        subject = None if request.to_subject is None else request.to_subject.encode()
        ttl_ns, now_ns = queue.policy.ttl_ns, self._clock()

        def find(engine: Engine) -> _Step:
            scan = look(engine, DEAD, [(start, end)], most, wanted, is_short=is_short)
            letters = []
            for key, value in scan.found:
                with contextlib.suppress(RefusedError):
                    letters.append(revive(key, value, queue_ttl_ns=ttl_ns, now_ns=now_ns, subject=subject))
            stopped = None if scan.stopped is None else scan.stopped + b"\x00"
            return _Step(letters, len(scan.found) - len(letters), scan.scanned, stopped, now_ns)

        return find

    async def _pace(self, job: Job, redriven: int) -> None:
        """Wait until the rate allows the next step. Of what it could have had and had not, it may catch up one."""
        rate = job.request.rate
        if rate is None:
            return
        now_s = time.monotonic()
        job.next_s = max(job.next_s, now_s - STEP_S) + redriven / rate
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.cancelled.wait(), max(job.next_s - now_s, 0))


_FULL: Final = "the disk is full: redrive again when there is room"
