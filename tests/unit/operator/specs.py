"""Specs for the pure parts of the operator."""

from __future__ import annotations

from typing import Any

from requeue_operator.api import RequeueQueueSpec
from requeue_operator.children import Manifest, Owner, children
from requeue_operator.validation import read_spec

OWNER = Owner("orders", "shop", "5f0c6a52-0000-4000-8000-000000000001")


def read(**given: Any) -> RequeueQueueSpec:
    """The least spec with `given` over it."""
    return read_spec({"nats": {"servers": ["nats://nats:4222"]}, "storage": {"size": "1Gi"}, **given})


def built(kind: str, **given: Any) -> list[Manifest]:
    """The children of a kind."""
    return [each for each in children(OWNER, read(**given), image="requeue:1") if each["kind"] == kind]


def pod(**given: Any) -> Manifest:
    """metadata and spec of the pods."""
    (stateful_set,) = built("StatefulSet", **given)
    template: Manifest = stateful_set["spec"]["template"]
    return template
