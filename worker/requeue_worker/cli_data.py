"""`requeue-worker verify`, `backup`, `restore` and `salvage`: what is done with data directories beside `run`.

Exit codes beyond those of cli.py: 6, data was read and something in it is not as it has to be.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click
from requeue_worker.errors import DataDirError
from requeue_worker.storage.directory import instance_ids

if TYPE_CHECKING:
    from requeue_worker.backup import Copied
    from requeue_worker.salvage import Salvaged
    from requeue_worker.verify import Report

# Imported where they are used: the other commands do without the database.
# ruff: noqa: PLC0415

EXIT_ERROR: Final = 1
EXIT_DATA: Final = 3
EXIT_UNSOUND: Final = 6
_TELL_EVERY_S: Final = 2.0

_F = TypeVar("_F", bound=Callable[..., Any])


def _instances(command: _F) -> _F:
    return click.option(
        "--instance-id",
        "instances",
        metavar="ID",
        multiple=True,
        help="This instance alone. Repeat it for several.",
    )(command)


def _directory(flag: str, name: str, text: str) -> Callable[[_F], _F]:
    path = click.Path(path_type=Path)
    return click.option(flag, name, metavar="DIR", required=True, type=path, help=text)


_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def register(group: click.Group) -> None:
    """Add the commands to `requeue-worker`."""
    for command in (_verify, _backup, _restore, _salvage):
        group.add_command(command)


@click.command("verify", short_help="Read all data and check that it is sound.")
@_directory("--data-dir", "data_dir", "Parent directory of the data, as for `run`; or a backup.")
@_instances
@_JSON
def _verify(data_dir: Path, instances: tuple[str, ...], as_json: bool) -> None:
    """Read every record of the instance directories in --data-dir and check every invariant. Changes nothing.

    Not while a worker has the data open; make a backup of that, and verify the backup.

    Exits with 0 when all is sound, with 6 when something is not, and with 3 when the data is open in another
    process, unreadable, or of a newer release.
    """
    from requeue_worker.verify import verify

    reports = []
    try:
        names = instance_ids(data_dir, instances)
        if not names:
            _fail(EXIT_DATA, f"{data_dir} holds no instance directory")
        for name in names:
            reports.append(verify(data_dir / name, _Progress(name)))
            if not as_json:
                _print_report(reports[-1])
    except DataDirError as error:
        _fail(EXIT_DATA, str(error))
    if as_json:
        ok = all(report.ok for report in reports)
        click.echo(json.dumps({"ok": ok, "instances": [_as_json(report) for report in reports]}, indent=2))
    if not all(report.ok for report in reports):
        sys.exit(EXIT_UNSOUND)


@click.command("backup", short_help="Copy the data, beside a running worker too.")
@_directory("--data-dir", "data_dir", "Parent directory of the data, as for `run`.")
@_directory(
    "--to", "to", "Directory for the copy; on the same file system it takes no time and hardly any room."
)
@_instances
@_JSON
def _backup(data_dir: Path, to: Path, instances: tuple[str, ...], as_json: bool) -> None:
    """Copy the instance directories in --data-dir into another directory, each as of one moment.

    A running worker makes the copy itself and goes on working: run this as the same user on the same machine (or
    in the same pod). The copy is a data directory: `verify` reads it, `restore` brings it back.

    Exits with 3 when data cannot be read or a copy exists already: nothing is ever replaced.
    """
    from requeue_worker.backup import backup

    _copy(lambda: backup(data_dir, to, instances), "backed up", as_json)


@click.command("restore", short_help="Bring a backup back.")
@_directory("--from", "source", "Directory that `backup` wrote.")
@_directory("--data-dir", "data_dir", "Parent directory of the data, as for `run`.")
@_instances
@click.option(
    "--no-verify", is_flag=True, help="Do not read the copy back: take data that is not sound, too."
)
@_JSON
def _restore(
    source: Path, data_dir: Path, instances: tuple[str, ...], no_verify: bool, as_json: bool
) -> None:
    """Copy the instance directories of a backup into --data-dir, where none of the same name may be.

    Each copy is read back and checked as by `verify` before it takes its place. What was settled after the backup
    was made is sent again; what was taken in after that is not in it.

    Exits with 3 when data cannot be read or exists already, and with 6 when the backup is not sound.
    """
    from requeue_worker.backup import restore

    check = None if no_verify else _what_is_wrong
    _copy(lambda: restore(source, data_dir, instances, check), "restored", as_json)


@click.command("salvage", short_help="Copy what can be read of damaged data.")
@_directory("--data-dir", "data_dir", "Parent directory of the data, as for `run`.")
@_directory("--to", "to", "Directory for what can be read; it becomes a data directory.")
@_instances
@_JSON
def _salvage(data_dir: Path, to: Path, instances: tuple[str, ...], as_json: bool) -> None:
    """Copy every record that can be read of the instance directories in --data-dir into another directory.

    For data that `run` refuses or `verify` calls not sound. The damaged directory is not changed. What comes out is
    sound; what is missing is told, as far as it can be known.

    Exits with 0 when nothing is missing, with 6 when something is, and with 3 when the data is open in another process,
    of a newer release, or --to has such a directory already.
    """
    from requeue_worker.backup import BackupError
    from requeue_worker.salvage import salvage

    results: list[Salvaged] = []
    try:
        for result in salvage(data_dir, to, instances):
            results.append(result)
            if not as_json:
                _print_salvaged(result)
    except DataDirError as error:
        _fail(EXIT_DATA, str(error))
    except BackupError as error:
        _fail(EXIT_ERROR, str(error))
    complete = all(result.complete for result in results)
    if as_json:
        said = [_salvaged_as_json(result) for result in results]
        click.echo(json.dumps({"complete": complete, "instances": said}, indent=2))
    if not complete:
        sys.exit(EXIT_UNSOUND)


def _print_salvaged(result: Salvaged) -> None:
    found = f"{result.messages:,} pending and {result.dead:,} dead to {result.path}"
    click.echo(f"{result.instance}: {'all' if result.complete else 'NOT ALL'} salvaged: {found}")
    for note in result.notes:
        click.echo(f"  {note}")
    for gap in result.gaps:
        end = "its end" if gap.end is None else gap.end.hex()
        click.echo(
            f"  {gap.family}: unreadable from {gap.start.hex() or 'its beginning'} to {end}: {gap.error}"
        )
    for unsound in result.unsound:
        click.echo(f"  left out: {unsound}")
    for queue, count in result.missing.items():
        click.echo(f"  queue {queue}: {count:,} missing, by its counters")


def _salvaged_as_json(result: Salvaged) -> dict[str, object]:
    gaps = [
        {"family": g.family, "start": g.start.hex(), "end": g.end and g.end.hex(), "error": g.error}
        for g in result.gaps
    ]
    return {
        "instance": result.instance,
        "path": str(result.path),
        "complete": result.complete,
        "messages": result.messages,
        "dead": result.dead,
        "gaps": gaps,
        "left_out": result.unsound,
        "notes": result.notes,
        "missing": dict(result.missing),
    }


def _copy(copies: Callable[[], Iterator[Copied]], done: str, as_json: bool) -> None:
    from requeue_worker.backup import BackupError, Damaged

    copied: list[Copied] = []
    try:
        for copy in copies():
            copied.append(copy)
            if not as_json:
                beside = ", beside its running worker" if copy.online else ""
                click.echo(f"{copy.instance}: {done} to {copy.path}{beside}")
    except DataDirError as error:
        _fail(EXIT_DATA, str(error))
    except Damaged as error:
        _fail(EXIT_UNSOUND, str(error))
    except BackupError as error:
        _fail(EXIT_ERROR, str(error))
    if as_json:
        found = [{"instance": c.instance, "path": str(c.path), "online": c.online} for c in copied]
        click.echo(json.dumps({"instances": found}, indent=2))


def _what_is_wrong(path: Path) -> str:
    from requeue_worker.verify import verify

    report = verify(path, _Progress(path.name[1:].partition("~")[0]))
    if report.ok:
        return ""
    first = report.findings[0]
    return f"{report.counts.total():,} findings, the first: {first.check}: {first.where}: {first.what}"


def _print_report(report: Report) -> None:
    records = report.records
    found = f"{records['messages']:,} pending and {records['dead']:,} dead in {report.queues:,} queues"
    click.echo(f"{report.instance}: {'sound' if report.ok else 'NOT SOUND'}: {found}")
    for finding in report.findings:
        click.echo(f"  {finding.check}: {finding.where}: {finding.what}")
    untold = report.counts.total() - len(report.findings)
    if untold:
        click.echo(
            f"  and {untold:,} more: " + ", ".join(f"{n:,} {check}" for check, n in report.counts.items())
        )


def _as_json(report: Report) -> dict[str, object]:
    return {
        "instance": report.instance,
        "path": str(report.path),
        "ok": report.ok,
        "format": report.format,
        "queues": report.queues,
        "records": dict(report.records),
        "findings": [finding._asdict() for finding in report.findings],
        "findings_by_check": dict(report.counts),
    }


class _Progress:
    """A line on standard error now and then, where reading takes long."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._told_s = time.monotonic()

    def __call__(self, records: int) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = now_s
            click.echo(f"{self._instance}: {records:,} records read", err=True)


def _fail(code: int, sentence: str) -> NoReturn:
    click.echo(f"requeue-worker: {sentence}", err=True)
    sys.exit(code)
