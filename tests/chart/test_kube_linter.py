"""kube-linter, with every check but what charts/kube-linter.yaml excepts: on the chart, and on what the operator makes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from requeue_client.local import LocalProcessError, find_executable
from requeue_operator.children import children
from requeue_operator.drains.claim import Claim
from requeue_operator.drains.job import drain_job

from tests.chart.rendering import MONITORING, render
from tests.helm import CHART, Helm
from tests.unit.operator.specs import OWNER, read

_CONFIG = CHART.parent / "kube-linter.yaml"
_EVERYTHING = (
    *(f"{each}.enabled=true" for each in ("podMonitor", "networkPolicy", "podDisruptionBudget")),
    *(f"{each}.enabled=true" for each in ("prometheusRule", "dashboard", "trialNats")),
)

_OF_DRAINS = {
    "no-liveness-probe": "it runs to its end, by activeDeadlineSeconds at the latest",
    "no-readiness-probe": "nobody is sent to it",
    "job-ttl-seconds-after-finished": "its proof stays until the operator has read it, and deletes it",
}


def _complaints(objects: list[dict[str, Any]], directory: Path) -> str:
    try:
        binary = find_executable("kube-linter", "`make kube-linter` builds it, with Go")
    except LocalProcessError as missing:
        pytest.skip(str(missing))
    file = directory / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    argv = [str(binary), "lint", f"--config={_CONFIG}", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=directory, timeout=120)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("scope", ["watchAllNamespaces=false", "watchAllNamespaces=true"])
def test_the_chart_is_clean(helm: Helm, tmp_path: Path, scope: str) -> None:
    objects = render(helm, *_EVERYTHING, scope, flags=MONITORING)
    assert _complaints([*objects.values()], tmp_path) == ""


def test_what_the_operator_makes_is_clean(tmp_path: Path) -> None:
    spec = read(networkPolicy={"enabled": True}, podMonitor={"enabled": True})
    made = children(OWNER, spec, image="requeue:1")
    assert _complaints(made, tmp_path) == ""
    claim = Claim({"metadata": {"name": "data-orders-1", "uid": "claim-1"}}, 1)
    job = drain_job(OWNER, spec, "requeue:1", claim, "nonce", OWNER.uid)
    job["metadata"]["annotations"] |= {
        f"ignore-check.kube-linter.io/{k}": why for k, why in _OF_DRAINS.items()
    }
    assert _complaints([*made, job], tmp_path) == ""


def test_it_would_complain(helm: Helm, tmp_path: Path) -> None:
    objects = render(helm, *_EVERYTHING)
    pod = objects["Deployment/ops/rq-nats-requeue"]["spec"]["template"]["spec"]
    pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False
    assert "no-read-only-root-fs" in _complaints([*objects.values()], tmp_path)


def test_every_exception_has_its_reason() -> None:
    lines = _CONFIG.read_text(encoding="utf-8").split("  exclude:\n")[1].splitlines()
    assert lines[0].lstrip().startswith("# ")
    annotations = [
        line.strip()
        for file in (CHART / "templates").rglob("*.yaml")
        for line in file.read_text(encoding="utf-8").splitlines()
        if "ignore-check.kube-linter.io/" in line
    ]
    assert annotations
    for each in annotations:
        assert len(each.split(" ")) > 4, each
