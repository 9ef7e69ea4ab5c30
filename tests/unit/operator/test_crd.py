"""The committed CRD is what the models say, and what kubectl can apply."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel
from requeue_operator.api import RequeueQueueSpec
from requeue_operator.crd import FILE_NAME, crd, text
from requeue_protocol.policy import NamedQueuePolicy

_ROOT = Path(__file__).parents[3]
_ANNOTATION_LIMIT_BYTES = 262_144


def _schema() -> dict[str, Any]:
    return crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, each in schema.get("properties", {}).items():
        yield f"{path}.{key}", each
        yield from _fields(each, f"{path}.{key}")
    if isinstance(schema.get("items"), dict):
        yield from _fields(schema["items"], f"{path}[]")


def test_committed_file_is_what_make_generate_writes() -> None:
    for directory in ("crds", "charts/nats-requeue/files"):
        assert (_ROOT / directory / FILE_NAME).read_text(encoding="utf-8") == text(), "run `make generate`"


def test_file_fits_into_the_annotation_of_kubectl_apply_several_times() -> None:
    assert len(json.dumps(crd())) * 3 < _ANNOTATION_LIMIT_BYTES


def test_every_field_has_a_description() -> None:
    bare = [path for path, each in _fields(_schema()) if not each.get("description")]
    assert bare == [".apiVersion", ".kind", ".metadata"]


def test_every_policy_key_of_the_worker_is_a_key_of_a_queue_in_camel_case() -> None:
    queues = _schema()["properties"]["spec"]["properties"]["queues"]["items"]["properties"]
    assert set(queues) == {to_camel(field.removesuffix("_ns")) for field in NamedQueuePolicy.model_fields}


def test_only_the_named_defaults_are_written_into_objects() -> None:
    defaults = {path: each["default"] for path, each in _fields(_schema()) if "default" in each}
    assert defaults == {
        ".status": {"observedGeneration": -1},
        ".spec.replicas": 1,
        ".spec.shards": 1,
        ".spec.storage.mode": "PerPod",
        ".spec.storage.onScaleDown": "Drain",
        ".spec.storage.onDelete": "Retain",
    }


def test_models_and_schema_name_the_same_fields() -> None:
    spec = _schema()["properties"]["spec"]["properties"]
    assert set(spec) == {to_camel(name.removesuffix("_ns")) for name in RequeueQueueSpec.model_fields}
