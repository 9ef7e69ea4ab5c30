"""`requeue pause` and `requeue resume`: a queue sends nothing for a while, or until it is resumed."""

from __future__ import annotations

import time
from typing import Any

import click
from requeue_protocol.changes import PauseAnswer, QueueRequest

from requeue_client.commands.filters import checked
from requeue_client.commands.output import (
    EXIT_CODES,
    Column,
    Format,
    admin_options,
    asker,
    count,
    pause_end,
    render,
    run_admin,
    text,
)
from requeue_client.exits import NOT_FOUND
from requeue_client.service import AdminClient
from requeue_client.times import duration_ns


@click.command(epilog=EXIT_CODES)
@click.argument("queue")
@click.option("--for", "span", help="For so long: 10m, 2h. Without it: until it is resumed.")
@admin_options
def pause(queue: str, span: str | None, output: Format, **options: Any) -> None:
    """Send nothing of QUEUE, on all workers, for a while or until it is resumed. Restarts do not end it.

    Messages are taken in all the same, what handlers have goes on, and a TTL goes on, too.
    """
    checked(QueueRequest, queue=queue)
    try:
        for_ns = None if span is None else duration_ns(span, "for")
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    if for_ns == 0:
        raise click.UsageError("--for 0 pauses nothing; see `requeue resume`")

    async def do(admin: AdminClient) -> int:
        answers = await admin.pause(queue, for_ns, asker())
        _show(answers, output)
        if not any(answer.known for answer in answers):
            click.echo(f"requeue: no worker had a queue {queue}: what comes for it will wait", err=True)
        return 0

    run_admin(options, do)


@click.command(epilog=EXIT_CODES)
@click.argument("queue")
@admin_options
def resume(queue: str, output: Format, **options: Any) -> None:
    """End the pause of QUEUE, on all workers."""
    checked(QueueRequest, queue=queue)

    async def do(admin: AdminClient) -> int:
        answers = await admin.resume(queue, asker())
        _show(answers, output)
        if any(answer.was_paused for answer in answers):
            return 0
        click.echo(f"requeue: {queue} was not paused", err=True)
        return 0 if any(answer.known for answer in answers) else NOT_FOUND

    run_admin(options, do)


def _show(answers: list[PauseAnswer], output: Format) -> None:
    now_ns = time.time_ns()
    columns = [
        Column("INSTANCE", text("instance")),
        Column("QUEUE", text("queue")),
        Column(
            "PAUSED",
            lambda row: pause_end(row["paused_until_ns"], now_ns) if row["paused_until_ns"] else "no",
        ),
        Column("PENDING", count("pending"), right=True),
    ]
    render([answer.model_dump() for answer in answers], columns, output, "no workers")
