"""What an embedding program can hear of its worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from requeue_worker.errors import CommitError


def _nothing(*_: object) -> None:
    """The hook of who wants none."""


@dataclass(frozen=True)
class Hooks:
    """What an embedding program may want to hear. All are called on the event loop and must not block or raise."""

    #: subscriptions are live: the worker takes messages
    ready: Callable[[], None] = _nothing
    #: a batch could not be written; the worker ends
    write_error: Callable[[CommitError], None] = _nothing
    #: an attempt to connect failed, a permission was denied, or another asynchronous NATS error
    connection_error: Callable[[Exception], None] = _nothing
    disconnected: Callable[[], None] = _nothing
    reconnected: Callable[[], None] = _nothing
    #: the worker has ended
    closed: Callable[[], None] = _nothing
    #: a directory that a gone instance left was merged and removed; told again, at most, after a crash in between
    reaped: Callable[[Path, str], None] = _nothing
