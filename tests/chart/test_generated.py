"""What is made from the chart is committed as it would be made now."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from requeue_client.local import find_executable

from tests.helm import Helm

_ROOT = Path(__file__).parents[2]
_GENERATE = runpy.run_path(str(_ROOT / "charts/generate.py"))
_CHART = _ROOT / "charts/nats-requeue"
_ANNOTATION_LIMIT = 262_144
"""Bytes of all annotations of an object: a client-side `kubectl apply` keeps the whole object in one."""


def _values() -> str:
    return (_CHART / "values.yaml").read_text(encoding="utf-8")


def test_readme_is_in_step_with_the_values() -> None:
    chart = yaml.safe_load((_CHART / "Chart.yaml").read_text(encoding="utf-8"))
    made = _GENERATE["readme"](_values(), chart)
    assert (_CHART / "README.md").read_text(encoding="utf-8") == made, "run `make generate`"


def test_readme_has_every_value_with_its_default() -> None:
    rows = {path: default for path, default, _ in _GENERATE["table"](_values()) if path}
    paths = dict(_leaves(yaml.safe_load(_values()), known=set(rows)))
    assert rows.keys() == paths.keys()
    assert {key: yaml.safe_load(text) for key, text in rows.items()} == paths


def _leaves(node: dict[str, Any], known: set[str], above: str = "") -> Any:
    for key, value in node.items():
        path = f"{above}{key}"
        if path in known or not isinstance(value, dict):
            yield path, value
        else:
            yield from _leaves(value, known, f"{path}.")


@pytest.mark.usefixtures("helm")
def test_manifest_is_in_step_with_the_chart() -> None:
    made = _GENERATE["manifest"](find_executable("helm", "`make helm` builds it"))
    assert (_ROOT / "examples/install.yaml").read_text(encoding="utf-8") == made, "run `make manifests`"


def test_manifest_says_nothing_of_helm_and_keeps_no_hook() -> None:
    text = (_ROOT / "examples/install.yaml").read_text(encoding="utf-8")
    assert "helm" not in text.lower()
    kinds = [each["kind"] for each in yaml.safe_load_all(text)]
    assert kinds[0] == "Namespace"
    assert kinds.index("CustomResourceDefinition") < kinds.index("Deployment")
    assert "Pod" not in kinds
    assert "RequeueQueue" not in kinds


def test_chart_renders_no_requeuequeue(helm: Helm) -> None:
    done = helm(
        "template", "rq", str(_CHART), "--set", "image.repository=a", "--set", "trialNats.enabled=true"
    )
    assert "RequeueQueue" not in [each["kind"] for each in yaml.safe_load_all(done.stdout) if each]


def test_crd_fits_into_an_annotation() -> None:
    crd = yaml.safe_load((_ROOT / "crds/requeuequeues.requeue.dev.yaml").read_text(encoding="utf-8"))
    assert len(json.dumps(crd)) < _ANNOTATION_LIMIT * 0.9
