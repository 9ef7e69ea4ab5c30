"""What was learnt of one envelope holds for the next: the same heading as without any memory, or the same refusal."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requeue_protocol.envelope import build_envelope, known_layout, read_envelope
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.frames import frame_place
from requeue_worker import envelopes as envelopes_module
from requeue_worker.envelopes import Envelopes, Heading, heading_of

from tests.unit.protocol.oracle import FULL, Arrangement, Fields, arrange, build_generated
from tests.unit.protocol.test_envelope import arrangements, fields_of_any_client


@pytest.fixture
def learn_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes_module, "_LEARN_EVERY", 1)


def said(read: Callable[[bytes], object], data: bytes) -> object:
    try:
        return read(data)
    except MalformedMessage as error:
        return str(error)


def with_memory(envelopes: Envelopes) -> Callable[[bytes], object]:
    def read(data: bytes) -> Heading:
        head, delay_ns, frame = envelopes.read(data)
        return Heading(head, delay_ns, frame.ttl_ns, frame.queue, frame.subject)

    return read


def without_memory(data: bytes) -> object:
    return said(lambda data: heading_of(read_envelope(data)), data)


changes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4)


def changed(data: bytes, where: list[tuple[int, int]], cut: int) -> bytes:
    array = bytearray(data)
    for at, byte in where:
        if array:
            array[at % len(array)] = byte
    return bytes(array[: max(len(array) - cut, 0)])


@settings(max_examples=300)
@given(fields_of_any_client, arrangements, st.lists(st.tuples(changes, st.integers(0, 9)), max_size=8))
def test_what_was_learnt_says_the_same_as_reading_anew(
    fields: Fields, how: Arrangement, variants: list[tuple[list[tuple[int, int]], int]]
) -> None:
    envelopes = Envelopes()
    for data in (arrange(fields, how), build_generated(fields)):
        for variant in (data, *[changed(data, where, cut) for where, cut in variants], data):
            for _ in range(2):
                assert said(with_memory(envelopes), variant) == without_memory(variant)


def test_a_payload_that_is_the_subject_teaches_nothing() -> None:
    data = bytearray(build_envelope(subject="orders.created", payload=bytes(40), queue="default"))
    (subject_off,) = struct.unpack_from("<I", data, 24 + 32)
    struct.pack_into("<I", data, 24 + 36, subject_off - 4)  # both hang on one string
    other = bytes(data).replace(b"orders.created", b"orders.removed")

    assert frame_place(bytes(data), read_envelope(bytes(data))) is None
    envelopes = Envelopes()
    assert said(with_memory(envelopes), bytes(data)) == without_memory(bytes(data))
    assert said(with_memory(envelopes), other) == without_memory(other)


def test_a_payload_inside_the_table_teaches_nothing() -> None:
    how = Arrangement(
        order=(6, 0, 1, 2, 3, 4, 5)
    )  # the payload's field first: what follows it has fields too
    fields = replace(FULL, retries=8, ttl=1)
    data = bytearray(arrange(fields, how))
    read_envelope(bytes(data))
    layout = known_layout(bytes(data))
    assert layout is not None
    retries_at = data.index(struct.pack("<Q", 8), layout.root)
    struct.pack_into("<I", data, layout.payload_from, retries_at - layout.payload_from)  # length 8: over ttl
    other = bytes(data).replace(struct.pack("<Q", 1), struct.pack("<Q", 2))
    assert other != bytes(data)

    assert frame_place(bytes(data), read_envelope(bytes(data))) is None
    envelopes = Envelopes()
    assert said(with_memory(envelopes), bytes(data)) == without_memory(bytes(data))
    assert said(with_memory(envelopes), other) == without_memory(other)


def test_payload_and_delay_differ_and_the_frame_is_known() -> None:
    envelopes = Envelopes()
    for number in range(3):
        envelopes.read(build_envelope(subject="a", payload=b"%d" % number, delay_ns=number, queue="q"))

    assert frames_in(envelopes) == 1
    heading = said(with_memory(envelopes), build_envelope(subject="a", payload=b"x", delay_ns=7, queue="q"))
    assert heading == without_memory(build_envelope(subject="a", payload=b"y", delay_ns=7, queue="q"))


def test_a_cut_payload_is_refused_although_its_frame_is_known() -> None:
    envelopes = Envelopes()
    data = build_envelope(subject="a", payload=b"0123456789", queue="q")
    envelopes.read(data)

    with pytest.raises(MalformedMessage):
        envelopes.read(data[:-1])


def frames_in(envelopes: Envelopes) -> int:
    return sum(len(shape.known) for shape in envelopes._by_size.values())


@pytest.mark.usefixtures("learn_all")
def test_the_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes_module, "_FRAMES_BYTES", 8 * 900)
    envelopes = Envelopes()
    for number in range(100):
        envelopes.read(build_envelope(subject=f"a.{number}", payload=b"x" * 5000, queue="q"))

    assert 1 <= frames_in(envelopes) <= 16
    assert frames_in(envelopes) * 450 < envelopes._frames_bytes <= 8 * 900


@pytest.mark.usefixtures("learn_all")
def test_a_frame_that_is_large_takes_as_much_room_as_many_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes_module, "_FRAMES_BYTES", 5000)
    envelopes = Envelopes()
    for number in range(100):
        envelopes.read(build_envelope(subject=f"a.{number:03}." + "x" * 2000, payload=b"", queue="q"))

    assert frames_in(envelopes) == 1


def test_the_frames_of_ten_thousand_queues_are_remembered() -> None:
    envelopes = Envelopes()
    for number in range(10_000):
        envelopes.read(build_envelope(subject="orders.created", payload=b"", queue=f"customer-{number}"))

    assert frames_in(envelopes) == 10_000


def test_envelopes_of_which_none_comes_twice_are_mostly_not_learnt_once_there_was_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(envelopes_module, "_FRAMES_BYTES", 100 * 600)
    envelopes = Envelopes()
    frames = []
    for number in range(400):
        envelopes.read(build_envelope(subject=f"a.{number:03}", payload=b"", queue="q"))
        frames.append(frames_in(envelopes))

    full = frames.index(max(frames))
    assert frames[:full] == list(range(1, full + 1)), "each is learnt while there is room"
    assert frames[-1] == pytest.approx((400 - full) / envelopes_module._LEARN_EVERY, abs=2)


def test_an_envelope_without_payload_has_no_place() -> None:
    data = build_generated(Fields(original_payload=None))
    assert frame_place(data, read_envelope(data)) is None
    full = build_generated(FULL)
    assert frame_place(full, read_envelope(full)) is not None
