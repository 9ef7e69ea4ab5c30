"""Table and plots of docs/benchmarks.md, from what `requeue bench --json` measured (docs/benchmarks/*.json).

python -m tests.performance.render    # or `make bench-docs`
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.performance.plots import bars, lines

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/benchmarks.md"
FIGURES = ROOT / "docs/benchmarks"
_BEGIN, _END = "<!-- figures: made by make bench-docs -->", "<!-- end of figures -->"


@dataclass(frozen=True, slots=True)
class Target:
    """A row: what the project wants of a figure. `title` has holes for the parameters of the measurement."""

    file: str
    scenario: str
    figure: str
    title: str
    target: float
    more: bool = False  #: is better
    over_fsync: bool = False  #: less what one fsync cost in the same run


ROWS = (
    Target("ingest", "ingest", "rate_per_s", "durable ingest, window {window:,}, messages/s", 90_000, more=True),
    Target("replay", "replay", "rate_per_s", "replay and settle, messages/s", 120_000, more=True),
    Target("replay", "replay", "all_after_due_ms", "{n:,} due at one instant: the last after, ms", 1_500),
    Target("both", "both", "both_per_s", "both at once, messages/s each way", 45_000, more=True),
    Target("both", "both", "worker_cpu_us_per_msg", "CPU of the worker for a message's whole life, µs", 20),
    Target("ack", "ack", "ack_p50_ms", "ack at {rate_per_s:,.0f} messages/s, p50, over one fsync, ms", 1, over_fsync=True),
    Target("ack", "ack", "ack_p99_ms", "ack at {rate_per_s:,.0f} messages/s, p99, ms", 5),
    Target("growth", "growth", "lateness_p50_ms", "lateness at {rate_per_s:,.0f}/s over {backlog:,} pending, p50, ms", 2),
    Target("growth", "growth", "lateness_p99_ms", "the same, p99, ms", 10),
    Target("headofline", "headofline", "lateness_p99_ms", "lateness beside a stuck queue with {backlog:,} due, p99, ms", 50),
    Target("startup", "startup", "first_replay_s", "start to first replay over {backlog:,} pending, s", 2),
    Target("growth", "growth", "worker_peak_rss_mb", "memory at {backlog:,} pending in {queues:,} queues, MB", 300),
    Target("growth", "growth", "disk_share", "disk for that, of payloads and keys", 1.3),
)  # fmt: skip

#: file of growth, and over what
GROWTH = (
    ("growth", "worse with more pending by"),
    ("growth-queues", "worse with more queues by"),
    ("growth-queues-busy", "the same, both cores full"),
)
PANELS = (
    ("ingest, messages/s", "ingest_per_s"),
    ("replay, messages/s", "replay_per_s"),
    ("lateness p50, ms", "lateness_p50_ms"),
    ("memory of the worker, MB", "worker_rss_mb"),
)


def measured(name: str) -> dict[str, Any]:
    """What a file says: machine, notes, results."""
    content: dict[str, Any] = json.loads((FIGURES / f"{name}.json").read_text())
    return content


def result_of(name: str, scenario: str) -> dict[str, Any]:
    """The result of requeue in a file: of growth that at the largest backlog."""
    for result in reversed(measured(name)["results"]):
        if result["scenario"] == scenario and (scenario == "growth" or result["system"] == "requeue"):
            return dict(result)
    raise LookupError(f"{name}.json has no {scenario} of requeue")


def table() -> str:
    """Target, figure and whether it is reached, for each row whose file is there."""
    said = ["| figure | target | measured | |", "|---|---:|---:|---|"]
    said += [row(each) for each in ROWS if (FIGURES / f"{each.file}.json").exists()]
    return "\n".join(said)


def row(wanted: Target) -> str:
    """One target, and what was measured."""
    result = result_of(wanted.file, wanted.scenario)
    value, made_of = result["figures"][wanted.figure], ""
    if wanted.over_fsync:
        whole, fsync = value, result["figures"]["fsync_p50_ms"]
        value, made_of = whole - fsync, f" ({_shown(whole)} less an fsync of {_shown(fsync)})"
    verdict = (
        "reached" if (value >= wanted.target if wanted.more else value <= wanted.target) else "not reached"
    )
    title = wanted.title.format(**result["parameters"])
    sign = "≥" if wanted.more else "≤"
    return f"| {title} | {sign} {wanted.target:,} | {_shown(value)}{made_of} | {verdict} |"


def peers() -> str:
    """Rates and latencies of all systems, with the parameters that they share."""
    said = ["| scenario | system | messages/s | ack p50, ms | ack p99, ms |", "|---|---|---:|---:|---:|"]
    for file in ("ingest", "ingest-synced", "replay", "replay-synced"):
        if not (FIGURES / f"{file}.json").exists():
            continue
        for result in measured(file)["results"]:
            figures, n = result["figures"], result["parameters"]["n"]
            latencies = " | ".join(_shown(figures.get(name)) for name in ("ack_p50_ms", "ack_p99_ms"))
            title = f"{result['scenario']} of {n:,}"
            said.append(f"| {title} | {result['system']} | {figures['rate_per_s']:,.0f} | {latencies} |")
    return "\n".join(said)


def growth() -> str:
    """Rates, lateness, memory and disk at each backlog, then at each number of queues, and what became worse by how much."""
    rates, rest = ("ingest_per_s", "replay_per_s"), ("lateness_p50_ms", "lateness_p99_ms", "worker_rss_mb")
    said = [
        "| pending | queues | ingest/s | replay/s | due/s | lateness p50, ms | p99, ms | memory, MB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    worse = ["| from the smallest to the largest | ingest | replay | lateness p50 |", "|---|---:|---:|---:|"]
    for file, title in GROWTH:
        if not (FIGURES / f"{file}.json").exists():
            continue
        results = measured(file)["results"]
        for result in results:
            load, figures = result["parameters"], result["figures"]
            cells = [
                f"{load['backlog']:,}",
                f"{load['queues']:,}",
                *(_shown(figures[name]) for name in rates),
            ]
            cells += [f"{load['rate_per_s']:,.0f}", *(_shown(figures[name]) for name in rest)]
            said.append(f"| {' | '.join(cells)} |")
        first, last = results[0]["figures"], results[-1]["figures"]
        factors = [first[name] / last[name] for name in rates] + [last[rest[0]] / first[rest[0]]]
        worse.append(f"| {title} | {' | '.join(f'{factor:.2f} times' for factor in factors)} |")
    return "\n".join([*said, "", *worse])


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def plots() -> dict[str, str]:
    """File name and SVG of each plot."""
    rates = {}
    for file in ("ingest", "ingest-synced"):
        for result in measured(file)["results"] if (FIGURES / f"{file}.json").exists() else []:
            if result["system"] != "requeue" or file == "ingest":
                rates[result["system"]] = result["figures"]["rate_per_s"]
    return {
        "ingest.svg": bars("Acknowledged messages per second", "/s", rates),
        "growth.svg": lines("As the backlog grows", "messages pending", panels("growth", "backlog")),
        "growth-queues.svg": lines("As queues become more", "queues", panels("growth-queues", "queues")),
    }


def panels(file: str, over: str) -> dict[str, list[tuple[float, float]]]:
    """Each figure of growth over one of its parameters."""
    results = measured(file)["results"] if (FIGURES / f"{file}.json").exists() else []
    return {
        title: [(float(each["parameters"][over]), float(each["figures"][name])) for each in results]
        for title, name in PANELS
    }


def document() -> str:
    """The document with its figures as they were measured."""
    before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{table()}\n\n{peers()}\n\n{growth()}\n\n{_END}{after}"


def main() -> None:
    """Write the document and its plots."""
    DOCUMENT.write_text(document())
    for name, svg in plots().items():
        (FIGURES / name).write_text(svg)


if __name__ == "__main__":
    main()
