"""What every admin command shares: options, connection, exit codes, and output as table, JSON or YAML."""

from __future__ import annotations

import asyncio
import getpass
import json
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

import click
import yaml
from requeue_protocol.changes import UNTIL_RESUMED
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from requeue_client.client import DEFAULT_INTAKE
from requeue_client.contexts import ContextError
from requeue_client.errors import (
    RequeueError,
)
from requeue_client.exits import exit_code
from requeue_client.options import Connection, connection_options
from requeue_client.service import AdminClient
from requeue_client.times import duration_s

EXIT_CODES: Final = """\b
Exit codes:
  0  done
  1  refused by a worker: the request makes no sense to it
  2  usage: an option or the context is wrong, nothing was asked
  3  NATS unreachable, or no worker answered
  4  refused by a worker for now: ask again
  6  nothing was found
"""
SHORTEST_TABLE: Final = 160  #: columns when the output is no terminal

Format = Literal["table", "json", "yaml"]
Row = dict[str, Any]
_F = TypeVar("_F", bound=Callable[..., Any])
Do = Callable[[AdminClient], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its head, and the text of a row's cell."""

    head: str
    text: Callable[[Row], str]
    right: bool = False


def admin_options(command: _F) -> _F:
    """Add what every admin command takes."""
    command = connection_options(command)
    command = click.option(
        "--timeout", default="5s", show_default=True, help="How long to wait for answers."
    )(command)
    command = click.option("--instance", help="Ask this worker alone.")(command)
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="Form of the output.",
    )(command)


def run_admin(options: dict[str, Any], do: Do) -> None:
    """Connect as the options say, and do it; the process ends with its exit code."""
    timeout, instance = options.pop("timeout"), options.pop("instance")
    try:
        timeout_s = duration_s(timeout, "timeout")
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    try:
        code = asyncio.run(_run(Connection(**options), instance, timeout_s, do))
    except ContextError as wrong:
        raise click.UsageError(str(wrong)) from None
    except RequeueError as error:
        click.echo(f"requeue: {error}", err=True)
        code = exit_code(error)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


async def _run(connection: Connection, instance: str | None, timeout_s: float, do: Do) -> int:
    async with await connection.open(intake=DEFAULT_INTAKE, timeout_s=timeout_s) as client:
        return await do(AdminClient(client, instance=instance, timeout_s=timeout_s))


def agreed(question: str, yes: bool) -> bool:
    """Whether it may be done: by --yes, or by an answer on the terminal. Raises UsageError where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Say --yes: there is no terminal to ask on; nothing was done")
    # asyncio takes the first Ctrl-C for itself, and a prompt would wait on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(question, err=True)
    finally:
        signal.signal(signal.SIGINT, before)


def asker() -> str:
    """Who asks, for the logs of the workers."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"[:256]
    except (OSError, KeyError):  # a user without a name, as in a container
        return f"@{socket.gethostname()}"[:256]


def render(rows: Sequence[Row], columns: Sequence[Column], form: Format, nothing: str) -> None:
    """Print rows; as a table what the columns say, else all that is known."""
    if form == "table":
        if rows:
            console().print(table(rows, columns))
        else:
            click.echo(nothing)
    else:
        dump(list(rows), form)


def dump(value: object, form: Format) -> None:
    """Print a value as JSON or YAML."""
    if form == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


def console() -> Console:
    """Standard output; wide enough for a pipe's other end."""
    found = Console()
    return found if found.is_terminal else Console(width=SHORTEST_TABLE)


def table(rows: Sequence[Row], columns: Sequence[Column], title: str | None = None) -> Table:
    """A plain table."""
    drawn = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        drawn.add_column(column.head, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(printable(column.text(row)) for column in columns))
    return drawn


def printable(text: str) -> str:
    """Text of a stranger, without what a terminal would obey or rich would read as markup."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text).replace(
        "[", r"\["
    )


def count(key: str) -> Callable[[Row], str]:
    """A cell: this number, with thousands set apart."""
    return lambda row: f"{row[key]:,}"


def text(key: str) -> Callable[[Row], str]:
    """A cell: this text."""
    return lambda row: "" if row[key] is None else str(row[key])


def instant(ns: int | None) -> str:
    """An instant for a person: UTC, seconds."""
    if ns is None:
        return ""
    try:
        return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError):
        return f"{ns} ns"


def from_now(ns: int | None, now_ns: int) -> str:
    """How far away an instant is: `in 5m`, `3s ago`."""
    if ns is None:
        return ""
    return f"in {span(ns - now_ns)}" if ns > now_ns else f"{span(now_ns - ns)} ago"


def pause_end(until_ns: int, now_ns: int) -> str:
    """When a pause ends."""
    return "until resumed" if until_ns >= UNTIL_RESUMED else f"ends {from_now(until_ns, now_ns)}"


def span(ns: int) -> str:
    """A time span for a person, with its two largest units."""
    seconds = ns // 1_000_000_000
    parts = (
        (seconds // 86400, "d"),
        (seconds // 3600 % 24, "h"),
        (seconds // 60 % 60, "m"),
        (seconds % 60, "s"),
    )
    shown = [f"{number}{unit}" for number, unit in parts if number]
    return "".join(shown[:2]) or f"{ns // 1_000_000}ms"


def size(byte_count: int) -> str:
    """Bytes for a person."""
    amount = float(byte_count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
