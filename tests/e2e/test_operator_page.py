"""The commands of docs/operator.md, block by block as they stand, by somebody who has a cluster, NATS and the image."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from requeue_client.local import find_executable

from tests.e2e.cluster import Cluster
from tests.e2e.test_readme import BLOCK, fresh_cluster
from tests.helm import CHART

__all__ = ["fresh_cluster"]

_PAGE = (CHART.parents[1] / "docs" / "operator.md").read_text(encoding="utf-8")
_PROCESS, _HELM, _KUBECTL = BLOCK.findall(_PAGE)
_READY = "kubectl -n shop wait --for=condition=Ready rq/orders --timeout=180s\n"
_QUEUE = "kubectl -n shop apply -f examples/requeuequeue.yaml\n"


def _with_image(block: str, cluster: Cluster) -> str:
    repository, _, tag = cluster.image.rpartition(":")
    return block.replace("registry.example/nats-requeue", repository).replace("0.1.0", tag)


def test_the_process_outside_the_cluster(fresh_cluster: Cluster, tmp_path: Path) -> None:
    install, *lines = _PROCESS.splitlines(keepends=True)
    assert install == "pip install '.[operator]'\n"  # as `make install` has it
    bin_directory = find_executable("requeue-operator", "make install").parent
    # It runs until it is stopped: a person has a second terminal.
    script = re.sub(
        r"^(requeue-operator run [^#\n]*)",
        r"\1 2>/dev/null & trap 'kill %1' EXIT ",
        "".join(lines),
        flags=re.M,
    )
    script = script.replace("rq/orders\n", "rq/orders --timeout=180s\n")
    fresh_cluster.kubectl("create", "namespace", "shop")
    fresh_cluster.start_nats("shop")
    path = f"PATH={shlex.quote(str(bin_directory))}:$PATH\n"
    said = fresh_cluster.shell(path + _with_image(script, fresh_cluster), tmp_path / "process")
    assert "requeuequeue.requeue.dev/orders condition met" in said


def test_helm(fresh_cluster: Cluster, tmp_path: Path) -> None:
    fresh_cluster.shell(_with_image(_HELM, fresh_cluster), tmp_path / "helm")
    fresh_cluster.start_nats("shop")
    said = fresh_cluster.shell(_QUEUE + _READY, tmp_path / "use")
    assert "requeuequeue.requeue.dev/orders condition met" in said


def test_one_manifest(fresh_cluster: Cluster, tmp_path: Path) -> None:
    said = fresh_cluster.shell(_KUBECTL.replace("YOUR/IMAGE:TAG", fresh_cluster.image), tmp_path / "manifest")
    assert "successfully rolled out" in said
    fresh_cluster.kubectl("create", "namespace", "shop")
    fresh_cluster.start_nats("shop")
    said = fresh_cluster.shell(_QUEUE + _READY, tmp_path / "use")
    assert "requeuequeue.requeue.dev/orders condition met" in said
