"""What the workers say about themselves, and the condition NatsConnected that comes of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from requeue_operator.children.worker_config import HTTP_PORT
from requeue_operator.finding import Finding

_TYPE: Final = "NatsConnected"
_NAMED: Final = 3


@dataclass(frozen=True)
class Heard:
    """How many workers are connected to NATS; by the others' names, why they are not; who does not answer at all."""

    connected: int = 0
    disconnected: Mapping[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    is_empty: bool = False
    """Every worker that is asked for says that it takes nothing in, and has neither messages nor dead letters."""


def nats_connected(heard: Heard, replicas: int) -> Finding:
    """True when every worker that runs says so."""
    if replicas == 0:
        return Finding(_TYPE, None, "ScaledToZero", "no worker is asked for")
    if heard.disconnected:
        told = [f"{name}: {why}" for name, why in heard.disconnected.items()]
        return Finding(_TYPE, False, "Disconnected", f"{_some(told, '; ')}; see the log of the pod")
    if heard.silent:
        text = (
            f"{_some(list(heard.silent), ', ')}: no answer at port {HTTP_PORT} of the pod; let the operator reach it"
            " (NetworkPolicy), or see the log of the pod"
        )
        return Finding(_TYPE, None, "NoAnswer", text)
    if heard.connected == 0:
        return Finding(_TYPE, None, "NoWorker", "no worker runs yet")
    return Finding(_TYPE, True, "Connected", "every worker that runs is connected to NATS")


def _some(words: list[str], separator: str) -> str:
    more = [f"and {len(words) - _NAMED} more"] if len(words) > _NAMED else []
    return separator.join([*words[:_NAMED], *more])
