"""What the models of `settings` share: the shape of a section, and types that say what would be right."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.policy import Duration, read_size
from requeue_protocol.subjects import check_queue_name


def _read_path(value: object) -> object:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty; name a path")
        return Path(value).expanduser()
    return value


def read_list(value: object) -> object:
    """A comma-separated text as a tuple; anything else is left to pydantic."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def read_lower(value: object) -> object:
    """A text in lower case; anything else is left to pydantic."""
    return value.lower() if isinstance(value, str) else value


def _read_reserve(value: object) -> object:
    """A share of the disk (`5%`) or a size, as text; 0 is none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value
    text = str(value).strip()
    if re.fullmatch(r"[0-9]{1,2}%", text):
        return text
    try:
        read_size(text)
    except ValueError:
        raise ValueError(f"{text!r} is no reserve; write it like 256MiB or 5%, at most 99%") from None
    return text


def _positive(ns: int) -> int:
    if ns <= 0:
        raise ValueError("is 0; it is more than 0, like 2s")
    return ns


def _token_name(name: str) -> str:
    """A name that is a directory and part of a subject: a queue name that is no dot-file."""
    try:
        check_queue_name(name)
    except MalformedMessage:
        raise ValueError(f"{name[:140]!r} is no name; it is 1 to 128 of A-Z a-z 0-9 _ . -") from None
    if name.startswith("."):
        raise ValueError(f"{name!r} begins with a dot; it names a directory that must not be hidden")
    return name


FilePath = Annotated[Path, BeforeValidator(_read_path)]
DiskReserve = Annotated[str, BeforeValidator(_read_reserve)]
Name = Annotated[str, AfterValidator(_token_name)]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]


class Section(BaseModel):
    """A mapping in the file. A duration's attribute ends in `_ns`, its key does not."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        alias_generator=lambda name: name.removesuffix("_ns"),
    )


def read_shards(value: object) -> object:
    """`auto` as the number of cores that this process may use."""
    return usable_cores() if value == "auto" else value


def usable_cores() -> int:
    """Cores of this process: its affinity, or its cgroup's share (version 2) where that is less; at least 1."""
    cores = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, float(quota) / float(period))
    return max(1, int(cores))
