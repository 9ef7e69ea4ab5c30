"""The `requeue` command: publish a message and wait until it is on disk; send one through (`check`);
measure (`bench`). What asks the workers' admin API is in `commands/`."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import get_completion_class

from requeue_client.check import SUBJECT, RoundTrip, check
from requeue_client.contexts import ContextError
from requeue_client.errors import (
    InvalidMessage,
    RequeueError,
)
from requeue_client.exits import exit_code
from requeue_client.message import Message, MessageOptions, encode
from requeue_client.options import Connection, connection_options, intake_option
from requeue_client.times import duration_s

_EXIT_CODES = """\b
Exit codes:
  0  on disk: acknowledged by a worker after its fsync
  1  refused for good: malformed, subject not allowed, too large
  2  usage: an option or the subject is wrong, nothing was sent
  3  NATS unreachable, or no worker answered (the message may be on disk:
     publish it again with the same --msg-id)
  4  refused in the end after all attempts: queue full, disk full, draining
"""
_CHECK_EXIT_CODES = """\b
Exit codes:
  0     the message came back
  1, 4  refused by a worker
  2     usage: an option is wrong, nothing was sent
  3     NATS unreachable, or no worker answered
  5     on disk at a worker, and not replayed in time
"""


#: name -> module and attribute of the commands that are imported only when they are asked for
_LAZY = {
    "instances": ("requeue_client.commands.overview", "instances"),
    "queues": ("requeue_client.commands.overview", "queues"),
    "stats": ("requeue_client.commands.overview", "stats"),
    "top": ("requeue_client.commands.top", "top"),
    "list": ("requeue_client.commands.browse", "list_messages"),
    "peek": ("requeue_client.commands.browse", "peek"),
    "show": ("requeue_client.commands.browse", "show"),
    "dead": ("requeue_client.commands.dead", "dead"),
    "pause": ("requeue_client.commands.pauses", "pause"),
    "resume": ("requeue_client.commands.pauses", "resume"),
    "cancel": ("requeue_client.commands.changes", "cancel"),
    "run-now": ("requeue_client.commands.changes", "run_now"),
    "reschedule": ("requeue_client.commands.changes", "reschedule"),
    "purge": ("requeue_client.commands.changes", "purge"),
    "doctor": ("requeue_client.commands.doctor", "doctor"),
    "subscribe": ("requeue_client.commands.subscribe", "subscribe"),
    "bench": ("requeue_client.bench.command", "bench"),
}


class _Lazy(click.Group):
    """A group that imports a command only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_LAZY]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _LAZY:
            module, attribute = _LAZY[cmd_name]
            command = getattr(import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nats-requeue", prog_name="requeue")
def main() -> None:
    """Durable delay, retry and dead letters for any NATS client."""


@main.command(epilog=_EXIT_CODES)
@click.argument("subject", required=False)
@click.argument("payload", required=False, default="")
@click.option(
    "--file", help="Publish the JSON lines of this file (-: standard input); SUBJECT is for lines without."
)
@click.option("--delay", help="First due this long after it is on disk: 10m, 1h30m, 500ms.")
@click.option("--at", help="First due then: 2030-01-31T18:30:00Z.")
@click.option("--ttl", help="Dead letter after this long; 0 = never.")
@click.option("--retries", help="Dispatches in all, 1 or more, or unlimited.")
@click.option("--backoff", help="fixed, exponential, linear, or the waits: 1s,5s,1m.")
@click.option("--min-backoff", help="Shortest wait between dispatches.")
@click.option("--max-backoff", help="Longest wait between dispatches.")
@click.option("--ack-timeout", help="How long a handler may take to answer.")
@click.option("--queue", help="Queue to put it into.")
@click.option("--priority", type=int, help="0 (first) to 9 (last), within its queue.")
@click.option("--msg-id", help="Deduplicates while the message is pending; made up when absent.")
@click.option("--header", multiple=True, metavar="'NAME: VALUE'", help="Header of the message; repeatable.")
@click.option("--envelope", is_flag=True, help="Send a FlatBuffers envelope, as clients of the original do.")
@click.option("--count", type=click.IntRange(1), default=1, help="Publish that many copies.")
@click.option("--timeout", default="10s", show_default=True, help="How long to try, connecting included.")
@intake_option
@connection_options
def publish(subject: str | None, payload: str, file: str | None, **options: Any) -> None:
    """Publish PAYLOAD (- for standard input, none for empty) for SUBJECT, and wait for the ack.

    A worker writes it to disk and, when it is due, sends it to SUBJECT as a request until a handler answers.
    What is not said by an option, the queue's policy in the worker decides.
    """
    if file is not None:
        _publish_file(file, subject, payload, options)
    if subject is None:
        raise click.UsageError("Missing argument 'SUBJECT'")
    data = sys.stdin.buffer.read() if payload == "-" else payload.encode(errors="surrogateescape")
    count, timeout, intake = (options.pop(name) for name in ("count", "timeout", "intake"))
    connection = Connection(**{name: options.pop(name) for name in Connection.__dataclass_fields__})
    try:
        timeout_s = duration_s(timeout, "timeout")
        message = Message(subject, data, **_message_options(options))
        encode(message)
        if count > 1 and message.msg_id is not None:
            raise InvalidMessage("--msg-id with --count would publish one message; leave one of them out")
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    try:
        line = asyncio.run(_publish(connection, intake, message, count, timeout_s))
    except ContextError as wrong:
        raise click.UsageError(str(wrong)) from None
    except RequeueError as error:
        click.echo(f"requeue: {error}", err=True)
        sys.exit(exit_code(error))
    click.echo(line)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes this command's words in SHELL.

    \b
    bash:  eval "$(requeue completion bash)"      in ~/.bashrc
    zsh:   eval "$(requeue completion zsh)"       in ~/.zshrc
    fish:  requeue completion fish | source       in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "requeue", "_REQUEUE_COMPLETE").source())


@main.command("check", epilog=_CHECK_EXIT_CODES)
@click.option(
    "--subject", default=SUBJECT, show_default=True, help="Replay it to a fresh subject below this."
)
@click.option("--timeout", default="30s", show_default=True, help="How long to try, connecting included.")
@intake_option
@connection_options
def check_command(subject: str, timeout: str, intake: str, **options: Any) -> None:
    """Send one message through a worker and wait until it comes back: does all of it work?

    It goes through the queue requeue-check, and leaves nothing there once it came back. A worker that is not there
    yet is waited for.
    """
    try:
        timeout_s = duration_s(timeout, "timeout")
        encode(Message(f"{subject}.1"))
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    try:
        done = asyncio.run(_check(Connection(**options), intake, subject, timeout_s))
    except ContextError as wrong:
        raise click.UsageError(str(wrong)) from None
    except RequeueError as error:
        click.echo(f"requeue: {error}", err=True)
        sys.exit(exit_code(error))
    click.echo(
        f"on disk after {done.on_disk_s * 1e3:.0f} ms, back after {done.back_s * 1e3:.0f} ms: {done.subject}"
    )


async def _check(connection: Connection, intake: str, subject: str, timeout_s: float) -> RoundTrip:
    until_s = asyncio.get_running_loop().time() + timeout_s
    async with await connection.open(intake=intake, timeout_s=timeout_s) as client:
        left_s = max(0.001, until_s - asyncio.get_running_loop().time())
        return await check(client, subject=subject, timeout_s=left_s)


def _message_options(options: dict[str, Any]) -> MessageOptions:
    """Turn command line options into those of a message. Raises ValueError."""
    headers: dict[str, str] = {}
    for header in options.pop("header"):
        name, colon, value = header.partition(":")
        if not colon:
            raise ValueError(f"--header {header!r}; write it as 'Name: value'")
        headers[name.strip()] = value.strip()
    retries = options.pop("retries")
    if retries is not None and retries != "unlimited":
        if not retries.isdecimal():
            raise ValueError(
                f"--retries {retries!r}; it is the number of dispatches in all, 1 or more, or unlimited"
            )
        retries = int(retries)
    said: MessageOptions = {**options, "retries": retries, "headers": headers}  # type: ignore[typeddict-item]
    return said


def _publish_file(file: str, subject: str | None, payload: str, options: dict[str, Any]) -> NoReturn:
    """Publish a file's lines, and end with the exit code."""
    from requeue_client.commands.publish_file import publish_file

    timeout, intake = options.pop("timeout"), options.pop("intake")
    connection = Connection(**{name: options.pop(name) for name in Connection.__dataclass_fields__})
    if payload or options.pop("count") != 1 or any(options.values()):
        raise click.UsageError("with --file, what a message says stands in its line")
    path = None if file == "-" else Path(file)
    if path is not None and not path.is_file():
        raise click.UsageError(f"there is no file {file}")

    async def do() -> int:
        timeout_s = duration_s(timeout, "timeout")
        async with await connection.open(intake=intake, timeout_s=timeout_s) as client:
            return await publish_file(client, path, subject, timeout_s=timeout_s)

    try:
        code = asyncio.run(do())
    except RequeueError as error:
        click.echo(f"requeue: {error}", err=True)
        code = exit_code(error)
    except (ContextError, ValueError) as wrong:
        raise click.UsageError(str(wrong)) from None
    sys.exit(code)


async def _publish(
    connection: Connection, intake: str, message: Message, count: int, timeout_s: float
) -> str:
    """Publish and give the line that says so. Raises the first error."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    async with await connection.open(intake=intake, timeout_s=timeout_s) as client:
        left = f"{max(0.001, timeout_s - (loop.time() - started_s)):.3f}s"
        tally: Counter[str] = Counter()
        errors: list[RequeueError] = []
        async for outcome in client.publish_many((message for _ in range(count)), timeout=left):
            if outcome.error is not None:
                errors.append(outcome.error)
            elif outcome.ack is not None:
                tally["duplicate" if outcome.ack.duplicate else "new"] += 1
                msg_id = outcome.ack.msg_id
    if errors:
        if count > 1:
            click.echo(f"requeue: {tally.total()} of {count} messages are on disk", err=True)
        raise errors[0]
    if count > 1:
        return f"on disk: {count} messages for {message.subject}"
    pending = " (was pending already)" if tally["duplicate"] else ""
    return f"on disk: {message.subject} id {msg_id}{pending}"


if __name__ == "__main__":
    main(prog_name=Path(sys.argv[0]).name)
