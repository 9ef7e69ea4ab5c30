from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_protocol import envelope as envelope_module
from requeue_protocol.envelope import DEFAULT_QUEUE, MAX_U64, Backoff, build_envelope, read_envelope
from requeue_protocol.errors import MalformedMessage

from tests.unit.protocol.oracle import (
    FULL,
    Arrangement,
    Fields,
    arrange,
    as_read,
    as_said,
    build_generated,
    check_envelope,
    generated_fields,
    without,
)
from tests.unit.protocol.profile import checked

u64 = st.integers(0, MAX_U64)
queue_names = st.from_regex(r"[A-Za-z0-9_.\-]{1,128}", fullmatch=True)
subjects = st.lists(
    st.text(
        st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters=".*>"), min_size=1
    ),
    min_size=1,
    max_size=4,
).map(".".join)
backoffs = st.sampled_from((Backoff.UNDEFINED, Backoff.EXPONENTIAL, Backoff.FIXED))
fields_of_any_client = st.builds(
    Fields,
    st.none() | u64,
    st.none() | u64,
    st.none() | u64,
    st.none() | st.integers(0, 2),
    st.none() | st.just(b"") | queue_names.map(str.encode),
    subjects.map(str.encode),
    st.none() | st.binary(max_size=600),
)
arrangements = st.builds(
    Arrangement,
    order=st.permutations(range(7)).map(tuple),
    vtable_first=st.booleans(),
    vtable_gap=st.integers(0, 300),
    extra_slots=st.lists(st.sampled_from((1, 2, 4, 8)), max_size=3).map(tuple),
    cut_vtable=st.booleans(),
    trailing=st.binary(max_size=40),
)


@checked
@given(fields_of_any_client, st.booleans(), st.permutations(range(7)).map(tuple))
def test_reads_every_buffer_that_the_generated_builder_makes(
    fields: Fields, force_defaults: bool, order: tuple[int, ...]
) -> None:
    data = build_generated(fields, force_defaults=force_defaults, order=order)
    assert as_said(data, read_envelope(data)) == as_read(fields)
    assert check_envelope(data) is not None


@checked
@given(fields_of_any_client, arrangements)
def test_reads_a_table_however_another_language_lays_it_out(fields: Fields, how: Arrangement) -> None:
    data = arrange(fields, how)
    assert as_read(generated_fields(data)) == as_read(fields)
    assert as_said(data, read_envelope(data)) == as_read(fields)


@checked
@given(subjects, st.binary(max_size=600), u64, u64, u64, backoffs, st.none() | queue_names)
def test_what_we_build_reads_the_same_by_us_and_by_generated_code(
    subject: str,
    payload: bytes,
    retries: int,
    ttl_ns: int,
    delay_ns: int,
    backoff: Backoff,
    queue: str | None,
) -> None:
    data = build_envelope(
        subject=subject,
        payload=payload,
        retries=retries,
        ttl_ns=ttl_ns,
        delay_ns=delay_ns,
        backoff=backoff,
        queue=queue,
    )
    expected = (retries, ttl_ns, delay_ns, backoff, (queue or "default").encode(), subject.encode(), payload)
    assert as_read(generated_fields(data)) == expected
    assert as_said(data, read_envelope(data)) == expected


@pytest.mark.parametrize("queue_name", [None, b""])
def test_an_absent_or_empty_queue_is_the_default_queue(queue_name: bytes | None) -> None:
    assert read_envelope(build_generated(Fields(queue_name=queue_name))).queue == DEFAULT_QUEUE


def test_an_empty_queue_is_the_default_queue_after_any_number_of_other_queues() -> None:
    for number in range(2000):
        assert (
            read_envelope(build_envelope(subject="a", payload=b"", queue=f"q{number}")).queue == f"q{number}"
        )
        assert read_envelope(build_generated(Fields(queue_name=b""))).queue == DEFAULT_QUEUE


def test_an_absent_payload_is_empty() -> None:
    assert read_envelope(build_generated(Fields(original_payload=None))).payload_len == 0


def test_zeros_are_read_as_zeros_and_left_to_the_worker() -> None:
    envelope = read_envelope(build_generated(Fields()))
    assert (envelope.retries, envelope.ttl_ns, envelope.delay_ns, envelope.backoff) == (
        0,
        0,
        0,
        Backoff.UNDEFINED,
    )


def test_bytes_after_the_envelope_are_ignored() -> None:
    data = build_generated(FULL)
    assert read_envelope(data + b"\xff" * 100) == read_envelope(data)


def test_the_caches_stay_bounded_under_noise() -> None:
    for number in range(5000):
        fields = Fields(queue_name=b"q%d" % number)
        check = arrange(fields, Arrangement(extra_slots=(4,) * (number % 40), vtable_gap=number % 200))
        read_envelope(check)
    for cache in (envelope_module._layouts, envelope_module._shapes, envelope_module._queues):
        assert 0 < len(cache) <= 512


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (without(FULL, "original_subject"), "original_subject is absent"),
        (Fields(original_subject=b""), "original_subject is empty"),
        (Fields(original_subject=b"a.\xff\xfe"), "original_subject is not UTF-8"),
        (Fields(queue_name=b"a b"), "queue name 'a b'; a queue name is 1 to 128 of"),
        (Fields(queue_name=b"\xff"), "queue name"),
        (Fields(queue_name="ü".encode()), "queue name"),
        (Fields(queue_name=b"q" * 129), "queue name"),
        (Fields(queue_name=b"a/b"), "queue name 'a/b'"),
        (Fields(backoff_strategy=3), "backoff_strategy 3; it is 0"),
        (Fields(backoff_strategy=-1), "backoff_strategy -1; it is 0"),
    ],
)
def test_a_field_that_breaks_the_contract_is_refused_with_what_would_be_right(
    fields: Fields, wrong: str
) -> None:
    with pytest.raises(MalformedMessage) as refused:
        read_envelope(build_generated(fields))
    assert wrong in str(refused.value)
    assert "\n" not in str(refused.value)


def patched(offset: int, code: str, value: int) -> bytes:
    """A whole envelope (table at 24, vtable at 6) with one number in it replaced."""
    data = bytearray(
        build_envelope(
            subject="orders.created", payload=b"x" * 40, retries=5, queue="default", backoff=Backoff.FIXED
        )
    )
    struct.pack_into("<" + code, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", "0 bytes are too few"),
        (b"\x04\x00\x00\x00", "4 bytes are too few"),
        (b"\x00" * 64, "a table at byte 0"),
        (b"{" + b'"json": true}' * 9, "a table at byte"),
        (patched(0, "I", 2**32 - 1), "a table at byte 4294967295"),
        (patched(0, "I", 3), "a table at byte 3"),
        (patched(24, "i", 25), "a vtable at byte -1"),
        (patched(24, "i", -(2**31)), "a vtable at byte 2147483672"),
        (patched(24, "i", 0), "a vtable of"),  # its own vtable: the offset is read as two sizes
        (patched(6, "H", 2), "a vtable of 2 bytes"),
        (patched(6, "H", 19), "a vtable of 19 bytes"),
        (patched(6, "H", 65534), "a vtable of 65534 bytes"),
        (patched(8, "H", 3), "a table of 3 bytes"),
        (patched(8, "H", 65535), "a table of 65535 bytes"),
        (patched(10, "H", 2), "field 0 lies outside"),
        (patched(10, "H", 37), "field 0 lies outside"),
        (patched(10, "H", 16), "overlap"),
        (patched(10, "H", 12), "overlap"),
        (patched(24 + 4, "I", 2**32 - 1), "a string or the payload"),
        (patched(24 + 32, "I", 2**32 - 1), "a string or the payload"),
        (patched(24 + 36, "I", 2**32 - 1), "a string or the payload"),
        (patched(68, "I", 2**32 - 1), "queue_name reaches beyond"),
        (patched(80, "I", 2**32 - 1), "original_subject reaches beyond"),
        (patched(100, "I", 41), "original_payload reaches beyond"),
    ],
)
def test_an_offset_or_length_that_leads_outside_is_refused(data: bytes, wrong: str) -> None:
    with pytest.raises(MalformedMessage) as refused:
        read_envelope(data)
    assert wrong in str(refused.value)
    assert check_envelope(data) is None


def test_an_offset_that_points_at_itself_is_read_as_the_generated_code_reads_it() -> None:
    data = patched(24 + 36, "I", 0)  # a payload that starts at its own offset field: length 0
    assert as_said(data, read_envelope(data)) == as_read(generated_fields(data))


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"subject": ""}, "is empty"),
        ({"subject": "a..b"}, "an empty token"),
        ({"subject": "a.*"}, "the wildcard '*'"),
        ({"subject": "a.>"}, "the wildcard '>'"),
        ({"subject": "a b"}, "whitespace"),
        ({"subject": "a\r\nPUB b 0\r\n"}, "whitespace or a control character"),
        ({"subject": "\ud800"}, "surrogates"),
        ({"subject": "s" * 2049}, "2049 bytes; at most 2048"),
        ({"queue": ""}, "queue name ''"),
        ({"queue": "a b"}, "queue name 'a b'"),
        ({"retries": -1}, "retries -1; it is 0 to 2^64-1"),
        ({"retries": MAX_U64 + 1}, "it is 0 to 2^64-1"),
        ({"ttl_ns": -1}, "ttl_ns -1"),
        ({"delay_ns": MAX_U64 + 1}, "delay_ns"),
        ({"backoff": Backoff.LINEAR}, "others go by header"),
        ({"backoff": Backoff.LIST}, "others go by header"),
    ],
)
def test_build_refuses_what_a_worker_would_refuse(arguments: dict[str, object], wrong: str) -> None:
    with pytest.raises(ValueError) as refused:
        build_envelope(**{"subject": "orders", "payload": b"", **arguments})  # type: ignore[arg-type]
    assert wrong in str(refused.value)
