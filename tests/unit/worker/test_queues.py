"""Lane and queue state: cursors, checkpoints, reads under way, and their stored form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requeue_protocol.subjects import SubjectRules
from requeue_worker.counts import QueueCounts
from requeue_worker.inflight import Delivery
from requeue_worker.storage.keys import PRIORITIES, SUFFIX_LEN, TIME_ID
from requeue_worker.storage.queues import NEVER, Lane, QueueState

from tests.property.rig import POLICY

checked = settings(deadline=None)

U64 = st.integers(0, 2**64 - 1)


def queue_of(name: str = "default") -> QueueState:
    return QueueState(name, POLICY, SubjectRules(intake="requeue.>"), QueueCounts())


def key_at(lane: Lane, time_ns: int, number: int = 0) -> bytes:
    return lane.prefix + TIME_ID.pack(time_ns, bytes(8), number)


def record_at(lane: Lane, time_ns: int, number: int = 0) -> tuple[bytes, bytes]:
    return key_at(lane, time_ns, number), b"value"


def deliver(lane: Lane, key: bytes) -> Delivery:
    delivery = Delivery(lane, key, b"value", 5, None, 1)
    lane.unsettled[key] = delivery
    return delivery


def test_an_empty_lane_waits_for_nothing() -> None:
    lane = queue_of().lane()
    assert lane.head_due_ns == NEVER
    assert lane.cursor == lane.checkpoint == lane.lowest_unsettled()
    assert key_at(lane, 2**63 - 1) < lane.cursor < lane.end


def test_a_read_of_a_new_lane_begins_at_its_first_record() -> None:
    lane = queue_of().lane()
    assert lane.note_durable_insert(key_at(lane, 500))
    assert lane.cursor == key_at(lane, 500)


def test_an_insert_below_the_cursor_takes_it_back_and_says_that_the_lane_is_due_earlier() -> None:
    lane = queue_of().lane()
    assert lane.note_durable_insert(key_at(lane, 500))
    lane.note_read([], key_at(lane, 500), False)
    assert not lane.note_durable_insert(key_at(lane, 600))
    assert lane.note_durable_insert(key_at(lane, 400))
    assert (lane.cursor, lane.head_due_ns) == (key_at(lane, 400), 400)


def test_a_read_moves_the_cursor_to_what_is_not_due_yet() -> None:
    lane = queue_of().lane()
    lane.note_read([record_at(lane, 1), record_at(lane, 2)], key_at(lane, 9), False)
    assert [key for key, _ in lane.ready] == [key_at(lane, 1), key_at(lane, 2)]
    assert (lane.cursor, lane.head_due_ns) == (key_at(lane, 9), 9)
    assert lane.lowest_unsettled() == key_at(lane, 1), "what is in memory holds the checkpoint"


def test_a_read_to_the_end_leaves_nothing_to_wait_for() -> None:
    lane = queue_of().lane()
    lane.note_read([record_at(lane, 1)], None, False)
    assert lane.cursor > key_at(lane, 1)
    assert lane.head_due_ns == NEVER


def test_after_a_read_that_stopped_at_its_limit_the_lane_is_due_again() -> None:
    lane = queue_of().lane()
    lane.note_read([record_at(lane, 1), record_at(lane, 7)], None, True)
    assert lane.head_due_ns <= 7


def test_what_is_in_memory_is_not_read_again() -> None:
    lane = queue_of().lane()
    deliver(lane, key_at(lane, 2))
    fresh = lane.note_read([record_at(lane, 1), record_at(lane, 2), record_at(lane, 3)], None, False)
    assert [key for key, _ in fresh] == [key_at(lane, 1), key_at(lane, 3)]


def test_what_is_read_late_stands_in_due_order_among_what_was_read_ahead() -> None:
    lane = queue_of().lane()
    lane.note_read([record_at(lane, 5), record_at(lane, 6)], None, False)
    lane.note_durable_insert(key_at(lane, 3))
    lane.note_read([record_at(lane, 3), record_at(lane, 5), record_at(lane, 6)], None, False)
    assert [key for key, _ in lane.ready] == [key_at(lane, 3), key_at(lane, 5), key_at(lane, 6)]


def test_an_insert_during_a_read_is_not_passed_by_that_read() -> None:
    """The read may have looked before the insert came, and sets the cursor beyond it."""
    lane = queue_of().lane()
    lane.reading = True
    assert not lane.note_durable_insert(key_at(lane, 4))
    assert lane.lowest_unsettled() <= key_at(lane, 4), "nor by a checkpoint meanwhile"
    lane.note_read([], key_at(lane, 9), False)
    assert (lane.cursor, lane.head_due_ns) == (key_at(lane, 4), 4)


def test_a_lane_that_a_read_did_not_come_to_is_due_as_before_and_has_what_came_meanwhile() -> None:
    lane = queue_of().lane()
    lane.note_durable_insert(key_at(lane, 4))
    deliver(lane, key_at(lane, 2))
    lane.reading = True
    lane.release(key_at(lane, 2))
    lane.note_unread()
    assert (lane.reading, lane.cursor, lane.head_due_ns) == (False, key_at(lane, 4), 4)
    assert lane.unsettled == {}
    lane.reading = True
    lane.note_durable_insert(key_at(lane, 3))
    lane.note_unread()
    assert (lane.cursor, lane.head_due_ns) == (key_at(lane, 3), 3)


def test_a_message_settled_during_a_read_is_not_brought_back_by_it() -> None:
    """The read may have looked before the message went."""
    lane = queue_of().lane()
    deliver(lane, key_at(lane, 4))
    lane.reading = True
    lane.release(key_at(lane, 4))
    assert lane.note_read([record_at(lane, 4)], None, False) == []
    assert (list(lane.ready), lane.unsettled) == ([], {})


def test_a_message_rewritten_in_place_during_a_read_is_read_with_its_new_value() -> None:
    lane = queue_of().lane()
    key = key_at(lane, 4)
    deliver(lane, key)
    lane.reading = True
    lane.release(key)
    lane.note_durable_insert(key)
    assert lane.note_read([(key, b"old")], key_at(lane, 9), False) == []
    assert lane.cursor == key
    lane.note_read([(key, b"new")], None, False)
    assert list(lane.ready) == [(key, b"new")]


# ---- stored form


@checked
@given(
    numbers=st.tuples(U64, U64, U64, U64, U64),
    checkpoints=st.dictionaries(
        st.integers(0, PRIORITIES - 1), st.binary(min_size=SUFFIX_LEN, max_size=SUFFIX_LEN)
    ),
)
def test_a_queue_is_loaded_as_it_was_stored(
    numbers: tuple[int, int, int, int, int], checkpoints: dict[int, bytes]
) -> None:
    stored = queue_of("a.b")
    stored.pending, stored.bytes, stored.dead, stored.dead_bytes, stored.paused_until_ns = numbers
    for priority, suffix in checkpoints.items():
        lane = stored.lane(priority)
        lane.checkpoint = lane.prefix + suffix
    loaded = queue_of("a.b")
    loaded.load(stored.encode())

    assert loaded.encode() == stored.encode()
    assert list(loaded.lanes) == sorted(checkpoints)
    for priority, suffix in checkpoints.items():
        lane = loaded.lanes[priority]
        assert lane.checkpoint == lane.cursor == lane.prefix + suffix
        assert lane.head_due_ns == (0 if stored.pending else NEVER)


@checked
@given(st.binary(max_size=40))
def test_a_stored_checkpoint_is_never_above_the_one_in_memory(suffix: bytes) -> None:
    """A cursor may be longer than a key: it is cut, and cut downwards."""
    stored = queue_of()
    lane = stored.lane()
    lane.checkpoint = lane.prefix + suffix
    loaded = queue_of()
    loaded.load(stored.encode())
    kept = loaded.lane().checkpoint
    assert kept <= lane.checkpoint.ljust(len(kept), b"\x00")
    assert kept.ljust(64, b"\x00") <= lane.checkpoint.ljust(64, b"\x00")


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="queue state version 9; this release knows 1"):
        queue_of().load(b"\x09" + queue_of().encode()[1:])


def test_lanes_stand_in_priority_order_whatever_came_first() -> None:
    queue = queue_of()
    for priority in (4, 9, 0, 5):
        queue.lane(priority)
    assert list(queue.lanes) == [0, 4, 5, 9]
    assert queue.lane(9) is queue.lanes[9]


def test_a_delivery_that_gets_a_key_back_is_not_read_again() -> None:
    """It had that key, lost it while a read was under way, and was re-keyed to it before the read came back."""
    lane = queue_of().lane()
    key = key_at(lane, 5)
    delivery = deliver(lane, key)
    lane.reading = True
    lane.release(key)
    lane.hold(key, delivery)
    lane.note_durable_insert(key)
    assert lane.note_read([record_at(lane, 5)], None, False) == []
    assert lane.unsettled == {key: delivery}
    assert lane.note_read([record_at(lane, 5)], None, False) == []
