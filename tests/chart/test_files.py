"""What holds of the chart's files without helm: its values and their schema name the same things, and catch typos."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

_CHART = Path(__file__).parents[2] / "charts/nats-requeue"
_VALUES = yaml.safe_load((_CHART / "values.yaml").read_text(encoding="utf-8"))
_SCHEMA = json.loads((_CHART / "values.schema.json").read_text(encoding="utf-8"))
_RULES = yaml.safe_load((_CHART / "files/rules.yaml").read_text(encoding="utf-8"))
_FREE = {"global", "affinity", "valueFrom", "items"}  # Kubernetes' own, or a parent chart's


def _objects(schema: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if schema.get("type") == "object":
        yield name, schema
    for key, each in schema.get("properties", {}).items():
        yield from _objects(each, key)
    if "items" in schema:
        yield from _objects(schema["items"], "items")


def _paths(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> tuple[set[str], set[str]]:
    """Of the values, and of the schema, down to objects of the user's own keys."""
    has, says = set(), set()
    for key in values.keys() | schema["properties"].keys():
        has |= {f"{path}.{key}"} if key in values else set()
        says |= {f"{path}.{key}"} if key in schema["properties"] else set()
        below = schema["properties"].get(key, {})
        if "properties" in below and key in values and key != "resources":
            deeper = _paths(values[key], below, f"{path}.{key}")
            has, says = has | deeper[0], says | deeper[1]
    return has, says


def test_schema_has_every_value_and_no_other() -> None:
    has, says = _paths(_VALUES, _SCHEMA)
    assert has == says - {".global"}


def test_schema_refuses_unknown_keys_everywhere() -> None:
    open_ones = [name for name, each in _objects(_SCHEMA) if "additionalProperties" not in each]
    assert set(open_ones) <= _FREE


def test_templates_use_every_value_and_name_no_other() -> None:
    templates = "".join(path.read_text(encoding="utf-8") for path in (_CHART / "templates").rglob("*.*"))
    used = set(re.findall(r"\.Values((?:\.\w+)+)", templates))
    has, _ = _paths(_VALUES, _SCHEMA)
    assert used <= has
    whole = {
        path
        for path in has
        if path.endswith((".resources", ".annotations", ".labels", ".podLabels", ".podAnnotations"))
    }
    parents = {path for path in has if any(other.startswith(f"{path}.") for other in has)} - whole
    assert has - parents == used - parents


def test_rules_say_nothing_of_secrets_and_grant_no_rights() -> None:
    for rule in [*_RULES["namespaced"], *_RULES["cluster"]]:
        assert not {"secrets", "roles", "rolebindings", "pods/exec"} & set(rule["resources"])
        assert "*" not in [*rule["resources"], *rule["verbs"], *rule["apiGroups"]]
    assert all(
        {"create", "patch", "update", "delete"}.isdisjoint(rule["verbs"]) for rule in _RULES["cluster"]
    )


@pytest.mark.parametrize("key", ["version", "appVersion"])
def test_chart_has_the_version_of_the_project(key: str) -> None:
    project = tomllib.loads((_CHART.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert yaml.safe_load((_CHART / "Chart.yaml").read_text(encoding="utf-8"))[key] == project["version"]
