"""Options that say which messages a command means, the same for those that look and those that change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from pydantic import ValidationError
from requeue_protocol.admin import AdminRequest, mistakes_of

from requeue_client.times import duration_ns

_F = TypeVar("_F", bound=Callable[..., Any])
_R = TypeVar("_R", bound=AdminRequest)
_OPTIONS: Final = ("subject", "reason", "message_id", "older", "newer")


def pending_options(command: _F) -> _F:
    """Add --subject, --older and --newer, which say what of pending messages; `filter_fields` reads them."""
    command = click.option("--newer", help="On disk for less than this.")(command)
    command = click.option("--older", help="On disk for longer than this: 10m, 24h.")(command)
    return click.option("--subject", help="Those for subjects like this: orders.*, orders.>.")(command)


def filter_options(command: _F) -> _F:
    """Add --subject, --reason, --id, --older and --newer; `filter_fields` reads them."""
    command = pending_options(command)
    command = click.option("--id", "message_id", help="Those with this Requeue-Id or Nats-Msg-Id.")(command)
    return click.option(
        "--reason", help="Dead letters with this reason: exhausted, expired, terminated, invalid, too-large."
    )(command)


def filter_fields(queue: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Take the filter's options out of `options`: the fields of a MessageFilter. Raises UsageError."""
    said = {key: options.pop(key, None) for key in _OPTIONS}
    now_ns = time.time_ns()
    try:
        ages = {key: duration_ns(said[key], key) for key in ("older", "newer") if said[key] is not None}
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    return {
        "queue": queue,
        "subject": said["subject"],
        "reason": said["reason"],
        "id": said["message_id"],
        "enqueued_before_ns": now_ns - ages["older"] if "older" in ages else None,
        "enqueued_after_ns": max(now_ns - ages["newer"], 0) if "newer" in ages else None,
    }


def checked(request: type[_R], **fields: Any) -> _R:
    """The request. Raises UsageError for what makes no sense."""
    try:
        return request(**fields)
    except ValidationError as wrong:
        raise click.UsageError(mistakes_of(wrong)) from None
