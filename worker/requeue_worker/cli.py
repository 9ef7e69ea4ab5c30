"""The command `requeue-worker`. Exit codes: 0 stopped or fine, 1 ended by an error, 2 wrong configuration, 3 data
directory locked or unreadable, 4 and 5 something remains (cli_drain.py), 6 data that was read is not sound (cli_data.py).

Standard output holds results alone (one line with `ready`, or a checked configuration); logs and mistakes go to
standard error.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import click
import yaml
from requeue_worker import cli_data, cli_drain, event_loop, logs
from requeue_worker.cli_options import GroupedCommand, config_option, flags_given, setting_flags
from requeue_worker.config_file import read_config_file
from requeue_worker.settings import ConfigError, Loaded, Settings, load

log = logging.getLogger(__name__)

EXIT_ERROR: Final = 1
EXIT_CONFIG: Final = 2
EXIT_DATA: Final = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nats-requeue", prog_name="requeue-worker")
def main() -> None:
    """Durable delay, retry and dead letters for any NATS client."""


cli_data.register(main)
main.add_command(cli_drain.drain)


@main.command(cls=GroupedCommand, short_help="Run a worker until it is told to stop.")
@setting_flags
@config_option
def run(config: str | None, **flags: object) -> None:
    """Take messages in, keep them on disk, and send them when they are due.

    Prints one line with `ready` when messages are taken. Stops on SIGTERM or Ctrl-C; a second one ends it at
    once. What a flag says goes over its environment variable, that over the file, and that over the default.
    Durations are written like 1h30m, 15s or 200ms.

    Exits with 2 when the configuration is wrong, and with 3 when the data directory is locked by another
    process or unreadable.
    """
    try:
        loaded = load(Path(config).expanduser() if config else None, flags_given(flags))
    except ConfigError as error:
        _fail(EXIT_CONFIG, *error.mistakes)
    logs.configure(loaded.settings.log_level, loaded.settings.log_format)
    for warning in loaded.warnings:
        log.warning("the configuration looks odd", extra={"error": warning})
    _run(loaded.settings)


def _run(settings: Settings) -> None:
    from requeue_worker.errors import DataDirError
    from requeue_worker.http import HttpListenError
    from requeue_worker.service import serve
    from requeue_worker.shards import Supervisor

    nats = {"servers": settings.nats.redacted_servers, "subject": settings.subject}
    log.info("starting", extra={"version": version("nats-requeue"), "instance": settings.instance_id, **nats})
    try:
        if settings.shards > 1:
            sys.exit(event_loop.run(Supervisor(settings, sys.argv[1:], lambda: _say_ready(settings)).run()))
        event_loop.run(serve(settings, lambda: _say_ready(settings)))
    except DataDirError as error:
        _fail(EXIT_DATA, str(error))
    except HttpListenError as error:
        _fail(EXIT_CONFIG, str(error))
    except Exception as error:
        log.exception("the worker has ended")
        _fail(EXIT_ERROR, f"ended by an error: {error}")


def _say_ready(settings: Settings) -> None:
    with contextlib.suppress(OSError):  # who started us may have closed its end
        taken = settings.subject if settings.intake else "nothing (intake: false)"
        line = f"ready: taking {taken} as {settings.instance_id}, data in {settings.data_dir}"
        print(line, flush=True)
    event_loop.calm_collector()


@main.command("check-config", short_help="Check a configuration file and show the queues' policies.")
@click.argument("file")
def check_config(file: str) -> None:
    """Check the configuration FILE and print the effective policies, defaults filled in, as YAML.

    Flags and environment are left aside, and files that it names are not opened. Exits with 2, and a sentence
    for each mistake, when a worker would not start with it.
    """
    try:
        loaded = _load_alone(Path(file))
    except ConfigError as error:
        _fail(EXIT_CONFIG, *error.mistakes)
    for warning in loaded.warnings:
        click.echo(f"requeue-worker: warning: {warning}", err=True)
    settings = loaded.settings
    document = {
        "defaults": settings.defaults.model_dump(mode="json", by_alias=True),
        "queues": [
            {"name": queue.name, **settings.policy_for(queue.name).model_dump(mode="json", by_alias=True)}
            for queue in settings.queues
        ],
    }
    click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


def _load_alone(file: Path) -> Loaded:
    """The file by itself: where the data goes may be left to a flag."""
    elsewhere = {} if "data_dir" in read_config_file(file).values else {"data_dir": "."}
    return load(file, elsewhere, environ={}, look_into_files=False)


def _fail(code: int, *sentences: str) -> NoReturn:
    for sentence in sentences:
        click.echo(f"requeue-worker: {sentence}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
