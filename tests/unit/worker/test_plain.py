"""What is remembered of header blocks reads as what is read anew, and one that differs in more than its instant is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_protocol.errors import MalformedMessage
from requeue_worker import plain
from requeue_worker.plain import PlainBlocks, PlainHeading

AT = b"2030-01-31T18:30:00.000000001Z"
LATER = b"2031-12-31T08:30:00.000000002Z"


def block(*lines: bytes) -> bytes:
    return b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def heading(blocks: PlainBlocks, headers: bytes) -> tuple[PlainHeading, int | None]:
    said, at_ns = blocks.read(headers)
    assert isinstance(said, PlainHeading)
    return said, at_ns


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Blocks that were read from end to end."""
    whole: list[bytes] = []
    read = plain.read_intake_headers
    monkeypatch.setattr(
        plain, "read_intake_headers", lambda headers: (whole.append(headers), read(headers))[1]
    )
    return whole


def test_blocks_that_differ_in_their_instant_alone_are_read_once(reads: list[bytes]) -> None:
    blocks = PlainBlocks()
    first, second = (block(b"Requeue-Subject: a.b", b"Requeue-At: " + at, b"X: y") for at in (AT, LATER))
    assert heading(blocks, first)[1] == plain.read_at(AT)
    assert heading(blocks, second) == heading(PlainBlocks(), second)
    assert heading(blocks, second)[1] == plain.read_at(LATER)
    assert reads == [first, second], "the second one by the fresh reader alone"


def test_the_blocks_of_ten_thousand_queues_are_remembered(reads: list[bytes]) -> None:
    blocks = PlainBlocks()
    for at in (AT, LATER):
        for number in range(10_000):
            blocks.read(block(b"Requeue-Subject: a", b"Requeue-Queue: q%d" % number, b"Requeue-At: " + at))
    assert len(reads) == 10_000


def test_blocks_that_never_come_twice_take_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_KEPT_BYTES", 100_000)
    blocks = PlainBlocks()
    for number in range(1000):
        blocks.read(block(b"Requeue-Subject: a", b"Traceparent: %d" % number))
        blocks.read(block(b"Requeue-Subject: a", b"Traceparent: %d" % number, b"Requeue-At: " + AT))
        assert 700 * len(blocks._known) < 100_000


def test_a_subject_that_stands_in_the_instant_is_found_where_it_is() -> None:
    blocks = PlainBlocks()
    for at in (AT, LATER):
        headers = block(b"Requeue-At: " + at, b"Requeue-Subject: 2030-01-31T18:30:00")
        assert heading(blocks, headers) == heading(PlainBlocks(), headers)


def test_an_instant_that_is_none_is_refused_as_ever() -> None:
    blocks = PlainBlocks()
    heading(blocks, block(b"Requeue-Subject: a", b"Requeue-At: " + AT))
    for wrong in (b"2030-02-31T18:30:00.000000001Z", AT[:-3] + b"\n1Z", b"\xff" * len(AT)):
        with pytest.raises(MalformedMessage) as refusal:
            blocks.read(block(b"Requeue-Subject: a", b"Requeue-At: " + wrong))
        with pytest.raises(MalformedMessage) as anew:
            PlainBlocks().read(block(b"Requeue-Subject: a", b"Requeue-At: " + wrong))
        assert str(refusal.value) == str(anew.value)


INSTANTS = st.sampled_from([AT, LATER, b"2030-01-31T18:30:00Z", b" " + AT, b"2030", b"", b"a"])
LINES = st.sampled_from(
    [b"Requeue-Subject: ", b"requeue-at:", b"Requeue-At: ", b"Requeue-Queue: ", b"X: Requeue-At: "]
)


@given(st.lists(st.lists(st.tuples(LINES, INSTANTS), max_size=4).map(tuple), max_size=8))
def test_what_is_remembered_changes_nothing(messages: list[tuple[tuple[bytes, bytes], ...]]) -> None:
    blocks = PlainBlocks()
    for lines in messages:
        headers = block(b"Requeue-Subject: a", *(name + value for name, value in lines))
        try:
            anew = PlainBlocks().read(headers)
        except MalformedMessage as error:
            with pytest.raises(MalformedMessage, match=r".") as refusal:
                blocks.read(headers)
            assert str(refusal.value) == str(error)
        else:
            assert blocks.read(headers) == anew
