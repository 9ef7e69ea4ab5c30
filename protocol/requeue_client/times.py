"""Durations and instants as callers write them, as whole nanoseconds as the wire has them.

A duration is a `timedelta`, a Go duration (`"1m30s"`, `"500ms"`) or an int of nanoseconds. An instant is an
aware `datetime`, an RFC 3339 text or an int of nanoseconds since 1970. A positive int below one millisecond
is refused: it nearly always meant seconds (`delay=30`), and would mean "at once"; `"30ns"` says it on
purpose.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from requeue_protocol.durations import MAX_NS, NS_PER_S, parse_duration, rfc3339_to_ns

Duration = timedelta | str | int
Instant = datetime | str | int

_NS_PER_MS = 1_000_000
_NS_PER_US = 1_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def duration_ns(value: Duration, name: str) -> int:
    """Give `value` in nanoseconds. Raises ValueError or TypeError: `name`, and what would be right."""
    if isinstance(value, timedelta):
        ns = value // timedelta(microseconds=1) * _NS_PER_US
    elif isinstance(value, str):
        try:
            ns = parse_duration(value)
        except ValueError as wrong:
            raise ValueError(f"{name}: {wrong}") from None
    elif isinstance(value, int) and not isinstance(value, bool):
        if 0 < value < _NS_PER_MS:
            raise ValueError(
                f"{name}={value} means {value} ns; for seconds write '{value}s' or timedelta(seconds={value})"
            )
        ns = value
    else:
        raise TypeError(f"{name}={value!r}; a duration is a timedelta, a text like '1m30s', or an int of ns")
    if not 0 <= ns <= MAX_NS:
        raise ValueError(f"{name}={value!r} is out of range; a duration is 0 to 292 years")
    return ns


def duration_s(value: Duration, name: str) -> float:
    """Give `value` in seconds, for a wait: more than zero. Raises ValueError as `duration_ns`."""
    ns = duration_ns(value, name)
    if ns == 0:
        raise ValueError(f"{name}=0; a time to wait is more than zero")
    return ns / NS_PER_S


def instant_ns(value: Instant, name: str) -> int:
    """Give `value` in nanoseconds since 1970. Raises ValueError, naming the argument `name`."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(
                f"{name}={value!r} has no time zone; use datetime.now(UTC) + ... or an aware datetime"
            )
        ns = (value - _EPOCH) // timedelta(microseconds=1) * _NS_PER_US
    elif isinstance(value, str):
        try:
            ns = rfc3339_to_ns(value)
        except ValueError as wrong:
            raise ValueError(f"{name}: {wrong}") from None
    elif isinstance(value, int) and not isinstance(value, bool):
        ns = value
    else:
        raise TypeError(
            f"{name}={value!r}; an instant is an aware datetime, RFC 3339 text, or an int of ns since 1970"
        )
    if not 0 <= ns <= MAX_NS:
        raise ValueError(f"{name}={value!r} is out of range; an instant is from 1970 to 2262")
    return ns
