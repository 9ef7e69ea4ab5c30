"""`requeue cancel`, `run-now`, `reschedule` and `purge`: what changes pending messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from requeue_protocol.admin import AdminSubject
from requeue_protocol.changes import MOVE, PURGE, ChangeRequest, MoveRequest, PurgeRequest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from requeue_client.changing import Changing, Tally
from requeue_client.commands.filters import checked, filter_fields, pending_options
from requeue_client.commands.output import (
    EXIT_CODES,
    Column,
    Format,
    admin_options,
    agreed,
    asker,
    count,
    render,
    run_admin,
    text,
)
from requeue_client.exits import NOT_FOUND
from requeue_client.service import AdminClient
from requeue_client.times import duration_ns, instant_ns

_F = TypeVar("_F", bound=Callable[..., Any])
_COLUMNS: Final = (
    Column("INSTANCE", text("instance")),
    Column("MESSAGES", count("messages"), right=True),
    Column("IN FLIGHT", count("in_flight"), right=True),
)


def _change_options(command: _F) -> _F:
    command = admin_options(command)
    command = click.option("--yes", is_flag=True, help="Do not ask.")(command)
    command = click.option("--dry-run", is_flag=True, help="Count them, and do nothing.")(command)
    return pending_options(command)


def _by_ids(command: _F) -> _F:
    command = _change_options(command)
    command = click.option("--queue", help="Those of this queue.")(command)
    return click.argument("ids", nargs=-1, metavar="[ID]...")(command)


@click.command(epilog=EXIT_CODES)
@_by_ids
def cancel(ids: tuple[str, ...], **options: Any) -> None:
    """Remove pending messages with these IDs (Requeue-Ids or Nats-Msg-Ids), or those that the filter means.

    They leave no dead letter. What handlers have by then stays: it can't be taken back.
    """
    _change("Cancel", PURGE, PurgeRequest, ids, options)


@click.command(epilog=EXIT_CODES)
@click.argument("queue")
@_change_options
def purge(**options: Any) -> None:
    """Remove all that is pending in QUEUE, or what the filter means of it. It leaves no dead letter.

    What handlers have by then stays, and so does what is published after the purge began.
    """
    _change("Purge", PURGE, PurgeRequest, (), options)


@click.command("run-now", epilog=EXIT_CODES)
@_by_ids
def run_now(ids: tuple[str, ...], **options: Any) -> None:
    """Make pending messages with these IDs, or those that the filter means, due at once.

    Attempts and TTLs stay as they are. Pauses and limits of their queue still hold.
    """
    _change("Run now", MOVE, MoveRequest, ids, options, delay_ns=0)


@click.command(epilog=EXIT_CODES)
@click.option("--delay", help="Due so long from now: 10m, 1h30m.")
@click.option("--at", help="Due then: 2030-01-31T18:30:00Z.")
@_by_ids
def reschedule(ids: tuple[str, ...], delay: str | None, at: str | None, **options: Any) -> None:
    """Make pending messages with these IDs, or those that the filter means, due after --delay or --at an instant."""
    if (delay is None) == (at is None):
        raise click.UsageError("give either --delay or --at")
    try:
        when = {"at_ns": instant_ns(at, "at")} if at is not None else {}
        when |= {"delay_ns": duration_ns(delay, "delay")} if delay is not None else {}
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    _change("Reschedule", MOVE, MoveRequest, ids, options, **when)


def _change(
    verb: str,
    subject: AdminSubject,
    kind: type[ChangeRequest],
    ids: tuple[str, ...],
    options: dict[str, Any],
    **fields: int,
) -> None:
    """Count, ask whether it is meant where no ids say so, do it, and show what was done."""
    dry_run, yes, output = options.pop("dry_run"), options.pop("yes"), options.pop("output")
    fields = fields | filter_fields(options.pop("queue"), options)
    request = checked(kind, dry_run=True, ids=ids[:1], by=asker(), **fields)

    async def do(admin: AdminClient) -> int:
        changing = Changing(admin, subject, request, ids)
        counted = await changing.count()
        total, in_flight = counted.changed.total(), counted.in_flight.total()
        if dry_run or not total:
            _show(counted, output)
            return 0 if total or in_flight else NOT_FOUND
        if not ids and not agreed(f"{verb} {total:,} messages?", yes):
            return 0
        await _run(changing, total, verb)
        _show(changing.done, output)
        return 0

    run_admin(options, do)


async def _run(changing: Changing, total: int, verb: str) -> None:
    bar = Progress(
        TextColumn(verb.lower()),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        disable=not Console(stderr=True).is_terminal,
    )
    through = False
    try:
        with bar:
            task = bar.add_task("", total=total)
            await changing.run(lambda: bar.update(task, completed=changing.done.changed.total()))
        through = True
    finally:
        if not through:
            done = changing.done.changed.total()
            click.echo(
                f"requeue: {done:,} of {total:,} by then; what is done stays so, the rest is as it was",
                err=True,
            )


def _show(tally: Tally, output: Format) -> None:
    rows = [
        {"instance": name, "messages": tally.changed[name], "in_flight": tally.in_flight[name]}
        for name in sorted(tally.changed)
    ]
    render(rows, _COLUMNS, output, "no messages")
