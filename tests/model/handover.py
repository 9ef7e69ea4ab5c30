"""Model of a drain's handover: one source, two targets, messages and answers that get lost, both sides killed.

The source says on its disk whom it has chosen before that one hears of it; pages go in order, some at a time; the
target writes a page and its mark in one batch; the source trims what the mark covers. A page is one record here. Requests
to a target come in the order in which they were sent (one connection at a time), or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tests.model.explorer import Model, Step

NOBODY = -1


class Swap(StrEnum):
    """Orderings swapped on purpose."""

    NONE = "as it is"
    TRIM_BEFORE_ACK = "the source removes a page when it is sent"
    ACK_BEFORE_FSYNC = "the target answers before its batch is durable"
    MARK_AFTER_RECORDS = "the mark is written after the records, in a batch of its own"
    MARK_BEFORE_RECORDS = "the mark is written before the records, in a batch of its own"
    TARGET_NOT_WRITTEN = "the target is chosen, and not written down first"
    GAP_ACCEPTED = "a page is taken although one before it is missing"
    MARK_IGNORED = "the source begins at its own first page, and the target writes again what it has"
    GIVE_UP_ON_SILENCE = "a target that keeps silent is given up, and another one is chosen"
    LET_GO_WITHOUT_END = "a stop lets go of the target while pages are under way"
    LET_GO_WITHOUT_TRIM = "a stop lets go of the target without trimming up to its last mark"
    SENT_BEFORE_NOTED = "the first page is sent before the source says on its disk that one may have been"
    PROOF_WHEN_SENT = "the proof is given when the last page is sent"


@dataclass(frozen=True)
class Size:
    """How much happens at most."""

    pages: int = 2
    window: int = 2
    losses: int = 1  #: requests or answers that get lost
    kills: int = 1  #: of the drain, or of a target
    stops: int = 1  #: SIGTERM
    disks: int = 0  #: targets whose disk is lost


class Request(NamedTuple):
    """`messages.Request`: begin, page or end. `number`: of the page; `after`: the mark that it begins at."""

    verb: str
    session: int
    number: int = 0
    after: int = 0


class Answer(NamedTuple):
    """`messages.Answer`. `mark` None: refused, begin again."""

    verb: str
    session: int
    mark: int | None


class Target(NamedTuple):
    """A worker. Its session is memory, the rest disk; `life` is its directory's uid."""

    records: frozenset[int] = frozenset()
    mark: int = 0
    session: int = 0
    session_mark: int = 0
    life: int = 0
    unsynced: tuple[str, int] | None = None  #: with a swap alone: what is still to be written
    requests: tuple[Request, ...] = ()


class Drain(NamedTuple):
    """The process. `stage`: choose, begin, pages, end."""

    stage: str
    session: int = 0
    target: int = NOBODY
    sent: int = 0
    mark: int = 0  #: where the target stands once it has what was sent


class Volume(NamedTuple):
    """Everything."""

    gone: int = 0  #: pages trimmed from the source
    synced: int = 0  #: of these so many by a batch that was synced
    chosen: tuple[int, int] | None = None  #: target and its life, on the source's disk
    noted: bool = False  #: there too: a page may have been sent to it
    drain: Drain | None = None
    targets: tuple[Target, Target] = (Target(), Target())
    answers: tuple[Answer, ...] = ()
    sessions: int = 0
    twice: bool = False
    excused: frozenset[int] = frozenset()  #: was on a disk that is lost for good
    proof: bool = False
    losses: int = 0
    kills: int = 0
    stops: int = 0
    disks: int = 0


class HandoverModel(Model[Volume]):
    """One directory. `swap` plants a bug."""

    def __init__(self, size: Size, swap: Swap = Swap.NONE) -> None:
        self.size = size
        self.swap = swap
        self.all = frozenset(range(1, size.pages + 1))
        self.invariants: Mapping[str, Callable[[Volume], bool]] = {
            "nothing is lost": self.nothing_is_lost,
            "nothing comes twice": self.nothing_twice,
            "let go of a target means that nothing is in both": self.free_is_clean,
            "remaining 0 means all is durable elsewhere": self.proof_is_true,
        }

    def nothing_is_lost(self, at: Volume) -> bool:
        """Trimmed: it is on a target's disk, or was on one that is lost."""
        return self._trimmed(at) <= self._elsewhere(at)

    def nothing_twice(self, at: Volume) -> bool:
        """No target takes a record twice, no two have the same."""
        first, second = at.targets
        return not at.twice and first.records.isdisjoint(second.records)

    def free_is_clean(self, at: Volume) -> bool:
        """Who is chosen next may get all that is left."""
        return at.chosen is not None or self._elsewhere(at) - at.excused <= self._trimmed(at)

    def proof_is_true(self, at: Volume) -> bool:
        """`proof.py`: the volume may be deleted."""
        return not at.proof or self.all <= self._elsewhere(at)

    def _trimmed(self, at: Volume) -> frozenset[int]:
        return frozenset(range(1, at.gone + 1))

    def _elsewhere(self, at: Volume) -> frozenset[int]:
        return at.excused.union(*(target.records for target in at.targets))

    def is_end(self, at: Volume) -> bool:
        """The proof is given."""
        return at.proof

    def initial(self) -> Volume:
        """A volume with all its pages, and nobody who drains it yet."""
        size = self.size
        return Volume(losses=size.losses, kills=size.kills, stops=size.stops, disks=size.disks)

    def steps(self, at: Volume) -> Iterator[Step[Volume]]:
        """Everything that can happen next."""
        if not at.proof:
            yield from self.start(at)
            yield from self.choose(at)
            yield from self.note(at)
            yield from self.send_page(at)
            yield from self.end(at)
            yield from self.hear(at)
            yield from self.time_out(at)
            yield from self.stop(at)
            for index in range(len(at.targets)):
                yield from self.handle(at, index)
                yield from self.sync(at, index)
            yield from self.faults(at)

    # -- the drain ---------------------------------------------------------------------------------------------

    def start(self, at: Volume) -> Iterator[Step[Volume]]:
        """`Handover.run`."""
        if at.drain is None:
            yield Step("start", at._replace(drain=Drain("choose")))

    def choose(self, at: Volume) -> Iterator[Step[Volume]]:
        """`Handover._choose`, `Directory.choose`, then `_Session.run` asks to begin."""
        if at.drain is None or at.drain.stage != "choose":
            return
        for index, target in enumerate(at.targets):
            if not self._may_choose(at, (index, target.life)):
                continue
            session = at.sessions + 1
            written = at
            if self.swap is not Swap.TARGET_NOT_WRITTEN and at.chosen != (index, target.life):
                # A new uid: no mark of an earlier choice counts. The batch is synced, and all trims before it.
                written = self._with(at, index, target._replace(mark=0, session=0))
                written = written._replace(chosen=(index, target.life), noted=False, synced=at.gone)
            drain = Drain("begin", session, index)
            state = written._replace(drain=drain, sessions=session, answers=())
            yield Step(f"choose {index}", self._ask(state, Request("begin", session)))

    def _may_choose(self, at: Volume, target: tuple[int, int]) -> bool:
        """Another one when the chosen one was sent no page, or has another directory now (`Handover._give_up`)."""
        if at.chosen in (None, target) or not at.noted or self.swap is Swap.GIVE_UP_ON_SILENCE:
            return True
        assert at.chosen is not None
        return at.targets[at.chosen[0]].life != at.chosen[1]

    def note(self, at: Volume) -> Iterator[Step[Volume]]:
        """`Directory.note_sending`: synced, and all trims before it."""
        drain = at.drain
        if drain is not None and drain.stage == "pages" and drain.sent < self.size.pages and not at.noted:
            yield Step("note", at._replace(noted=True, synced=at.gone))

    def send_page(self, at: Volume) -> Iterator[Step[Volume]]:
        """`_Session`: the next page, while fewer than the window are under way."""
        drain = at.drain
        if drain is None or drain.stage != "pages" or drain.sent >= self.size.pages:
            return
        if not at.noted and self.swap not in (Swap.SENT_BEFORE_NOTED, Swap.TARGET_NOT_WRITTEN):
            return
        if drain.sent - at.gone < self.size.window or self.swap is Swap.TRIM_BEFORE_ACK:
            number = drain.sent + 1
            request = Request("page", drain.session, number, drain.mark)
            state = self._ask(at._replace(drain=drain._replace(sent=number, mark=number)), request)
            if self.swap is Swap.TRIM_BEFORE_ACK:
                state = state._replace(gone=number)
            if self.swap is Swap.PROOF_WHEN_SENT and number == self.size.pages:
                state = state._replace(proof=True)
            yield Step(f"send {number}", state)

    def end(self, at: Volume) -> Iterator[Step[Volume]]:
        """`_Session`: the last page is acknowledged."""
        drain = at.drain
        if drain is not None and drain.stage == "pages" and at.gone == self.size.pages:
            state = at._replace(drain=drain._replace(stage="end"))
            yield Step("end", self._ask(state, Request("end", drain.session)))

    def stop(self, at: Volume) -> Iterator[Step[Volume]]:
        """SIGTERM: ends the session first, which tells the last mark."""
        drain = at.drain
        if drain is None or drain.stage != "pages" or not at.stops:
            return
        state = at._replace(stops=at.stops - 1)
        if self.swap is Swap.LET_GO_WITHOUT_END:
            yield Step("stop", self._let_go(state), own=False)
            return
        state = state._replace(drain=drain._replace(stage="end"))
        yield Step("stop", self._ask(state, Request("end", drain.session)), own=False)

    def hear(self, at: Volume) -> Iterator[Step[Volume]]:
        """An answer: trim what the mark covers (`_Session._trim_to`, `pages.trim`), go on, or begin again."""
        if not at.answers or at.drain is None:
            return
        answer, drain = at.answers[0], at.drain
        state = at._replace(answers=at.answers[1:])
        if answer.session == drain.session and drain.stage != "choose":
            if answer.mark is None:
                state = state._replace(drain=Drain("choose"))
            else:
                knows = answer.verb != "begin" or self.swap is not Swap.MARK_IGNORED
                gone = max(at.gone, answer.mark if knows else 0)
                if answer.verb != "end":
                    state = state._replace(gone=gone)
                if answer.verb == "begin" and drain.stage == "begin":
                    state = state._replace(drain=drain._replace(stage="pages", sent=gone, mark=answer.mark))
                if answer.verb == "end":
                    keeps = self.swap is Swap.LET_GO_WITHOUT_TRIM
                    state = self._let_go(state if keeps else state._replace(gone=gone))
        yield Step(f"hear {answer.verb}", state)

    def _let_go(self, at: Volume) -> Volume:
        """`Directory.let_go`: another uid and no target, synced; the proof when nothing is left."""
        done = at.gone == self.size.pages
        return at._replace(chosen=None, noted=False, synced=at.gone, drain=None, answers=(), proof=done)

    def time_out(self, at: Volume) -> Iterator[Step[Volume]]:
        """No answer (`link.Silence`): what is on disk says with whom to begin again."""
        drain = at.drain
        if drain is None or drain.stage == "choose" or at.answers:
            return
        waits = drain.stage != "pages" or drain.sent > at.gone
        if waits and not at.targets[drain.target].requests:
            yield Step("silence", at._replace(drain=Drain("choose")))

    # -- a target ----------------------------------------------------------------------------------------------

    def handle(self, at: Volume, index: int) -> Iterator[Step[Volume]]:
        """`Receiver._take`: one request after the other; what is written is one batch, answered after its fsync."""
        target = at.targets[index]
        if not target.requests or target.unsynced is not None:
            return
        request = target.requests[0]
        target = target._replace(requests=target.requests[1:])
        twice, mark = at.twice, None
        match request.verb:
            case "begin":
                target = target._replace(session=request.session, session_mark=target.mark)
                mark = target.mark
            case "page" if request.session == target.session:
                target, again = self._take_page(target, request)
                twice = twice or again
                mark = target.session_mark if target.session_mark >= request.number else None
            case "end":
                mark = target.mark
                target = target._replace(session=0)
        answers = (*at.answers, Answer(request.verb, request.session, mark))
        name = f"handle {index} {request.verb} {request.number or ''}".strip()
        yield Step(name, self._with(at._replace(twice=twice, answers=answers), index, target))

    def _take_page(self, target: Target, request: Request) -> tuple[Target, bool]:
        """`Receiver._page`, `changes.TakePage`: the target, and whether it takes what it had."""
        number = request.number
        if number <= target.session_mark and self.swap is not Swap.MARK_IGNORED:
            return target, False
        if request.after != target.session_mark and self.swap is not Swap.GAP_ACCEPTED:
            return target, False
        again = number in target.records
        taken = target._replace(session_mark=number)
        match self.swap:
            case Swap.ACK_BEFORE_FSYNC:
                return taken._replace(unsynced=("both", number)), again
            case Swap.MARK_AFTER_RECORDS:
                return taken._replace(records=target.records | {number}, unsynced=("mark", number)), again
            case Swap.MARK_BEFORE_RECORDS:
                return taken._replace(mark=number, unsynced=("records", number)), again
        return taken._replace(records=target.records | {number}, mark=number), again

    def sync(self, at: Volume, index: int) -> Iterator[Step[Volume]]:
        """With a swap alone: the write that should have been in the same batch, or before the answer."""
        target = at.targets[index]
        if target.unsynced is None:
            return
        what, number = target.unsynced
        target = target._replace(unsynced=None)
        if what != "mark":
            target = target._replace(records=target.records | {number})
        if what != "records":
            target = target._replace(mark=number)
        yield Step(f"sync {index}", self._with(at, index, target))

    # -- faults --------------------------------------------------------------------------------------------------

    def faults(self, at: Volume) -> Iterator[Step[Volume]]:
        """What gets lost, and who is killed."""
        if at.losses:
            left = at._replace(losses=at.losses - 1)
            if at.answers:
                yield Step("lose answer", left._replace(answers=at.answers[1:]), own=False)
            for index, target in enumerate(at.targets):
                if target.requests:
                    rest = target._replace(requests=target.requests[1:])
                    yield Step(f"lose request {index}", self._with(left, index, rest), own=False)
        if at.kills:
            left = at._replace(kills=at.kills - 1)
            if at.drain is not None:
                dead = left._replace(drain=None, answers=())
                yield Step("kill drain", dead, own=False)
                yield Step("power", dead._replace(gone=at.synced), own=False)
            for index, target in enumerate(at.targets):
                again = target._replace(session=0, session_mark=0, unsynced=None, requests=())
                yield Step(f"kill {index}", self._with(left, index, again), own=False)
        if at.disks:
            for index, target in enumerate(at.targets):
                left = at._replace(disks=at.disks - 1, excused=at.excused | target.records)
                yield Step(
                    f"replace {index}", self._with(left, index, Target(life=target.life + 1)), own=False
                )

    def _with(self, at: Volume, index: int, target: Target) -> Volume:
        first, second = at.targets
        return at._replace(targets=(target, second) if index == 0 else (first, target))

    def _ask(self, at: Volume, request: Request) -> Volume:
        assert at.drain is not None
        target = at.targets[at.drain.target]
        return self._with(at, at.drain.target, target._replace(requests=(*target.requests, request)))
