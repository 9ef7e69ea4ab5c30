"""The custom resource definition, from the models of `api`: `python -m requeue_operator.crd FILE...` writes it.

pydantic's JSON schema becomes a structural one: references are written out, unions with null become optional fields,
and only the defaults that the API server should write stay.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel
from requeue_protocol.policy import NamedQueuePolicy, QueuePolicy

from requeue_operator import cel
from requeue_operator.api import GROUP, IN_SCHEMA, KIND, PLURAL, VERSION, RequeueQueueSpec, RequeueQueueStatus
from requeue_operator.policy_schema import Schema, policy_schema

FILE_NAME: Final = f"{PLURAL}.{GROUP}.yaml"
_POLICIES: Final = {model.__name__: model for model in (QueuePolicy, NamedQueuePolicy)}
_COLUMNS: Final = (
    (
        "Ready",
        "string",
        '.status.conditions[?(@.type=="Ready")].status',
        "Whether it does all that it should.",
    ),
    ("Replicas", "integer", ".status.replicas", "Pods that there are."),
    ("Backlog", "integer", ".status.backlog.pending", "Messages that wait."),
    ("Dead", "integer", ".status.backlog.dead", "Dead letters that are kept."),
    ("Next due", "string", ".status.backlog.nextDue", "When the next message is due."),
    ("Age", "date", ".metadata.creationTimestamp", "Since it was made."),
)


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition as a document."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": text}
            for name, kind, path, text in _COLUMNS
        ],
    }
    names = {
        "kind": KIND,
        "listKind": f"{KIND}List",
        "plural": PLURAL,
        "singular": KIND.lower(),
        "shortNames": ["rq"],
        "categories": ["all", "requeue"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def _root() -> Schema:
    status = {
        **structural(RequeueQueueStatus),
        "description": "What is so.",
        "default": {"observedGeneration": -1},
    }
    return {
        "type": "object",
        "description": "A fleet of workers that keep messages for later: durable delay, retry and dead letters for NATS.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {**structural(RequeueQueueSpec), "description": "What is asked for."},
            "status": status,
        },
        "required": ["spec"],
        "x-kubernetes-validations": cel.rules(cel.NAME, cel.DRAIN_TO_OTHER),
    }


def structural(model: type[BaseModel]) -> Schema:
    """The structural OpenAPI schema of a model."""
    document = model.model_json_schema(by_alias=True)
    return _plain(document, document.get("$defs", {}))


def _plain(node: Schema, definitions: dict[str, Schema]) -> Schema:
    node = _resolved(node, definitions)
    if node.pop(IN_SCHEMA, False) is False:
        node.pop("default", None)
    for key in ("title", "$defs", "additionalProperties" if "properties" in node else "title"):
        node.pop(key, None)
    for bound, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(bound), int | float) and not isinstance(node[bound], bool):
            node[plain], node[bound] = node[bound], True
    if node.get("type") == "integer":
        node.setdefault("format", "int64")
    if "properties" in node:
        node["properties"] = {key: _plain(each, definitions) for key, each in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = _plain(node[key], definitions)
    if node.pop("x-kubernetes-preserve-unknown-fields", False):
        node.pop("additionalProperties", None)
        node["x-kubernetes-preserve-unknown-fields"] = True
    return node


def _resolved(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` with its reference or its union with null written out; what it says itself goes over that."""
    own = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    if "anyOf" in node:
        (only,) = [each for each in node["anyOf"] if each.get("type") != "null"]
        return {**_resolved(only, definitions), **own}
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        found = policy_schema(_POLICIES[name]) if name in _POLICIES else definitions[name]
        rules = [*found.get("x-kubernetes-validations", ()), *own.pop("x-kubernetes-validations", ())]
        merged = {**found, **own}
        return {**merged, "x-kubernetes-validations": rules} if rules else merged
    return own


def text() -> str:
    """The file's content."""
    head = "# Generated from operator/requeue_operator/api.py by `make generate`; do not edit.\n"
    return head + yaml.safe_dump(crd(), sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    for file in sys.argv[1:]:
        Path(file).write_text(text(), encoding="utf-8")
