from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from requeue_client.times import duration_ns, duration_s, instant_ns


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        (timedelta(days=2, microseconds=3), 172_800_000_003_000),
        ("1m30s", 90_000_000_000),
        ("30ns", 30),
        (1_500_000_000, 1_500_000_000),
        (0, 0),
        (timedelta(0), 0),
    ],
)
def test_a_duration_is_timedelta_text_or_nanoseconds(value: timedelta | str | int, ns: int) -> None:
    assert duration_ns(value, "delay") == ns


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (30, "for seconds write '30s'"),
        (-1, "out of range"),
        (2**63, "out of range"),
        (timedelta(seconds=-1), "out of range"),
        ("ten", "delay: 'ten'"),
        (1.5, "a text like '1m30s'"),
        (True, "a text like '1m30s'"),
    ],
)
def test_a_wrong_duration_says_what_is_right(value: timedelta | str | int, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        duration_ns(value, "delay")


def test_a_time_to_wait_is_never_zero() -> None:
    assert duration_s("1.5s", "timeout") == 1.5
    with pytest.raises(ValueError, match="more than zero"):
        duration_s(timedelta(0), "timeout")


@pytest.mark.parametrize(
    "value",
    [
        datetime(2030, 1, 1, tzinfo=UTC),
        datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
        "2030-01-01T00:00:00Z",
        1_893_456_000_000_000_000,
    ],
)
def test_an_instant_is_datetime_text_or_nanoseconds(value: datetime | str | int) -> None:
    assert instant_ns(value, "at") == 1_893_456_000_000_000_000


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (datetime(2030, 1, 1), "no time zone"),
        (datetime(1960, 1, 1, tzinfo=UTC), "out of range"),
        ("tomorrow", "at: 'tomorrow'"),
        (1.5, "an aware datetime"),
    ],
)
def test_a_wrong_instant_says_what_is_right(value: datetime | str | int, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        instant_ns(value, "at")
