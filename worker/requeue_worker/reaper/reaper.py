"""The reaper: looks for orphans beside the worker's own directory, and merges one after the other while it runs.

    look ──orphan──▶ lock, check, claim ──▶ begin ──▶ page, page, ... ──▶ close, move aside ──▶ remove ──▶ hooks.reaped
      ▲               │ in use: next time                │
      └── interval ───┴─ bad: set aside, the others go on ┘   (a page: read ─▶ commit here with the mark ─▶ trim there)

Reading and trimming happen on a thread of the reaper's own; records reach our store through the committer like
everything else, one page in a commit, so that intake and replay go on in between. A look costs a directory listing and
a stat for each neighbour. Nothing tells that a lock became free or that a file was not touched, so it looks at an
interval, and once more at the very moment when a heartbeat will have been still for long enough.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from requeue_worker.counts import Counts
from requeue_worker.deadletters import DeadLetters
from requeue_worker.errors import CommitError, DataDirLocked
from requeue_worker.faults import fault_point
from requeue_worker.reaper.liveness import Found, Liveness
from requeue_worker.reaper.merge import Adopt, Begin, Forget
from requeue_worker.reaper.prepare import SetAside, set_aside
from requeue_worker.reaper.source import ASIDE, Source, remove
from requeue_worker.registry import QueueRegistry
from requeue_worker.settings import Settings
from requeue_worker.storage.claims import Claim, mark_key
from requeue_worker.storage.committer import Change, Committer
from requeue_worker.storage.pages import Mark
from requeue_worker.storage.store import Store

log = logging.getLogger(__name__)

ABANDONED_S = 5.0  #: a directory that was moved aside and is still there after so long lost who merged it
LOOK_AGAIN_S = 300.0  #: a directory that was set aside is tried again after so long, or when it has changed

T = TypeVar("T")


@dataclass(frozen=True)
class ReaperStatus:
    """What the reaper is at. `set_aside`: instance id to what is wrong with its directory."""

    merging: str | None
    set_aside: dict[str, str]


@dataclass(slots=True)
class _Aside:
    signature: tuple[int, int, int]
    until_s: float
    error: SetAside


@dataclass(slots=True)
class _Tally:
    messages: int = 0
    dead_letters: int = 0
    started_s: float = field(default_factory=time.monotonic)


class Reaper:
    """Merges orphans into this worker's store."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        committer: Committer,
        registry: QueueRegistry,
        dead_letters: DeadLetters,
        counts: Counts,
        reaped: Callable[[Path, str], None],
    ) -> None:
        self._store = store
        self._committer = committer
        self._registry = registry
        self._dead_letters = dead_letters
        self._counts = counts
        self._reaped = reaped
        self._interval_s = settings.reaper.interval_ns / 1e9
        self._claim = Claim(store.uid, settings.instance_id)
        self._liveness = Liveness(store.path, settings.reaper.live, settings.reaper.reap_after_ns)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="requeue-reaper")
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._aside: dict[str, _Aside] = {}
        #: moved aside, and since when we see that (monotonic s)
        self._moved: dict[Path, float] = {}
        self._merging: str | None = None

    @property
    def status(self) -> ReaperStatus:
        """What it is at."""
        return ReaperStatus(self._merging, {name: str(aside.error) for name, aside in self._aside.items()})

    async def reap_forever(self) -> None:
        """Look, merge, wait, until `stop`."""
        while not self._stopping.is_set():
            self._idle.clear()
            try:
                wait_s = await self.reap()
            finally:
                self._idle.set()
            try:
                await asyncio.wait_for(self._stopping.wait(), wait_s)
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Return when the page under way is durable and trimmed, and its source is unlocked."""
        self._stopping.set()
        await self._idle.wait()
        await asyncio.to_thread(self._thread.shutdown)

    async def reap(self) -> float:
        """Look once and merge what is an orphan. Returns after how many seconds to look again."""
        try:
            found, moved = await self._call(self._look)
        except OSError as error:
            log.warning("the data directory can't be looked into", extra={"error": str(error)})
            return self._interval_s
        for name in self._aside.keys() - {each.path.name for each in found}:
            self._readmit(name)
        now_s = time.monotonic()
        self._moved = {aside: self._moved.get(aside, now_s) for aside in moved}
        for aside, since_s in self._moved.items():
            try:
                await self._finish(aside, now_s - since_s >= ABANDONED_S)
            except Exception as error:
                if self._committer.failed is not None:
                    return self._interval_s
                log.warning(
                    "merged, and not removed yet", extra={"directory": str(aside), "error": repr(error)}
                )
        wait_s = self._interval_s
        for each in found:
            if each.orphan_in_s > 0:
                wait_s = min(wait_s, each.orphan_in_s + 0.01)
            elif self._may_go_on() and self._committer.failed is None and self._may_try(each):
                await self._try(each)
        return wait_s

    def _may_go_on(self) -> bool:
        """On a full disk nothing is merged: that takes room here before it gives room there."""
        return not self._stopping.is_set() and not self._counts.disk_full

    def _look(self) -> tuple[list[Found], list[Path]]:
        moved = [path for path in self._store.path.parent.iterdir() if path.name.startswith(ASIDE)]
        return self._liveness.look(), moved

    def _may_try(self, found: Found) -> bool:
        aside = self._aside.get(found.path.name)
        return aside is None or aside.signature != found.signature or time.monotonic() >= aside.until_s

    async def _try(self, found: Found) -> None:
        """Merge it. What is wrong with one directory is no reason to stop."""
        name = found.path.name
        try:
            done = await self._merge(found.path)
        except (DataDirLocked, FileNotFoundError):
            self._readmit(name)  # in use, or merged by another reaper
        except CommitError:
            if self._committer.failed is not None:
                return  # the worker ends
            log.warning(
                "another process took over a directory in the middle of its merge", extra={"instance": name}
            )
        except Exception as error:
            self._set_aside(found, set_aside(error))
        else:
            self._readmit(name)
            if done:
                self._tell(name)

    async def _merge(self, path: Path) -> bool:
        """Whether the directory is merged and gone; False when it was left half-way because the worker stops."""
        source = await self._call(lambda: Source.open(path, self._claim.instance_id))
        self._merging, tally = path.name, _Tally()
        try:
            fault_point("merge: locked")
            mark = await self._own_mark(source.uid)
            begun = await self._call(lambda: source.claim(self._claim, self._own_mark_now))
            fault_point("merge: claimed")
            log.info("merging a directory", extra={"instance": path.name, "resumed": begun})
            if mark is None:
                await self._begin(source)
            self._counts.reaper_remaining = await self._call(source.remaining)
            if not await self._move(source, tally):
                return False
            aside = await self._call(source.finish)
        finally:
            self._merging, self._counts.reaper_remaining = None, 0
            await asyncio.shield(self._call(source.close))
        await self._remove(aside)
        took_s = round(time.monotonic() - tally.started_s, 3)
        moved = {"messages": tally.messages, "dead_letters": tally.dead_letters, "seconds": took_s}
        log.info("merged a directory", extra={"instance": path.name, **moved})
        return True

    async def _begin(self, source: Source) -> None:
        paused = await self._call(source.paused)
        marks = await self._call(source.marks)
        own = {uid: mark for uid in marks if (mark := await self._own_mark(uid)) is not None}
        await self._commit(Begin(source.uid, self._registry, paused, marks, own))

    async def _move(self, source: Source, tally: _Tally) -> bool:
        """All pages, one read ahead of the one that is committed. False when the worker stops first."""
        page = await self._call(source.next_page)
        while page is not None:
            if not self._may_go_on():
                return False
            fault_point("merge: page read")
            ahead = asyncio.ensure_future(self._call(source.next_page))
            try:
                await self._commit(Adopt(source.uid, page, self._registry, self._dead_letters))
            finally:
                await asyncio.wait([ahead])
            await self._call(lambda page=page: source.trim(page))  # type: ignore[misc]
            fault_point("merge: page trimmed")
            self._counts.reaper_remaining -= len(page)
            if page.phase == 1:
                tally.messages += len(page)
                self._counts.reaped_messages += len(page)
            else:
                tally.dead_letters += len(page)
                self._counts.reaped_dead_letters += len(page)
            page = ahead.result()
        return True

    async def _finish(self, aside: Path, abandoned: bool) -> None:
        """Remove what a crash left behind, and tell: what we have a mark of, and what nobody removed for a while.

        Without a mark here a neighbour may have merged it, who removes it in a moment and tells that himself.
        """
        name, _, uid = aside.name.removeprefix(ASIDE).rpartition("-")
        ours = await self._own_mark(bytes.fromhex(uid)) is not None
        if ours or abandoned:
            await self._remove(aside)
            self._tell(name)

    def _tell(self, name: str) -> None:
        self._counts.reaped_directories += 1
        self._reaped(self._store.path.with_name(name), name)

    async def _remove(self, aside: Path) -> None:
        """The mark first: the directory that it belongs to can be opened by nobody any more."""
        uid = bytes.fromhex(aside.name.rpartition("-")[2])
        if await self._own_mark(uid) is not None:
            await self._commit(Forget(uid))
        await self._call(lambda: remove(aside))
        fault_point("merge: removed")

    async def _commit(self, change: Change) -> None:
        await self._committer.commit(change)

    async def _own_mark(self, uid: bytes) -> Mark | None:
        found = await self._store.marks(mark_key(uid), 1)
        return Mark.decode(found[0][1]) if found else None

    def _own_mark_now(self, uid: bytes) -> Mark | None:
        raw = self._store.meta(mark_key(uid))
        return None if raw is None else Mark.decode(raw)

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _set_aside(self, found: Found, error: SetAside) -> None:
        name, before = found.path.name, self._aside.get(found.path.name)
        self._aside[name] = _Aside(_signature(found), time.monotonic() + LOOK_AGAIN_S, error)
        self._counts.reaper_set_aside[name] = error.kind
        if before is None or str(before.error) != str(error):
            extra = {
                "instance": name,
                "directory": str(found.path),
                "reason": error.kind,
                "error": str(error),
            }
            log.error("a directory is set aside: it can't be merged", extra=extra)

    def _readmit(self, name: str) -> None:
        self._aside.pop(name, None)
        self._counts.reaper_set_aside.pop(name, None)


def _signature(found: Found) -> tuple[int, int, int]:
    """As it is now: our own look may have touched it."""
    try:
        stat = found.path.lstat()
    except OSError:
        return found.signature
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
