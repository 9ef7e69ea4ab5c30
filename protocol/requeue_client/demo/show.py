"""What the demo shows: lines as things happen, bars while it runs, a table at the end."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from requeue_client.demo.ledger import Ledger, Report
from requeue_client.demo.parts import Parts
from requeue_client.demo.plan import DEAD_SUBJECT, QUEUES, WORK_SUBJECT

_PLAIN_INTERVAL_S: Final = 2.0


class Show:
    """Progress as bars on a terminal, and as a line every two seconds anywhere else."""

    def __init__(self, ledger: Ledger, console: Console) -> None:
        self._ledger = ledger
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        total = len(ledger.plan)
        self._acked = self._progress.add_task("acknowledged", total=total, note="")
        self._ended = self._progress.add_task("ended", total=total, note="")
        self._began_s = self._told_s = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refresh()
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print a line; the bars stay below it."""
        at_s = time.monotonic() - self._began_s
        self._console.print(f"{at_s:6.1f} s  {line}", markup=False, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        """Show the state of the ledger."""
        ledger = self._ledger
        note = f"settled {len(ledger.settled)}, retried {ledger.retried}, dead {len(ledger.dead)}"
        self._progress.update(self._acked, completed=len(ledger.acked))
        self._progress.update(self._ended, completed=ledger.ended(), note=note)
        now_s = time.monotonic()
        if not self._console.is_terminal and now_s - self._told_s >= _PLAIN_INTERVAL_S:
            self._told_s = now_s
            self.say(
                f"acknowledged {len(ledger.acked)} of {len(ledger.plan)}, ended {ledger.ended()}: {note}"
            )


def what_it_does(parts: Parts, ledger: Ledger) -> str:
    """Say what is about to happen."""
    envelopes = sum(planned.message.envelope for planned in ledger.plan)
    return (
        f"nats-server on {parts.url}, a worker, and a handler that fails on purpose: {len(ledger.plan)} messages for "
        f"{len(QUEUES)} queues, {envelopes} of them as envelopes"
    )


def closing_table(report: Report) -> Table:
    """The figures of a run."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    rows: list[tuple[str, str, str]] = [
        ("published", f"{report.published}", "messages sent to the intake"),
        ("acked", f"{report.acked}", "of them on disk, fsynced"),
        ("delivered", f"{report.delivered}", "of them reached the handler"),
        ("redelivered", f"{report.redelivered}", "deliveries repeated after the crash"),
        ("retried", f"{report.retried}", "deliveries after a failed attempt"),
        ("settled", f"{report.settled}", "handled in the end"),
        ("expired", f"{report.expired}", "dead letters: the TTL was over first"),
        ("dead", f"{report.dead}", "dead letters: attempts exhausted, or terminated"),
        ("early", f"{report.early}", "delivered before they were due"),
        ("lateness p50", _ms(report.p50_ns), "delivered after due, while a worker was up"),
        ("lateness p99", _ms(report.p99_ns), ""),
        (
            "in the outage",
            f"{report.waited_through_outage}",
            f"waited through it; late by up to {_ms(report.outage_worst_ns)}",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def verdict(report: Report, console: Console) -> None:
    """The table, what went wrong, and the last line."""
    console.print()
    console.print(closing_table(report))
    console.print()
    for problem in report.problems:
        console.print(f"wrong: {problem}", style="bold red", markup=False, soft_wrap=True)
    console.print(f"lost {report.lost}", style="bold red" if report.lost else "bold green", highlight=False)


def what_to_try(parts: Parts, console: Console) -> None:
    """What to do with a demo that keeps running."""
    requeue = _beside("requeue")
    say = f"{requeue} publish --server {parts.url}"
    lines = (
        "",
        "It keeps running; Ctrl-C ends it and removes its data. In another terminal, try:",
        "",
        "  # a message in five seconds; the handler settles it, and it shows up here",
        f"  {say} {WORK_SUBJECT}.me 'hello' --delay 5s",
        "  # the handler refuses what begins with fail: three attempts, then a dead letter",
        f"  {say} {WORK_SUBJECT}.me 'fail please' --retries 3 --backoff 1s,2s",
        "  # nobody listens there: it is tried for ten seconds, then it expires",
        f"  {say} nobody.home 'anyone?' --retries unlimited --backoff fixed --ttl 10s",
        "  # what the worker counts, by queue",
        f"  curl -s {parts.metrics_url} | grep ^requeue_",
        f"  # other policies: edit {parts.config_file}, the worker takes them over at once",
        "",
        f"Messages for {WORK_SUBJECT}.> and dead letters on {DEAD_SUBJECT} are shown below.",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _beside(name: str) -> str:
    """The command as it can be typed here: with the path of this Python's directory, as short as it gets."""
    path = Path(sys.executable).parent / name
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms"
