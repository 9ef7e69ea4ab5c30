"""What helm makes of the chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm import Helm

_ROOT = Path(__file__).parents[2]
_CHART = str(_ROOT / "charts/nats-requeue")
_IMAGE = "image.repository=registry.example/nats-requeue"
_RULES = yaml.safe_load((_ROOT / "charts/nats-requeue/files/rules.yaml").read_text(encoding="utf-8"))


def _render(helm: Helm, *settings: str, flags: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """The objects by kind, namespace and name; cluster-wide ones as kind//name."""
    sets = [word for each in (_IMAGE, *settings) for word in ("--set", each)]
    done = helm("template", "rq", _CHART, "--namespace", "ops", *flags, *sets)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    found = {f"{o['kind']}/{o['metadata'].get('namespace', '')}/{o['metadata']['name']}": o for o in objects}
    assert len(found) == len(objects)
    return found


def _refusal(helm: Helm, *settings: str) -> str:
    sets = [word for each in settings for word in ("--set", each)]
    done = helm("template", "rq", _CHART, "--namespace", "ops", *sets)
    assert done.returncode != 0, done.stdout
    return done.stderr


def _container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (container,) = objects["Deployment/ops/rq-nats-requeue"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def _scope(objects: dict[str, dict[str, Any]]) -> list[str]:
    return [word for word in _container(objects)["args"] if "namespace" in word]


def test_lint_is_clean(helm: Helm) -> None:
    done = helm("lint", "--strict", _CHART, "--set", _IMAGE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_of_itself_it_has_rights_in_its_own_namespace_alone(helm: Helm) -> None:
    objects = _render(helm)
    assert set(objects) == {
        "CustomResourceDefinition//requeuequeues.requeue.dev",
        "ServiceAccount/ops/rq-nats-requeue",
        "Deployment/ops/rq-nats-requeue",
        "Service/ops/rq-nats-requeue",
        "Role/ops/rq-nats-requeue-ops",
        "RoleBinding/ops/rq-nats-requeue-ops",
        "ClusterRole//rq-nats-requeue-ops-view",
        "ClusterRole//rq-nats-requeue-ops-edit",
    }
    assert objects["Role/ops/rq-nats-requeue-ops"]["rules"] == _RULES["namespaced"]
    assert _scope(objects) == ["--namespace=ops"]


def test_crd_is_the_committed_one_and_stays(helm: Helm) -> None:
    crd = _render(helm)["CustomResourceDefinition//requeuequeues.requeue.dev"]
    committed = yaml.safe_load((_ROOT / "crds/requeuequeues.requeue.dev.yaml").read_text(encoding="utf-8"))
    assert crd["spec"] == committed["spec"]
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    loose = _render(helm, "crds.keep=false")["CustomResourceDefinition//requeuequeues.requeue.dev"]
    assert "annotations" not in loose["metadata"]
    assert not [name for name in _render(helm, "crds.enabled=false") if "CustomResource" in name]


def test_several_namespaces(helm: Helm) -> None:
    objects = _render(helm, "watchNamespaces={shop,mail}")
    assert _scope(objects) == ["--namespace=shop", "--namespace=mail"]
    subject = {"kind": "ServiceAccount", "name": "rq-nats-requeue", "namespace": "ops"}
    for namespace in ("shop", "mail"):
        assert objects[f"Role/{namespace}/rq-nats-requeue-ops"]["rules"] == _RULES["namespaced"]
        assert objects[f"RoleBinding/{namespace}/rq-nats-requeue-ops"]["subjects"] == [subject]
    assert "Role/ops/rq-nats-requeue-ops" not in objects
    assert "ClusterRoleBinding//rq-nats-requeue-ops" not in objects


def test_all_namespaces(helm: Helm) -> None:
    objects = _render(helm, "watchAllNamespaces=true")
    assert _scope(objects) == ["--all-namespaces"]
    rules = objects["ClusterRole//rq-nats-requeue-ops"]["rules"]
    assert rules == [*_RULES["namespaced"], *_RULES["cluster"]]
    assert not [name for name in objects if name.startswith(("Role/", "RoleBinding/"))]


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        ((), "registry.example/nats-requeue:0.1.0"),
        (("image.tag=1.2",), "registry.example/nats-requeue:1.2"),
        ((f"image.digest=sha256:{'0' * 64}",), f"registry.example/nats-requeue@sha256:{'0' * 64}"),
    ],
)
def test_operator_and_workers_have_one_image(helm: Helm, settings: tuple[str, ...], image: str) -> None:
    container = _container(_render(helm, *settings))
    assert container["image"] == image
    assert f"--image={image}" in container["args"]


def test_operator_takes_what_the_chart_tells_it(helm: Helm) -> None:
    from requeue_operator.cli import run

    settings = ("image.pullPolicy=Always", "imagePullSecrets[0].name=registry", "watchNamespaces={shop}")
    objects = _render(helm, *settings)
    command, *words = _container(objects)["args"]
    given = run.make_context(command, words).params
    assert (given["image_pull_policy"], given["image_pull_secrets"]) == ("Always", ("registry",))
    assert (given["namespaces"], given["http"], given["resync_s"]) == (("shop",), ":8080", 600)
    pod = objects["Deployment/ops/rq-nats-requeue"]["spec"]["template"]["spec"]
    assert (pod["imagePullSecrets"], pod["containers"][0]["imagePullPolicy"]) == (
        [{"name": "registry"}],
        "Always",
    )


def test_everything_switched_on(helm: Helm) -> None:
    switches = [f"{each}.enabled=true" for each in ("podMonitor", "networkPolicy", "podDisruptionBudget")]
    knows = ("--api-versions", "monitoring.coreos.com/v1")
    objects = _render(helm, *switches, "labels.team=mail", flags=knows)
    pod_labels = objects["Deployment/ops/rq-nats-requeue"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("PodMonitor", "PodDisruptionBudget"):
        selector = objects[f"{kind}/ops/rq-nats-requeue"]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= pod_labels.items()
    policy = objects["NetworkPolicy/ops/rq-nats-requeue"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= pod_labels.items()
    assert {each["port"] for each in policy["egress"][0]["ports"]} == {53, 8080, 443, 6443}
    assert all(each["metadata"]["labels"]["team"] == "mail" for each in objects.values())
    assert "PodMonitor/ops/rq-nats-requeue" not in _render(helm, *switches)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("image.repositroy=x", "repositroy"),
        ("replicaCount=2", "replicaCount"),
        ("watchNamespaces={Shop}", "watchNamespaces"),
        ("image.digest=sha256:1", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("resyncSeconds=0", "resyncSeconds"),
    ],
)
def test_typos_are_refused_by_name(helm: Helm, setting: str, words: str) -> None:
    assert words in _refusal(helm, _IMAGE, setting)


def test_an_image_has_to_be_named(helm: Helm) -> None:
    assert "--set image.repository=registry.example/nats-requeue" in _refusal(helm)


def test_all_and_some_namespaces_contradict(helm: Helm) -> None:
    said = _refusal(helm, _IMAGE, "watchAllNamespaces=true", "watchNamespaces={shop}")
    assert "watchAllNamespaces and watchNamespaces: give one of them" in said
