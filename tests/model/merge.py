"""Model of the reaper's merge: an orphan, two workers that may both reap it or each other, its owner coming back.

Directory 0 is the orphan; 1 and 2 belong to workers that run. A record is a page, its number is its key. Anybody may be
killed between any two steps, and the power may fail: then what was trimmed without an fsync is there again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tests.model.explorer import Model, Step

Uid = tuple[int, int]  #: of a directory: whose it is, and which life of it


class Swap(StrEnum):
    """Orderings swapped on purpose."""

    NONE = "as it is"
    TRIM_BEFORE_COMMIT = "the source loses a page before it is durable here"
    MARK_AFTER_PAGE = "the mark is written after the page, in a batch of its own"
    MARK_BEFORE_PAGE = "the mark is written before the page, in a batch of its own"
    NO_CLAIM = "the source does not say who merges it"
    NO_LOCK = "the source is not locked"
    UNLOCK_BEFORE_MOVE = "the lock goes before the directory has moved aside"
    UID_KEPT = "an owner takes its directory back under the same uid"
    TAKEN_OVER_UNTRIMMED = "whoever comes next does not trim up to the mark"
    MARKS_LEFT_BEHIND = "the marks of a directory are not merged with it"
    FORGET_BEFORE_MOVE = "the mark goes before the directory has moved aside"
    MOVE_BEFORE_LAST_PAGE = "the directory moves aside while its last page is not durable here"


@dataclass(frozen=True)
class Size:
    """How much happens at most."""

    records: int = 2
    kills: int = 2
    powers: int = 0
    returns: int = 1  #: owners that come back to find their directory gone


class Directory(NamedTuple):
    """On disk. `synced`: records that a power failure may bring back."""

    life: int = 0
    exists: bool = True
    records: frozenset[int] = frozenset()
    synced: frozenset[int] = frozenset()
    claim: Uid | None = None
    marks: frozenset[tuple[Uid, int]] = frozenset()


class Worker(NamedTuple):
    """A process, the owner of the directory of its number. `stage` of the merge of `source`; '' when there is none."""

    stage: str = ""
    source: int = -1
    page: int = 0


class Shared(NamedTuple):
    """A shared data directory."""

    dirs: tuple[Directory, ...]
    workers: tuple[Worker | None, ...]
    asides: frozenset[Uid] = frozenset()
    born: frozenset[int] = frozenset()
    touched: bool = False
    kills: int = 0
    powers: int = 0
    returns: int = 0


class MergeModel(Model[Shared]):
    """Three directories. `swap` plants a bug."""

    def __init__(self, size: Size, swap: Swap = Swap.NONE) -> None:
        self.size = size
        self.swap = swap
        self.invariants: Mapping[str, Callable[[Shared], bool]] = {
            "nothing is lost": self.nothing_is_lost,
            "nothing is in two live places": self.one_live_place,
            "a directory in use is never touched": lambda at: not at.touched,
        }
        self._stages = {
            "locked": self._open,
            "claimed": self._claimed,
            "reading": self._reading,
            "adopted": self._durable,
            "trimmed": self._trimmed,
            "late": self._late,
            "unlocked": self._unlocked,
            "unmarked": self._unmarked,
            "moved": self._moved,
        }

    def nothing_is_lost(self, at: Shared) -> bool:
        """Every record is in some directory that can be opened under its name."""
        return at.born <= frozenset().union(*(each.records for each in at.dirs if each.exists))

    def one_live_place(self, at: Shared) -> bool:
        """Directories that nobody claims have no record in common: whoever opens one may send all of it."""
        live = [each.records for each in at.dirs if each.exists and each.claim is None]
        return len(frozenset().union(*live)) == sum(map(len, live))

    def is_end(self, at: Shared) -> bool:
        """Each record is with a worker that runs, nothing is half merged and nothing is left over."""
        if at.asides or any(worker is not None and worker.stage for worker in at.workers):
            return False
        pairs = zip(at.dirs, at.workers, strict=True)
        return all(worker is not None or not each.exists for each, worker in pairs)

    def initial(self) -> Shared:
        """An orphan with records, and two workers."""
        records, size = frozenset(range(1, self.size.records + 1)), self.size
        orphan = Directory(records=records, synced=records)
        return Shared(
            (orphan, Directory(), Directory()), (None, Worker(), Worker()), born=records,
            kills=size.kills, powers=size.powers, returns=size.returns,
        )  # fmt: skip

    def steps(self, at: Shared) -> Iterator[Step[Shared]]:
        """Everything that can happen next."""
        for number, worker in enumerate(at.workers):
            if worker is None:
                yield from self.start(at, number)
                continue
            if not worker.stage:
                yield from self.lock(at, number)
                yield from self.sweep(at, number)
                yield from self.take_in(at, number)
            else:
                yield from self.merge(at, number, worker)
            if at.kills:
                killed = self._work(at._replace(kills=at.kills - 1), number, None)
                yield Step(f"kill {number}", killed, own=False)
        if at.powers:
            dirs = tuple(each._replace(records=each.synced) for each in at.dirs)
            state = at._replace(dirs=dirs, workers=(None, None, None), powers=at.powers - 1)
            yield Step("power", state, own=False)

    # -- owners ------------------------------------------------------------------------------------------------

    def _locked(self, at: Shared, number: int) -> bool:
        if at.workers[number] is not None:
            return True
        if self.swap is Swap.NO_LOCK:
            return False
        holders = [worker for worker in at.workers if worker is not None and worker.source == number]
        return any(worker.stage not in ("moved", "unlocked") for worker in holders)

    def start(self, at: Shared, number: int) -> Iterator[Step[Shared]]:
        """`Store.open`: waits for the lock, makes what is gone, takes back what was claimed."""
        each = at.dirs[number]
        if self._locked(at, number):
            return
        if not each.exists:
            if at.returns:
                state = self._put(at._replace(returns=at.returns - 1), number, Directory(each.life + 1))
                yield Step(f"start {number} anew", self._work(state, number, Worker()), own=False)
            return
        if each.claim is not None:
            each = self._taken_over(at, number)
            life = each.life + (self.swap is not Swap.UID_KEPT)
            each = each._replace(life=life, claim=None)
        yield Step(f"start {number}", self._work(self._put(at, number, each), number, Worker()))

    def _taken_over(self, at: Shared, number: int) -> Directory:
        """`claims.take_over`: trimmed up to the furthest mark, where the claimant is or where that was merged to."""
        each = at.dirs[number]
        uid = (number, each.life)
        if each.claim is None or self.swap is Swap.TAKEN_OVER_UNTRIMMED:
            return each
        claimant = at.dirs[each.claim[0]]
        asked = list(at.dirs)
        if claimant.exists and claimant.life == each.claim[1]:
            asked = [claimant]
        marks = [mark for other in asked if other.exists for whose, mark in other.marks if whose == uid]
        records = frozenset(record for record in each.records if record > max(marks, default=-1))
        return each._replace(records=records, synced=records)

    def take_in(self, at: Shared, number: int) -> Iterator[Step[Shared]]:
        """The owner of the orphan is back and takes in one message more, due before all others."""
        if number == 0 and 0 not in at.born:
            each = at.dirs[0]
            records = each.records | {0}
            state = self._put(at, 0, each._replace(records=records, synced=records))
            yield Step("take in", state._replace(born=at.born | {0}), own=False)

    # -- reapers -----------------------------------------------------------------------------------------------

    def lock(self, at: Shared, number: int) -> Iterator[Step[Shared]]:
        """`Source.open`."""
        for source, each in enumerate(at.dirs):
            if source != number and each.exists and not self._locked(at, source):
                yield Step(f"lock {number} {source}", self._work(at, number, Worker("locked", source)))

    def merge(self, at: Shared, number: int, worker: Worker) -> Iterator[Step[Shared]]:
        """`Reaper._merge`, one step after the other."""
        source = at.dirs[worker.source]
        if not source.exists and worker.stage not in ("moved", "forgotten", "late"):
            yield Step(f"gone {number}", self._work(at, number, Worker()))  # with NO_LOCK alone
            return
        name, state = self._stages[worker.stage](at, number, worker, source)
        if worker.stage not in ("moved", "late") and at.workers[worker.source] is not None:
            state = state._replace(touched=True)
        yield Step(f"{name} {number} {worker.source} {worker.page or ''}".strip(), state)

    def _open(self, at: Shared, number: int, worker: Worker, source: Directory) -> tuple[str, Shared]:
        """`claims.take_over`: the claim, synced with all trims before it."""
        source = self._taken_over(at, worker.source)
        claim = source.claim if self.swap is Swap.NO_CLAIM else (number, at.dirs[number].life)
        state = self._put(at, worker.source, source._replace(claim=claim, synced=source.records))
        return "claim", self._work(state, number, worker._replace(stage="claimed"))

    def _claimed(self, at: Shared, number: int, worker: Worker, source: Directory) -> tuple[str, Shared]:
        """`merge.Begin`: the source's own marks, and a mark that it was begun."""
        marks = dict(at.dirs[number].marks)
        if self.swap is not Swap.MARKS_LEFT_BEHIND:
            for uid, mark in source.marks:
                marks[uid] = max(mark, marks.get(uid, -1))
        marks.setdefault((worker.source, source.life), -1)
        state = self._put(at, number, at.dirs[number]._replace(marks=frozenset(marks.items())))
        return "begin", self._work(state, number, worker._replace(stage="reading"))

    def _reading(self, at: Shared, number: int, worker: Worker, source: Directory) -> tuple[str, Shared]:
        """`Source.next_page`, or `Source.finish` after the last."""
        last = self.swap is Swap.MOVE_BEFORE_LAST_PAGE and len(source.records) == 1
        if not source.records or last:
            page = min(source.records, default=0)
            if self.swap is Swap.UNLOCK_BEFORE_MOVE:
                return "unlock", self._work(at, number, worker._replace(stage="unlocked"))
            if self.swap is Swap.FORGET_BEFORE_MOVE:
                state = self._forgotten(at, number, (worker.source, source.life))
                return "forget", self._work(state, number, worker._replace(stage="unmarked"))
            return self._move(at, number, worker._replace(page=page), "late" if last else "moved")
        page = min(source.records)
        if self.swap is Swap.TRIM_BEFORE_COMMIT:
            left = source._replace(records=source.records - {page})
            return "trim", self._work(
                self._put(at, worker.source, left), number, Worker("trimmed", worker.source, page)
            )
        own, uid = at.dirs[number], (worker.source, source.life)
        if self.swap is Swap.MARK_BEFORE_PAGE:
            marked = self._put(at, number, self._marked(own, uid, page))
            return "mark", self._work(marked, number, Worker("trimmed", worker.source, page))
        own = self._adopted(own, page)
        if self.swap is not Swap.MARK_AFTER_PAGE:
            own = self._marked(own, uid, page)
        return "adopt", self._work(self._put(at, number, own), number, Worker("adopted", worker.source, page))

    def _durable(self, at: Shared, number: int, worker: Worker, source: Directory) -> tuple[str, Shared]:
        """`pages.trim`, not synced; with MARK_AFTER_PAGE the mark comes first."""
        left = source._replace(records=source.records - {worker.page})
        state = self._put(at, worker.source, left)
        if self.swap is Swap.MARK_AFTER_PAGE:
            marked = self._marked(at.dirs[number], (worker.source, source.life), worker.page)
            state = self._put(state, number, marked)
        return "trim", self._work(state, number, worker._replace(stage="reading", page=0))

    def _trimmed(self, at: Shared, number: int, worker: Worker, source: Directory) -> tuple[str, Shared]:
        """With a swap alone: the page comes after what should have come after it."""
        own = self._marked(
            self._adopted(at.dirs[number], worker.page), (worker.source, source.life), worker.page
        )
        state = self._put(at, number, own)
        return "adopt", self._work(state, number, worker._replace(stage="adopted"))

    def _late(self, at: Shared, number: int, worker: Worker, _: Directory) -> tuple[str, Shared]:
        """With MOVE_BEFORE_LAST_PAGE alone."""
        state = self._put(at, number, self._adopted(at.dirs[number], worker.page))
        return "adopt", self._work(state, number, worker._replace(stage="moved", page=0))

    def _unlocked(self, at: Shared, number: int, worker: Worker, _: Directory) -> tuple[str, Shared]:
        """With UNLOCK_BEFORE_MOVE alone."""
        return self._move(at, number, worker, "moved")

    def _unmarked(self, at: Shared, number: int, worker: Worker, _: Directory) -> tuple[str, Shared]:
        """With FORGET_BEFORE_MOVE alone."""
        return self._move(at, number, worker, "moved")

    def _move(self, at: Shared, number: int, worker: Worker, stage: str) -> tuple[str, Shared]:
        """`Source.finish`: the rename, durable; the lock goes after it."""
        source = at.dirs[worker.source]
        state = self._put(at, worker.source, Directory(source.life, exists=False))
        state = state._replace(asides=at.asides | {(worker.source, source.life)})
        return "move", self._work(state, number, worker._replace(stage=stage))

    def _moved(self, at: Shared, number: int, _: Worker, __: Directory) -> tuple[str, Shared]:
        """The lock is free; what is left is `sweep`."""
        return "release", self._work(at, number, Worker())

    def sweep(self, at: Shared, number: int) -> Iterator[Step[Shared]]:
        """`Reaper._remove`: the mark is forgotten, then the files go; anybody may do it."""
        for uid in at.asides:
            state = self._forgotten(at, number, uid)
            yield Step(f"remove {number} {uid}", state._replace(asides=at.asides - {uid}))

    # -- small things ------------------------------------------------------------------------------------------

    def _adopted(self, own: Directory, page: int) -> Directory:
        records = own.records | {page}
        return own._replace(records=records, synced=records)

    def _marked(self, own: Directory, uid: Uid, page: int) -> Directory:
        return own._replace(marks=frozenset({**dict(own.marks), uid: page}.items()))

    def _forgotten(self, at: Shared, number: int, uid: Uid) -> Shared:
        own = at.dirs[number]
        return self._put(
            at, number, own._replace(marks=frozenset(mark for mark in own.marks if mark[0] != uid))
        )

    def _put(self, at: Shared, number: int, each: Directory) -> Shared:
        return at._replace(dirs=(*at.dirs[:number], each, *at.dirs[number + 1 :]))

    def _work(self, at: Shared, number: int, worker: Worker | None) -> Shared:
        return at._replace(workers=(*at.workers[:number], worker, *at.workers[number + 1 :]))
