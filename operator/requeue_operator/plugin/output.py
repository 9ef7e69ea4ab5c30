"""Output as kubectl has it: columns, JSON or YAML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import click
import yaml

from requeue_operator.drains.claim import parse_time

Format = Literal["table", "json", "yaml"]
Row = dict[str, Any]


def dump(value: object, form: Format) -> None:
    """Print a value as JSON or YAML."""
    if form == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "") -> None:
    """Print columns, as wide as what is in them; the last one runs on."""
    texts = [list(heads), *([printable(each) for each in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(heads))]
    for row in texts:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo((indent + "   ".join(cells)).rstrip())


def printable(value: object) -> str:
    """What a stranger wrote, without what a terminal would obey; nothing is `-`."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else " " for char in text) or "-"


def age(time: object, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was, in its largest unit, as kubectl has it."""
    read = parse_time(time)
    if read is None:
        return ""
    seconds = max(int(((now or datetime.now(UTC)) - read).total_seconds()), 0)
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s}{unit}"
    return f"{seconds}s"
