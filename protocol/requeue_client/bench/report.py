"""Results as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import IO

from rich.console import Console
from rich.table import Table

from requeue_client.bench.figures import Figure, Result


def machine() -> dict[str, Figure]:
    """What the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "nats_requeue": version("nats-requeue"),
    }


def as_json(results: Sequence[Result], notes: Sequence[str]) -> str:
    """Give one object: machine, notes, results."""
    return json.dumps(
        {"machine": machine(), "notes": list(notes), "results": [asdict(result) for result in results]},
        indent=2,
    )


def print_tables(results: Sequence[Result], notes: Sequence[str], file: IO[str] | None = None) -> None:
    """Print one table per scenario, systems side by side."""
    console = Console(file=file, highlight=False, soft_wrap=True)
    facts = machine()
    console.print(f"{facts['cpus']} CPUs, {facts['machine']}, {facts['system']}, Python {facts['python']}")
    for scenario in dict.fromkeys(result.scenario for result in results):
        group = [result for result in results if result.scenario == scenario]
        console.print(_table(scenario, group))
        for result in group:
            for note in result.notes:
                console.print(f"  note ({result.system}): {note}")
    for note in notes:
        console.print(f"note: {note}")


def _table(scenario: str, group: Sequence[Result]) -> Table:
    parameters = ", ".join(f"{name} {_shown(value)}" for name, value in group[0].parameters.items())
    table = Table(title=f"{scenario} ({parameters})", title_justify="left", title_style="bold")
    table.add_column("figure")
    for result in group:
        table.add_column(result.system, justify="right")
    names = dict.fromkeys(name for result in group for name in result.figures)
    for name in names:
        table.add_row(name, *(_shown(result.figures.get(name)) for result in group))
    return table


def _shown(value: Figure) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:g}"
    return value
