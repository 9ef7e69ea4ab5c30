"""One atomic change of the store: keys, deadlines, ids, counters and checkpoints of what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from requeue_worker.changes import Entomb, Rekey, Remove, Requeue
from requeue_worker.inflight import Delivery
from requeue_worker.record import MAX_TIME_NS, Attempt, DeadReason, decode
from requeue_worker.storage.keys import id_of, time_of

from tests.property.rig import MS, START_NS, Rig, S, new_message


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "data")
    yield rig
    rig.dispose()


def insert(rig: Rig, payload: bytes = b"a", **said: object) -> tuple[bytes, bytes]:
    """Commit a message; its key and value."""
    known = set(rig.stored.pending)
    message = new_message(rig.queue().lane(), payload, **said)  # type: ignore[arg-type]
    rig.call(lambda: rig.committer.accept([message]))
    rig.commit_all()
    [item] = [item for item in rig.stored.pending.items() if item[0] not in known]
    return item


def flight(rig: Rig, key: bytes, value: bytes) -> Delivery:
    lane, record = rig.queue().lane(), decode(value)
    lane.unsettled[key] = delivery = Delivery(lane, key, value, record.size, record.client_id, 1)
    return delivery


def submit(rig: Rig, change: object) -> None:
    rig.call(lambda: rig.committer.submit(change))  # type: ignore[arg-type]
    rig.commit_all()


@pytest.mark.parametrize(
    ("said", "due_ns", "deadline_ns"),
    [
        ({}, START_NS, 0),
        ({"delay_ns": 5 * S}, START_NS + 5 * S, 0),
        ({"at_ns": START_NS - S}, START_NS - S, 0),
        ({"at_ns": START_NS + S, "delay_ns": 9 * S}, START_NS + S, 0),
        ({"ttl_ns": 3 * S}, START_NS, START_NS + 3 * S),
        ({"ttl_ns": 3 * S, "delay_ns": 5 * S}, START_NS + 3 * S, START_NS + 3 * S),
        ({"ttl_ns": 2**64 - 1}, START_NS, MAX_TIME_NS),
        ({"delay_ns": MAX_TIME_NS}, MAX_TIME_NS, 0),
        ({"delay_ns": MAX_TIME_NS, "ttl_ns": MAX_TIME_NS}, MAX_TIME_NS, MAX_TIME_NS),
    ],
)
def test_a_message_is_keyed_by_its_due_time_or_its_deadline_the_earlier(
    rig: Rig, said: dict[str, object], due_ns: int, deadline_ns: int
) -> None:
    key, value = insert(rig, **said)
    record = decode(value)
    assert (time_of(key), record.deadline_ns, record.enqueued_ns) == (due_ns, deadline_ns, START_NS)


def test_times_count_from_the_commit(rig: Rig) -> None:
    message = new_message(rig.queue().lane(), b"a", delay_ns=S, ttl_ns=9 * S)
    rig.call(lambda: rig.committer.accept([message]))
    rig.now_ns += 5 * S
    rig.commit_all()
    [(key, value)] = rig.stored.pending.items()
    assert time_of(key) == START_NS + 6 * S
    assert decode(value).deadline_ns == START_NS + 14 * S


def test_a_retry_is_the_same_message_later_with_one_more_attempt(rig: Rig) -> None:
    key, value = insert(rig, client_id=b"x")
    delivery = flight(rig, key, value)
    attempt = Attempt(1, START_NS, "no reply")
    submit(rig, Requeue(delivery.lane, key, decode(value), START_NS + 5 * S, attempt))
    [(new_key, new_value)] = rig.stored.pending.items()
    assert (id_of(new_key), time_of(new_key)) == (id_of(key), START_NS + 5 * S)
    assert (decode(new_value).attempts, decode(new_value).extras.history) == (1, [attempt])
    assert list(rig.stored.ids.values()) == [new_key]


def test_a_retry_beyond_the_deadline_is_keyed_by_the_deadline(rig: Rig) -> None:
    key, value = insert(rig, ttl_ns=3 * S)
    flight(rig, key, value)
    submit(rig, Requeue(rig.queue().lane(), key, decode(value), START_NS + 60 * S, None))
    assert [time_of(key) for key in rig.stored.pending] == [START_NS + 3 * S]


def test_a_burial_moves_message_bytes_and_history_to_the_dead_in_one_batch(rig: Rig) -> None:
    key, value = insert(rig, b"payload", client_id=b"x")
    flight(rig, key, value)
    size = decode(value).size
    writes = rig.store.writes
    rig.now_ns += S
    attempt = Attempt(1, rig.now_ns, "no reply")
    submit(rig, Entomb(rig.queue().lane(), key, decode(value), DeadReason.EXHAUSTED, attempt, None, None))
    stored = rig.stored
    [(dead_key, dead_value)] = stored.dead.items()
    extras = decode(dead_value).extras
    assert rig.store.writes == writes + 1
    assert (id_of(dead_key), time_of(dead_key)) == (id_of(key), rig.now_ns)
    assert (extras.reason, extras.died_ns, extras.history) == ("exhausted", rig.now_ns, [attempt])
    assert decode(dead_value).payload == b"payload"
    queue = stored.queues["default"]
    assert (queue.pending, queue.bytes, queue.dead, queue.dead_bytes) == (0, 0, 1, size)
    assert stored.ids == {}, "a dead letter deduplicates nothing"


def test_two_messages_with_one_client_id_have_an_entry_each(rig: Rig) -> None:
    first = insert(rig, b"a", client_id=b"x")
    second = insert(rig, b"b", client_id=b"x")
    assert sorted(rig.stored.ids.values()) == sorted([first[0], second[0]])
    flight(rig, *first)
    submit(rig, Remove(rig.queue().lane(), first[0], decode(first[1])))
    assert list(rig.stored.ids.values()) == [second[0]]


# ---- checkpoints


def checkpoint_ns(rig: Rig) -> int:
    checkpoint = rig.stored.queues["default"].lanes[4].checkpoint
    return time_of(checkpoint.ljust(len(rig.queue().lane().prefix) + 24, b"\x00"))


def read_all(rig: Rig) -> list[Delivery]:
    lane = rig.queue().lane()
    keys = sorted(key for key in rig.stored.pending if key not in lane.unsettled)
    lane.note_read([(key, rig.stored.pending[key]) for key in keys], None, False)
    lane.ready.clear()
    return [flight(rig, key, rig.stored.pending[key]) for key in keys]


def settle(rig: Rig, *deliveries: Delivery) -> None:
    rig.call(lambda: rig.committer.settle(list(deliveries)))
    rig.commit_all()


def test_a_checkpoint_follows_what_is_settled_and_stays_behind_what_is_not(rig: Rig) -> None:
    for number in range(4):
        insert(rig, at_ns=START_NS + number)
    first, second, third, fourth = read_all(rig)
    rig.mono_ns += S
    settle(rig, first)
    rig.mono_ns += S
    settle(rig, third)
    assert checkpoint_ns(rig) == START_NS + 1, "the second is in flight"
    rig.mono_ns += S
    settle(rig, second)
    rig.mono_ns += S
    settle(rig, fourth)
    assert checkpoint_ns(rig) >= START_NS + 3


def test_a_checkpoint_moves_up_once_in_a_while_and_down_at_once(rig: Rig) -> None:
    insert(rig, at_ns=START_NS)
    insert(rig, at_ns=START_NS + 9)
    rig.mono_ns += S
    first, second = read_all(rig)
    settle(rig, first)
    before = checkpoint_ns(rig)
    settle(rig, second)
    assert checkpoint_ns(rig) == before, "no time has passed"
    rig.mono_ns += S
    insert(rig, at_ns=START_NS + 20)
    assert checkpoint_ns(rig) > before
    insert(rig, at_ns=START_NS - 5 * MS)
    assert checkpoint_ns(rig) == START_NS - 5 * MS


def test_asked_for_at_the_end_every_checkpoint_is_as_far_as_it_may_be(rig: Rig) -> None:
    insert(rig, at_ns=START_NS)
    insert(rig, at_ns=START_NS + 60 * S)
    first, _ = read_all(rig)
    settle(rig, first)
    rig.call(lambda: rig.committer.checkpoint([rig.queue()]))
    rig.commit_all()
    assert checkpoint_ns(rig) == START_NS + 60 * S


def test_a_job_that_is_re_keyed_there_and_back_in_one_batch_stays_in_flight(rig: Rig) -> None:
    key, value = insert(rig)
    delivery = flight(rig, key, value)
    lane = delivery.lane
    there, back = (Rekey(delivery, time_ns, lambda _: True) for time_ns in (START_NS + S, START_NS))

    def submit_both() -> None:  # the clock was put back in between
        rig.committer.submit(there)
        rig.committer.submit(back)

    rig.call(submit_both)
    rig.commit_all()
    assert list(rig.stored.pending) == [delivery.key]
    assert lane.unsettled == {delivery.key: delivery}, "so no read brings it back"
    assert time_of(delivery.key) == START_NS + 1


def test_after_a_restart_a_message_due_before_all_that_is_known_moves_the_cursor_down(rig: Rig) -> None:
    insert(rig, b"late", delay_ns=3600 * S)
    rig.crash()
    lane = rig.queue().lane()
    assert lane.head_due_ns == 0, "nothing was read yet"
    key, _ = insert(rig, b"soon", delay_ns=60 * S)

    assert lane.cursor <= key
    assert lane.checkpoint <= key
