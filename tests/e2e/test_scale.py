"""Scaling down drains volumes into those who stay; scaling up again takes them back; nothing is lost."""

from __future__ import annotations

import asyncio

from tests.e2e.cluster import Cluster
from tests.e2e.traffic import Traffic

_MESSAGES = 6_000
_JOBS = "app.kubernetes.io/name=nats-requeue-drain"


async def test_from_three_to_one_every_message_is_delivered_once_and_the_volumes_go(
    cluster: Cluster, namespace: str
) -> None:
    cluster.create_queue(namespace, replicas=3)
    with cluster.nats(namespace) as url:
        async with Traffic(url) as traffic:
            await traffic.publish(range(_MESSAGES), delay="90s")
            cluster.patch(namespace, replicas=1)
            await _until_claims(cluster, namespace, ["data-orders-0"])
            await asyncio.to_thread(
                cluster.until, "it says drained", lambda: cluster.condition(namespace, "Drained") == "True"
            )
            assert len(cluster.workers(namespace)) == 1
            await traffic.until_delivered()
            assert traffic.came.keys() == set(range(_MESSAGES))
            assert traffic.repeated == 0


async def test_up_again_in_the_middle_of_a_drain(cluster: Cluster, namespace: str) -> None:
    cluster.create_queue(namespace, replicas=3)
    with cluster.nats(namespace) as url:
        async with Traffic(url) as traffic:
            await traffic.publish(range(_MESSAGES), delay="60s")
            cluster.patch(namespace, replicas=1)
            await asyncio.to_thread(
                cluster.until, "a drain runs", lambda: cluster.names("jobs", namespace, selector=_JOBS)
            )
            cluster.patch(namespace, replicas=3)
            await asyncio.to_thread(cluster.until_ready, namespace)
            await traffic.publish(range(_MESSAGES, 2 * _MESSAGES))
            await traffic.until_delivered()
            assert traffic.came.keys() == set(range(2 * _MESSAGES))
    assert len(cluster.workers(namespace)) == 3
    assert cluster.names("pvc", namespace) == [f"data-orders-{ordinal}" for ordinal in range(3)]
    cluster.patch(namespace, replicas=1)
    await _until_claims(cluster, namespace, ["data-orders-0"])


async def _until_claims(cluster: Cluster, namespace: str, names: list[str]) -> None:
    await asyncio.to_thread(
        cluster.until, f"the claims are {', '.join(names)}", lambda: cluster.names("pvc", namespace) == names
    )
