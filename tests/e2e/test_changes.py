"""What a change restarts, and what it does not; credentials that are rotated; volumes that grow."""

from __future__ import annotations

import asyncio
import itertools
import json
import urllib.request
from pathlib import Path
from typing import Any

from requeue_client.local import HOST

from tests.e2e.cluster import OPERATOR, Cluster
from tests.e2e.traffic import Traffic

_DF = ["df", "--block-size=1M", "--output=size", "/var/lib/requeue"]
_GUARDED = Path(__file__).parent / "guarded-nats.yaml"


async def test_policy_reaches_running_workers_without_a_restart(cluster: Cluster, namespace: str) -> None:
    cluster.create_queue(namespace, replicas=2, defaults={"retries": 7})
    before = cluster.lives(namespace)
    with cluster.nats(namespace) as url:
        async with Traffic(url) as traffic:
            await traffic.publish(range(20))
            await traffic.until_delivered()
            assert set(traffic.limits.values()) == {"7"}
            cluster.patch(namespace, defaults={"retries": 9})
            for first in itertools.count(20, step=20):
                await traffic.publish(range(first, first + 20))
                await traffic.until_delivered()
                if {traffic.limits[number] for number in range(first, first + 20)} == {"9"}:
                    break
                assert first < 20 * 120, "the new policy never came"
                await asyncio.sleep(1)
    assert cluster.lives(namespace) == before


async def test_a_change_of_the_pod_replaces_one_at_a_time(cluster: Cluster, namespace: str) -> None:
    cluster.create_queue(namespace, replicas=3)
    before = cluster.lives(namespace)
    container = {"name": "worker", "env": [{"name": "TZ", "value": "UTC"}]}
    ready = []

    def is_replaced() -> bool:
        pods = cluster.workers(namespace)
        ready.append(sum(_is_ready(pod) for pod in pods))
        return (
            cluster.condition(namespace, "Ready") == "True"
            and not before.items() & cluster.lives(namespace).items()
        )

    with cluster.nats(namespace) as url:
        async with Traffic(url) as traffic:
            publishing = asyncio.create_task(traffic.publish(range(4_000), window=64))
            cluster.patch(namespace, podTemplate={"spec": {"containers": [container]}})
            await asyncio.to_thread(cluster.until, "all pods are new", is_replaced)
            await publishing
            await traffic.until_delivered()
    assert min(ready) >= 2, f"ready workers meanwhile: {ready}"


async def test_an_upgrade_of_the_operator_restarts_no_worker(cluster: Cluster, namespace: str) -> None:
    cluster.create_queue(namespace, replicas=2)
    before = cluster.lives(namespace)
    operator = cluster.names("pods", OPERATOR)
    tag = cluster.newer_image.rpartition(":")[2]
    newer = ("--reuse-values", "--set", f"image.tag={tag}", "--set", "podAnnotations.upgraded=yes")
    cluster.install(OPERATOR, *newer, action="upgrade")
    cluster.until(
        "the operator is another pod", lambda: not set(operator) & set(cluster.names("pods", OPERATOR))
    )
    cluster.patch(namespace, defaults={"retries": 3})
    cluster.until_ready(namespace)
    assert cluster.lives(namespace) == before


async def test_credentials_are_rotated_without_a_restart(cluster: Cluster, namespace: str) -> None:
    _serve(cluster, namespace, "old", "new")
    _write_login(cluster, namespace, "old")
    login = {"secretName": "login", "userKey": "user", "passwordKey": "password"}
    cluster.create_queue(
        namespace, nats={"servers": ["nats://guarded:4222"], "credentials": {"userPassword": login}}
    )
    before = cluster.lives(namespace)
    (pod,) = before
    assert _users(cluster, namespace) == {"old"}
    _write_login(cluster, namespace, "new")
    mounted = ["exec", "-n", namespace, pod, "--", "cat", "/etc/requeue/credentials/user"]
    cluster.until("the pod has the new login", lambda: cluster.kubectl(*mounted).stdout == "new")
    _serve(cluster, namespace, "new")  # the server starts anew, and knows the old user no more
    cluster.until("the worker logs in as the new user", lambda: _users(cluster, namespace) == {"new"})
    with cluster.forwarded(namespace, "service/guarded", 4222) as port:
        async with Traffic(f"nats://new:new@{HOST}:{port}") as traffic:
            await traffic.publish(range(100))
            await traffic.until_delivered()
    assert cluster.lives(namespace) == before


async def test_a_volume_grows_while_its_worker_goes_on(cluster: Cluster, namespace: str) -> None:
    cluster.create_queue(namespace, replicas=2)
    before = cluster.lives(namespace)
    assert all(_size_mib(cluster, namespace, pod) < 300 for pod in before)
    cluster.patch(namespace, storage={"size": "700Mi"})
    cluster.until(
        "the volumes have grown", lambda: all(_size_mib(cluster, namespace, pod) > 600 for pod in before)
    )
    cluster.until_ready(namespace)
    cluster.until("the operator says so", lambda: cluster.condition(namespace, "StorageReady") == "True")
    assert cluster.lives(namespace) == before
    with cluster.nats(namespace) as url:
        async with Traffic(url) as traffic:
            await traffic.publish(range(100))
            await traffic.until_delivered()


def _serve(cluster: Cluster, namespace: str, *users: str) -> None:
    known = ", ".join(f"{{user: {user}, password: {user}}}" for user in users)
    text = _GUARDED.read_text(encoding="utf-8").replace("IMAGE", cluster.nats_image).replace("USERS", known)
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=text)
    cluster.kubectl("rollout", "status", "-n", namespace, "deployment/guarded", "--timeout=120s")


def _write_login(cluster: Cluster, namespace: str, user: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}}
    cluster.apply(namespace, {**secret, "stringData": {"user": user, "password": user}})


def _users(cluster: Cluster, namespace: str) -> set[str]:
    """Whom the server has let in, of workers."""
    with (
        cluster.forwarded(namespace, "deployment/guarded", 8222) as port,
        urllib.request.urlopen(f"http://{HOST}:{port}/connz?auth=1", timeout=10) as answer,
    ):
        connections = json.load(answer)["connections"]
    return {each["authorized_user"] for each in connections if each.get("name") == "requeue-nats"}


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _size_mib(cluster: Cluster, namespace: str, pod: str) -> int:
    said = cluster.kubectl("exec", "-n", namespace, pod, "--", *_DF).stdout
    return int(said.split()[-1])
