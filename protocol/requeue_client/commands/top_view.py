"""What `requeue top` shows: two looks at the workers as a header and a table of as many queues as fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from requeue_protocol.admin import InstanceAnswer, QueueEntry, QueueTotals, StatsAnswer
from rich.console import Group
from rich.text import Text

from requeue_client.commands.output import Column, Row, count, pause_end, size, span, table, text
from requeue_client.commands.top_keys import View

_HEAD_LINES: Final = 9  #: all that is not a row of a queue
HELP: Final = (
    "q quit   s < > 1-7 sort by name, pending, in flight, dead, late, in, out   / filter (Enter, Esc)\n"
    "p or space stop and go on   arrows, PgUp, PgDn scroll   ? this help"
)


@dataclass(frozen=True, slots=True)
class Look:
    """What the workers answered at one time; `trouble` is why nobody did."""

    time_ns: int
    instances: list[InstanceAnswer] = field(default_factory=list)
    queues: list[tuple[str, QueueEntry]] = field(default_factory=list)  #: instance, entry
    stats: dict[str, StatsAnswer] = field(default_factory=dict)  #: by instance
    totals: dict[tuple[str, str], QueueTotals] = field(default_factory=dict)  #: by instance and queue
    silent: tuple[str, ...] = ()  #: instances that answered before, and not now
    trouble: str = ""


def rows_of(now: Look, before: Look | None) -> list[Row]:
    """A row a queue, summed over the instances; `in` and `out` are accepted and settled a second, `late` nanoseconds."""
    rows: dict[str, Row] = {}
    for instance, entry in now.queues:
        empty = {
            "name": entry.name,
            "pending": 0,
            "in_flight": 0,
            "dead": 0,
            "late": 0,
            "in": 0.0,
            "out": 0.0,
            "paused": 0,
        }
        row = rows.setdefault(entry.name, empty)
        for key in ("pending", "in_flight", "dead"):
            row[key] += getattr(entry, key)
        if entry.next_due_ns is not None:
            row["late"] = max(row["late"], now.time_ns - entry.next_due_ns)
        row["paused"] = max(row["paused"], entry.paused_until_ns or 0)
        for key, counter in (("in", "accepted"), ("out", "settled")):
            row[key] += _per_s(counter, instance, entry.name, now, before)
    return list(rows.values())


def _per_s(counter: str, instance: str, queue: str, now: Look, before: Look | None) -> float:
    new = now.totals.get((instance, queue))
    if new is None or before is None or not _same_run(instance, now, before):
        return 0.0
    old = before.totals.get((instance, queue))
    counted: int = getattr(new, counter) - (getattr(old, counter) if old else 0)
    return max(0, counted) / _seconds(now, before)


def _same_run(instance: str, now: Look, before: Look) -> bool:
    """Whether its counters go on: it answered both times and did not start anew."""
    new, old = now.stats.get(instance), before.stats.get(instance)
    return new is not None and old is not None and new.started_ns == old.started_ns


def _seconds(now: Look, before: Look) -> float:
    return max((now.time_ns - before.time_ns) / 1e9, 1e-9)


def chosen(rows: list[Row], view: View) -> list[Row]:
    """The rows that the filter leaves, in the chosen order: names from A, numbers from the largest."""
    left = sorted((row for row in rows if view.filter in row["name"]), key=lambda row: str(row["name"]))
    return left if view.sort == "name" else sorted(left, key=lambda row: -row[view.sort])


def page_rows(height: int, look: Look, view: View) -> int:
    """How many queues fit on a screen of so many lines."""
    more = (2 if view.help else 0) + bool(look.silent) + bool(look.trouble)
    return max(1, height - _HEAD_LINES - more)


def kept_on_screen(view: View, now: Look, page: int) -> View:
    """The view, scrolled no further than to the last page: a press of "up" shows at once then."""
    last = max(0, len(chosen(rows_of(now, None), view)) - page)
    return replace(view, first=min(view.first, last))


def drawn(now: Look, before: Look | None, view: View, height: int | None) -> Group:
    """A frame for a screen of `height` lines; None: all rows."""
    rows = rows_of(now, before)
    left = chosen(rows, view)
    fits = len(left) if height is None else page_rows(height, now, view)
    first = min(view.first, max(0, len(left) - fits))
    shown = left[first : first + fits]
    drawn_table = table(shown, _columns(now.time_ns, view.sort))
    for column in drawn_table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    parts: list[Text] = [_line(each) for each in _header(now, before, rows)]
    tail = []
    if more := len(left) - first - len(shown):
        tail.append(_line(f"… and {more:,} more"))
    if view.typing or view.filter:
        tail.append(_line(f"filter: {view.filter}{'_' if view.typing else ''}"))
    if view.stopped:
        tail.append(_line("stopped: p goes on"))
    if view.help:
        tail += [_line(each) for each in HELP.splitlines()]
    return Group(*parts, drawn_table, *tail)


def _line(said: str) -> Text:
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in said), no_wrap=True)


def _header(now: Look, before: Look | None, rows: list[Row]) -> list[str]:
    up, ready = len(now.instances), sum(each.ready for each in now.instances)
    pending, in_flight, dead = (sum(row[key] for row in rows) for key in ("pending", "in_flight", "dead"))
    late = max((row["late"] for row in rows), default=0)
    free = min((each.disk_free_bytes for each in now.instances), default=0)
    full = ", FULL" if any(each.disk_full for each in now.instances) else ""
    coming, going = (sum(row[key] for row in rows) for key in ("in", "out"))
    lines = [
        f"workers {up} up, {ready} ready   queues {len(rows):,}   disk free {size(free)}{full}",
        f"pending {pending:,}   in flight {in_flight:,}   dead {dead:,}   latest {span(late)}   "
        f"in {coming:,.1f}/s   out {going:,.1f}/s",
    ]
    if now.silent:
        lines.append(f"no answer from {', '.join(now.silent)}")
    if now.trouble:
        lines.append(now.trouble)
    return lines


def _columns(now_ns: int, sort: str) -> list[Column]:
    def head(name: str, key: str) -> str:
        return f"{name}*" if key == sort else name

    return [
        Column(head("QUEUE", "name"), text("name")),
        Column(head("PENDING", "pending"), count("pending"), right=True),
        Column(head("IN FLIGHT", "in_flight"), count("in_flight"), right=True),
        Column(head("DEAD", "dead"), count("dead"), right=True),
        Column(head("LATE", "late"), lambda row: span(row["late"]) if row["late"] else "", right=True),
        Column(head("IN/S", "in"), lambda row: f"{row['in']:,.1f}", right=True),
        Column(head("OUT/S", "out"), lambda row: f"{row['out']:,.1f}", right=True),
        Column("PAUSED", lambda row: pause_end(row["paused"], now_ns) if row["paused"] else ""),
    ]
