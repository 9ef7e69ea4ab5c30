from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.stats import InstanceStats, QueueStats, build_stats, read_stats

from tests.unit.protocol.oracle import check_stats, flatbuffers, stats_msg
from tests.unit.protocol.profile import checked

i64 = st.integers(-(2**63), 2**63 - 1)
names = st.from_regex(r"[A-Za-z0-9_.\-]{1,128}", fullmatch=True)
queues = st.lists(st.builds(QueueStats, names, i64, i64), max_size=40)


@checked
@given(names, queues, st.integers(0, 3000))
def test_the_parts_hold_every_queue_once_in_order_and_fit(
    instance: str, given_queues: list[QueueStats], max_bytes: int
) -> None:
    parts = build_stats(instance, given_queues, max_bytes)
    read = [check_stats(part) for part in parts]
    assert all(stats is not None and stats.instance_id == instance for stats in read)
    assert [queue for stats in read if stats is not None for queue in stats.queues] == given_queues
    for part, stats in zip(parts, read, strict=True):
        assert stats is not None
        assert len(part) <= max_bytes or len(stats.queues) <= 1


def test_an_instance_without_queues_still_says_that_it_lives() -> None:
    assert [read_stats(part) for part in build_stats("host-1", [], 1000)] == [InstanceStats("host-1", ())]


def test_ten_thousand_queues_are_split_below_a_megabyte() -> None:
    many = [QueueStats("q" * 100 + str(number), number, 1) for number in range(10_000)]
    parts = build_stats("host-1", many, 1_000_000)
    assert len(parts) == 2
    assert max(map(len, parts)) <= 1_000_000
    assert len(parts[0]) > 990_000  # the estimate is close
    assert sum(len(read_stats(part).queues) for part in parts) == 10_000


def test_counts_outside_int64_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit int64"):
        build_stats("host-1", [QueueStats("a", 2**63, 0)], 1000)


def test_int64_fields_are_aligned_for_readers_that_cast() -> None:
    part = build_stats("host-123", [QueueStats("q" * size, 1, 1) for size in range(1, 20)], 10_000)[0]
    message = stats_msg.InstanceStatsMessage.GetRootAs(part, 0)
    for at in range(message.QueuesLength()):
        assert message.Queues(at)._tab.Pos % 8 == 0


def test_what_the_generated_builder_makes_is_read() -> None:
    builder = flatbuffers.Builder(0)
    name = builder.CreateString("default")
    stats_msg.QueueStatsMessageStart(builder)
    stats_msg.QueueStatsMessageAddQueueName(builder, name)
    stats_msg.QueueStatsMessageAddEnqueued(builder, 3)
    queue = stats_msg.QueueStatsMessageEnd(builder)
    stats_msg.QueueStatsMessageStart(builder)
    empty = stats_msg.QueueStatsMessageEnd(builder)
    stats_msg.InstanceStatsMessageStartQueuesVector(builder, 2)
    builder.PrependUOffsetTRelative(empty)
    builder.PrependUOffsetTRelative(queue)
    vector = builder.EndVector()
    stats_msg.InstanceStatsMessageStart(builder)
    stats_msg.InstanceStatsMessageAddQueues(builder, vector)
    builder.Finish(stats_msg.InstanceStatsMessageEnd(builder))
    expected = InstanceStats("", (QueueStats("default", 3, 0), QueueStats("", 0, 0)))
    assert check_stats(bytes(builder.Output())) == expected


def test_a_small_message_that_claims_many_queues_is_refused_at_once() -> None:
    """Every entry may point at the same table: without a bound, a megabyte would read as a terabyte of names."""
    part = bytearray(build_stats("host-1", [QueueStats("a", 1, 1)], 1000)[0])
    vector_at = 32 + struct.unpack_from("<I", part, 32)[0]
    struct.pack_into("<I", part, vector_at, 2**28)
    with pytest.raises(MalformedMessage):
        read_stats(bytes(part) + b"\0" * 2**20)
    struct.pack_into("<I", part, vector_at, (len(part) - vector_at - 4) // 4)
    with pytest.raises(MalformedMessage, match="send each queue's own table"):
        read_stats(bytes(part))


def test_an_overlong_name_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="2000 bytes; at most 1024"):
        read_stats(build_stats("x" * 2000, [], 10_000)[0])
