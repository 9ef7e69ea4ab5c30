"""What becomes of the messages when a RequeueQueue is deleted says `storage.onDelete`."""

from __future__ import annotations

import asyncio

from tests.e2e.cluster import Cluster
from tests.e2e.traffic import Traffic

_MESSAGES = 500
_STORAGE = {"size": "300Mi"}


def _delete(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("delete", "rq", "orders", "-n", namespace, "--timeout=180s")
    cluster.until("its pods are gone", lambda: not cluster.workers(namespace))


async def test_retain_keeps_messages_and_a_new_one_takes_them_up(cluster: Cluster, namespace: str) -> None:
    cluster.create_queue(namespace, storage=_STORAGE | {"onDelete": "Retain"})
    with cluster.nats(namespace) as url:
        async with Traffic(url) as traffic:
            await traffic.publish(range(_MESSAGES), delay="45s")
            await asyncio.to_thread(_delete, cluster, namespace)
            assert cluster.names("pvc", namespace) == ["data-orders-0"]
            assert not traffic.came
            await asyncio.to_thread(cluster.create_queue, namespace)
            await traffic.until_delivered()
            assert traffic.came.total() == _MESSAGES


async def test_delete_takes_the_volumes_too(cluster: Cluster, namespace: str) -> None:
    cluster.create_queue(namespace, storage=_STORAGE | {"onDelete": "Delete"})
    with cluster.nats(namespace) as url:
        async with Traffic(url) as traffic:
            await traffic.publish(range(_MESSAGES), delay="1h")
    _delete(cluster, namespace)
    cluster.until("the claims are gone", lambda: not cluster.names("pvc", namespace))


async def test_drain_waits_until_all_is_delivered(cluster: Cluster, namespace: str) -> None:
    cluster.create_queue(namespace, storage=_STORAGE | {"onDelete": "Drain"})
    with cluster.nats(namespace) as url:
        async with Traffic(url) as traffic:
            await traffic.publish(range(_MESSAGES), delay="30s")
            cluster.kubectl("delete", "rq", "orders", "-n", namespace, "--wait=false")
            await traffic.until_delivered()
            assert traffic.came.total() == _MESSAGES
            await asyncio.to_thread(
                cluster.until, "it is gone", lambda: cluster.get("rq", namespace, "orders") is None
            )
    cluster.until(
        "pods and claims are gone",
        lambda: not cluster.names("pods,pvc", namespace, "app.kubernetes.io/instance=orders"),
    )
