"""Every RequeueQueue among the examples is right to the operator, and to the worker that gets its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from requeue_operator.children import children
from requeue_operator.children.worker_config import FILE, config_text
from requeue_operator.validation import read_spec
from requeue_worker.settings import load

from tests.unit.operator.specs import OWNER

_EXAMPLES = Path(__file__).parents[3] / "examples"


def _queues() -> list[Any]:
    found = []
    for path in sorted(_EXAMPLES.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document and document.get("kind") == "RequeueQueue":
                found.append(pytest.param(document, id=path.stem))
    return found


@pytest.mark.parametrize("queue", _queues())
def test_example_is_right(queue: dict[str, Any], tmp_path: Path) -> None:
    spec = read_spec(queue["spec"])
    kinds = {each["kind"] for each in children(OWNER, spec, image="requeue:1")}
    assert {"StatefulSet", "ConfigMap"} <= kinds
    content = config_text(OWNER, spec).encode()
    loaded = load(tmp_path / FILE, {}, environ={}, content=content, look_into_files=False)
    assert loaded.warnings == ()
    assert [each.name for each in loaded.settings.queues] == [each.name for each in spec.queues]


def test_there_is_one_for_each_purpose() -> None:
    names = {path.name for path in _EXAMPLES.rglob("*.yaml")}
    assert {"requeuequeue.yaml", "production.yaml", "dead-letters.yaml", "weighted-queues.yaml"} <= names
    assert {"autoscaling-hpa.yaml", "autoscaling-keda.yaml", "argocd.yaml", "flux.yaml"} <= names
