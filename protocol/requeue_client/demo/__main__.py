"""`python -m requeue_client.demo`: see the package. Exit codes: 0 nothing lost or early, 1 something was, 2 usage,
3 a part could not be started, 130 interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from requeue_client.demo.ledger import Ledger, Report
from requeue_client.demo.parts import Parts
from requeue_client.demo.plan import make_plan
from requeue_client.demo.run import handling, play
from requeue_client.demo.show import Show, verdict, what_it_does, what_to_try
from requeue_client.local import LocalProcessError

NOT_STARTED, INTERRUPTED = 3, 130
_SMALLEST = 20


@click.command()
@click.option(
    "--messages", type=click.IntRange(_SMALLEST), default=2_000, show_default=True, help="How many."
)
@click.option("--seed", type=int, default=2020, show_default=True, help="Of the mix: the same for the same.")
@click.option("--keep", is_flag=True, help="Leave it running afterwards, to play with.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Parent of the data (removed at the end). Default: the system's temporary directory.",
)
def main(messages: int, seed: int, keep: bool, directory: Path | None) -> None:
    """Lose nothing on this machine: messages, failures, a kill -9, and the account of it all."""
    # The demo's parts are steered by the demo alone.
    for name in [name for name in os.environ if name.startswith(("REQUEUE_", "NATS_"))]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ledger = Ledger(make_plan(messages, seed))
    console = Console()
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    reports: list[Report] = []
    signals: list[int] = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="requeue-demo-", dir=directory) as own,
            Parts(Path(own)) as parts,
        ):
            asyncio.run(_demo(parts, ledger, console, keep, reports, signals))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _stopped(console, reports)
    except (LocalProcessError, OSError) as error:  # OSError: the worker's metrics cannot be read
        if signals:  # what was interrupted may say so in its own words, such as "Connection lost"
            _stopped(console, reports)
        else:
            click.echo(f"demo: {error}", err=True)
            sys.exit(NOT_STARTED)
    sys.exit(0 if reports[0].ok else 1)


def _stopped(console: Console, reports: list[Report]) -> None:
    console.print("\nstopped: server and worker have ended, their data is removed")
    if not reports:
        sys.exit(INTERRUPTED)


async def _demo(
    parts: Parts, ledger: Ledger, console: Console, keep: bool, reports: list[Report], signals: list[int]
) -> None:
    task = asyncio.current_task()
    assert task is not None

    def interrupt(number: int) -> None:
        signals.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):  # at a point where things can be left in order
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    show = Show(ledger, console)
    async with handling(parts, ledger, show.say):
        with show:
            show.say(what_it_does(parts, ledger))
            report = await play(parts, ledger, show)
        reports.append(report)
        verdict(report, console)
        if keep:
            what_to_try(parts, console)
            await asyncio.Event().wait()


if __name__ == "__main__":
    main(prog_name="python -m requeue_client.demo")
