"""Results: figures with their units in their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Figure = float | int | str | None


@dataclass(frozen=True, slots=True)
class Result:
    """What one scenario measured on one system (`requeue`, or a peer; of `growth`: at which backlog)."""

    scenario: str
    system: str
    parameters: dict[str, Figure]
    figures: dict[str, Figure]
    notes: list[str] = field(default_factory=list)


def faults(results: Sequence[Result]) -> list[str]:
    """Say what no figure makes up for: messages that did not come, or came before they were due."""
    return [
        f"{result.scenario} of {result.system}: {count:,} messages were {fault}"
        for result in results
        for fault in ("missing", "early")
        if isinstance(count := result.figures.get(fault), int) and count > 0
    ]


def percentile(sorted_values: Sequence[float], share: float) -> float | None:
    """Give the value below which `share` (0 to 1) of the sorted values lie: the nearest rank."""
    if not sorted_values:
        return None
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def spread_ms(name: str, values_ns: Sequence[int]) -> dict[str, Figure]:
    """Give p50, p99 and max of values in ns as `<name>_p50_ms`, ..."""
    ordered = sorted(values_ns)
    return {
        f"{name}_p50_ms": _ms(percentile(ordered, 0.5)),
        f"{name}_p99_ms": _ms(percentile(ordered, 0.99)),
        f"{name}_max_ms": _ms(ordered[-1] if ordered else None),
    }


def _ms(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1e6, 3)
