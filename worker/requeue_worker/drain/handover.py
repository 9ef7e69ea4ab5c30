"""One directory's handover, from the side of the source: whom to hand it to, pages in order, and every way to break off.

    choose ─▶ begin ─▶ trim to the target's mark ─▶ pages ─▶ end ─▶ trim to its last mark ─▶ let go ─▶ forget
      ▲  what the source says is durable there first   │ silence: the choice stands                │ more to do, or
      └──────────── wait a little ◀────────────────────┴───────────────────────────────────────────┘ another target

A target that keeps silent, and may have been sent a page, may have pages that are here still. So nobody else gets anything
before it is known how far it came: from itself, from who took its directory over (the mark went along), or never, since
its instance has another directory now. The last case, and `new_target`, are the only ones in which something may be sent
twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from requeue_worker.drain.directory import Directory
from requeue_worker.drain.link import Found, Link, Silence
from requeue_worker.drain.messages import NOBODY, Answer, Code, Request, Verb, pack_page
from requeue_worker.errors import WorkerError
from requeue_worker.faults import fault_point
from requeue_worker.storage.claims import Claim
from requeue_worker.storage.pages import PAGE_BYTES, PAGE_RECORDS, Mark, Page

log = logging.getLogger(__name__)

WINDOW: Final = (
    4  #: pages under way: the disk of the target is busy with one while the next are read and sent
)
SKEW_NS: Final = 1_000_000_000
_HEAD_BYTES: Final = 48 << 10  #: of a page, beside its values: keys and lengths
_MIN_PAGE_BYTES: Final = 4 << 10
_WAITS_S: Final = (0.1, 0.3, 1.0, 2.0)

T = TypeVar("T")


class Call(Protocol):
    """Runs a function on the drain's thread."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Its result, when it is there."""
        ...


class Blocked(WorkerError):
    """Something remains. `kind` is a word for the proof, the text says what is in the way."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Refusal(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.instance} refuses: {answer.error}")
        self.code = answer.code
        #: where a worker that is closing has ended the session
        self.last_mark = answer.mark if answer.code == Code.CLOSING else None


@dataclass(slots=True)
class Tally:
    """What a drain has done so far, all directories together."""

    handed_over: int = 0  #: records that are on a target's disk and no longer here
    duplicates: int = 0  #: records that a target had already
    possible_duplicates: int = 0  #: records, at most, that a target which was given up may have too
    target: str = ""  #: the instance that got the last ones
    answered: bool = True  #: whether anybody answered when somebody was asked last


class Handover:
    """Hands one open directory over."""

    def __init__(
        self,
        directory: Directory,
        link: Link,
        call: Call,
        tally: Tally,
        stopping: asyncio.Event,
        *,
        excluded: frozenset[str],
        new_target: bool,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._link = link
        self._call = call
        self._tally = tally
        self._stopping = stopping
        self._excluded = excluded
        self._new_target = new_target
        self._told = told
        self._own = directory.uid
        self._name = directory.path.name

    async def run(self, timeout_s: float) -> None:
        """Return when nothing remains. Raises Blocked when there was no progress for so long, or on `stopping`;
        DataDamaged, DataFormatTooNew or CommitError for what is wrong with the directory. Then all that could be
        settled with the target is."""
        directory = self._directory
        await self._call(directory.finish_merge)
        if not await self._call(lambda: _has_something(directory)):
            await self._call(lambda: directory.let_go(True))
            return
        tries, until_s = 0, time.monotonic() + timeout_s
        while True:
            before = self._tally.handed_over
            try:
                if await self._try():
                    return
                trouble = Blocked("stopped", "it was stopped before everything was handed over")
            except Blocked as error:
                trouble = error
            if self._tally.handed_over > before:
                tries, until_s = 0, time.monotonic() + timeout_s
            if self._stopping.is_set() or time.monotonic() >= until_s or trouble.kind == "refused":
                raise trouble
            log.debug("trying on", extra={"instance": self._name, "error": str(trouble)})
            await self._wait(_WAITS_S[min(tries, len(_WAITS_S) - 1)])
            tries += 1

    async def _try(self) -> bool:
        """Choose and hand over. False when it was stopped half-way. Raises Blocked."""
        found = await self._choose()
        fault_point("drain: chosen")
        self._tally.target = found.answer.instance
        try:
            return await _Session(self._directory, self._link, self._call, self._tally, found).run(
                self._stopping, self._told
            )
        except Silence as error:
            raise Blocked("target-silent", f"{found.answer.instance} does not answer: {error}") from None
        except _Refusal as refusal:
            kind = "refused" if refusal.code == Code.MALFORMED else "target-busy"
            raise Blocked(kind, str(refusal)) from None

    async def _wait(self, wait_s: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        except TimeoutError:
            return

    # -- whom to ------------------------------------------------------------------------------------------------

    async def _choose(self) -> Found:
        """The worker to go on with; the source says durably who it is. Raises Blocked."""
        directory = self._directory
        everybody = [
            found
            for found in await self._link.ask_all(Request(Verb.WHO, directory.uid, NOBODY))
            if not found.answer.code
            and found.answer.instance not in self._excluded
            and found.answer.uid not in (self._own, directory.uid)
        ]
        self._tally.answered = bool(everybody)
        chosen = await self._call(lambda: directory.chosen)
        if chosen is not None:
            for found in everybody:
                if found.answer.uid == chosen.uid:
                    return found
            await self._give_up(chosen, everybody)
        if not everybody:
            raise Blocked("no-survivor", "no surviving worker of the fleet answers")
        roomy = [found for found in everybody if found.answer.room]
        if not roomy:
            raise Blocked("target-full", "the disk of every surviving worker is full")
        best = min(roomy, key=self._preference)
        await self._call(lambda: directory.choose(Claim(best.answer.uid, best.answer.instance)))
        return best

    def _preference(self, found: Found) -> tuple[bool, int, str]:
        """One target for all directories; the first is the one with the least to do."""
        answer = found.answer
        return answer.instance != self._tally.target, answer.pending, answer.instance

    async def _give_up(self, chosen: Claim, everybody: list[Found]) -> None:
        """Find out what the chosen worker had taken, or that nobody can know. Raises Blocked."""
        directory = self._directory
        if not await self._call(lambda: directory.sent):
            log.info(
                "the chosen worker is given up: it was sent nothing", extra={"target": chosen.instance_id}
            )
            return
        marks = [found.answer.mark for found in everybody if found.answer.mark is not None]
        if marks:
            log.info("the chosen worker was taken over", extra={"target": chosen.instance_id})
            self._tally.handed_over += await self._call(lambda: directory.trim_to(max(marks)))
            return
        replaced = any(found.answer.instance == chosen.instance_id for found in everybody)
        if not everybody or not (replaced or self._new_target):
            raise Blocked(
                "target-silent" if everybody else "no-survivor",
                f"{chosen.instance_id} does not answer, and may have messages that are here still: run this "
                "again when it is back, or with --new-target if it is gone for good",
            )
        doubt = min(await self._call(directory.left), WINDOW * PAGE_RECORDS)
        self._tally.possible_duplicates += doubt
        log.warning(
            "the chosen worker is given up: what it has and did not acknowledge may be sent twice",
            extra={"target": chosen.instance_id, "replaced": replaced, "messages": doubt},
        )


class _Session:
    """A handover to a worker that was chosen, from begin to end."""

    def __init__(self, directory: Directory, link: Link, call: Call, tally: Tally, found: Found) -> None:
        self._directory = directory
        self._link = link
        self._call = call
        self._tally = tally
        self._target = found.answer
        self._skew_ns = found.skew_ns
        self._source = directory.uid
        self._token = os.urandom(8)

    async def run(self, stopping: asyncio.Event, told: Callable[[], None]) -> bool:
        """Whether nothing remains; False when `stopping`. Raises Silence (the choice stands), else as `Handover.run`."""
        if abs(self._skew_ns) > SKEW_NS:
            ahead_s = round(self._skew_ns / 1e9, 3)
            log.warning("clocks differ", extra={"target": self._target.instance, "ahead_s": ahead_s})
        luggage = await self._call(self._directory.luggage)
        mark = _mark(await self._ask(Verb.BEGIN, skew_ns=self._skew_ns, body=luggage.encode()))
        fault_point("drain: begun")
        await self._trim_to(mark)
        fault_point("drain: caught up")
        try:
            emptied = await self._pages(mark, stopping, told)
        except _Refusal as refusal:
            await self._end(False, refusal.last_mark)
            raise
        except WorkerError:  # it is damaged: what could be read is there
            await self._end(False)
            raise
        await self._end(emptied)
        return emptied

    async def _pages(self, mark: Mark, stopping: asyncio.Event, told: Callable[[], None]) -> bool:
        window: deque[tuple[Page, asyncio.Future[Answer]]] = deque()
        directory = self._directory
        room = min(PAGE_BYTES, max(self._link.max_payload - _HEAD_BYTES, _MIN_PAGE_BYTES))
        page = await self._call(lambda: directory.first_page(room))
        if page is not None:
            await self._call(directory.note_sending)
            fault_point("drain: sending noted")
        while window or (page is not None and not stopping.is_set()):
            while page is not None and len(window) < WINDOW and not stopping.is_set():
                fault_point("drain: page read")
                window.append((page, self._send(page, mark)))
                mark = page.mark
                page = await self._call(directory.next_page)
                fault_point("drain: page sent")
            sent, future = window.popleft()
            answer = _checked(await self._link.wait(self._target.instance, future))
            fault_point("drain: page acknowledged")
            await self._call(lambda sent=sent: directory.trim(sent))  # type: ignore[misc]
            fault_point("drain: page trimmed")
            self._tally.handed_over += len(sent)
            self._tally.duplicates += answer.duplicates
            told()
        return page is None

    def _send(self, page: Page, after: Mark) -> asyncio.Future[Answer]:
        records = [record for group in page.groups for record in group.records]
        body = pack_page(records, page.unpublished)
        request = self._request(Verb.PAGE, after=after, mark=page.mark, body=body)
        return self._link.ask(self._target.instance, request)

    async def _end(self, emptied: bool, last_mark: Mark | None = None) -> None:
        """Nothing that comes late is taken, and nobody has what is left here."""
        if last_mark is None:
            last_mark = _mark(await self._ask(Verb.END))
        fault_point("drain: ended")
        await self._trim_to(last_mark)
        await self._call(lambda: self._directory.let_go(emptied))
        fault_point("drain: let go")
        try:
            await self._ask(Verb.FORGET)
        except (Silence, _Refusal) as error:
            log.debug("the target keeps a mark that nobody needs", extra={"error": str(error)})
        fault_point("drain: mark forgotten")

    async def _trim_to(self, mark: Mark) -> None:
        self._tally.handed_over += await self._call(lambda: self._directory.trim_to(mark))

    async def _ask(self, verb: Verb, skew_ns: int = 0, body: bytes = b"") -> Answer:
        request = self._request(verb, skew_ns=skew_ns, body=body)
        return _checked(await self._link.answer(self._target.instance, request))

    def _request(self, verb: Verb, **said: Any) -> Request:
        name = self._directory.path.name
        return Request(verb, self._source, self._target.uid, self._token, name, **said)


def _has_something(directory: Directory) -> bool:
    luggage = directory.luggage()
    return bool(directory.left() or luggage.paused or luggage.marks)


def _checked(answer: Answer) -> Answer:
    if answer.code == Code.ANOTHER:
        raise Silence(answer.error)
    if answer.code:
        raise _Refusal(answer)
    return answer


def _mark(answer: Answer) -> Mark:
    if answer.mark is None:
        raise Silence(f"{answer.instance} gave no mark")
    return answer.mark
