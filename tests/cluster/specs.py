"""RequeueQueues for tests, from the smallest one that is right."""

from __future__ import annotations

import copy
from typing import Any

API = "/apis/requeue.dev/v1alpha1"


def requeue_queue(name: str = "orders", **spec: Any) -> dict[str, Any]:
    """A RequeueQueue; `spec` goes over the least one, `storage` and `nats` key by key."""
    least: dict[str, Any] = {"nats": {"servers": ["nats://nats:4222"]}, "storage": {"size": "1Gi"}}
    for key, value in copy.deepcopy(spec).items():
        least[key] = {**least[key], **value} if isinstance(least.get(key), dict) else value
    return {
        "apiVersion": "requeue.dev/v1alpha1",
        "kind": "RequeueQueue",
        "metadata": {"name": name},
        "spec": least,
    }


def path(namespace: str, name: str = "", subresource: str = "") -> str:
    """Where RequeueQueues are at the API server."""
    return "/".join(
        part for part in (f"{API}/namespaces/{namespace}/requeuequeues", name, subresource) if part
    )
