"""The command `kubectl requeue`: kubectl finds it as `kubectl-requeue` on PATH."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from requeue_protocol.durations import NS_PER_S, parse_duration

from requeue_operator.plugin import logs as logs_of
from requeue_operator.plugin import overview, volumes
from requeue_operator.plugin.bundle import collect
from requeue_operator.plugin.errors import NEEDS_A_HAND, USAGE, PluginError
from requeue_operator.plugin.look import Fleet, find, fleets, look_around
from requeue_operator.plugin.options import EXIT_CODES, Asked, output_option, run, where_options
from requeue_operator.plugin.output import Row, age, dump, table


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES
)
@click.version_option(package_name="nats-requeue")
def commands() -> None:
    """Looks at RequeueQueues and what belongs to them. Changes nothing in the cluster."""


@commands.command(short_help="Conditions, workers, volumes and backlog.", epilog=EXIT_CODES)
@click.argument("name", required=False)
@where_options
@output_option
def status(name: str | None, **options: Any) -> None:
    """Show all RequeueQueues of the namespace in a line each, or one with all that belongs to it."""

    async def do(asked: Asked) -> int:
        found = await _fleets(asked, name)
        rows = [overview.row_of(each) for each in found]
        if asked.form != "table":
            dump(rows if name is None else rows[0], asked.form)
        elif name is not None:
            overview.show_one(rows[0], datetime.now(UTC))
        elif _has_any(rows, asked, "RequeueQueues"):
            overview.show_all(rows, namespaces=not asked.namespace)
        return NEEDS_A_HAND if any(overview.needs_a_hand(each) for each in found) else 0

    run(_for_one(name, options), do)


@commands.group()
def drain() -> None:
    """Volumes whose pods were scaled away."""


@drain.command("status", short_help="How far each drain is.", epilog=EXIT_CODES)
@click.argument("name", required=False)
@where_options
@output_option
def drain_status(name: str | None, **options: Any) -> None:
    """Show the volumes that no worker uses: which are drained, which are kept, and what keeps one from it."""

    async def do(asked: Asked) -> int:
        now = datetime.now(UTC)
        rows = [row for each in await _fleets(asked, name) for row in volumes.drains_of(each, now)]
        if asked.form != "table":
            dump(rows, asked.form)
        elif _has_any(rows, asked, "volumes without a worker"):
            heads = ["NAME", "CLAIM", "STATE", "JOB", "SINCE", "MESSAGE"]
            lines = [
                [row["name"], row["claim"], row["state"], row["job"], age(row["since"], now), _sentence(row)]
                for row in rows
            ]
            _table(heads, lines, rows, asked)
        return NEEDS_A_HAND if any(row["state"] == "Failed" for row in rows) else 0

    run(_for_one(name, options), do)


@commands.command(short_help="What the operator would do with each volume, and why.", epilog=EXIT_CODES)
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help="Needed: this command never deletes anything.")
@where_options
@output_option
def reap(name: str | None, dry_run: bool, **options: Any) -> None:
    """Judge every volume as the operator does: would it be drained or deleted now, and if not, why not?

    Nothing is changed: volumes are deleted by the operator alone, on the proof of a drain.
    """
    if not dry_run:
        raise click.UsageError(
            "give --dry-run: this shows what the operator would do; it alone deletes, on the proof of a drain"
        )

    async def do(asked: Asked) -> int:
        now = datetime.now(UTC)
        found = await _fleets(asked, name)
        judged = [verdict for each in found for verdict in volumes.verdicts(each, now)]
        if name is None:
            arounds = {each.around.namespace: each.around for each in found}
            if asked.namespace and asked.namespace not in arounds:
                arounds[asked.namespace] = await look_around(asked.kube, asked.namespace)
            judged += [verdict for each in arounds.values() for verdict in volumes.left_behind(each)]
        rows = [each.row for each in judged]
        if asked.form != "table":
            dump(rows, asked.form)
        elif _has_any(rows, asked, "volumes of RequeueQueues"):
            lines = [[row["name"], row["claim"], row["would"], row["why"]] for row in rows]
            _table(["NAME", "CLAIM", "WOULD", "WHY"], lines, rows, asked)
        return 0

    run(_for_one(name, options), do)


@commands.command("logs", short_help="Logs of the workers, of drains and of the operator.", epilog=EXIT_CODES)
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on, with pods that come later too.")
@click.option("--since", metavar="SPAN", help="Only what is newer than this: 30s, 10m, 1h30m.")
@click.option(
    "--tail", type=click.IntRange(min=-1), default=-1, help="Only so many lines of each. Default: all."
)
@click.option("-p", "--previous", is_flag=True, help="Of the containers before their last restart.")
@click.option(
    "--of",
    "roles",
    type=click.Choice(logs_of.ROLES),
    multiple=True,
    help="Only these. Repeat it. Default: all.",
)
@click.option(
    "--operator-namespace", metavar="NS", help="Where the operator runs. Default: wherever one is found."
)
@where_options
def logs(name: str | None, **options: Any) -> None:
    """Show what the pods of one RequeueQueue say, or of all in the namespace, and the operator.

    Each line has its pod before it. Containers that are not of nats-requeue are left out.
    """
    window = logs_of.Window(
        options["follow"], _seconds(options["since"]), options["tail"], options["previous"]
    )
    if window.follow and window.previous:
        raise click.UsageError("what ended is not followed: give --follow or --previous")
    roles = frozenset(options["roles"] or logs_of.ROLES)

    async def do(asked: Asked) -> int:
        wanted = logs_of.Wanted(asked.namespace, name, roles, options["operator_namespace"])
        if window.follow:
            await logs_of.follow(asked.kube, wanted, window)
        elif not await logs_of.show(asked.kube, wanted, window):
            click.echo("No pods to show logs of.", err=True)
        return 0

    run(_for_one(name, options), do)


@commands.command(short_help="A support bundle, without payloads and secrets.", epilog=EXIT_CODES)
@click.argument("name", required=False)
@click.option("--file", metavar="FILE", help="Where to. Default: requeue-report-TIME.tar.gz.")
@click.option(
    "--tail", type=click.IntRange(min=1), default=2000, show_default=True, help="Lines of each log."
)
@click.option(
    "--operator-namespace", metavar="NS", help="Where the operator runs. Default: wherever one is found."
)
@where_options
def report(name: str | None, file: str | None, tail: int, **options: Any) -> None:
    """Collect what somebody needs who is to help: resources, events, logs, metrics, versions.

    Secrets are not read, and what may be one is left out. Look into it before you send it.
    """
    path = Path(file or f"requeue-report-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.gz")
    options = _for_one(name, options)

    async def do(asked: Asked) -> int:
        bundle = await collect(asked.kube, asked.namespace, name, tail, options["operator_namespace"])
        try:
            bundle.write(path)
        except OSError as error:
            raise PluginError(USAGE, f"{path} can't be written: {error.strerror}") from None
        click.echo(
            f"{path}: {len(bundle.files)} files, {len(bundle.missing)} could not be read (about.yaml says why)"
        )
        return 0

    if path.exists() or not os.access(path.parent, os.W_OK):
        raise click.UsageError(f"{path} is there already, or can't be made: name another file")
    run(options, do)


def _seconds(since: str | None) -> int | None:
    if since is None:
        return None
    try:
        return max(-(-parse_duration(since) // NS_PER_S), 1)
    except ValueError as error:
        raise click.UsageError(f"--since: {error}") from None


async def _fleets(asked: Asked, name: str | None) -> list[Fleet]:
    return await fleets(asked.kube, await find(asked.kube, asked.namespace, name))


def _for_one(name: str | None, options: dict[str, Any]) -> dict[str, Any]:
    if name is not None and options["all_namespaces"]:
        raise click.UsageError("a NAME is one of a namespace: give -n instead of -A")
    return options


def _has_any(rows: list[Row], asked: Asked, what: str) -> bool:
    if not rows:
        where = f"in the namespace {asked.namespace}" if asked.namespace else "in any namespace"
        click.echo(f"No {what} {where}.", err=True)
    return bool(rows)


def _sentence(row: Row) -> str:
    return f"{row['reason']}: {row['message']}" if row["reason"] else str(row["message"])


def _table(heads: list[str], lines: list[list[Any]], rows: list[Row], asked: Asked) -> None:
    if not asked.namespace:
        heads = ["NAMESPACE", *heads]
        lines = [[row["namespace"], *line] for row, line in zip(rows, lines, strict=True)]
    table(heads, lines)


def main() -> None:
    """As kubectl calls it."""
    commands(prog_name="kubectl requeue")


if __name__ == "__main__":
    main()
