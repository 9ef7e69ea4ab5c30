"""The README's install section, line by line, by somebody who has a cluster, a NATS server and the image."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.helm import CHART

_ROOT = CHART.parents[1]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)
_SECTION = (
    (_ROOT / "README.md").read_text(encoding="utf-8").partition("### On Kubernetes")[2].partition("\n## ")[0]
)
_IMAGE, _KUBECTL, _HELM, _USE = BLOCK.findall(_SECTION)
_NAMESPACES = ("shop", "requeue-system")
_CRD = "requeuequeues.requeue.dev"


@pytest.fixture
def fresh_cluster(bare_cluster: Cluster) -> Iterator[Cluster]:
    """As nobody has installed anything in it yet."""
    _clean(bare_cluster)
    yield bare_cluster
    _clean(bare_cluster)


def _clean(cluster: Cluster) -> None:
    there = cluster.kubectl("get", "crd", _CRD, "--ignore-not-found").stdout
    if there:
        cluster.kubectl("delete", "rq", "--all", "--all-namespaces", "--timeout=120s")
    cluster.kubectl("delete", "namespace", *_NAMESPACES, "--ignore-not-found", "--timeout=180s")
    cluster.kubectl("delete", "crd", _CRD, "--ignore-not-found", "--timeout=60s")
    mine = ["clusterrole,clusterrolebinding", "-l", "app.kubernetes.io/name=nats-requeue"]
    cluster.kubectl("delete", *mine, "--ignore-not-found")


def test_image_is_built_and_pushed_first() -> None:
    # Nothing pushes here: the image was built by the same Dockerfile, and lies in the node.
    assert [line.split()[:2] for line in _IMAGE.splitlines()[1:]] == [["docker", "build"], ["docker", "push"]]


def test_by_kubectl(fresh_cluster: Cluster, tmp_path: Path) -> None:
    image = f"IMAGE={shlex.quote(fresh_cluster.image)}\n"
    fresh_cluster.shell(image + _KUBECTL, tmp_path / "install")
    fresh_cluster.start_nats("shop")
    said = fresh_cluster.shell(image + _USE, tmp_path / "use")
    assert "requeuequeue.requeue.dev/orders condition met" in said
    # Applied once more, as a pipeline does, it changes nothing.
    diff = _KUBECTL.splitlines()[0].replace("kubectl apply", "kubectl diff")
    fresh_cluster.shell(image + diff, tmp_path / "diff")


def test_by_helm(fresh_cluster: Cluster, tmp_path: Path) -> None:
    image = f"IMAGE={shlex.quote(fresh_cluster.image)}\n"
    # The one thing that this cluster lacks: a registry with the official NATS image.
    chart = _HELM.replace(
        "helm install rq", f"helm install rq --set trialNats.image={fresh_cluster.nats_image}"
    )
    said = fresh_cluster.shell(image + chart + _USE, tmp_path / "install")
    assert "requeuequeue.requeue.dev/orders condition met" in said
