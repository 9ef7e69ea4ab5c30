"""`requeue instances`, `requeue queues` and `requeue stats`: what is there, and what happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import click
from requeue_protocol.admin import (
    INSTANCES,
    QUEUES,
    STATS,
    InstanceAnswer,
    InstancesRequest,
    QueuesAnswer,
    QueuesRequest,
    StatsAnswer,
    StatsRequest,
)
from rich.console import Group
from rich.live import Live

from requeue_client.commands.output import (
    EXIT_CODES,
    Column,
    Format,
    Row,
    admin_options,
    console,
    count,
    dump,
    from_now,
    pause_end,
    render,
    run_admin,
    size,
    span,
    table,
    text,
)
from requeue_client.exits import NOT_FOUND
from requeue_client.service import AdminClient
from requeue_client.times import duration_s

_TOTALS = ("accepted", "replays", "settled", "retried", "held", "expired", "dead", "dropped")
_INTAKE = ("intake_messages", "intake_bytes", "duplicates", "refused", "commits")

_INSTANCE_COLUMNS = (
    Column("INSTANCE", text("instance")),
    Column("FLEET", text("fleet")),
    Column("VERSION", text("version")),
    Column("UP", lambda row: span(row["time_ns"] - row["started_ns"]), right=True),
    Column("QUEUES", count("queues"), right=True),
    Column("PENDING", count("pending"), right=True),
    Column("IN FLIGHT", count("in_flight"), right=True),
    Column("DEAD", count("dead"), right=True),
    Column("DISK FREE", lambda row: size(row["disk_free_bytes"]), right=True),
    Column("STATE", text("state")),
)


@click.command(epilog=EXIT_CODES)
@admin_options
def instances(output: Format, **options: Any) -> None:
    """List the workers that answer."""

    async def do(admin: AdminClient) -> int:
        answers = await admin.ask(INSTANCES, InstancesRequest(), InstanceAnswer)
        render([each.model_dump() for each in answers], _INSTANCE_COLUMNS, output, "no workers")
        return 0

    run_admin(options, do)


@click.command(epilog=EXIT_CODES)
@click.argument("queue", required=False)
@click.option("--each", is_flag=True, help="A line for each worker, not their sum.")
@admin_options
def queues(queue: str | None, each: bool, output: Format, **options: Any) -> None:
    """List queues (or QUEUE alone): pending, in flight, dead, and when the next message is due.

    A message that is in flight counts as pending, too.
    """

    async def do(admin: AdminClient) -> int:
        rows: list[Row] = []
        async for page in admin.pages(QUEUES, QueuesRequest(queue=queue), QueuesAnswer):
            rows += [{"instance": page.instance, **entry.model_dump()} for entry in page.queues]
        rows = sorted(rows if each else _summed(rows), key=lambda row: (row["name"], row.get("instance", "")))
        render(rows, _queue_columns(each), output, "no queues")
        return NOT_FOUND if queue is not None and not rows else 0

    run_admin(options, do)


def _queue_columns(each: bool) -> list[Column]:
    now_ns = time.time_ns()
    return [
        Column("QUEUE", text("name")),
        *([Column("INSTANCE", text("instance"))] if each else []),
        Column("PENDING", count("pending"), right=True),
        Column("IN FLIGHT", count("in_flight"), right=True),
        Column("DEAD", count("dead"), right=True),
        Column("SIZE", lambda row: size(row["pending_bytes"] + row["dead_bytes"]), right=True),
        Column("NEXT DUE", lambda row: from_now(row["next_due_ns"], now_ns), right=True),
        Column("PAUSED", lambda row: _pause(row, now_ns)),
    ]


def _pause(row: Row, now_ns: int) -> str:
    paused, instances = row.get("paused_instances", 1), row.get("instances", 1)
    some = f" on {paused} of {instances}" if paused < instances else ""
    return f"{pause_end(row['paused_until_ns'], now_ns)}{some}" if row["paused_until_ns"] else ""


def _summed(rows: Iterable[Row]) -> list[Row]:
    """One row a queue: counts summed, the earliest due time, the latest end of a pause."""
    sums: dict[str, Row] = {}
    for each in rows:
        row = each | {"instances": 1, "paused_instances": int(each["paused_until_ns"] is not None)}
        known = sums.get(row["name"])
        if known is None:
            sums[row["name"]] = {key: value for key, value in row.items() if key != "instance"}
            continue
        for key in (
            "instances",
            "paused_instances",
            "pending",
            "pending_bytes",
            "in_flight",
            "dead",
            "dead_bytes",
        ):
            known[key] += row[key]
        for key, choose in (("next_due_ns", min), ("paused_until_ns", max)):
            known[key] = choose([one[key] for one in (known, row) if one[key] is not None], default=None)
    return list(sums.values())


@click.command(epilog=EXIT_CODES)
@click.argument("queue", required=False)
@click.option("--watch", is_flag=True, help="Again and again, with rates.")
@click.option("--interval", default="2s", show_default=True, help="Between two looks.")
@click.option("--times", type=click.IntRange(1), help="With --watch: so many looks, then end.")
@admin_options
def stats(
    queue: str | None, watch: bool, interval: str, times: int | None, output: Format, **options: Any
) -> None:
    """Show what the workers did since their starts, in all and for each queue (or QUEUE alone).

    With --watch, rates a second since the last look; as JSON, an object a line.
    """
    try:
        interval_s = duration_s(interval, "interval")
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None

    async def do(admin: AdminClient) -> int:
        if watch:
            await _watch(admin, queue, output, interval_s, times)
        else:
            _show(await _look(admin, queue), output)
        return 0

    run_admin(options, do)


async def _look(admin: AdminClient, queue: str | None) -> Row:
    """Totals of all instances."""
    totals: Row = {"time_ns": time.time_ns(), "instances": 0, **dict.fromkeys(_INTAKE, 0)}
    by_queue: dict[str, Row] = {}
    seen: set[str] = set()
    async for page in admin.pages(STATS, StatsRequest(queue=queue), StatsAnswer):
        if page.instance not in seen:
            seen.add(page.instance)
            for key in ("intake_messages", "intake_bytes", "duplicates", "commits"):
                totals[key] += getattr(page, key)
            totals["refused"] += sum(page.refused.values())
        for entry in page.queues:
            row = by_queue.setdefault(
                entry.name, {"name": entry.name, **dict.fromkeys(_TOTALS, 0), "dead_by_reason": {}}
            )
            for key in _TOTALS[:-2]:
                row[key] += getattr(entry, key)
            row["dead"] += sum(entry.dead.values())
            row["dropped"] += sum(entry.dropped.values())
            row["dead_by_reason"] = dict(Counter(row["dead_by_reason"]) + Counter(entry.dead))
    totals["instances"] = len(seen)
    totals["queues"] = sorted(by_queue.values(), key=lambda row: row["name"])
    return totals


def _show(totals: Row, output: Format) -> None:
    if output == "table":
        console().print(_drawn(totals))
    else:
        dump(totals, output)


def _drawn(totals: Row, per_second: Row | None = None) -> Group:
    shown, unit = (per_second, "/s") if per_second is not None else (totals, "")
    intake = [Column(key.upper().replace("_", " ") + unit, count(key), right=True) for key in _INTAKE]
    heads = [Column("QUEUE", text("name"))]
    heads += [Column(key.upper() + unit, count(key), right=True) for key in _TOTALS]
    return Group(
        table([shown], [Column("INSTANCES", lambda _: str(totals["instances"]), right=True), *intake]),
        table(shown["queues"], heads),
    )


async def _watch(
    admin: AdminClient, queue: str | None, output: Format, interval_s: float, times: int | None
) -> None:
    before, looks = await _look(admin, queue), 0
    with Live(console=console(), auto_refresh=False, transient=False) as live:
        while times is None or looks < times:
            await asyncio.sleep(interval_s)
            now = await _look(admin, queue)
            per_second, before, looks = _rates(before, now), now, looks + 1
            if output == "table":
                live.update(_drawn(now, per_second), refresh=True)
            elif output == "json":
                click.echo(json.dumps(per_second))
            else:
                click.echo("---")
                dump(per_second, output)


def _rates(before: Row, now: Row) -> Row:
    """Differences per second. A worker that started anew counts from zero: nothing is negative."""
    seconds = max((now["time_ns"] - before["time_ns"]) / 1e9, 1e-9)
    known = {row["name"]: row for row in before["queues"]}

    def rate(new: Row, old: Row | None, keys: Iterable[str]) -> Row:
        return {key: round(max(new[key] - (old[key] if old else 0), 0) / seconds, 1) for key in keys}

    return {
        "time_ns": now["time_ns"],
        "instances": now["instances"],
        **rate(now, before, _INTAKE),
        "queues": [
            {"name": row["name"], **rate(row, known.get(row["name"]), _TOTALS)} for row in now["queues"]
        ],
    }
