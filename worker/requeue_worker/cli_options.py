"""The flags of `requeue-worker run`: grouped in `--help`, each with its default and its environment variable.

Nothing is validated here: flags are one source of `settings` among others, and a mistake in one is told in the same
words as a mistake in the file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import click
from requeue_protocol.durations import format_duration
from requeue_worker.setting_keys import CONFIG_VARIABLE, FLAGS, Key, keys_of
from requeue_worker.settings import Settings

_TEXT_COLUMN: Final = 30

_F = TypeVar("_F", bound=Callable[..., Any])


class _Flag(NamedTuple):
    key: str
    metavar: str
    text: str
    many: bool = False


_GROUPS: Final[Mapping[str, tuple[_Flag, ...]]] = {
    "Where": (
        _Flag("nats.servers", "URL", "NATS server. Repeat it, or separate several by commas.", many=True),
        _Flag("data_dir", "DIR", "Parent directory of the data; this worker uses DIR/INSTANCE-ID."),
        _Flag("instance_id", "ID", "Name of this worker's directory: keep it across restarts."),
        _Flag("shards", "N|auto", "Worker processes; ID.0, ID.1, ... are their directories."),
        _Flag("http", "HOST:PORT", "Serve /livez, /readyz, /metrics and /overview there."),
        _Flag("web.listen", "HOST:PORT", "Serve the web view there. It has no login."),
        _Flag("web.changes", "BOOL", "Whether the web view may change queues and messages."),
    ),
    "What": (
        _Flag("subject", "SUBJECT", "Subject that messages are taken from; may end in a wildcard."),
        _Flag("queue_group", "NAME", "Queue group that shares the subject: each message goes to one worker."),
        _Flag("intake", "BOOL", "Whether new messages are taken; with false, what is pending goes out."),
        _Flag("admin.read_only", "BOOL", "Whether the admin API answers questions and changes nothing."),
        _Flag("fleet", "NAME", "Workers that may hand messages over to each other."),
    ),
    "Logging in to NATS (one way; the first of these that is given)": (
        _Flag("nats.creds_file", "FILE", "Credentials file with user JWT and nkey seed."),
        _Flag("nats.nkey_file", "FILE", "Seed of a user nkey (SU...)."),
        _Flag("nats.token_file", "FILE", "Token."),
        _Flag("nats.user", "NAME", "User name; goes with --password-file."),
        _Flag("nats.password_file", "FILE", "Password of that user."),
    ),
    "TLS": (
        _Flag("nats.tls.ca_file", "FILE", "CAs to trust instead of the system's (PEM)."),
        _Flag("nats.tls.cert_file", "FILE", "Client certificate for mTLS (PEM)."),
        _Flag("nats.tls.key_file", "FILE", "Its key (PEM), unless the certificate's file holds it."),
    ),
    "Process": (
        _Flag("log_level", "LEVEL", "debug, info, warning or error."),
        _Flag("log_format", "FORMAT", "text or json."),
        _Flag("shutdown_grace", "DURATION", "Longest wait for replies after SIGTERM, like 15s or 1m30s."),
    ),
}


class GroupedOption(click.Option):
    """An option under a heading; `note` (default, environment variable) stands below its text."""

    def __init__(self, *args: Any, group: str, note: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group
        self.note = note


class GroupedCommand(click.Command):
    """Shows its options under the headings that they belong to."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section a heading."""
        options = [option for option in self.get_params(ctx) if isinstance(option, GroupedOption)]
        for heading in dict.fromkeys(option.group for option in options):
            with formatter.section(heading):
                for option in options:
                    if option.group == heading:
                        _write(option, ctx, formatter)


def _write(option: GroupedOption, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    name, text = option.get_help_record(ctx) or ("", "")
    indent = " " * formatter.current_indent
    lines = [*textwrap.wrap(text, formatter.width - _TEXT_COLUMN), option.note]
    formatter.write(f"{indent}{name}".ljust(_TEXT_COLUMN) + lines[0] + "\n")
    formatter.write("".join(" " * _TEXT_COLUMN + line + "\n" for line in lines[1:]))


def setting_flags(command: _F) -> _F:
    """Decorate a command with every flag of `FLAGS`; it gets them as keyword arguments (see `flags_given`)."""
    return _with_flags(command, FLAGS)


def drain_flags(command: _F) -> _F:
    """As `setting_flags`, with those alone that a drain goes by."""
    own = ("data_dir", "fleet", "log_level", "log_format")
    return _with_flags(command, [key for key in FLAGS if key in own or key.startswith("nats.")])


def _with_flags(command: _F, chosen: Collection[str]) -> _F:
    keys = {key.dotted: key for key in keys_of(Settings)}
    for group, flags in reversed(list(_GROUPS.items())):
        for flag in reversed(flags):
            if flag.key not in chosen:
                continue
            key = keys[flag.key]
            command = click.option(
                FLAGS[flag.key],
                _parameter(flag.key),
                cls=GroupedOption,
                group=group,
                metavar=flag.metavar,
                multiple=flag.many,
                help=flag.text,
                note=f"[{_default(key)}; env: {key.env}]".replace("[; ", "["),
            )(command)
    return command


def config_option(command: _F) -> _F:
    """Decorate a command with `--config FILE`."""
    return click.option(
        "--config",
        cls=GroupedOption,
        group="Where",
        metavar="FILE",
        envvar=CONFIG_VARIABLE,
        help="YAML file with all of this and the queues' policies; these are taken over when it changes.",
        note=f"[env: {CONFIG_VARIABLE}]",
    )(command)


def flags_given(parameters: Mapping[str, object]) -> dict[str, object]:
    """What the command line said, by setting."""
    return {key: given for key in FLAGS if (given := parameters.get(_parameter(key))) not in (None, ())}


def _parameter(key: str) -> str:
    return key.replace(".", "__")


def _default(key: Key) -> str:
    words = {"data_dir": "required", "instance_id": "default: the host name", "http": "default: off"}
    words["web.listen"] = "default: off"
    if key.dotted in words:
        return words[key.dotted]
    value = key.info.get_default()
    if value is None:
        return ""
    if key.dotted == "shutdown_grace":
        return f"default: {format_duration(value)}"
    return f"default: {','.join(value) if isinstance(value, tuple) else value}"
