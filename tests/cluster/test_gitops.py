"""The ways of GitOps on a control plane of their own: one manifest, every example, no drift, health, and ordering."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.argocd import health
from tests.cluster.build import control_plane_binary
from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import Operator, make_pods_ready
from tests.cluster.specs import path
from tests.cluster.test_chart import kubeconfig_of_account

_EXAMPLES = Path(__file__).parents[2] / "examples"
_INSTALL = (_EXAMPLES / "install.yaml").read_text(encoding="utf-8")
_SYSTEM = "requeue-system"


def _example_documents() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Of each example with RequeueQueues: what this API server knows."""
    for file in sorted(_EXAMPLES.glob("*.yaml")):
        documents = [each for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if each]
        known = [
            each for each in documents if each.get("kind") in ("RequeueQueue", "HorizontalPodAutoscaler")
        ]
        if known:
            yield file.stem, known


_DOCUMENTS = dict(_example_documents())


@pytest.fixture(scope="module")
def fresh(say: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Without anything of ours, but for the manifest: applied server-side, twice as a pipeline does."""
    plane = ControlPlane(control_plane_binary(say), tmp_path_factory.mktemp("fresh"))
    try:
        plane.start()
        for _ in range(2):
            plane.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=_INSTALL)
        crd = "crd/requeuequeues.requeue.dev"
        plane.kubectl("wait", "--for=condition=Established", crd, "--timeout=60s")
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="module")
def operator(fresh: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """With the rights of the manifest's own service account and no others."""
    directory = tmp_path_factory.mktemp("manifest")
    process = Operator("requeue-operator", directory / "operator.log")
    process.start(kubeconfig_of_account(fresh, _SYSTEM, "nats-requeue", directory))
    yield process
    process.stop()


@pytest.fixture
def shop(fresh: ControlPlane, request: pytest.FixtureRequest) -> str:
    name = "shop-" + re.sub(r"[^a-z]", "", str(request.node.name).lower())[-40:]
    fresh.kubectl("create", "namespace", name)
    fresh.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    return name


def _drift(cluster: ControlPlane, text: str, *flags: str) -> str:
    """What a pipeline would change; nothing where it is as it was applied."""
    done = cluster.kubectl("diff", *flags, "-f", "-", stdin=text, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_the_manifest_is_let_in_and_does_not_drift(fresh: ControlPlane) -> None:
    pods = f"/api/v1/namespaces/{_SYSTEM}/pods"
    fresh.until("the operator's pod is let in", lambda: len(fresh.get(pods)["items"]) == 1)
    assert _drift(fresh, _INSTALL, "--server-side") == ""
    changed = _INSTALL.replace("--resync=600", "--resync=60")
    assert "--resync=60" in _drift(fresh, changed, "--server-side")


def test_the_manifest_is_small_enough_for_a_client_side_apply(fresh: ControlPlane) -> None:
    fresh.kubectl("apply", "--dry-run=server", "-f", "-", stdin=_INSTALL)


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("server_side", [True, False], ids=["server-side", "client-side"])
@pytest.mark.parametrize("example", _DOCUMENTS)
def test_an_example_becomes_ready_and_does_not_drift(
    fresh: ControlPlane, shop: str, example: str, server_side: bool
) -> None:
    documents = _DOCUMENTS[example]
    text = yaml.safe_dump_all(documents)
    flags = ("-n", shop, *(("--server-side",) if server_side else ()))
    fresh.kubectl("apply", *flags, "--validate=strict", "-f", "-", stdin=text)
    queues = [each for each in documents if each["kind"] == "RequeueQueue"]
    wanted = sum(int(each["spec"].get("replicas", 1)) for each in queues)
    autoscalers = [each for each in documents if each["kind"] == "HorizontalPodAutoscaler"]
    make_pods_ready(fresh, shop, autoscalers[0]["spec"]["minReplicas"] if autoscalers else wanted)
    for queue in queues:
        name = queue["metadata"]["name"]
        fresh.kubectl("-n", shop, "wait", "--for=condition=Ready", f"rq/{name}", "--timeout=60s")
        assert health(fresh.get(path(shop, name)))[0] == "Healthy"
    assert _drift(fresh, text, *flags) == ""


def test_the_health_check_is_merged_into_argo_cds_configuration(fresh: ControlPlane, shop: str) -> None:
    fresh.kubectl("-n", shop, "create", "configmap", "argocd-cm", "--from-literal=url=https://argocd.example")
    file = _EXAMPLES / "gitops/argocd-health.yaml"
    fresh.kubectl("-n", shop, "patch", "configmap", "argocd-cm", "--patch-file", str(file))
    data = fresh.get(f"/api/v1/namespaces/{shop}/configmaps/argocd-cm")["data"]
    assert data.keys() == {"url", *yaml.safe_load(file.read_text(encoding="utf-8"))["data"]}


@pytest.mark.usefixtures("operator")
def test_labels_of_a_pipeline_reach_no_volume_that_it_would_prune(fresh: ControlPlane, shop: str) -> None:
    (queue,) = _DOCUMENTS["dead-letters"]
    tracked = json.loads(json.dumps(queue))
    tracked["metadata"]["labels"] = {
        "app.kubernetes.io/instance": "argo-app",
        "kustomize.toolkit.fluxcd.io/name": "x",
    }
    tracked["metadata"]["annotations"] = {"argocd.argoproj.io/tracking-id": "argo-app:x"}
    fresh.kubectl("apply", "-n", shop, "--server-side", "-f", "-", stdin=json.dumps(tracked))
    make_pods_ready(fresh, shop, 1)
    for kind in ("persistentvolumeclaims", "pods"):
        (found,) = fresh.get(f"/api/v1/namespaces/{shop}/{kind}")["items"]
        assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == "payments"
        assert "kustomize.toolkit.fluxcd.io/name" not in found["metadata"]["labels"]
        assert "argocd.argoproj.io/tracking-id" not in found["metadata"].get("annotations", {})
