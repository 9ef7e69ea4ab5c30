"""From the chart before this one, to this one, away, and back: RequeueQueues, workers and volumes stay what they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.build import control_plane_binary
from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import Operator, claims, create_queue, make_pods_ready
from tests.cluster.specs import path
from tests.cluster.test_chart import kubeconfig_of_account
from tests.helm import CHART, helm_at

_CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/requeuequeues.requeue.dev"
_NAMESPACE = "shop"


@pytest.fixture
def fresh(say: Callable[[str], None], tmp_path: Path) -> Iterator[ControlPlane]:
    """Without anything of ours."""
    plane = ControlPlane(control_plane_binary(say), tmp_path / "fresh")
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def _previous(directory: Path) -> Path:
    """The chart as an older release would have been: another version, and a CRD that knows no shards."""
    chart = directory / "previous"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    about |= {"version": "0.0.9", "appVersion": "0.0.9"}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
    file = chart / "files/requeuequeues.requeue.dev.yaml"
    crd = yaml.safe_load(file.read_text(encoding="utf-8"))
    del crd["metadata"]
    del _spec_of(crd)["shards"]
    # In the form that the template looks for, which gives it its own metadata.
    kind = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n"
    name = "metadata:\n  name: requeuequeues.requeue.dev\n"
    file.write_text(kind + name + yaml.safe_dump({"spec": crd["spec"]}), encoding="utf-8")
    return chart


def _spec_of(crd: dict[str, Any]) -> dict[str, Any]:
    (version,) = crd["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return found


def _what_has_to_stay(cluster: ControlPlane) -> dict[str, tuple[str, Any]]:
    """UID and spec, by name: of the RequeueQueue, its workers and its volumes."""
    volumes = f"/api/v1/namespaces/{_NAMESPACE}/persistentvolumeclaims"
    places = [
        path(_NAMESPACE, "orders"),
        f"/apis/apps/v1/namespaces/{_NAMESPACE}/statefulsets/orders",
        *(f"{volumes}/{name}" for name in claims(cluster, _NAMESPACE)),
    ]
    found = {place: cluster.get(place) for place in places}
    return {
        place: (each["metadata"]["uid"], {k: v for k, v in each["spec"].items() if k != "shards"})
        for place, each in found.items()
    }


def test_upgrade_uninstall_and_install_again_keep_all(fresh: ControlPlane, tmp_path: Path) -> None:
    helm = helm_at(tmp_path)
    where = (f"--kubeconfig={fresh.kubeconfig()}", "--namespace", _NAMESPACE)
    image = ("--set", "image.repository=registry.example/nats-requeue")
    done = helm("install", "rq", str(_previous(tmp_path)), *where, "--create-namespace", *image)
    assert done.returncode == 0, done.stderr
    assert "shards" not in _spec_of(fresh.get(_CRD))
    fresh.kubectl("wait", "--for=condition=Established", "crd/requeuequeues.requeue.dev", "--timeout=60s")

    operator = Operator("requeue-operator", tmp_path / "operator.log")
    operator.start(kubeconfig_of_account(fresh, _NAMESPACE, "rq-nats-requeue", tmp_path), _NAMESPACE)
    with operator:
        create_queue(fresh, _NAMESPACE, replicas=2)
        _make_fleet_ready(fresh)
        before = _what_has_to_stay(fresh)
        assert len(before) == 4

        done = helm("upgrade", "rq", str(CHART), *where, *image)
        assert done.returncode == 0, done.stderr
        assert "shards" in _spec_of(fresh.get(_CRD))
        fresh.kubectl("-n", _NAMESPACE, "wait", "--for=condition=Ready", "rq/orders", "--timeout=60s")
        assert _what_has_to_stay(fresh) == before

    done = helm("uninstall", "rq", *where, "--wait")
    assert done.returncode == 0, done.stderr
    deployments = f"/apis/apps/v1/namespaces/{_NAMESPACE}/deployments"
    fresh.until("the operator is gone", lambda: not fresh.get(deployments)["items"])
    assert _what_has_to_stay(fresh) == before

    done = helm("install", "rq", str(CHART), *where, *image)
    assert done.returncode == 0, done.stderr
    operator.start(kubeconfig_of_account(fresh, _NAMESPACE, "rq-nats-requeue", tmp_path), _NAMESPACE)
    with operator:
        fresh.kubectl("-n", _NAMESPACE, "scale", "rq/orders", "--replicas=3")
        fresh.until("it is looked after again", lambda: len(claims(fresh, _NAMESPACE)) == 3)
    after = _what_has_to_stay(fresh)
    assert {place: each[0] for place, each in after.items()}.items() >= {
        place: each[0] for place, each in before.items()
    }.items()


def _make_fleet_ready(cluster: ControlPlane) -> None:
    """Two workers beside the operator's own pod."""
    make_pods_ready(cluster, _NAMESPACE, 3)
    cluster.kubectl("-n", _NAMESPACE, "wait", "--for=condition=Ready", "rq/orders", "--timeout=60s")
