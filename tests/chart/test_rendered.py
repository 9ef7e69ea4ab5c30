"""What helm makes of the chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import IMAGE, MONITORING, refusal, render
from tests.helm import CHART, Helm

_ROOT = Path(__file__).parents[2]
_RULES = yaml.safe_load((_ROOT / "charts/nats-requeue/files/rules.yaml").read_text(encoding="utf-8"))


def _container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (container,) = objects["Deployment/ops/rq-nats-requeue"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def _scope(objects: dict[str, dict[str, Any]]) -> list[str]:
    return [word for word in _container(objects)["args"] if "namespace" in word]


def test_lint_is_clean(helm: Helm) -> None:
    done = helm("lint", "--strict", str(CHART), "--set", IMAGE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_of_itself_it_has_rights_in_its_own_namespace_alone(helm: Helm) -> None:
    objects = render(helm)
    assert set(objects) == {
        "CustomResourceDefinition//requeuequeues.requeue.dev",
        "ServiceAccount/ops/rq-nats-requeue",
        "Deployment/ops/rq-nats-requeue",
        "Service/ops/rq-nats-requeue",
        "Role/ops/rq-nats-requeue-ops",
        "RoleBinding/ops/rq-nats-requeue-ops",
        "ClusterRole//rq-nats-requeue-ops-view",
        "ClusterRole//rq-nats-requeue-ops-edit",
        "Pod/ops/rq-nats-requeue-check",  # of `helm test` alone
    }
    assert objects["Role/ops/rq-nats-requeue-ops"]["rules"] == _RULES["namespaced"]
    assert _scope(objects) == ["--namespace=ops"]


def test_crd_is_the_committed_one_and_stays(helm: Helm) -> None:
    crd = render(helm)["CustomResourceDefinition//requeuequeues.requeue.dev"]
    committed = yaml.safe_load((_ROOT / "crds/requeuequeues.requeue.dev.yaml").read_text(encoding="utf-8"))
    assert crd["spec"] == committed["spec"]
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    loose = render(helm, "crds.keep=false")["CustomResourceDefinition//requeuequeues.requeue.dev"]
    assert "annotations" not in loose["metadata"]
    assert not [name for name in render(helm, "crds.enabled=false") if "CustomResource" in name]


def test_several_namespaces(helm: Helm) -> None:
    objects = render(helm, "watchNamespaces={shop,mail}")
    assert _scope(objects) == ["--namespace=shop", "--namespace=mail"]
    subject = {"kind": "ServiceAccount", "name": "rq-nats-requeue", "namespace": "ops"}
    for namespace in ("shop", "mail"):
        assert objects[f"Role/{namespace}/rq-nats-requeue-ops"]["rules"] == _RULES["namespaced"]
        assert objects[f"RoleBinding/{namespace}/rq-nats-requeue-ops"]["subjects"] == [subject]
    assert "Role/ops/rq-nats-requeue-ops" not in objects
    assert "ClusterRoleBinding//rq-nats-requeue-ops" not in objects


def test_all_namespaces(helm: Helm) -> None:
    objects = render(helm, "watchAllNamespaces=true")
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
    container = _container(render(helm, *settings))
    assert container["image"] == image
    assert f"--image={image}" in container["args"]


def test_operator_takes_what_the_chart_tells_it(helm: Helm) -> None:
    from requeue_operator.cli import run

    settings = ("image.pullPolicy=Always", "imagePullSecrets[0].name=registry", "watchNamespaces={shop}")
    objects = render(helm, *settings)
    command, *words = _container(objects)["args"]
    given = run.make_context(command, words).params
    assert (given["image_pull_policy"], given["image_pull_secrets"]) == ("Always", ("registry",))
    assert (given["namespaces"], given["http"], given["resync_s"]) == (("shop",), ":8080", 600)
    pod = objects["Deployment/ops/rq-nats-requeue"]["spec"]["template"]["spec"]
    assert (pod["imagePullSecrets"], pod["containers"][0]["imagePullPolicy"]) == (
        [{"name": "registry"}],
        "Always",
    )


_EVERYTHING = (
    *(f"{each}.enabled=true" for each in ("podMonitor", "networkPolicy", "podDisruptionBudget")),
    *(f"{each}.enabled=true" for each in ("prometheusRule", "dashboard", "trialNats")),
    *("podMonitor.workers=true", "labels.team=mail", "annotations.who=me"),
)


def test_everything_switched_on(helm: Helm) -> None:
    objects = render(helm, *_EVERYTHING, flags=MONITORING)
    pod_labels = objects["Deployment/ops/rq-nats-requeue"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("PodMonitor", "PodDisruptionBudget"):
        selector = objects[f"{kind}/ops/rq-nats-requeue"]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= pod_labels.items()
    policy = objects["NetworkPolicy/ops/rq-nats-requeue"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= pod_labels.items()
    assert {each["port"] for each in policy["egress"][0]["ports"]} == {53, 8080, 443, 6443}
    assert all(each["metadata"]["labels"]["team"] == "mail" for each in objects.values())
    assert all(each["metadata"]["annotations"]["who"] == "me" for each in objects.values())
    without = render(helm, *_EVERYTHING)
    assert {each.split("/")[0] for each in objects.keys() - without.keys()} == {
        "PodMonitor",
        "PrometheusRule",
    }


def test_annotations_of_its_own_stay_beside_the_users(helm: Helm) -> None:
    objects = render(helm, "annotations.who=me", "serviceAccount.annotations.role=arn")
    crd = objects["CustomResourceDefinition//requeuequeues.requeue.dev"]["metadata"]["annotations"]
    assert crd == {"helm.sh/resource-policy": "keep", "who": "me"}
    assert objects["ServiceAccount/ops/rq-nats-requeue"]["metadata"]["annotations"] == {
        "role": "arn",
        "who": "me",
    }
    assert objects["Pod/ops/rq-nats-requeue-check"]["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_only_the_operator_is_selected_as_the_operator(helm: Helm) -> None:
    objects = render(
        helm, *_EVERYTHING, "serviceMonitor.enabled=true", "podMonitor.enabled=false", flags=MONITORING
    )
    selector = objects["Deployment/ops/rq-nats-requeue"]["spec"]["selector"]["matchLabels"]
    others = (
        objects["Deployment/ops/nats"]["spec"]["template"],
        objects["Pod/ops/rq-nats-requeue-check"],
        objects["Service/ops/nats"],
    )
    for each in others:
        assert not selector.items() <= each["metadata"]["labels"].items()
    (monitor,) = [each for each in objects.values() if each["kind"] == "ServiceMonitor"]
    labels = objects["Service/ops/rq-nats-requeue"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("image.repositroy=x", "repositroy"),
        ("replicaCount=2", "replicaCount"),
        ("watchNamespaces={Shop}", "watchNamespaces"),
        ("image.digest=sha256:1", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("resyncSeconds=0", "resyncSeconds"),
        ("trialNats.jetstream=true", "jetstream"),
        ("test.server=x", "server"),
    ],
)
def test_typos_are_refused_by_name(helm: Helm, setting: str, words: str) -> None:
    assert words in refusal(helm, IMAGE, setting)


def test_an_image_has_to_be_named(helm: Helm) -> None:
    assert "--set image.repository=registry.example/nats-requeue" in refusal(helm)


def test_all_and_some_namespaces_contradict(helm: Helm) -> None:
    said = refusal(helm, IMAGE, "watchAllNamespaces=true", "watchNamespaces={shop}")
    assert "watchAllNamespaces and watchNamespaces: give one of them" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("podMonitor.enabled=true", "serviceMonitor.enabled=true"), "give one of them"),
        (("serviceMonitor.enabled=true", "service.enabled=false"), "needs service.enabled"),
    ],
)
def test_monitors_that_contradict(helm: Helm, settings: tuple[str, ...], words: str) -> None:
    assert words in refusal(helm, IMAGE, *settings)
