"""`requeue dead delete`, `requeue dead export` and `requeue dead import`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import click
from requeue_protocol.admin import CountRequest
from requeue_protocol.dead_letters import DeadExportAnswer, DeadFilter

from requeue_client.commands.filters import checked, filter_fields, filter_options
from requeue_client.commands.output import (
    EXIT_CODES,
    Column,
    Format,
    admin_options,
    agreed,
    count,
    render,
    run_admin,
    text,
)
from requeue_client.dead_files import (
    Importing,
    clocks,
    delete_exported,
    delete_pages,
    export_pages,
    line_of,
)
from requeue_client.errors import RequeueError
from requeue_client.exits import NOT_FOUND, PERSISTED, REFUSED
from requeue_client.service import AdminClient

_COUNTS = [Column("INSTANCE", text("instance")), Column("MESSAGES", count("messages"), right=True)]
_DELETED = [Column("INSTANCE", text("instance")), Column("DELETED", count("deleted"), right=True)]
_IMPORTED = [Column(key.upper(), count(key), right=True) for key in ("imported", "known", "refused")]


@click.command(epilog=EXIT_CODES)
@click.argument("queue", required=False)
@filter_options
@click.option(
    "--export", "export_to", type=click.Path(path_type=Path), help="Write them to this new file first."
)
@click.option("--dry-run", is_flag=True, help="Count them, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@admin_options
def delete(
    queue: str | None, export_to: Path | None, dry_run: bool, yes: bool, output: Format, **options: Any
) -> None:
    """Delete the dead letters of QUEUE, or of all queues, for good. What dies meanwhile stays.

    With --export none goes before its line is on this disk. Ctrl-C ends it: what is deleted is deleted.
    """
    wanted = checked(DeadFilter, **filter_fields(queue, options))
    if export_to is not None and export_to.exists() and not dry_run:
        raise click.UsageError(f"{export_to} is there already; name a new file")

    async def do(admin: AdminClient) -> int:
        counts = await admin.count(CountRequest(**wanted.model_dump(exclude=_PAGED), state="dead"))
        total = sum(counts.values())
        if dry_run:
            render(
                [{"instance": name, "messages": counts[name]} for name in sorted(counts)], _COUNTS, output, ""
            )
            return 0 if total else NOT_FOUND
        if not total:
            click.echo("requeue: no dead letters are meant", err=True)
            return NOT_FOUND
        if not agreed(f"Delete {total:,} dead letters for good?", yes):
            return 0
        until_ns = {name: ns for name, ns in (await clocks(admin)).items() if counts.get(name)}
        deleted = dict.fromkeys(until_ns, 0)
        kept = 0
        try:
            if export_to is None:
                async for page in delete_pages(admin, wanted, until_ns):
                    deleted[page.instance] += page.deleted
            else:
                with export_to.open("xb") as file:
                    async for exported in export_pages(admin, wanted, until_ns):
                        kept += _write(file, exported, durable=True)
                        deleted[exported.instance] += await delete_exported(admin, exported)
        finally:
            rows = [{"instance": name, "deleted": number} for name, number in sorted(deleted.items())]
            render(rows, _DELETED, output, "")
        return PERSISTED if kept else 0

    run_admin(options, do)


_PAGED = {"after", "died_before_ns"}


@click.command(epilog=EXIT_CODES)
@click.argument("queue", required=False)
@filter_options
@click.option(
    "--to",
    type=click.Path(path_type=Path, allow_dash=True),
    default="-",
    help="A new file; -: standard output.",
)
@admin_options
def export(queue: str | None, to: Path, output: Format, **options: Any) -> None:
    """Write the dead letters of QUEUE, or of all queues, as lines of JSON. They stay where they are."""
    wanted = checked(DeadFilter, **filter_fields(queue, options))
    if to != Path("-") and to.exists():
        raise click.UsageError(f"{to} is there already; name a new file")

    async def do(admin: AdminClient) -> int:
        number = kept = 0
        with click.open_file("-", "wb") if to == Path("-") else to.open("xb") as file:
            async for page in export_pages(admin, wanted, await clocks(admin)):
                kept += _write(file, page, durable=False)
                number += len(page.letters)
            file.flush()
        click.echo(f"exported: {number:,}", err=True)
        return PERSISTED if kept else 0

    run_admin(options, do)


def _write(file: IO[bytes], page: DeadExportAnswer, *, durable: bool) -> int:
    """Write a page's lines; `durable`: they are on disk on return. How many letters are left out, which is said."""
    file.write("".join(map(line_of, page.letters)).encode())
    if durable:
        file.flush()
        os.fsync(file.fileno())
    for message_id in page.too_large:
        click.echo(
            f"requeue: {message_id} on {page.instance} does not fit a message of this server: raise max_payload",
            err=True,
        )
    return len(page.too_large)


@click.command("import", epilog=EXIT_CODES)
@click.argument("file", type=click.File("rb"))
@admin_options
def import_letters(file: IO[bytes], output: Format, **options: Any) -> None:
    """Make dead letters again of the lines of FILE (-: standard input), as `requeue dead export` writes them.

    What is dead on any worker already stays as it is, so a file can be imported again. A line that is no dead letter is told
    with its number, and the others are imported.
    """

    async def do(admin: AdminClient) -> int:
        instances = sorted(await clocks(admin.everybody))
        targets = instances if admin.instance is None else [admin.instance]
        importing = Importing(admin, instances, targets)
        try:
            await importing.run(file)
        except RequeueError:
            click.echo("not all lines are imported: import the file again, none comes twice", err=True)
            raise
        finally:
            for number, mistake in sorted(importing.mistakes):
                click.echo(f"{file.name}: line {number}: {mistake}", err=True)
            row = {
                "imported": importing.imported,
                "known": importing.known,
                "refused": len(importing.mistakes),
            }
            render([row], _IMPORTED, output, "")
        return REFUSED if importing.mistakes else 0

    run_admin(options, do)
