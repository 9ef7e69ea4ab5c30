"""Any bytes at all: refused as malformed, or read as the generated code reads them. Nothing else."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_protocol.envelope import Backoff, build_envelope, read_envelope
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.stats import QueueStats, build_stats

from tests.unit.protocol.oracle import (
    FULL,
    Arrangement,
    Fields,
    arrange,
    build_generated,
    check_envelope,
    check_stats,
)
from tests.unit.protocol.profile import checked

SMALL = Fields(5, 7_000_000_000, 1_000_000, 2, b"q", b"a.b", b"payload")
SEEDS = [
    build_generated(SMALL),
    build_generated(FULL),
    build_generated(Fields()),
    build_envelope(subject="a.b", payload=b"payload", retries=3, backoff=Backoff.FIXED, queue="q"),
    arrange(SMALL, Arrangement(vtable_first=False)),
    arrange(SMALL, Arrangement(order=(6, 5, 4, 3, 2, 1, 0), extra_slots=(8, 1))),
]
STATS = build_stats("instance-1", [QueueStats("default", 3, 1), QueueStats("orders.slow", 2**40, 0)], 10_000)[
    0
]


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_every_truncation_is_refused_or_read_like_the_oracle(seed: bytes) -> None:
    accepted = []
    for size in range(len(seed)):
        read_envelope(seed)  # what was learnt from the whole must not let a part pass
        if check_envelope(seed[:size]) is not None:
            accepted.append(size)
    assert all(size >= len(seed) - 4 for size in accepted)  # only padding and the last NUL may be missing


@pytest.mark.parametrize("seed", [SEEDS[0], SEEDS[3], SEEDS[4]], ids=["generated", "ours", "vtable last"])
def test_every_value_of_every_byte_is_refused_or_read_like_the_oracle(seed: bytes) -> None:
    accepted = 0
    for at in range(len(seed)):
        for value in range(256):
            accepted += check_envelope(seed[:at] + bytes((value,)) + seed[at + 1 :]) is not None
    assert accepted > 256  # what changes a scalar or the payload is still an envelope


@checked
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=8)), max_size=6),
)
def test_overwritten_runs_are_refused_or_read_like_the_oracle(
    seed: bytes, runs: list[tuple[int, bytes]]
) -> None:
    data = bytearray(seed)
    for anywhere, run in runs:
        at = anywhere % len(seed)
        data[at : at + len(run)] = run
    check_envelope(bytes(data))


@checked
@given(st.sampled_from(SEEDS), st.data())
def test_offsets_that_point_anywhere_are_refused_or_read_like_the_oracle(
    seed: bytes, data: st.DataObject
) -> None:
    """Cycles among them: a string may start in the vtable, the vtable in a string, everything in one place."""
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(seed) - 4))
        value = data.draw(st.integers(0, len(seed)) | st.sampled_from((2**31 - 1, 2**31, 2**32 - 1)))
        struct.pack_into("<I", changed, at, value)
    check_envelope(bytes(changed))


@checked
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_read_like_the_oracle(data: bytes) -> None:
    check_envelope(data)
    check_stats(data)


def test_ten_megabytes_of_noise_are_refused_or_read_like_the_oracle() -> None:
    """As one message, and cut into messages, half of which start like an envelope."""
    source = random.Random(3)
    noise = source.randbytes(10 * 2**20)
    assert check_envelope(noise) is None
    at = 0
    while at < len(noise):
        size = source.choice((9, 40, 100, 1_000, 10_000, 65_536))
        piece = noise[at : at + size]
        check_envelope(piece)
        check_envelope(SEEDS[at % len(SEEDS)][: source.randrange(8, 60)] + piece)
        check_stats(STATS[: source.randrange(8, 60)] + piece)
        at += size


def test_noise_does_not_change_how_the_next_envelope_is_read() -> None:
    source = random.Random(5)
    expected = [read_envelope(seed) for seed in SEEDS]
    for _ in range(3_000):
        seed = bytearray(source.choice(SEEDS))
        seed[source.randrange(len(seed))] = source.randrange(256)
        with contextlib.suppress(MalformedMessage):
            read_envelope(bytes(seed))
    assert [read_envelope(seed) for seed in SEEDS] == expected


def test_equal_first_bytes_do_not_hide_a_different_vtable() -> None:
    """Found by fuzzing: a vtable may reach into its own table, beyond the bytes by which a layout is remembered."""

    def with_subject_field_at(slot: int) -> bytes:
        data = bytearray(72)
        struct.pack_into("<IHH2Hi", data, 0, 12, 18, 60, 0, 0, 8)  # root at 12, vtable at 4 of 18 bytes
        struct.pack_into("<2H", data, 16, 0, slot)  # its slots 4 and 5 lie in the table
        struct.pack_into("<II", data, 28, 72 - 28, 80 - 32)  # what the fields at 16 and 20 point to
        return bytes(data) + struct.pack("<I4sI4s", 3, b"a.b", 3, b"c.d")

    one, other = with_subject_field_at(16), with_subject_field_at(20)
    assert one[:16] == other[:16]
    for data, subject in ((one, b"a.b"), (other, b"c.d"), (one, b"a.b")):
        assert read_envelope(data).subject == subject
        assert check_envelope(data) is not None


def test_every_truncation_and_byte_of_stats_is_refused_or_read_like_the_oracle() -> None:
    assert check_stats(STATS) is not None
    for at in range(len(STATS)):
        assert (check_stats(STATS[:at]) is None) is (at < len(STATS) - 1)  # only the last NUL may be missing
        for value in range(256):
            check_stats(STATS[:at] + bytes((value,)) + STATS[at + 1 :])
