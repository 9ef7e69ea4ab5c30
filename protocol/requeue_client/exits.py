"""The exit codes of the `requeue` command, which its help texts promise."""

from __future__ import annotations

from requeue_client.check import NotReplayed
from requeue_client.errors import (
    InvalidMessage,
    NotConnected,
    NoWorker,
    PermanentRefusal,
    PublishTimeout,
    RequeueError,
)

REFUSED, USAGE, UNREACHABLE, PERSISTED, NOT_REPLAYED, NOT_FOUND = 1, 2, 3, 4, 5, 6
FAULT_FOUND = 7  # by `requeue doctor`


def exit_code(error: RequeueError) -> int:
    """Give the exit code that the help text promises for an error."""
    if isinstance(error, NotReplayed):
        return NOT_REPLAYED
    if isinstance(error, InvalidMessage):
        return USAGE
    if isinstance(error, PermanentRefusal):
        return REFUSED
    if isinstance(error, NotConnected | NoWorker | PublishTimeout):
        return UNREACHABLE
    return PERSISTED
