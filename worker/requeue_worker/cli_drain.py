"""`requeue-worker drain`: hand an orphaned volume over, and print the proof.

Exit codes beyond those of cli.py: 4, something remains; 5, something remains since no surviving worker answered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click
from requeue_protocol.durations import NS_PER_S, parse_duration
from requeue_worker import event_loop, logs
from requeue_worker.cli_options import (
    GroupedCommand,
    GroupedOption,
    config_option,
    drain_flags,
    flags_given,
)
from requeue_worker.errors import DataDirError
from requeue_worker.settings import ConfigError, Settings, load

if TYPE_CHECKING:
    from requeue_worker.drain.drain import Options
    from requeue_worker.drain.proof import Proof

# Imported where they are used: the other commands do without the database.
# ruff: noqa: PLC0415

log = logging.getLogger(__name__)

EXIT_ERROR: Final = 1
EXIT_CONFIG: Final = 2
EXIT_DATA: Final = 3
_GROUP: Final = "The drain"


@click.command("drain", cls=GroupedCommand, short_help="Hand an orphaned volume over to a surviving worker.")
@drain_flags
@config_option
@click.option(
    "--nonce",
    cls=GroupedOption,
    group=_GROUP,
    metavar="TEXT",
    help="Repeated in the proof, so that it is no earlier one's.",
    note="[default: none]",
)
@click.option(
    "--proof-file",
    cls=GroupedOption,
    group=_GROUP,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the proof there too, whole or not at all.",
    note="[default: standard output alone]",
)
@click.option(
    "--timeout",
    cls=GroupedOption,
    group=_GROUP,
    metavar="DURATION",
    default="1m",
    help="Give up when there was no progress for so long.",
    note="[default: 1m]",
)
@click.option(
    "--new-target",
    cls=GroupedOption,
    group=_GROUP,
    is_flag=True,
    help="Go on with another worker where the one chosen before is gone for good: what it did not acknowledge "
    "may be sent twice.",
    note="[default: wait for it]",
)
@click.option(
    "--dry-run",
    cls=GroupedOption,
    group=_GROUP,
    is_flag=True,
    help="Change nothing: tell what is there and who would get it.",
    note="[default: off]",
)
def drain(
    config: str | None,
    nonce: str | None,
    proof_file: Path | None,
    timeout: str,
    new_target: bool,
    dry_run: bool,
    **flags: object,
) -> None:
    """Hand everything in the instance directories of --data-dir over to one surviving worker of the same fleet.

    For a volume whose workers are gone for good; a directory in use is not touched. What the other worker has on its
    disk is deleted here. It can be stopped (SIGTERM) and killed at any moment, and goes on where it was.

    Prints the proof as one line of JSON. Exits with 0 when nothing remains, with 4 when something does (the proof says
    what and why), with 5 when that is since no surviving worker answered, with 2 and 3 as `run`.
    """
    from requeue_worker.drain.drain import Options

    try:
        timeout_s = parse_duration(timeout) / NS_PER_S
        loaded = load(Path(config).expanduser() if config else None, flags_given(flags))
    except ConfigError as error:
        _fail(EXIT_CONFIG, *error.mistakes)
    except ValueError as error:
        _fail(EXIT_CONFIG, f"--timeout: {error}")
    logs.configure(loaded.settings.log_level, loaded.settings.log_format)
    for warning in loaded.warnings:
        log.warning("the configuration looks odd", extra={"error": warning})
    proof = _run(loaded.settings, Options(nonce, dry_run, new_target, timeout_s))
    click.echo(proof.encode())
    if proof_file is not None:
        try:
            proof.write(proof_file)
        except OSError as error:
            _fail(EXIT_ERROR, f"--proof-file: {proof_file} can't be written: {error.strerror}")
    sys.exit(proof.exit_code)


def _run(settings: Settings, options: Options) -> Proof:
    try:
        return event_loop.run(_drain(settings, options))
    except DataDirError as error:
        _fail(EXIT_DATA, str(error))
    except Exception as error:
        log.exception("the drain has ended")
        _fail(EXIT_ERROR, f"ended by an error: {error}")


async def _drain(settings: Settings, options: Options) -> Proof:
    from requeue_worker.drain.drain import Drain

    run = Drain(settings, options)

    def on_signal(number: signal.Signals) -> None:
        if run.stopping.is_set():
            log.warning("ended at once by a second signal", extra={"signal": number.name})
            os._exit(128 + number)
        log.info("stopping: a signal asks for it", extra={"signal": number.name})
        run.stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return await run.run()


def _fail(code: int, *sentences: str) -> NoReturn:
    for sentence in sentences:
        click.echo(f"requeue-worker: {sentence}", err=True)
    sys.exit(code)
