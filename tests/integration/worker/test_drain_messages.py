"""What a drain and a worker say to each other: as it was said, whatever the size of a message, and never garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_worker.drain.messages import (
    Answer,
    Luggage,
    MalformedHandover,
    Part,
    Request,
    Verb,
    pack_page,
    unpack_page,
)
from requeue_worker.storage.pages import Mark

UIDS = st.binary(min_size=16, max_size=16)
MARKS = st.builds(Mark, st.integers(0, 2), st.binary(max_size=160))
KEYS = st.binary(max_size=40)


def joined(request: Request, max_payload: int) -> Request:
    """As a worker reads it."""
    messages = request.parts(max_payload)
    assert all(len(message) <= max_payload for message in messages)
    parts = [Part.parse(message) for message in messages]
    assert [part.number for part in parts] == list(range(parts[-1].parts))
    return Request.read(parts[-1], b"".join(part.piece for part in parts))


@given(UIDS, UIDS, MARKS, MARKS, st.binary(max_size=3000), st.integers(200, 4000))
def test_a_request_is_read_as_it_was_whatever_the_size_of_a_message(
    source: bytes, target: bytes, after: Mark, mark: Mark, body: bytes, max_payload: int
) -> None:
    request = Request(Verb.PAGE, source, target, b"session1", "w-2", -5, after, mark, body)
    assert joined(request, max_payload) == request


@given(st.lists(st.tuples(KEYS, st.binary(max_size=300)), max_size=20), st.lists(KEYS, max_size=5))
def test_a_page_is_unpacked_as_it_was_packed(
    records: list[tuple[bytes, bytes]], unpublished: list[bytes]
) -> None:
    assert unpack_page(pack_page(records, unpublished)) == (records, unpublished)


@given(MARKS | st.none(), st.booleans(), st.booleans(), st.integers(0, 600), st.text(max_size=20))
def test_an_answer_is_read_as_it_was(
    mark: Mark | None, room: bool, more: bool, code: int, error: str
) -> None:
    answer = Answer("w-1", bytes(16), 1_700_000_000, mark, 7, room, 3, more, code, error)
    assert Answer.parse(answer.encode()) == answer


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 2**63)), st.dictionaries(UIDS, MARKS))
def test_luggage_is_read_as_it_was(paused: dict[str, int], marks: dict[bytes, Mark]) -> None:
    luggage = Luggage(paused, marks)
    assert Luggage.parse(luggage.encode()) == luggage


@given(st.binary(max_size=200))
def test_garbage_is_malformed_and_nothing_else(garbage: bytes) -> None:
    readers = (
        Part.parse,
        Answer.parse,
        Luggage.parse,
        unpack_page,
        lambda raw: Request.read(Part(bytes(16), bytes(16), bytes(8), 0, 1, b""), raw),
    )
    for read in readers:
        try:
            read(garbage)
        except MalformedHandover:
            continue


def test_a_newer_version_is_told() -> None:
    with pytest.raises(MalformedHandover, match="handover version 9; this release knows 1"):
        Part.parse(b"\x09" + bytes(80))
