from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requeue_protocol.durations import (
    MAX_NS,
    format_duration,
    ns_to_rfc3339,
    parse_duration,
    rfc3339_to_ns,
)

from tests.unit.protocol.profile import checked

GO = json.loads((Path(__file__).parent / "golden" / "go_time.json").read_text())
"""What Go's `time` package says: `golden/README.md` tells how it was made."""


@pytest.mark.parametrize(("text", "go_ns"), GO["parse_duration"])
def test_a_duration_is_read_as_go_reads_it(text: str, go_ns: int | None) -> None:
    if go_ns is None or go_ns < 0:
        with pytest.raises(ValueError):
            parse_duration(text)
    else:
        assert parse_duration(text) == go_ns


@pytest.mark.parametrize(("ns", "go_text"), GO["format_duration"])
def test_a_duration_is_printed_as_go_prints_it(ns: int, go_text: str) -> None:
    assert format_duration(ns) == go_text


@pytest.mark.parametrize(("text", "go_ns"), GO["parse_rfc3339"])
def test_an_instant_is_read_as_go_reads_it(text: str, go_ns: int | None) -> None:
    if go_ns is None:
        with pytest.raises(ValueError):
            rfc3339_to_ns(text)
    else:
        assert rfc3339_to_ns(text) == go_ns


@checked
@given(st.integers(0, MAX_NS))
def test_what_is_printed_reads_back(ns: int) -> None:
    assert parse_duration(format_duration(ns)) == ns
    assert rfc3339_to_ns(ns_to_rfc3339(ns)) == ns


@checked
@given(st.integers(0, MAX_NS), st.integers(0, MAX_NS))
def test_printed_instants_sort_as_the_instants_do(one_ns: int, other_ns: int) -> None:
    assert (ns_to_rfc3339(one_ns) < ns_to_rfc3339(other_ns)) == (one_ns < other_ns)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "'' is not a duration; write it like 1h30m, 500ms or 0"),
        ("5", "'5' is not a duration; every number needs a unit: h, m, s, ms, us or ns"),
        ("soon", "'soon' is not a duration"),
        ("5d", "'5d' has the unknown unit 'd'; the units are h, m, s, ms, us and ns"),
        ("-5s", "'-5s' is negative; a duration here is zero or more"),
        (
            "2562047h47m16.854775808s",
            "is more than 2562047h47m16.854775807s (292 years), the longest duration",
        ),
        ("1" * 1000 + "s", "is not a duration"),
    ],
)
def test_a_wrong_duration_is_refused_with_what_is_right(text: str, wrong: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_duration(text)
    assert wrong in str(refused.value)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("tomorrow", "'tomorrow' is not an RFC 3339 time; write it like 2030-01-31T18:30:00Z"),
        ("2030-02-30T00:00:00Z", "'2030-02-30T00:00:00Z' is not a time that exists"),
        ("1969-12-31T23:59:59Z", "is outside 1970 to 2262-04-11T23:47:16.854775807Z"),
        ("1970-01-01T00:00:00+01:00", "is outside 1970"),
        ("2262-04-11T23:47:16.854775808Z", "is outside 1970 to 2262-04-11T23:47:16.854775807Z"),
        ("9999-12-31T23:59:59-23:59", "is"),
        ("0001-01-01T00:00:00+01:00", "is"),
        ("٢٠٣٠-01-31T18:30:00Z", "is not an RFC 3339 time"),
    ],
)
def test_a_wrong_instant_is_refused_with_what_is_right(text: str, wrong: str) -> None:
    with pytest.raises(ValueError) as refused:
        rfc3339_to_ns(text)
    assert wrong in str(refused.value)


def test_lower_case_marks_and_offsets_are_read() -> None:
    assert rfc3339_to_ns("2030-01-31t18:30:00z") == rfc3339_to_ns("2030-01-31T20:30:00+02:00")


@pytest.mark.parametrize("ns", [-1, MAX_NS + 1])
def test_an_instant_outside_int64_is_not_printed(ns: int) -> None:
    with pytest.raises(ValueError, match="2262"):
        ns_to_rfc3339(ns)


def test_a_negative_duration_is_not_printed() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_duration(-1)


@checked
@given(
    st.text(max_size=40)
    | st.from_regex(r"[+-]?([0-9]{0,25}(\.[0-9]{0,25})?(ns|us|µs|ms|s|m|h|x)){0,4}", fullmatch=True)
)
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        ns = parse_duration(text)
    except ValueError:
        return
    assert 0 <= ns <= MAX_NS


@checked
@given(
    st.text(max_size=40)
    | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\.[0-9]{1,12})?[+-][0-9:]{5}", fullmatch=True)
)
def test_any_text_is_an_instant_or_a_value_error(text: str) -> None:
    try:
        ns = rfc3339_to_ns(text)
    except ValueError:
        return
    assert 0 <= ns <= MAX_NS
