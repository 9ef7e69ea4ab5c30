"""Queue policy as the custom resource takes it: the fields of `requeue_protocol.policy`, in camelCase.

What passes here a worker takes (tests/cluster/test_policy_parity.py). It is narrower where a structural schema needs
one type: durations are texts with a unit, and the steps of a backoff stand in `backoffList` beside `backoff: list`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic.alias_generators import to_camel
from requeue_protocol.policy import NamedQueuePolicy, QueuePolicy

from requeue_operator import cel

Schema = dict[str, Any]

_MAX_PATTERNS: Final = 32
_MAX_STEPS: Final = 32
_UNLIMITED: Final = "Left out: unlimited."


def _text(max_length: int, *rules: cel.Rule) -> Schema:
    return {"type": "string", "maxLength": max_length, "x-kubernetes-validations": cel.rules(*rules)}


def _list(items: Schema, max_items: int) -> Schema:
    return {"type": "array", "items": items, "maxItems": max_items}


def _int_or_text(rule: cel.Rule) -> Schema:
    return {"x-kubernetes-int-or-string": True, "maxLength": 32, "x-kubernetes-validations": cel.rules(rule)}


_DURATION: Final = _text(32, cel.DURATION_SHAPE)
_PATTERNS: Final = _list(_text(256, cel.SUBJECT_PATTERN), _MAX_PATTERNS)
_FIELDS: Final[Mapping[str, Schema]] = {
    "name": {**_text(128, cel.QUEUE_NAME), "description": "Name of the queue."},
    "retries": _int_or_text(cel.RETRIES),
    "backoff": {
        "type": "string",
        "enum": ["fixed", "exponential", "linear", "list"],
        "description": "Wait between attempts; the steps of list stand in backoffList.",
    },
    "backoff_list_ns": _list(_DURATION, _MAX_STEPS),
    "ack_timeout_ns": _text(32, cel.DURATION_SHAPE, cel.ACK_TIMEOUT),
    "dead_letter_retention_ns": _text(32, cel.DURATION_SHAPE, cel.DURATION_POSITIVE),
    "max_rate": {
        "type": "number",
        "format": "double",
        "minimum": 0,
        "exclusiveMinimum": True,
        "description": f"Dispatches per second; may be a fraction. {_UNLIMITED}",
    },
    "max_messages": {
        **_int_or_text(cel.COUNT_OR_UNLIMITED),
        "description": f"Pending messages; beyond: refused with 429. {_UNLIMITED}",
    },
    "max_bytes": {
        **_int_or_text(cel.SIZE_OR_UNLIMITED),
        "description": f"Bytes of pending messages, like 2GiB; beyond: refused with 429. {_UNLIMITED}",
    },
    "dead_letter_subject": _text(256, cel.PUBLISH_SUBJECT),
    "allow_subjects": _PATTERNS,
    "deny_subjects": _PATTERNS,
}


def policy_schema(model: type[QueuePolicy]) -> Schema:
    """The schema of `model`; every field has its description, and the default that holds in the end."""
    generated = model.model_json_schema()["properties"]
    defaults = QueuePolicy().model_dump(mode="json", by_alias=True)
    properties: dict[str, Schema] = {}
    for field, info in model.model_fields.items():
        key = field.removesuffix("_ns")
        own = _FIELDS.get(field, _DURATION if field.endswith("_ns") else generated[key])
        text = own.get("description", info.description)
        default = defaults.get(key)
        if default not in (None, []):
            shown = str(default).lower() if isinstance(default, bool) else default
            text = f"{text} Default: {shown}."
        properties[to_camel(key)] = {**own, "description": text}
    together = (cel.MIN_MAX_BACKOFF, cel.BACKOFF_STEPS, cel.BACKOFF_SHAPE)
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "x-kubernetes-validations": cel.rules(*together),
    }
    return {**schema, "required": ["name"]} if model is NamedQueuePolicy else schema
