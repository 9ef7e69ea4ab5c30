"""docs/benchmarks.md says what was measured, and its plots show that."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from requeue_client.bench.command import bench
from requeue_client.bench.figures import Result
from requeue_client.bench.report import as_json

from tests.performance import render
from tests.performance.plots import bars, lines
from tests.performance.render import DOCUMENT, FIGURES, document, plots


def test_document_has_the_figures_that_were_measured() -> None:
    assert document() == DOCUMENT.read_text(), "run `make bench-docs`"


@pytest.mark.parametrize("name", ["ingest.svg", "growth.svg", "growth-queues.svg"])
def test_plot_is_that_of_the_figures(name: str) -> None:
    assert plots()[name] == (FIGURES / name).read_text(), "run `make bench-docs`"


def test_no_measurement_lost_a_message() -> None:
    for file in FIGURES.glob("*.json"):
        for result in json.loads(file.read_text())["results"]:
            assert not result["figures"].get("missing"), (file.name, result["system"])
            assert not result["figures"].get("early"), (file.name, result["system"])


def test_commands_of_the_document_are_commands() -> None:
    commands = re.findall(r"^requeue bench (.*?)\s*(?:#.*)?$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        assert bench.make_context("bench", command.split())


def test_the_target_of_an_ack_is_what_comes_on_top_of_one_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "FIGURES", tmp_path)
    figures = {"ack_p50_ms": 1.25, "ack_p99_ms": 3.0, "fsync_p50_ms": 0.5}
    ack = Result("ack", "requeue", {"rate_per_s": 1000.0}, figures)
    (tmp_path / "ack.json").write_text(as_json([ack], []))
    assert render.table().splitlines()[2:] == [
        "| ack at 1,000 messages/s, p50, over one fsync, ms | ≤ 1 | 0.75 (1.25 less an fsync of 0.50) | reached |",
        "| ack at 1,000 messages/s, p99, ms | ≤ 5 | 3.00 | reached |",
    ]


def test_a_target_says_over_how_many_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "FIGURES", tmp_path)
    result = Result("startup", "requeue", {"backlog": 10_000_000}, {"first_replay_s": 2.5})
    (tmp_path / "startup.json").write_text(as_json([result], []))
    assert "| start to first replay over 10,000,000 pending, s | ≤ 2 | 2.50 | not reached |" in render.table()


def test_the_longest_bar_and_the_labels_are_drawn() -> None:
    drawing = ET.fromstring(bars("Rates", "/s", {"requeue": 50.0, "a <peer>": 100.0}))
    widths = [float(shape.attrib["width"]) for shape in drawing if shape.tag.endswith("rect")][1:]
    assert widths[1] == pytest.approx(2 * widths[0])
    assert "a <peer>" in [shape.text for shape in drawing]


def test_a_line_rises_with_its_values() -> None:
    drawing = ET.fromstring(lines("Growth", "pending", {"ms": [(10, 1.0), (100, 2.0), (1000, 2.0)]}))
    points = [(float(s.attrib["cx"]), float(s.attrib["cy"])) for s in drawing if s.tag.endswith("circle")]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[0][1] > points[1][1] == points[2][1]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)
