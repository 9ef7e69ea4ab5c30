"""Model of intake, group commit, checkpoint, cursor and read-ahead in one lane, with a crash at every step.

A step here is what runs without interruption in the worker: a callback of the event loop, or one operation of a storage
thread. Each names the function that it stands for. Keys are numbers, ``time * MESSAGES + message``, in the order of the
real ones; a *position* (checkpoint, cursor) is twice a key, or one more for "just behind it".

Time does not pass: any read may look for what is due at any time, so that every order of clocks is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tests.model.explorer import Model, Step

NO_KEYS: frozenset[int] = frozenset()
ALL = 99  #: a read limit that is never reached


class Swap(StrEnum):
    """Orderings swapped on purpose: each is a bug that the explorer has to find."""

    NONE = "as it is"
    ACK_BEFORE_FSYNC = "the acks go out when the batch is sealed"
    ACK_OF_A_FAILED_WRITE = "the acks go out although the write failed"
    REPLAY_BEFORE_FSYNC = "an inserted record lowers the cursor when sealed, not when durable"
    CHECKPOINT_OVER_IN_FLIGHT = "the checkpoint moves up to the cursor, over what is in flight"
    CHECKPOINT_BEFORE_SETTLEMENT = "a reply lets the checkpoint pass before its settlement is in a batch"
    CHECKPOINT_NOT_LOWERED = "a batch that inserts below the checkpoint leaves it where it is"
    CHECKPOINT_IN_A_LATER_WRITE = (
        "counters and checkpoint are written after the records, in a batch of their own"
    )
    CHECKPOINT_OVER_ARRIVED = "the checkpoint does not wait for what arrived during a read"
    INSERT_IN_A_LATER_WRITE = "a retry deletes in one batch and inserts in the next"
    CURSOR_NOT_LOWERED = "a late commit leaves the cursor where it is"
    HEAD_NOT_EARLIER = "a late commit does not wake the lane"
    ARRIVED_FORGOTTEN = "what became durable during a read is not remembered"
    RELEASED_FORGOTTEN = "what was removed during a read is let go at once"
    READ_AGAIN = "a read brings in what is in memory already"
    RETAINED_OVER_UNREAD = "what is retained moves the cursor over what is not read yet"
    RETAINED_UNCLAIMED = "what is retained is not claimed until it is durable"
    RETAINED_TWICE = (
        "a retry to the key that the message has is retained, and the removal of that key lets go of it"
    )
    RETAINED_BELOW_CHECKPOINT = "what is retained leaves the checkpoint where it is"
    REKEYED_UNKNOWN = "a re-keyed delivery is not known under its new key"
    REKEYED_TO_RELEASED = "a delivery re-keyed to a key that it had before is let go when a read comes back"
    REKEY_AFTER_REPLY = "a delivery is re-keyed although it was answered"
    RESCHEDULE_UNCLAIMED = "a reschedule does not claim its message"
    RESCHEDULE_BY_OLD_LOOK = "a reschedule does not look again after a commit"


@dataclass(frozen=True)
class Size:
    """How much happens at most."""

    messages: int = 2
    times: int = 2
    crashes: int = 1
    retries: int = 1
    rekeys: int = 0
    reschedules: int = 0


class Batch(NamedTuple):
    """A WriteBatch under way, and what memory does once it is durable (`Transaction`)."""

    puts: frozenset[int]
    deletes: frozenset[int]
    checkpoint: int
    counter: int
    acks: frozenset[int]  #: messages
    released: frozenset[int]
    lowest: int | None  #: smallest key inserted that is not retained
    retained: frozenset[int]
    landed: bool = False


class Read(NamedTuple):
    """A read under way (`ReadRequest`), with its result once it has looked at the disk."""

    cursor: int = 0
    until: int = 0
    limit: int = 0
    result: tuple[int, ...] | None = None
    next_key: int | None = None
    more: bool = False


class Lane(NamedTuple):
    """The disk, the lane and the committer, and what the world has seen."""

    # on disk
    pending: frozenset[int] = NO_KEYS
    checkpoint: int = 0
    counter: int = 0
    # seen by clients and handlers: messages
    offered: int = 0
    acked: frozenset[int] = NO_KEYS
    replied: frozenset[int] = NO_KEYS
    # committer: keys that wait for the next batch
    new: frozenset[int] = NO_KEYS
    settled: frozenset[int] = NO_KEYS
    moves: frozenset[tuple[int, int]] = frozenset()
    rekeys: frozenset[tuple[int, int]] = frozenset()
    late_puts: frozenset[int] = NO_KEYS  #: with INSERT_IN_A_LATER_WRITE alone
    batch: Batch | None = None
    # lane, in memory
    top: int = 0  #: its checkpoint as of the last sealed batch
    counted: int = 0
    cursor: int = 0
    head: int | None = None  #: time of what follows the cursor; None: nothing does
    unsettled: frozenset[int] = NO_KEYS
    ready: frozenset[int] = NO_KEYS
    in_flight: tuple[int, ...] = ()
    read: Read | None = None
    arrived: int | None = None
    released: frozenset[int] = NO_KEYS
    asked: int | None = None  #: a reschedule has read this key and has not decided yet
    # what may still happen
    crashes: int = 0
    retries: int = 0
    rekeys_left: int = 0
    reschedules: int = 0


class CommitModel(Model[Lane]):
    """One lane of one queue. `swap` plants a bug."""

    def __init__(self, size: Size, swap: Swap = Swap.NONE) -> None:
        self.size = size
        self.swap = swap
        self.invariants: Mapping[str, Callable[[Lane], bool]] = {
            "no ack before it is durable": self.acks_follow_the_fsync,
            "nothing acked is lost": self.nothing_acked_is_lost,
            "nothing pending below the checkpoint": self.checkpoint_is_below_all,
            "nothing pending below the cursor but in unsettled": self.cursor_is_below_all,
            "counters agree": self.counters_agree,
            "one dispatch at a time": self.one_dispatch_at_a_time,
            "nothing settled is sent again in the same life": self.settled_stays_settled,
            "no lane sleeps longer than until its first message": self.wakes_in_time,
            "nothing in memory for what is no more": self.memory_is_current,
        }

    # -- keys ------------------------------------------------------------------------------------------------

    def key(self, time: int, message: int) -> int:
        """Key of a message at this time."""
        return time * self.size.messages + message

    def message(self, key: int) -> int:
        """The message under this key."""
        return key % self.size.messages

    def time(self, key: int) -> int:
        """The time of this key."""
        return key // self.size.messages

    # -- invariants ------------------------------------------------------------------------------------------

    def acks_follow_the_fsync(self, at: Lane) -> bool:
        """Nothing acked is still on its way to the disk."""
        return at.batch is None or at.batch.landed or at.acked.isdisjoint(at.batch.acks)

    def nothing_acked_is_lost(self, at: Lane) -> bool:
        """Acked: it is on disk, or a handler has settled it."""
        return at.acked <= at.replied | set(map(self.message, at.pending))

    def checkpoint_is_below_all(self, at: Lane) -> bool:
        """Invariant 1 of docs/architecture.md."""
        return 2 * min(at.pending, default=at.checkpoint) >= at.checkpoint

    def cursor_is_below_all(self, at: Lane) -> bool:
        """Invariant 2; memory does not know yet of a batch that has landed and not finished."""
        unknown = at.batch.puts if at.batch is not None and at.batch.landed else NO_KEYS
        bound = at.cursor if at.arrived is None else min(at.cursor, 2 * at.arrived)
        return all(2 * key >= bound for key in at.pending - at.unsettled - unknown)

    def counters_agree(self, at: Lane) -> bool:
        """Invariant 3, on disk and in memory."""
        under_way = at.batch is not None and not at.batch.landed
        return at.counter == len(at.pending) and (under_way or at.counted == at.counter)

    def one_dispatch_at_a_time(self, at: Lane) -> bool:
        """In one life: waiting to go out, in flight, or ended and not yet committed; one of these, once."""
        keys = [*at.ready, *at.in_flight, *at.settled, *(old for old, _ in at.moves)]
        return len({self.message(key) for key in keys}) == len(keys)

    def settled_stays_settled(self, at: Lane) -> bool:
        """`replied` forgets with a crash what is pending after it."""
        return at.replied.isdisjoint(map(self.message, (*at.ready, *at.in_flight)))

    def wakes_in_time(self, at: Lane) -> bool:
        """A read that is under way, or a commit that memory has not heard of, will still say."""
        if at.read is not None or (at.batch is not None and at.batch.landed):
            return True
        asleep = at.pending - at.unsettled
        return not asleep or (at.head is not None and at.head <= self.time(min(asleep)))

    def memory_is_current(self, at: Lane) -> bool:
        """Between commits and reads."""
        return at.batch is not None or at.read is not None or at.unsettled <= at.pending

    def is_end(self, at: Lane) -> bool:
        """Every message came to its end, and nothing is under way."""
        work = at.pending or at.settled or at.moves or at.late_puts or at.in_flight or at.ready
        return not work and at.batch is None and at.read is None

    # -- steps -----------------------------------------------------------------------------------------------

    def initial(self) -> Lane:
        """An empty directory: checkpoint and cursor lie beyond all keys, as a new `Lane` has them."""
        size = self.size
        beyond = 2 * size.times * size.messages
        return Lane(
            checkpoint=beyond,
            top=beyond,
            cursor=beyond,
            crashes=size.crashes,
            retries=size.retries,
            rekeys_left=size.rekeys,
            reschedules=size.reschedules,
        )

    def steps(self, at: Lane) -> Iterator[Step[Lane]]:
        """Everything that can happen next."""
        yield from self.seal(at)
        yield from self.land(at)
        yield from self.finish(at)
        yield from self.fail_write(at)
        yield from self.ask_read(at)
        yield from self.look(at)
        yield from self.deliver(at)
        yield from self.dispatch(at)
        yield from self.settle(at)
        yield from self.retry(at)
        yield from self.rekey(at)
        yield from self.reschedule(at)
        yield from self.crash(at)

    def seal(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Committer._seal`: one batch of everything that waits. Checkpoints move forward, or are not due yet.

        New messages have come in by `Committer.accept` just before: nothing looks at one between these two steps.
        """
        if at.batch is not None:
            return
        work = bool(at.settled or at.moves or at.rekeys or at.late_puts)
        for came, state in self._accepted(at):
            # `ReadAhead.retain_until`: nothing, or what is due by then.
            for until in range(-1, self.size.times if came or at.moves else 0):
                retain = f" retain@{until}" if until >= 0 else ""
                if came or work:
                    sealed = self._sealed(state, until, checkpoints_due=False)
                    yield Step(f"seal{came}{retain}", sealed, own=not came)
                if (
                    came or work or at.top != self._lowest_unsettled(at)
                ):  # `Committer.checkpoint` needs no other work
                    sealed = self._sealed(state, until, checkpoints_due=True)
                    yield Step(f"seal{came}{retain} checkpoints", sealed, own=not came)

    def _accepted(self, at: Lane) -> Iterator[tuple[str, Lane]]:
        """What may have come in: nothing, or the next messages, due at any time."""
        yield "", at
        if at.offered < self.size.messages:
            for time in range(self.size.times):
                came = f" m{at.offered}@{time}"
                state = at._replace(offered=at.offered + 1, new=at.new | {self.key(time, at.offered)})
                for more, rest in self._accepted(state):
                    yield came + more, rest

    def _sealed(self, at: Lane, retain_until: int, *, checkpoints_due: bool) -> Lane:
        """`Transaction`: insert_new, remove_settled, the changes' apply (`Rekey.apply` among them), seal."""
        in_flight, unsettled, released, moves = at.in_flight, at.unsettled, at.released, set(at.moves)
        for old, new in sorted(at.rekeys):
            if old not in in_flight and self.swap is not Swap.REKEY_AFTER_REPLY:
                continue  # answered meanwhile
            if new == old:
                continue
            moves.add((old, new))
            if self.swap is not Swap.REKEYED_UNKNOWN:
                unsettled = unsettled | {new}
            if self.swap is not Swap.REKEYED_TO_RELEASED:
                released = released - {new}
            in_flight = tuple(sorted(new if key == old else key for key in in_flight))
        moved = frozenset(new for _, new in moves)
        left = frozenset(old for old, _ in moves)
        puts, late_puts = at.new | moved, NO_KEYS
        if self.swap is Swap.INSERT_IN_A_LATER_WRITE:
            puts, late_puts = at.new | at.late_puts, moved
        counted = at.counted + len(at.new) - len(at.settled)
        may_stay = puts & (at.new | {new for _, new in at.moves})  # a re-keyed one is in flight
        retained = self._retained(at, [key for key in may_stay if self.time(key) <= retain_until])
        cursor, top = max([at.cursor, *(2 * key + 1 for key in retained)]), at.top
        if self.swap is not Swap.RETAINED_UNCLAIMED:
            unsettled |= retained
        if checkpoints_due:
            top = self._lowest_unsettled(at._replace(unsettled=unsettled, cursor=cursor))
        lowest = min(puts - retained, default=None)
        lowers = lowest if self.swap is Swap.RETAINED_BELOW_CHECKPOINT else min(puts, default=None)
        if lowers is not None and self.swap is not Swap.CHECKPOINT_NOT_LOWERED:
            top = min(top, 2 * lowers)
        acks = frozenset(map(self.message, at.new))
        batch = Batch(
            puts, at.settled | (left - moved), top, counted, acks, at.settled | left, lowest, retained
        )
        sealed = at._replace(
            new=NO_KEYS, settled=NO_KEYS, moves=frozenset(), rekeys=frozenset(), late_puts=late_puts,
            batch=batch, top=top, cursor=cursor, counted=counted, unsettled=unsettled, released=released,
            in_flight=in_flight,
        )  # fmt: skip
        if self.swap is Swap.ACK_BEFORE_FSYNC:
            sealed = sealed._replace(acked=at.acked | acks)
        if self.swap is Swap.REPLAY_BEFORE_FSYNC:
            sealed = self._inserted(sealed, batch)
        return sealed

    def _retained(self, at: Lane, keys: list[int]) -> frozenset[int]:
        """`Lane.retain`: those of the keys that need no read. Their order makes no difference."""
        if at.read is not None:
            return NO_KEYS
        if self.swap is not Swap.RETAINED_TWICE:
            keys = [key for key in keys if key not in at.unsettled]
        if self.swap is not Swap.RETAINED_OVER_UNREAD:
            keys = [key for key in keys if 2 * key < at.cursor or at.head is None or self.time(key) < at.head]
        return frozenset(keys)

    def _lowest_unsettled(self, at: Lane) -> int:
        """`Lane.lowest_unsettled`."""
        bounds = [at.cursor]
        if self.swap is not Swap.CHECKPOINT_OVER_IN_FLIGHT:
            bounds += [2 * key for key in at.unsettled]
        if at.arrived is not None and self.swap is not Swap.CHECKPOINT_OVER_ARRIVED:
            bounds.append(2 * at.arrived)
        return min(bounds)

    def land(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Store.write`: the batch is on disk, all of it at once, with its fsync."""
        if at.batch is None or at.batch.landed:
            return
        pending = at.pending - at.batch.deletes | at.batch.puts
        if self.swap is Swap.CHECKPOINT_IN_A_LATER_WRITE and pending != at.pending:
            yield Step("land records", at._replace(pending=pending))
            return
        landed = at.batch._replace(landed=True)
        state = at._replace(
            pending=pending, checkpoint=landed.checkpoint, counter=landed.counter, batch=landed
        )
        yield Step("land", state)

    def finish(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Committer._finish`: removed keys leave memory, inserted ones come in, the acks go out."""
        if at.batch is None or not at.batch.landed:
            return
        batch = at.batch
        state = at._replace(batch=None, acked=at.acked | batch.acks)
        if at.read is not None and self.swap is not Swap.RELEASED_FORGOTTEN:
            state = state._replace(released=at.released | batch.released)
        else:
            state = state._replace(unsettled=at.unsettled - batch.released)
        if self.swap is Swap.RETAINED_UNCLAIMED:
            state = state._replace(unsettled=state.unsettled | batch.retained)
        state = state._replace(ready=state.ready | batch.retained)
        if self.swap is not Swap.REPLAY_BEFORE_FSYNC:
            state = self._inserted(state, batch)
        if self.swap is not Swap.RESCHEDULE_BY_OLD_LOOK:
            state = state._replace(asked=None)
        yield Step("finish", state)

    def _inserted(self, at: Lane, batch: Batch) -> Lane:
        """`Lane.note_durable_insert`."""
        if batch.lowest is None:
            return at
        if at.read is not None:
            if self.swap is Swap.ARRIVED_FORGOTTEN:
                return at
            return at._replace(arrived=min(batch.lowest, batch.lowest if at.arrived is None else at.arrived))
        if self.swap is not Swap.CURSOR_NOT_LOWERED:
            at = at._replace(cursor=min(at.cursor, 2 * batch.lowest))
        return at if self.swap is Swap.HEAD_NOT_EARLIER else self._advance_head(at, batch.lowest)

    def _advance_head(self, at: Lane, key: int) -> Lane:
        time = self.time(key)
        return at._replace(head=time if at.head is None else min(time, at.head))

    def fail_write(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Committer._fail`: the disk says no, the worker ends, nothing of the batch is acked."""
        if at.batch is not None and not at.batch.landed and at.crashes:
            acks = at.batch.acks if self.swap is Swap.ACK_OF_A_FAILED_WRITE else NO_KEYS
            yield Step("fail", self._restarted(at._replace(acked=at.acked | acks)), own=False)

    def ask_read(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Scheduler._start_read`: a lane whose head may be due; `until` is now, whatever that is."""
        if at.read is None and at.head is not None:
            for until in range(at.head, self.size.times):
                for limit in (1, ALL):
                    read = Read(at.cursor, until, limit)
                    # `head` says nothing until the read is back.
                    yield Step(f"ask @{until} limit {limit}", at._replace(read=read, head=None))

    def look(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Store._read_lane`, on the read thread: what is on disk at that moment."""
        if at.read is None or at.read.result is not None:
            return
        read, found = at.read, []
        next_key, more = None, False
        for key in sorted(key for key in at.pending if 2 * key >= read.cursor):
            if self.time(key) > read.until:
                next_key = key
                break
            found.append(key)
            if len(found) == read.limit:
                more = True
                break
        yield Step("look", at._replace(read=Read(result=tuple(found), next_key=next_key, more=more)))

    def deliver(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Lane.note_read`: the read comes back to the loop."""
        if at.read is None or at.read.result is None:
            return
        records, next_key, more = at.read.result, at.read.next_key, at.read.more
        fresh = frozenset(key for key in records if self.swap is Swap.READ_AGAIN or key not in at.unsettled)
        cursor, head = at.cursor, at.head
        if next_key is not None:
            cursor, head = 2 * next_key, self.time(next_key)
        else:
            cursor = 2 * records[-1] + 1 if records else cursor
            head = self.time(records[-1]) if more and records else None
        unsettled = (at.unsettled | fresh) - at.released
        state = at._replace(
            read=None, cursor=cursor, head=head, unsettled=unsettled, ready=at.ready | fresh,
            arrived=None, released=NO_KEYS,
        )  # fmt: skip
        if at.arrived is not None:
            state = self._advance_head(state._replace(cursor=min(cursor, 2 * at.arrived)), at.arrived)
        yield Step("deliver", state)

    def dispatch(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Replayer.send`: the first message read ahead goes out."""
        if at.ready:
            key = min(at.ready)
            in_flight = tuple(sorted((*at.in_flight, key)))
            name = f"dispatch m{self.message(key)}"
            yield Step(name, at._replace(ready=at.ready - {key}, in_flight=in_flight))

    def settle(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Replayer.on_replies`, edge c: a handler has settled it. Expired, dropped and buried leave the lane alike."""
        for key, rest in self._ends(at):
            message = self.message(key)
            state = rest._replace(settled=at.settled | {key}, replied=at.replied | {message})
            if self.swap is Swap.CHECKPOINT_BEFORE_SETTLEMENT:
                state = state._replace(unsettled=at.unsettled - {key})
            yield Step(f"settle m{message}", state)

    def retry(self, at: Lane) -> Iterator[Step[Lane]]:
        """`changes.Requeue`, edges d and e: it is due again, at any time, below the checkpoint too."""
        if at.retries:
            for key, rest in self._ends(at):
                for time in range(self.size.times):
                    message = self.message(key)
                    move = (key, self.key(time, message))
                    state = rest._replace(moves=at.moves | {move}, retries=at.retries - 1)
                    yield Step(f"retry m{message}@{time}", state, own=False)

    def _ends(self, at: Lane) -> Iterator[tuple[int, Lane]]:
        for index, key in enumerate(at.in_flight):
            yield key, at._replace(in_flight=at.in_flight[:index] + at.in_flight[index + 1 :])

    def rekey(self, at: Lane) -> Iterator[Step[Lane]]:
        """`changes.Rekey`: a long job is to move to its ack deadline. It stays in flight."""
        if at.rekeys_left:
            asked = {old for old, _ in at.rekeys}  # one a minute, and none waits that long
            for key in set(at.in_flight) - asked:
                for time in range(self.size.times):
                    message = self.message(key)
                    rekey = (key, self.key(time, message))
                    state = at._replace(rekeys=at.rekeys | {rekey}, rekeys_left=at.rekeys_left - 1)
                    yield Step(f"rekey m{message}@{time}", state, own=False)

    def reschedule(self, at: Lane) -> Iterator[Step[Lane]]:
        """`Admin._change`: looks at the disk, then decides on the loop unless a commit came in between; edge j."""
        if at.reschedules and at.asked is None:
            for key in at.pending:
                yield Step(f"asked m{self.message(key)}", at._replace(asked=key), own=False)
        if at.asked is not None:
            key = at.asked
            for time in range(self.size.times):
                decided = at._replace(asked=None, reschedules=at.reschedules - 1)
                move = (key, self.key(time, self.message(key)))
                state = self._withdrawn(decided, key, move)
                yield Step(f"reschedule m{self.message(key)}@{time}", state, own=False)

    def _withdrawn(self, at: Lane, key: int, move: tuple[int, int]) -> Lane:
        """`Scheduler.withdraw`: nothing when it is on its way out already."""
        if key in at.unsettled and key not in at.ready:
            return at
        claimed = NO_KEYS if self.swap is Swap.RESCHEDULE_UNCLAIMED else frozenset((key,))
        return at._replace(ready=at.ready - {key}, unsettled=at.unsettled | claimed, moves=at.moves | {move})

    def crash(self, at: Lane) -> Iterator[Step[Lane]]:
        """SIGKILL or power loss at any moment, and `Store.open` after it."""
        if at.crashes:
            yield Step("crash", self._restarted(at), own=False)

    def _restarted(self, at: Lane) -> Lane:
        """`QueueState.load`. What was never acked and is not on disk is the client's to send again."""
        left = set(map(self.message, at.pending))
        return Lane(
            pending=at.pending, checkpoint=at.checkpoint, counter=at.counter,
            offered=at.offered, acked=at.acked, replied=at.replied - left,
            top=at.checkpoint, counted=at.counter, cursor=at.checkpoint, head=0 if at.counter else None,
            crashes=at.crashes - 1, retries=at.retries, rekeys_left=at.rekeys_left, reschedules=at.reschedules,
        )  # fmt: skip
