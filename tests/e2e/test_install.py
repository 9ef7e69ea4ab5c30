"""The chart in one namespace: its test, its rights, and what stays when it is removed."""

from __future__ import annotations

import json

from tests.e2e.cluster import RELEASE, Cluster
from tests.e2e.traffic import Traffic


def test_helm_test_sends_a_message_through_a_worker(bare_cluster: Cluster, empty_namespace: str) -> None:
    _own_namespace_alone(bare_cluster, empty_namespace)
    bare_cluster.create_queue(empty_namespace)
    said = bare_cluster.helm("test", RELEASE, "--namespace", empty_namespace, "--logs")
    assert "Phase:          Succeeded" in said, said
    _uninstall(bare_cluster, empty_namespace)


async def test_uninstalled_and_installed_again_it_takes_up_what_it_left(
    bare_cluster: Cluster, empty_namespace: str
) -> None:
    _own_namespace_alone(bare_cluster, empty_namespace)
    bare_cluster.create_queue(empty_namespace)
    before = bare_cluster.lives(empty_namespace)
    with bare_cluster.nats(empty_namespace) as url:
        async with Traffic(url) as traffic:
            await traffic.publish(range(200), delay="1s")
            await traffic.until_delivered()
    bare_cluster.helm("uninstall", RELEASE, "--namespace", empty_namespace, "--wait")
    assert bare_cluster.get("crd", "default", "requeuequeues.requeue.dev") is not None
    assert bare_cluster.names("rq", empty_namespace) == ["orders"]
    assert bare_cluster.names("pvc", empty_namespace) == ["data-orders-0"]
    assert bare_cluster.lives(empty_namespace) == before
    _own_namespace_alone(bare_cluster, empty_namespace)
    bare_cluster.patch(empty_namespace, defaults={"retries": 4})
    bare_cluster.until_ready(empty_namespace)
    assert bare_cluster.lives(empty_namespace) == before
    _uninstall(bare_cluster, empty_namespace)


def test_operator_may_do_what_the_chart_says_and_no_more(bare_cluster: Cluster, empty_namespace: str) -> None:
    account = f"system:serviceaccount:{empty_namespace}:rq-nats-requeue"
    _own_namespace_alone(bare_cluster, empty_namespace)
    for verb, what, where, may in (
        ("patch", "statefulsets", empty_namespace, "yes"),
        ("delete", "persistentvolumeclaims", empty_namespace, "yes"),
        ("get", "secrets", empty_namespace, "no"),
        ("create", "pods/exec", empty_namespace, "no"),
        ("patch", "rolebindings", empty_namespace, "no"),
        ("get", "statefulsets", "kube-system", "no"),
        ("list", "requeuequeues.requeue.dev", "kube-system", "no"),
    ):
        said = bare_cluster.kubectl("auth", "can-i", verb, what, "-n", where, f"--as={account}", check=False)
        assert said.stdout.strip() == may, f"{verb} {what} in {where}: {said.stdout}{said.stderr}"
    bound = json.loads(
        bare_cluster.kubectl("get", "rolebindings,clusterrolebindings", "-A", "-o", "json").stdout
    )["items"]
    ours = [
        f"{each['kind']}/{each['metadata'].get('namespace', '')}"
        for each in bound
        for subject in each.get("subjects", [])
        if subject.get("namespace") == empty_namespace and subject["name"] == "rq-nats-requeue"
    ]
    assert ours == [f"RoleBinding/{empty_namespace}"]
    _uninstall(bare_cluster, empty_namespace)


def _own_namespace_alone(cluster: Cluster, namespace: str) -> None:
    cluster.install(namespace, "--set", "trialNats.enabled=true", "--take-ownership")


def _uninstall(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("delete", "rq", "--all", "-n", namespace, "--timeout=120s")
    cluster.helm("uninstall", RELEASE, "--namespace", namespace)
