"""Durations in Go's notation and instants in RFC 3339, both as whole nanoseconds.

`parse_duration` follows Go's `time.ParseDuration` to the last digit (its fraction arithmetic included),
because clients write what Go's `Duration.String` prints. Everything fits a signed 64-bit count of
nanoseconds: 292 years as a duration, the year 2262 as an instant.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

MAX_NS = 2**63 - 1
NS_PER_S = 1_000_000_000

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, what Go prints
    "μs": 1_000,  # U+03BC, what Go reads too
    "ms": 1_000_000,
    "s": NS_PER_S,
    "m": 60 * NS_PER_S,
    "h": 3_600 * NS_PER_S,
}
_PART = re.compile(r"([0-9]*)(\.([0-9]*))?([^0-9.]+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,100}))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_MAX_TEXT = 200  # characters; a duration or an instant of this length is noise


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration such as `1h30m5s200ms`, `1.5s` or `0`.

    Raises ValueError, with what would be right, for what Go refuses, for negative durations, and above int64.
    """
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    if not rest or len(text) > _MAX_TEXT:
        raise ValueError(f"{_shown(text)} is not a duration; write it like 1h30m, 500ms or 0")
    total_ns, at = 0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            raise ValueError(
                f"{_shown(text)} is not a duration; every number needs a unit: h, m, s, ms, us or ns"
            )
        total_ns += _part_ns(part, text)
        at = part.end()
    if total_ns > MAX_NS:
        raise ValueError(
            f"{_shown(text)} is more than {format_duration(MAX_NS)} (292 years), the longest duration"
        )
    if total_ns and text[0] == "-":
        raise ValueError(f"{_shown(text)} is negative; a duration here is zero or more")
    return total_ns


def _part_ns(part: re.Match[str], text: str) -> int:
    """One `number unit` of a duration in nanoseconds, rounded as Go rounds it."""
    whole, _, fraction, unit = part.groups()
    if not whole and not fraction:
        raise ValueError(f"{_shown(text)} is not a duration; write it like 1h30m, 500ms or 0")
    unit_ns = _UNITS_NS.get(unit)
    if unit_ns is None:
        raise ValueError(
            f"{_shown(text)} has the unknown unit {_shown(unit)}; the units are h, m, s, ms, us and ns"
        )
    return int(whole or "0") * unit_ns + _fraction_ns(fraction or "", unit_ns)


def _fraction_ns(digits: str, unit_ns: int) -> int:
    """Go's `leadingFraction`: digits beyond int64 are dropped; the product is a float64, then truncated."""
    value, scale = 0, 1.0
    for digit in digits:
        if value * 10 + int(digit) > MAX_NS + 1:
            break
        value = value * 10 + int(digit)
        scale *= 10
    return int(float(value) * (float(unit_ns) / scale))


def format_duration(ns: int) -> str:
    """`ns` as Go's `Duration.String` prints it: `1h30m0s`, `1.5s`, `0s`. Raises ValueError when negative."""
    if ns < 0:
        raise ValueError(f"{ns} is negative; a duration here is zero or more")
    if ns == 0:
        return "0s"
    for unit, unit_ns in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if ns < unit_ns * 1_000:
            return _decimal(ns, unit_ns) + unit
    minutes, second_ns = divmod(ns, 60 * NS_PER_S)
    seconds = _decimal(second_ns, NS_PER_S) + "s"
    if not minutes:
        return seconds
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}" if hours else f"{minutes}m{seconds}"


def _decimal(ns: int, unit_ns: int) -> str:
    """`ns / unit_ns` exactly, without trailing zeros."""
    whole, rest = divmod(ns, unit_ns)
    if not rest:
        return str(whole)
    digits = f"{rest:0{len(str(unit_ns)) - 1}d}".rstrip("0")
    return f"{whole}.{digits}"


@lru_cache(maxsize=256)  # what is due in the same second shares it, and it takes most of the time
def _seconds(date: str, clock: str, zone: str) -> int:
    instant = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    return (instant - _EPOCH) // timedelta(seconds=1)


def rfc3339_to_ns(text: str) -> int:
    """Nanoseconds since 1970 of an RFC 3339 instant; digits beyond nanoseconds are dropped.

    Raises ValueError for anything else, for instants before 1970 and after 2262-04-11 (int64 nanoseconds).
    """
    found = _RFC3339.fullmatch(text)
    if found is None:
        raise ValueError(f"{_shown(text)} is not an RFC 3339 time; write it like 2030-01-31T18:30:00Z")
    date, clock, fraction, zone = found.groups()
    try:
        seconds = _seconds(date, clock, zone)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{_shown(text)} is not a time that exists: {error}") from None
    ns = seconds * NS_PER_S + int((fraction or "0")[:9].ljust(9, "0"))
    if not 0 <= ns <= MAX_NS:
        raise ValueError(
            f"{_shown(text)} is outside 1970 to {ns_to_rfc3339(MAX_NS)}, what int64 nanoseconds can hold"
        )
    return ns


def ns_to_rfc3339(ns: int) -> str:
    """An instant in UTC, always with nine digits: texts sort as times do. `2030-01-31T18:30:00.000000000Z`.

    Raises ValueError outside 1970 to 2262 (int64 nanoseconds).
    """
    if not 0 <= ns <= MAX_NS:
        raise ValueError(f"{ns} ns is outside what int64 nanoseconds since 1970 can hold (year 2262)")
    seconds, rest = divmod(ns, NS_PER_S)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _shown(text: str) -> str:
    """`text` for an error message: quoted, escaped, and short."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
