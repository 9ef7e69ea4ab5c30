"""Results: figures with their units in their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

Figure = float | int | str | None
FAULTS = ("missing", "early")


@dataclass(frozen=True, slots=True)
class Result:
    """What one scenario measured on one system (`requeue`, or a peer; of `growth`: at which backlog)."""

    scenario: str
    system: str
    parameters: dict[str, Figure]
    figures: dict[str, Figure]
    notes: list[str] = field(default_factory=list)


def medians(results: Sequence[Result]) -> list[Result]:
    """One result for each scenario and system: the median of each figure over its runs, faults as their sum."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.scenario, result.system), []).append(result)
    return [_merged(group) for group in groups.values()]


def _merged(group: list[Result]) -> Result:
    first = group[0]
    if len(group) == 1:
        return first
    figures: dict[str, Figure] = {}
    for name in first.figures:
        numbers = [value for each in group if isinstance(value := each.figures.get(name), int | float)]
        figures[name] = (sum(numbers) if name in FAULTS else median(numbers)) if numbers else None
    notes = list(dict.fromkeys(note for each in group for note in each.notes))
    return Result(first.scenario, first.system, {**first.parameters, "runs": len(group)}, figures, notes)


def faults(results: Sequence[Result]) -> list[str]:
    """Say what no figure makes up for: messages that did not come, or came before they were due."""
    return [
        f"{result.scenario} of {result.system}: {count:,} messages were {fault}"
        for result in results
        for fault in FAULTS
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
