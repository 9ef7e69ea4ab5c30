"""Alerts and dashboard: PromQL that can be parsed, on metrics and labels that are there, with a runbook for each alert."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from requeue_operator.metrics import Metrics as OperatorMetrics
from requeue_worker.counts import Counts, QueueSnapshot
from requeue_worker.metrics import Metrics as WorkerMetrics
from requeue_worker.shard_http import Probe, merged, own_metrics

_ROOT = Path(__file__).parents[2]
_FILES = _ROOT / "charts/nats-requeue/files"
_RULES = [
    rule
    for group in yaml.safe_load((_FILES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
_DASHBOARD = json.loads((_FILES / "dashboard.json").read_text(encoding="utf-8"))
_OF_PROMETHEUS = {"namespace", "pod", "exported_instance"}
"""Labels that come with the target; a label `instance` of ours is renamed then."""


def _labels_of_metrics() -> dict[str, set[str]]:
    counts = Counts()
    counts.refused[429], counts.reaper_set_aside["w-1"] = 1, "newer-format"
    counts.queues["orders"].dead["exhausted"] = 1
    queue = QueueSnapshot("orders", 1, 1, 1, 1, 1, 1)
    worker = generate_latest(WorkerMetrics(counts, lambda: [queue], lambda: True).registry()).decode()
    operator = OperatorMetrics()
    operator.requested("GET", 200)
    shards = own_metrics([Probe(0, 8080, True, 1)], {})
    texts = worker, merged({0: worker}), shards, generate_latest(operator.registry).decode()
    found: dict[str, set[str]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


_METRICS = _labels_of_metrics()


def _panels() -> Iterator[tuple[str, str]]:
    for panel in _DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']}: {target['legendFormat']}", target["expr"]


def _parsed(expression: str) -> list[Any]:
    """Every node. Grafana fills in its variables before Prometheus sees them."""
    nodes: list[Any] = []
    whole = expression.replace("$__rate_interval", "1m").replace("$namespace", "a").replace("$queue", "b")
    promql_parser.walk(promql_parser.parse(whole), lambda node: nodes.append(node))
    return nodes


@pytest.mark.parametrize(
    "expression", [each["expr"] for each in _RULES] + [expression for _, expression in _panels()]
)
def test_every_metric_and_label_is_there(expression: str) -> None:
    nodes = _parsed(expression)
    selectors = [each for each in nodes if isinstance(each, promql_parser.VectorSelector)]
    assert selectors
    known = set(_OF_PROMETHEUS)
    for selector in selectors:
        assert selector.name in _METRICS
        matched = {each.name for each in selector.matchers.matchers}
        assert matched <= _METRICS[selector.name] | _OF_PROMETHEUS
        known |= _METRICS[selector.name]
    for aggregate in (each for each in nodes if isinstance(each, promql_parser.AggregateExpr)):
        assert set(aggregate.modifier.labels if aggregate.modifier else ()) <= known


@pytest.mark.parametrize("rule", _RULES, ids=lambda rule: str(rule["alert"]))
def test_a_text_names_only_labels_that_its_alert_has(rule: dict[str, Any]) -> None:
    (selector, *_) = [
        each for each in _parsed(rule["expr"]) if isinstance(each, promql_parser.VectorSelector)
    ]
    aggregates = [each for each in _parsed(rule["expr"]) if isinstance(each, promql_parser.AggregateExpr)]
    kept = (
        set(aggregates[0].modifier.labels)
        if aggregates
        else _METRICS[selector.name] - {"instance"} | _OF_PROMETHEUS
    )
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= kept


@pytest.mark.parametrize("rule", _RULES, ids=lambda rule: str(rule["alert"]))
def test_every_alert_has_its_runbook(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook_url"] == f"RUNBOOKS/operations.md#{rule['alert'].lower()}"
    assert f"\n### {rule['alert']}\n" in (_ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_every_runbook_has_its_alert() -> None:
    alerts = (_ROOT / "docs/operations.md").read_text(encoding="utf-8").split("\n## Alerts\n")[1]
    assert re.findall(r"^### (\w+)$", alerts, re.MULTILINE) == [each["alert"] for each in _RULES]


def test_panels_have_their_own_places_and_ids() -> None:
    ids = [each["id"] for each in _DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for place in (each["gridPos"] for each in _DASHBOARD["panels"]):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    assert max(x for x, _ in taken) < 24
