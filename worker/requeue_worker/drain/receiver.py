"""The worker's side of a handover: takes pages of an orphaned directory into its own store.

    who ──▶ answer of everybody in the fleet          begin ──▶ session; luggage durable; the mark
    page ──▶ checked, written with its mark, fsynced, answered             end ──▶ session gone; the last mark

Requests of all drains come one after the other (broker), so a mark in memory is the one on disk, and once a session is
replaced or ended no page of it that comes late is written. Sessions and half-received requests are forgotten by a
restart: the source is told to begin again, and then hears the mark that is on disk.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from requeue_protocol.subjects import handover_subject, survivors_subject
from requeue_worker.counts import Counts
from requeue_worker.deadletters import DeadLetters
from requeue_worker.drain.changes import DropMark, TakeLuggage, TakePage
from requeue_worker.drain.messages import (
    NOBODY,
    Answer,
    Code,
    Luggage,
    MalformedHandover,
    Part,
    Request,
    Verb,
    unpack_page,
)
from requeue_worker.errors import CommitError, DataDamaged, DataFormatTooNew
from requeue_worker.faults import fault_point
from requeue_worker.registry import QueueRegistry
from requeue_worker.settings import Settings
from requeue_worker.storage.claims import mark_key
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.pages import START, Mark, Page, page_of
from requeue_worker.storage.rocksdb import DEAD, MESSAGES
from requeue_worker.storage.store import Store

log = logging.getLogger(__name__)

SKEW_NS = 1_000_000_000  #: clocks that differ by more are worth a warning
MAX_SESSIONS = 256
CLOSE_WAIT_S = 2.0  #: a worker that is closing waits so long for the next page of a session, to end it
MAX_HELD_BYTES = 96 << 20  #: of requests that are half received


class Refused(Exception):
    """The answer is a refusal."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class _Session:
    """A source that hands over now."""

    token: bytes
    instance: str
    mark: Mark
    heard_s: float = field(default_factory=time.monotonic)
    messages: int = 0
    duplicates: int = 0


class Receiver:
    """Takes over what drains hand to this worker."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        committer: Committer,
        registry: QueueRegistry,
        dead_letters: DeadLetters,
        counts: Counts,
        clock: Callable[[], int],
        has_room: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._store = store
        self._committer = committer
        self._registry = registry
        self._dead_letters = dead_letters
        self._counts = counts
        self._clock = clock
        self._has_room = has_room
        self._sessions: dict[bytes, _Session] = {}
        #: requests of which parts are missing: source to session and what is there
        self._halves: dict[bytes, tuple[bytes, list[bytes]]] = {}
        self._closing = False
        self._one = asyncio.Lock()

    @property
    def endpoints(self) -> dict[str, Callable[[bytes], Awaitable[bytes | None]]]:
        """Subject to handler."""
        fleet = self._settings.fleet
        return {
            survivors_subject(fleet): self._who,
            handover_subject(fleet, self._settings.instance_id): self._take,
        }

    async def stop(self) -> None:
        """Take no more; returns when the page under way is durable, and the drains that hand over now have been told."""
        self._closing = True
        until_s = time.monotonic() + CLOSE_WAIT_S
        while self._active() and time.monotonic() < until_s:  # noqa: ASYNC110 - it ends by time, too
            await asyncio.sleep(CLOSE_WAIT_S / 50)
        async with self._one:
            self._sessions.clear()
            self._counts.handovers_open = 0

    def _active(self) -> bool:
        """Whether a source may be about to send; one that was silent for a while was killed."""
        now_s = time.monotonic()
        return any(now_s - session.heard_s < CLOSE_WAIT_S for session in self._sessions.values())

    # -- requests --------------------------------------------------------------------------------------------

    async def _who(self, payload: bytes) -> bytes | None:
        """Anybody out there? One that is closing keeps silent."""
        if self._closing:
            return None
        try:
            part = Part.parse(payload)
        except MalformedHandover as error:
            return self._answer(code=Code.MALFORMED, error=str(error)).encode()
        pending = sum(queue.pending for queue in self._registry)
        return self._answer(
            mark=await self._mark(part.source), pending=pending, room=self._has_room()
        ).encode()

    async def _take(self, payload: bytes) -> bytes:
        async with self._one:
            try:
                answer = await self._handle(Part.parse(payload))
            except Refused as refusal:
                answer = self._answer(code=refusal.code, error=str(refusal))
            except (MalformedHandover, DataDamaged, DataFormatTooNew) as error:
                answer = self._answer(code=Code.MALFORMED, error=str(error))
            except CommitError as error:
                answer = self._answer(code=Code.FAILED, error=str(error))
            return answer.encode()

    async def _handle(self, part: Part) -> Answer:
        if part.target != self._store.uid:
            raise Refused(Code.ANOTHER, "this worker has another directory than the one that was chosen")
        if part.source in (NOBODY, self._store.uid):
            raise Refused(Code.MALFORMED, "a directory can't be handed over to itself")
        whole = self._joined(part)
        if whole is None:
            return self._answer(more=True)
        request = Request.read(part, whole)
        handle = {
            Verb.BEGIN: self._begin,
            Verb.PAGE: self._page,
            Verb.END: self._end,
            Verb.FORGET: self._forget,
        }.get(request.verb)
        if handle is None:
            raise Refused(Code.MALFORMED, f"{request.verb} is not asked here")
        return await handle(request)

    def _joined(self, part: Part) -> bytes | None:
        """The whole request, None while parts of it are missing."""
        if part.parts == 1:
            return part.piece
        token, pieces = self._halves.pop(part.source, (part.session, []))
        if token != part.session or part.number == 0:
            pieces = []
        if part.number != len(pieces) or len(self._halves) >= MAX_SESSIONS:
            raise Refused(Code.BEGIN_AGAIN, "a part is missing")
        held = sum(len(piece) for _, others in self._halves.values() for piece in others)
        if held + sum(map(len, pieces)) + len(part.piece) > MAX_HELD_BYTES:
            raise Refused(Code.CLOSING, "too much is half received at a time")
        pieces.append(part.piece)
        if part.number + 1 == part.parts:
            return b"".join(pieces)
        self._halves[part.source] = (part.session, pieces)
        return None

    # -- verbs -----------------------------------------------------------------------------------------------

    def _open(self, source: bytes, token: bytes, instance: str, mark: Mark) -> _Session:
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = self._sessions[source] = _Session(token, instance, mark)
        self._counts.handovers_open = len(self._sessions)
        return session

    async def _begin(self, request: Request) -> Answer:
        if self._closing:
            raise Refused(Code.CLOSING, "the worker is shutting down")
        if request.instance == self._settings.instance_id:
            raise Refused(Code.MALFORMED, "a directory can't be handed over to its own instance")
        luggage = Luggage.parse(request.body)
        found = {uid: await self._mark(uid) for uid in luggage.marks}
        marks = {uid: max(mark, found[uid] or START) for uid, mark in luggage.marks.items()}
        mark = await self._mark(request.source) or START
        self._sessions.pop(request.source, None)
        await self._committer.commit(TakeLuggage(request.source, mark, luggage.paused, marks, self._registry))
        self._open(request.source, request.session, request.instance, mark)
        known = {"source": request.instance, "resumed": mark != START}
        log.info("a handover begins", extra=known)
        if abs(request.skew_ns) > SKEW_NS:
            skew_s = request.skew_ns / 1e9
            log.warning(
                "clocks differ: what is handed over is due by this one",
                extra={"source": request.instance, "ahead_s": round(skew_s, 3)},
            )
        return self._answer(mark=mark)

    async def _page(self, request: Request) -> Answer:
        session = self._sessions.get(request.source)
        if session is None or session.token != request.session:
            raise Refused(Code.BEGIN_AGAIN, "there is no such session")
        if self._closing:  # nothing can be added to this mark any more
            return await self._end(request, Code.CLOSING, "the worker is shutting down")
        session.heard_s = time.monotonic()
        fault_point("handover: page received")
        records, unpublished = unpack_page(request.body)
        if not records or records[-1][0] != request.mark.key:
            raise MalformedHandover("a page that does not end at its mark")
        if request.mark <= session.mark:
            self._counts.handover_duplicates += len(records)
            return self._answer(mark=session.mark, duplicates=len(records))
        if request.after != session.mark:
            raise Refused(Code.BEGIN_AGAIN, "a page is missing in between")
        if not self._has_room():
            raise Refused(Code.DISK_FULL, "the disk is full")
        page, duplicates = await self._new(request.mark.phase, records, unpublished)
        await self._committer.commit(
            TakePage(request.source, request.mark, page, self._registry, self._dead_letters)
        )
        session.mark = request.mark
        session.messages += len(page)
        session.duplicates += duplicates
        self._count(page, duplicates)
        return self._answer(mark=session.mark, duplicates=duplicates)

    async def _new(
        self, phase: int, records: list[tuple[bytes, bytes]], unpublished: list[bytes]
    ) -> tuple[Page, int]:
        """The page without what is here already, as it may be after a target had to be given up; how many those were."""
        if phase not in (1, 2):
            raise MalformedHandover(f"a page of phase {phase}")
        here = await self._store.present(MESSAGES if phase == 1 else DEAD, [key for key, _ in records])
        if here:
            records = [record for record in records if record[0] not in here]
        page = page_of(phase, records, sys.maxsize, sys.maxsize)
        keys = {key for key, _ in records}
        page.unpublished = [key for key in unpublished if key in keys]
        return page, len(here)

    async def _end(self, request: Request, code: int = 0, error: str = "") -> Answer:
        """Answered while closing too: it lets the source go."""
        session = self._sessions.pop(request.source, None)
        self._counts.handovers_open = len(self._sessions)
        if session is not None:
            told = {"messages": session.messages, "duplicates": session.duplicates}
            log.info("a handover has ended", extra={"source": session.instance, **told})
        return self._answer(mark=await self._mark(request.source) or START, code=code, error=error)

    async def _forget(self, request: Request) -> Answer:
        self._sessions.pop(request.source, None)
        self._counts.handovers_open = len(self._sessions)
        if await self._mark(request.source) is not None:
            await self._committer.commit(DropMark(request.source))
        return self._answer()

    # -- small things ----------------------------------------------------------------------------------------

    def _count(self, page: Page, duplicates: int) -> None:
        self._counts.handover_batches += 1
        self._counts.handover_duplicates += duplicates
        if page.phase == 1:
            self._counts.handover_messages += len(page)
        else:
            self._counts.handover_dead_letters += len(page)

    async def _mark(self, source: bytes) -> Mark | None:
        found = await self._store.marks(mark_key(source), 1)
        return Mark.decode(found[0][1]) if found else None

    def _answer(
        self,
        *,
        mark: Mark | None = None,
        pending: int = 0,
        room: bool = True,
        duplicates: int = 0,
        more: bool = False,
        code: int = 0,
        error: str = "",
    ) -> Answer:
        me = (self._settings.instance_id, self._store.uid, self._clock())
        return Answer(*me, mark, pending, room, duplicates, more, code, error)
