"""`requeue dead ...`: dead letters, and what can be done about them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Final

import click
from requeue_protocol.redrive import (
    CANCEL_JOB,
    JOBS,
    CancelJobRequest,
    JobEntry,
    JobsAnswer,
    JobsRequest,
    RedriveRequest,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from requeue_client.commands.browse import list_messages, show
from requeue_client.commands.dead_files import delete, export, import_letters
from requeue_client.commands.filters import checked, filter_fields, filter_options
from requeue_client.commands.output import (
    EXIT_CODES,
    Column,
    Format,
    Row,
    admin_options,
    agreed,
    count,
    instant,
    render,
    run_admin,
    text,
)
from requeue_client.errors import RequeueError
from requeue_client.exits import NOT_FOUND, PERSISTED, UNREACHABLE
from requeue_client.redriving import Redriving
from requeue_client.service import AdminClient

_POLL_S: Final = 0.2
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:/(s|m|h))?")
_SECONDS: Final = {None: 1, "s": 1, "m": 60, "h": 3600}
_JOB_COLUMNS: Final = (
    Column("INSTANCE", text("instance")),
    Column("JOB", text("job")),
    Column("STATE", text("state")),
    Column("REDRIVEN", count("redriven"), right=True),
    Column("SKIPPED", count("skipped"), right=True),
    Column("STARTED", lambda row: instant(row["started_ns"])),
    Column("ERROR", text("error")),
)


@click.group()
def dead() -> None:
    """Dead letters: look at them, redrive, delete, export and import them."""


for _command in (show, delete, export, import_letters):
    dead.add_command(_command)


@dead.command("list", epilog=EXIT_CODES)
@click.argument("queue", required=False)
@filter_options
@click.option(
    "--limit", type=click.IntRange(0), default=50, show_default=True, help="So many at most; 0: all."
)
@admin_options
@click.pass_context
def list_dead(context: click.Context, /, **options: Any) -> None:
    """List dead letters of QUEUE, or of all queues, in the order of their deaths."""
    context.invoke(list_messages, state="dead", **options)


def _rate(_: click.Context, __: click.Parameter, said: str | None) -> float | None:
    """100/s, 100, 5/m: as messages a second."""
    found = _RATE.fullmatch(said or "0")
    if found is None or (said is not None and not float(found[1])):
        raise click.BadParameter(f"{said!r} is no rate; write it like 100/s or 5/m")
    return None if said is None else float(found[1]) / _SECONDS[found[2]]


@dead.command(epilog=EXIT_CODES)
@click.argument("queue", required=False)
@filter_options
@click.option("--rate", callback=_rate, help="So many at most, of all workers together: 100/s, 5/m.")
@click.option("--to-subject", help="Send them to this subject, and not to their own.")
@click.option("--dry-run", is_flag=True, help="Count them, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@admin_options
def redrive(
    queue: str | None,
    rate: float | None,
    to_subject: str | None,
    dry_run: bool,
    yes: bool,
    output: Format,
    **options: Any,
) -> None:
    """Make pending messages of the dead letters of QUEUE, or of all queues: due at once, their attempts from zero.

    What is dead when it begins is redriven, and nothing that dies meanwhile. Ctrl-C ends it on all workers: what was
    redriven stays so, the rest stays dead.
    """
    request = checked(RedriveRequest, rate=rate, to_subject=to_subject, **filter_fields(queue, options))

    async def do(admin: AdminClient) -> int:
        redriving = Redriving(admin, request)
        counts, refused = await redriving.count()
        total = sum(counts.values())
        if refused:
            click.echo(
                f"{refused:,} refused messages can't be redriven: export them (requeue dead export '$invalid'), "
                "and publish them mended (requeue publish --file)",
                err=True,
            )
        if dry_run:
            rows = [{"instance": name, "messages": number} for name, number in sorted(counts.items())]
            columns = [
                Column("INSTANCE", text("instance")),
                Column("MESSAGES", count("messages"), right=True),
            ]
            render(rows, columns, output, "no dead letters")
            return 0 if total else NOT_FOUND
        if not total:
            click.echo("requeue: no dead letters are meant", err=True)
            return NOT_FOUND
        if not agreed(f"Redrive {total:,} dead letters?", yes):
            return 0
        await redriving.begin(counts)
        try:
            await _watch(redriving, total)
        finally:
            render(_rows(redriving), _JOB_COLUMNS, output, "")
        return _code(redriving)

    run_admin(options, do)


async def _watch(redriving: Redriving, total: int) -> None:
    """Until it has ended. Cancelled, it is cancelled on the workers, too."""
    bar = Progress(
        TextColumn("redriving"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not Console(stderr=True).is_terminal,
    )
    try:
        with bar:
            task = bar.add_task("", total=total)
            while redriving.running:
                await asyncio.sleep(_POLL_S)
                await redriving.look()
                bar.update(task, completed=redriving.redriven)
    except asyncio.CancelledError:
        await redriving.cancel()
        click.echo("cancelled: what was redriven stays so, the rest stays dead", err=True)
        raise
    except RequeueError:
        click.echo(
            f"the job goes on: see `requeue dead jobs {redriving.name}`, end it with `requeue dead cancel`",
            err=True,
        )
        raise


def _rows(redriving: Redriving) -> list[Row]:
    rows = _job_rows(redriving.entries.items())
    for row in rows:
        if row["instance"] in redriving.gone:
            row.update(state="gone", error="the worker does not know of it any more: count what is left")
    return rows


def _job_rows(entries: Iterable[tuple[str, JobEntry]]) -> list[Row]:
    return [{"instance": instance, **entry.model_dump()} for instance, entry in entries]


def _code(redriving: Redriving) -> int:
    if redriving.gone:
        return UNREACHABLE
    return 0 if all(entry.state == "done" for entry in redriving.entries.values()) else PERSISTED


@dead.command(epilog=EXIT_CODES)
@click.argument("job", required=False)
@admin_options
def jobs(job: str | None, output: Format, **options: Any) -> None:
    """List redrives that run, and the newest of those that ended."""
    request = checked(JobsRequest, job=job)

    async def do(admin: AdminClient) -> int:
        answers = await admin.ask(JOBS, request, JobsAnswer)
        rows = _job_rows((answer.instance, entry) for answer in answers for entry in answer.jobs)
        render(rows, _JOB_COLUMNS, output, "no jobs")
        return NOT_FOUND if job is not None and not rows else 0

    run_admin(options, do)


@dead.command(epilog=EXIT_CODES)
@click.argument("job")
@admin_options
def cancel(job: str, output: Format, **options: Any) -> None:
    """End a redrive on all workers: what was redriven stays so, the rest stays dead."""
    request = checked(CancelJobRequest, job=job)

    async def do(admin: AdminClient) -> int:
        answers = await admin.ask(CANCEL_JOB, request, JobsAnswer)
        rows = _job_rows((answer.instance, entry) for answer in answers for entry in answer.jobs)
        render(rows, _JOB_COLUMNS, output, f"no worker has a job {job}")
        return 0 if rows else NOT_FOUND

    run_admin(options, do)
