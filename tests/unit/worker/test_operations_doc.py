"""docs/operations.md against the code. (Its permissions are tried out in tests/integration/worker.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from requeue_worker import cli
from requeue_worker.counts import Counts
from requeue_worker.metrics import Metrics

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/operations.md").read_text()
SOURCE = "".join(path.read_text() for path in (ROOT / "worker/requeue_worker").rglob("*.py"))


def section(title: str) -> str:
    """One section, its heading left out."""
    [found] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    return str(found)


def test_every_metric_stands_there_once_and_no_other() -> None:
    registry = Metrics(Counts(), lambda: [], lambda: True).registry()
    made = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in registry.collect()
        if family.name.startswith("requeue_")
    }
    documented = re.findall(r"^\| `(requeue_\w+)` \|", section("Metrics"), re.MULTILINE)
    assert sorted(documented) == sorted(made)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (level, message)
        for level, messages in re.findall(
            r"^\| (info|warning|error|critical) \| ([^|]*) \|", TEXT, re.MULTILINE
        )
        for message in re.findall("`([^`]+)`", messages)
    ],
)
def test_every_message_of_the_log_is_one(level: str, message: str) -> None:
    assert re.search(rf'log\.{level}\(\s*"{re.escape(message)}"', SOURCE)


def test_the_exit_codes_are_those_of_the_command() -> None:
    documented = re.findall(r"^\| ([\d, ]+) \|", section("Start, exit codes, shutdown"), re.MULTILINE)
    assert documented == ["0", str(cli.EXIT_ERROR), str(cli.EXIT_CONFIG), str(cli.EXIT_DATA), "130, 143"]


def test_every_link_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        file, _, anchor = target.partition("#")
        if file:
            assert (ROOT / "docs" / file).exists(), target
        else:
            assert anchor in anchors, target
