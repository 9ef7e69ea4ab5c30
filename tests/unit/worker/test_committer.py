"""Group commit: what joins which batch, who hears of it when, and what a failure leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from requeue_worker.changes import Remove
from requeue_worker.errors import CommitError
from requeue_worker.inflight import Delivery
from requeue_worker.record import decode
from requeue_worker.storage import committer as committing
from requeue_worker.storage.transaction import NewMessage, Transaction

from tests.property.rig import Rig, new_message


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "data")
    yield rig
    rig.dispose()


class Note:
    """A change that writes nothing and remembers what it was told."""

    def __init__(self, error: Exception | None = None, *, late_error: Exception | None = None) -> None:
        self.applied = self.is_durable = False
        self._error = error
        self._late_error = late_error

    def apply(self, transaction: Transaction) -> None:
        self.applied = True
        if self._error is not None:
            raise self._error

    def durable(self) -> None:
        self.is_durable = True
        if self._late_error is not None:
            raise self._late_error


def accept(rig: Rig, *payloads: bytes) -> list[NewMessage]:
    messages = [new_message(rig.queue().lane(), payload) for payload in payloads]
    for message in messages:
        message.lane.queue.waiting += 1
        message.lane.queue.waiting_bytes += message.size
    rig.call(lambda: rig.committer.accept(messages))
    return messages


def acked(rig: Rig) -> list[bytes]:
    return [message.tail for message in rig.acked]


def delivered(rig: Rig, *payloads: bytes) -> list[Delivery]:
    """Messages that are on disk and in flight."""
    lane = rig.queue().lane()
    accept(rig, *payloads)
    rig.commit_all()
    found = []
    for key, value in rig.stored.pending.items():
        if decode(value).payload in payloads:
            lane.unsettled[key] = delivery = Delivery(lane, key, value, decode(value).size, None, 1)
            found.append(delivery)
    return found


def pending(rig: Rig) -> list[bytes]:
    return rig.payloads(rig.stored.pending.values())


def test_nothing_is_acked_before_the_write_has_returned(rig: Rig) -> None:
    accept(rig, b"a")
    rig.seal()
    assert acked(rig) == []
    rig.land()
    assert acked(rig) == [], "on disk, but not known to be"
    rig.finish()
    assert acked(rig) == [b"a"]
    assert pending(rig) == [b"a"]


def test_what_comes_with_the_same_turn_of_the_loop_shares_a_batch(rig: Rig) -> None:
    def several() -> None:
        for payload in (b"a", b"b", b"c"):
            rig.committer.accept([new_message(rig.queue().lane(), payload)])

    rig.queue().waiting = 3
    rig.call(several)
    rig.commit_all()
    assert rig.store.writes == 1
    assert acked(rig) == [b"a", b"b", b"c"]


def test_what_comes_during_a_write_is_the_next_batch(rig: Rig) -> None:
    accept(rig, b"a")
    rig.seal()
    accept(rig, b"b")
    accept(rig, b"c")
    rig.land()
    rig.finish()
    assert acked(rig) == [b"a"]
    assert rig.store.sealed, "sealed as soon as the last one was done"
    rig.land()
    rig.finish()
    assert acked(rig) == [b"a", b"b", b"c"]
    assert rig.store.writes == 2


def test_the_time_to_an_ack_is_counted_for_each_message_from_when_it_came(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "BATCH_MESSAGES", 3)
    accept(rig, b"a", b"b")
    rig.seal()
    accept(rig, b"c", b"d", b"e", b"f")
    rig.land()
    rig.finish()
    assert sum(rig.counts.ack_seconds.counts) == 2
    rig.commit_all()
    assert acked(rig) == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert sum(rig.counts.ack_seconds.counts) == 6
    assert not rig.committer._accepted


def test_a_batch_takes_so_many_messages_and_no_more(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "BATCH_MESSAGES", 10)
    accept(rig, *[b"%d" % number for number in range(25)])
    rig.commit_all()
    assert rig.store.writes == 3
    assert acked(rig) == [b"%d" % number for number in range(25)], "accept order is kept"


def test_a_batch_takes_so_many_bytes_and_no_more(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "BATCH_BYTES", 1000)
    accept(rig, *[b"%d" % number * 400 for number in range(8)])
    rig.commit_all()
    assert rig.store.writes == 3, "three messages of 400 bytes reach the 1000"
    assert len(acked(rig)) == 8
    assert rig.committer.waiting_bytes == 0


def test_one_message_beyond_the_bytes_of_a_batch_goes_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "BATCH_BYTES", 10)
    accept(rig, b"x" * 1000, b"y" * 1000)
    rig.commit_all()
    assert rig.store.writes == 2


def test_waiting_messages_and_bytes_are_counted_until_they_are_durable(rig: Rig) -> None:
    accept(rig, b"x" * 100, b"y" * 50)
    assert (rig.committer.waiting_bytes, rig.queue().waiting, rig.queue().waiting_bytes) == (150, 2, 150)
    rig.commit_all()
    assert (rig.committer.waiting_bytes, rig.queue().waiting, rig.queue().waiting_bytes) == (0, 0, 0)
    assert (rig.queue().pending, rig.queue().bytes) == (2, 150)


def test_settlements_alone_wait_for_company_and_go_by_themselves_in_the_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "SETTLE_WAIT_S", 0.005)  # the rig's own waits for ever
    deliveries = delivered(rig, b"a", b"b", b"c")
    writes = rig.store.writes
    for delivery in deliveries:
        rig.call(lambda delivery=delivery: rig.committer.settle([delivery]))  # type: ignore[misc]
        rig.spin()
    assert not rig.store.sealed
    rig.loop.run_until_complete(asyncio.sleep(3 * committing.SETTLE_WAIT_S))
    assert rig.store.sealed
    rig.commit_all()
    assert rig.store.writes == writes + 1
    assert pending(rig) == []


def test_a_settlement_goes_with_the_next_message(rig: Rig) -> None:
    [delivery] = delivered(rig, b"a")
    rig.call(lambda: rig.committer.settle([delivery]))
    accept(rig, b"b")
    rig.spin()
    assert rig.store.sealed
    rig.commit_all()
    assert pending(rig) == [b"b"]


def test_idle_waits_for_settlements_too(rig: Rig) -> None:
    [delivery] = delivered(rig, b"a")
    rig.call(lambda: rig.committer.settle([delivery]))
    idle = rig.loop.create_task(rig.committer.idle())
    rig.spin()
    assert rig.store.sealed
    assert not idle.done()
    rig.commit_all()
    assert idle.done()


def test_an_awaited_change_returns_when_it_is_durable_and_not_when_all_is_quiet(rig: Rig) -> None:
    """Under load it is never quiet: a cancel would wait for ever."""
    note = Note()
    task = rig.loop.create_task(rig.committer.commit(note))
    rig.spin()
    accept(rig, b"more")
    rig.land()
    assert not task.done()
    rig.finish()
    assert task.done()
    assert note.is_durable
    assert rig.store.sealed, "the next batch is under way already"
    rig.commit_all()


# ---- failures


def test_after_a_failed_write_nothing_is_acked_and_everything_that_waits_is_refused(rig: Rig) -> None:
    [delivery] = delivered(rig, b"before")
    rig.acked.clear()
    in_batch = accept(rig, b"a")
    rig.seal()
    behind = accept(rig, b"b", b"c")
    rig.call(lambda: rig.committer.settle([delivery]))
    rig.store.fail = CommitError("no space left")
    rig.land()
    assert acked(rig) == []
    assert rig.refused == in_batch + behind
    assert [str(error) for error in rig.errors] == ["no space left"]
    assert pending(rig) == [b"before"]


def test_a_failed_committer_writes_no_more(rig: Rig) -> None:
    accept(rig, b"a")
    rig.seal()
    rig.store.fail = CommitError("no space left")
    rig.land()
    rig.store.fail = None
    writes = rig.store.writes
    accept(rig, b"late")
    rig.spin()
    assert rig.store.writes == writes
    for attempt in (rig.committer.idle(), rig.committer.commit(Note())):
        with pytest.raises(CommitError, match="no space left"):
            rig.loop.run_until_complete(attempt)


def test_who_waits_for_a_change_hears_that_it_will_never_be_durable(rig: Rig) -> None:
    in_batch, behind = Note(), Note()
    first = rig.loop.create_task(rig.committer.commit(in_batch))
    rig.seal()
    second = rig.loop.create_task(rig.committer.commit(behind))
    rig.spin()
    rig.store.fail = CommitError("no space left")
    rig.land()
    for task, note in ((first, in_batch), (second, behind)):
        assert isinstance(task.exception(), CommitError)
        assert not note.is_durable


def test_a_change_that_cannot_be_written_takes_its_whole_batch_down_and_leaves_nothing(rig: Rig) -> None:
    def both() -> None:
        rig.committer.accept([new_message(rig.queue().lane(), b"a")])
        rig.committer.submit(Note(ValueError("a record that nobody can read")))

    rig.call(both)
    rig.spin()
    assert "a record that nobody can read" in str(rig.errors[0])
    assert acked(rig) == []
    assert pending(rig) == []


def test_an_error_after_the_write_ends_the_committer_and_hangs_nobody(rig: Rig) -> None:
    """Memory may not agree with the disk any more; but it was written, so nothing of it is refused."""

    def both() -> None:
        rig.committer.accept([new_message(rig.queue().lane(), b"a")])
        rig.committer.submit(Note(late_error=ValueError("nobody expected this")))

    rig.call(both)
    idle = rig.loop.create_task(rig.committer.idle())
    rig.commit_all()
    assert isinstance(idle.exception(), CommitError)
    assert rig.refused == []
    assert pending(rig) == [b"a"]


# ---- ids and departures


def test_ids_are_unique_over_messages_minted_ids_and_lives(rig: Rig) -> None:
    accept(rig, b"a", b"b")
    rig.commit_all()
    minted = {rig.committer.mint_id() for _ in range(3)}
    accept(rig, b"c")
    rig.commit_all()
    rig.crash()
    accept(rig, b"d")
    rig.commit_all()
    stored = [key[-16:] for key in rig.stored.pending]
    assert len({*stored, *minted}) == len(stored) + len(minted) == 7


def test_two_who_look_at_once_both_hear_of_departures_whoever_ends_first(rig: Rig) -> None:
    """Their sets are equal while nothing has left: the wrong one must not stop to hear."""
    [delivery] = delivered(rig, b"a")
    with rig.committer.departures() as left:
        with rig.committer.departures():
            pass
        rig.call(lambda: rig.committer.settle([delivery]))
        rig.commit_all()
        assert left == {delivery.key}


def test_departures_name_what_was_settled_moved_or_removed_while_somebody_looked(rig: Rig) -> None:
    settled, removed, stays = delivered(rig, b"a", b"b", b"c")
    with rig.committer.departures() as left:
        rig.call(lambda: rig.committer.settle([settled]))
        rig.call(lambda: rig.committer.submit(Remove(removed.lane, removed.key, decode(removed.value))))
        rig.seal()
        assert left == set(), "not durable yet"
        rig.commit_all()
        assert left == {settled.key, removed.key}
    rig.call(lambda: rig.committer.settle([stays]))
    rig.commit_all()
    assert stays.key not in left
