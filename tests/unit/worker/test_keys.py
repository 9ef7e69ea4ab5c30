"""Keys: due order within a queue, and no queue inside another's range."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requeue_worker.record import MAX_TIME_NS
from requeue_worker.storage.keys import (
    ID_LEN,
    PRIORITIES,
    TIME_ID,
    after_prefix,
    dead_key,
    id_of,
    ids_prefix,
    lane_prefix,
    meta_queue_key,
    parse_message_key,
    queue_prefix,
    retimed,
    time_of,
)
from requeue_worker.storage.queues import INVALID_QUEUE

checked = settings(deadline=None)

NAMES = st.text("ABCabz019_.-", min_size=1, max_size=128) | st.just("a" * 128) | st.just(INVALID_QUEUE)
PRIORITY = st.integers(0, PRIORITIES - 1)
TIMES = st.integers(0, MAX_TIME_NS)
EPOCHS = st.binary(min_size=8, max_size=8)
SEQUENCES = st.integers(0, 2**64 - 1)
PARTS = st.tuples(NAMES, PRIORITY, TIMES, EPOCHS, SEQUENCES)


def key_of(name: str, priority: int, time_ns: int, epoch: bytes, sequence: int) -> bytes:
    return lane_prefix(name, priority) + TIME_ID.pack(time_ns, epoch, sequence)


@checked
@given(PARTS)
def test_a_key_says_what_it_was_made_of(parts: tuple[str, int, int, bytes, int]) -> None:
    name, priority, time_ns, epoch, sequence = parts
    key = key_of(*parts)
    message_id = epoch + sequence.to_bytes(8, "big")
    assert parse_message_key(key) == (name, priority, time_ns, message_id)
    assert (time_of(key), id_of(key)) == (time_ns, message_id)


@checked
@given(NAMES, st.lists(st.tuples(PRIORITY, TIMES, EPOCHS, SEQUENCES), max_size=30))
def test_the_keys_of_a_queue_sort_by_priority_then_due_time(
    name: str, parts: list[tuple[int, int, bytes, int]]
) -> None:
    assert sorted(key_of(name, *part) for part in parts) == [key_of(name, *part) for part in sorted(parts)]


@checked
@given(st.lists(PARTS, max_size=40))
def test_every_queue_and_every_lane_is_one_range_that_holds_its_own_keys_alone(
    parts: list[tuple[str, int, int, bytes, int]],
) -> None:
    keys = {key_of(*part): part for part in parts}
    for name, priority, *_ in parts:
        queue, lane = queue_prefix(name), lane_prefix(name, priority)
        in_queue = {key for key in keys if queue <= key < after_prefix(queue)}
        in_lane = {key for key in keys if lane <= key < after_prefix(lane)}
        assert in_queue == {key for key, part in keys.items() if part[0] == name}
        assert in_lane == {key for key, part in keys.items() if part[:2] == (name, priority)}


@checked
@given(PARTS, TIMES)
def test_a_retimed_key_is_the_same_message_in_the_same_lane(
    parts: tuple[str, int, int, bytes, int], time_ns: int
) -> None:
    key = key_of(*parts)
    moved = retimed(key, time_ns)
    assert parse_message_key(moved) == (*parts[:2], time_ns, id_of(key))
    assert (moved < key) == (time_ns < parts[2])


@checked
@given(st.lists(st.tuples(NAMES, TIMES, st.binary(min_size=ID_LEN, max_size=ID_LEN)), max_size=30))
def test_dead_letters_of_a_queue_sort_by_their_death(parts: list[tuple[str, int, bytes]]) -> None:
    keys = {dead_key(*part): part for part in parts}
    for name, *_ in parts:
        prefix = queue_prefix(name)
        own = sorted(key for key in keys if key.startswith(prefix))
        assert [keys[key] for key in own] == sorted({part for part in parts if part[0] == name})
        assert [time_of(key) for key in own] == [keys[key][1] for key in own]


@checked
@given(
    st.binary(min_size=1, max_size=512),
    st.binary(min_size=1, max_size=512),
    st.binary(min_size=ID_LEN, max_size=ID_LEN),
)
def test_the_entries_of_one_client_id_are_never_found_under_another(
    one: bytes, other: bytes, message_id: bytes
) -> None:
    entry = ids_prefix(one) + message_id
    assert ids_prefix(one) <= entry < after_prefix(ids_prefix(one))
    if one != other:
        assert not ids_prefix(other) <= entry < after_prefix(ids_prefix(other))


@checked
@given(st.binary(min_size=1, max_size=20), st.binary(max_size=20))
def test_after_prefix_is_beyond_every_key_with_the_prefix_and_not_beyond_others(
    prefix: bytes, rest: bytes
) -> None:
    if not prefix.strip(b"\xff"):
        with pytest.raises(ValueError, match="no key lies beyond"):
            after_prefix(prefix)
        return
    end = after_prefix(prefix)
    assert prefix + rest < end
    assert rest.startswith(prefix) or not prefix < rest < end


def test_the_state_of_the_refused_messages_queue_cannot_be_named_by_a_client() -> None:
    assert meta_queue_key(INVALID_QUEUE) == b"q$invalid"
