"""What a worker can be told: one immutable model, whatever the values came from.

`load_settings` reads flags, environment (`REQUEUE_*`), a YAML file and the defaults, the earlier over the
later, and returns `Settings` or raises one `ConfigError` that lists every mistake. `sources` does the
reading, `mistakes` the wording, `credential_files` looks into the files that are named, `nats_settings` is
the connection. `docs/configuration.md` describes every key.

`Settings(...)` itself reads nothing but its arguments, so that a worker embedded in another program is not
steered by that program's environment. Attributes carry their unit (`shutdown_grace_ns`); keys in files do not
(`shutdown_grace: 15s`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from requeue_protocol.durations import NS_PER_S
from requeue_protocol.policy import Duration, NamedQueuePolicy, QueuePolicy, Size
from requeue_protocol.subjects import INTAKE_DEFAULT, QUEUE_GROUP, check_pattern, subject_matches
from requeue_worker.bridge.settings import BridgeSettings
from requeue_worker.config_file import read_config_file
from requeue_worker.credential_files import mistakes_in
from requeue_worker.http import HttpAddress
from requeue_worker.logs import LogFormat, LogLevel
from requeue_worker.mistakes import ConfigError, sentences
from requeue_worker.nats_settings import NatsSettings, TlsSettings
from requeue_worker.setting_types import (
    DiskReserve,
    FilePath,
    Name,
    PositiveDuration,
    Section,
    read_list,
    read_lower,
    read_shards,
)
from requeue_worker.sources import check, keep_one_login, layer_environment, layer_file, layer_flags, merged
from requeue_worker.web.settings import WebSettings

__all__ = [
    "AdminSettings",
    "ConfigError",
    "Loaded",
    "NatsSettings",
    "Origin",
    "ReaperSettings",
    "Settings",
    "TlsSettings",
    "WebSettings",
    "load",
    "load_settings",
    "policy_for",
]

_MIB = 1 << 20


def _port_as_text(value: object) -> object:
    return str(value) if type(value) is int else value


@dataclass(frozen=True)
class Origin:
    """Where settings were loaded from, so that a change can be loaded in the same way."""

    config_file: Path | None
    digest: bytes
    """Of the file's content, to know another one."""
    flags: Mapping[str, object] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)


class ReaperSettings(Section):
    """How the directories of instances that are gone are found beside the own one."""

    enabled: bool = Field(default=True, description="Merge the directories of instances that are gone.")
    reap_after_ns: PositiveDuration = Field(
        default=60 * NS_PER_S, description="An instance whose heartbeat is still for so long is gone."
    )
    interval_ns: PositiveDuration = Field(
        default=5 * NS_PER_S, description="Between two looks at the data directory."
    )
    live: Annotated[tuple[Name, ...], BeforeValidator(read_list)] = Field(
        default=(), description="Instance ids that may come back; others are merged once unlocked."
    )


class AdminSettings(Section):
    """The admin API."""

    read_only: bool = Field(default=False, description="Whether it answers questions and changes nothing.")


class Settings(Section):
    """Everything a worker is told. Only `defaults` and `queues` can change while it runs."""

    restart_free: ClassVar[tuple[str, ...]] = ("defaults", "queues")

    data_dir: FilePath = Field(description="Parent of the instance directories.")
    instance_id: Name = Field(
        default_factory=socket.gethostname,
        validate_default=True,
        description="Name of this worker's directory; stable across restarts. Default: the host name.",
    )
    shards: Annotated[int, BeforeValidator(read_shards)] = Field(
        default=1, ge=1, le=64, description="Worker processes, each with its own directory; auto: one a core."
    )
    fleet: Name = Field(default="default", description="Workers that may hand messages over to each other.")
    nats: NatsSettings = Field(default_factory=NatsSettings)
    subject: str = Field(default=INTAKE_DEFAULT, description="Intake subject; may end in a wildcard.")
    queue_group: str = Field(default=QUEUE_GROUP, description="Queue group of the intake subscription.")
    intake: bool = Field(
        default=True, description="Whether new messages are taken; without, pending ones go out."
    )
    http: Annotated[str | None, BeforeValidator(_port_as_text)] = Field(
        default=None, description="HOST:PORT for probes and metrics; off unless given."
    )
    log_level: Annotated[LogLevel, BeforeValidator(read_lower)] = Field(
        default="info", description="Least level logged."
    )
    log_format: Annotated[LogFormat, BeforeValidator(read_lower)] = Field(
        default="text", description="Shape of a log line."
    )
    shutdown_grace_ns: Duration = Field(
        default=15 * NS_PER_S, description="Longest wait for replies at shutdown."
    )
    stats_interval_ns: PositiveDuration = Field(
        default=5 * NS_PER_S, description="Between two stats messages."
    )
    reconnect_grace_ns: Duration = Field(
        default=3 * NS_PER_S, description="After a reconnect, no-responders holds a message this long."
    )
    defaults: QueuePolicy = Field(default_factory=lambda: QueuePolicy.model_validate({}))
    queues: tuple[NamedQueuePolicy, ...] = Field(
        default=(), description="Policies of queues by name, over the defaults."
    )
    max_queues: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Queues known at a time; beyond: 429."
    )
    intake_buffer_bytes: Size = Field(
        default=64 * _MIB, ge=_MIB, description="Received and not yet on disk; beyond: 503."
    )
    disk_reserve: DiskReserve = Field(
        default="256MiB", description="Left free on the disk: a size or a share like 5%; below it: 507."
    )
    max_in_flight_total: int = Field(
        default=16_384, ge=1, le=1_000_000, description="Unsettled replays of all queues."
    )
    max_in_flight_bytes: Size = Field(default=64 * _MIB, ge=_MIB, description="Their bytes in memory.")
    invalid_kept: int = Field(
        default=1_000, ge=0, le=1_000_000, description="Malformed messages kept as dead letters."
    )

    admin: AdminSettings = Field(default_factory=AdminSettings)
    web: WebSettings = Field(default_factory=WebSettings)
    reaper: ReaperSettings = Field(default_factory=ReaperSettings)
    bridge: BridgeSettings = Field(default_factory=BridgeSettings)

    _origin: Origin | None = PrivateAttr(None)
    _effective: tuple[object, object, dict[str, QueuePolicy]] | None = PrivateAttr(None)

    @property
    def origin(self) -> Origin | None:
        """Where `load_settings` found them; None when made by hand."""
        return self._origin

    @field_validator("subject")
    @classmethod
    def _check_subject(cls, subject: str) -> str:
        check_pattern(subject)
        first = subject.partition(".")[0]
        if first in ("*", ">") or first.startswith(("$", "_")):
            raise ValueError(
                f"{subject!r} would take in more than what is meant for it; begin with a word of your own, "
                f"like {INTAKE_DEFAULT}"
            )
        return subject

    @field_validator("queue_group")
    @classmethod
    def _check_queue_group(cls, group: str) -> str:
        if not group or not group.isprintable() or " " in group:
            raise ValueError(f"{group!r} is no queue group; it is a word without spaces, like {QUEUE_GROUP}")
        return group

    @field_validator("http")
    @classmethod
    def _check_http(cls, address: str | None) -> str | None:
        return None if address is None else str(HttpAddress.parse(address))

    @field_validator("defaults")
    @classmethod
    def _check_defaults(cls, defaults: QueuePolicy, info: ValidationInfo) -> QueuePolicy:
        _check_no_loop(defaults, info)
        return defaults

    @field_validator("queues")
    @classmethod
    def _check_queues(
        cls, queues: tuple[NamedQueuePolicy, ...], info: ValidationInfo
    ) -> tuple[NamedQueuePolicy, ...]:
        names = [queue.name for queue in queues]
        wrong = [
            f"the name {name!r} stands {names.count(name)} times; once is right" for name in _twice(names)
        ]
        defaults: QueuePolicy | None = info.data.get("defaults")  # None when they have mistakes of their own
        for queue in queues:
            if defaults is None:
                break
            try:
                _check_no_loop(queue, info)
            except ValueError as error:
                wrong.append(f"{queue.name!r}: {error}")
            try:
                queue.over(defaults)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                wrong.append(f"{queue.name!r} does not go with the defaults: {reason}")
        if wrong:
            raise ValueError("\n".join(wrong))
        return queues

    def policy_for(self, queue: str) -> QueuePolicy:
        """The effective policy of a queue: its own where it says something, the defaults elsewhere."""
        cache = self._effective
        if cache is None or cache[0] is not self.defaults or cache[1] is not self.queues:
            # `model_copy` takes private attributes along: the policies say whether the cache is theirs.
            named = {policy.name: policy.over(self.defaults) for policy in self.queues}
            cache = self._effective = (self.defaults, self.queues, named)
        return cache[2].get(queue, self.defaults)


def _check_no_loop(policy: QueuePolicy, info: ValidationInfo) -> None:
    subject, intake = (
        policy.dead_letter_subject,
        info.data.get("subject"),
    )  # None when it has mistakes of its own
    if subject is not None and intake is not None and subject_matches(intake, subject):
        raise ValueError(
            f"dead_letter_subject {subject!r} is a subject of the intake, {intake}: dead letters would be taken in "
            "again without end; use another subject"
        )


def _twice(names: list[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


@dataclass(frozen=True)
class Loaded:
    """Settings that were loaded, and sentences about what looks unintended in their sources."""

    settings: Settings
    warnings: tuple[str, ...]


def load_settings(
    config_file: Path | None,
    flags: Mapping[str, object],
    *,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from flags, environment, file and defaults, each over the next.

    `flags` holds values by dotted key (`{"data_dir": ..., "nats.servers": (...)}`) or nested; `environ` is
    the process's own unless given. Raises ConfigError with a sentence for each mistake.
    """
    return load(config_file, flags, environ=environ).settings


def load(
    config_file: Path | None,
    flags: Mapping[str, object],
    *,
    environ: Mapping[str, str] | None = None,
    content: bytes | None = None,
    look_into_files: bool = True,
) -> Loaded:
    """As `load_settings`, with warnings. `content` is what `config_file` was found to hold, if it was read
    already; `look_into_files` False leaves the files of credentials and certificates unopened.
    """
    environ = dict(os.environ if environ is None else environ)
    layers = [layer_flags(flags, Settings), layer_environment(environ, Settings)]
    file = None
    if config_file is not None:
        file = read_config_file(config_file, content)
        layers.append(layer_file(file, Settings))
    check(layers)
    keep_one_login(layers)
    values, where = merged(layers)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(sentences(error, Settings, where)) from None
    if look_into_files:
        wrong = [f"{where(path)}: {text}" for path, text in mistakes_in(settings.nats)]
        if wrong:
            raise ConfigError(wrong)
    digest = file.digest if file is not None else b""
    settings._origin = Origin(config_file, digest, dict(flags), environ)
    return Loaded(settings, tuple(warning for layer in layers for warning in layer.warnings))


def policy_for(settings: Settings, queue: str) -> QueuePolicy:
    """`settings.policy_for(queue)`."""
    return settings.policy_for(queue)
