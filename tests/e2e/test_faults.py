"""Messages flow while pods are killed and evicted: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import yaml

from tests.e2e.cluster import Cluster
from tests.e2e.traffic import Traffic

_EXAMPLE = Path(__file__).parents[2] / "examples/requeuequeue.yaml"
_BATCHES = 10
_IN_A_BATCH = 2_000


async def test_no_message_is_lost_while_pods_are_killed_and_evicted(cluster: Cluster, namespace: str) -> None:
    cluster.apply(namespace, yaml.safe_load(_EXAMPLE.read_text(encoding="utf-8")))
    cluster.until_ready(namespace)
    before = cluster.lives(namespace)
    pods = list(before)
    assert len(pods) == 3
    with cluster.nats(namespace) as url:
        async with Traffic(url) as traffic:
            for number in range(_BATCHES):
                first = number * _IN_A_BATCH
                publishing = asyncio.create_task(
                    traffic.publish(range(first, first + _IN_A_BATCH), delay=f"{number % 4}s")
                )
                pod = pods[number % len(pods)]
                fault = cluster.evict if number % 2 else cluster.kill
                await asyncio.to_thread(fault, namespace, pod)
                await publishing
                await asyncio.to_thread(cluster.until_ready, namespace)
            await traffic.until_delivered()
            assert len(traffic.acked) == _BATCHES * _IN_A_BATCH
            print(f"acknowledged {len(traffic.acked)}, lost 0, repeated {traffic.repeated}")
    after = cluster.lives(namespace)
    assert sum(after[pod] != before[pod] for pod in pods) == len(pods), "every worker was killed or evicted"
    assert sorted(cluster.names("pvc", namespace)) == [f"data-{pod}" for pod in pods]
