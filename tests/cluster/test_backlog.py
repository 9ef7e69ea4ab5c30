"""What the workers have stands in the status: a real worker, at the address that its pod is given."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import (
    OPERATOR,
    Operator,
    condition,
    create_queue,
    has_condition,
    make_pods_ready,
    patch_spec,
)
from tests.cluster.specs import path
from tests.servers import NatsServer, WorkerFactory


@pytest.fixture
def operator(cluster: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    process = Operator("requeue-operator", tmp_path / "operator.log")
    process.start(cluster.kubeconfig(OPERATOR), namespace)
    yield process
    process.stop()


async def _send(nc: Client, queue: str, count: int) -> None:
    headers = {"Requeue-Subject": "jobs.a", "Requeue-Queue": queue, "Requeue-At": "2100-01-01T00:00:00Z"}
    for _ in range(count):
        ack = await nc.request("requeue.in", b"payload", headers=headers, timeout=30)
        assert ack.data == b""


@pytest.mark.usefixtures("operator")
async def test_the_backlog_of_the_workers_is_shown_and_stays_while_none_runs(
    cluster: ControlPlane,
    namespace: str,
    nats_server: NatsServer,
    nc: Client,
    worker_factory: WorkerFactory,
) -> None:
    address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
    worker_factory(nats_server, "--http", f"{address}:8080")
    await _send(nc, "mail", 3)
    await _send(nc, "jobs", 2)
    create_queue(cluster, namespace)
    make_pods_ready(cluster, namespace, 1, address=address)

    def shown(*words: str) -> bool:
        table = cluster.kubectl("-n", namespace, "get", "rq", "orders").stdout
        return table.splitlines()[-1].split()[:-1] == ["orders", *words]

    cluster.until(
        "it is ready, with its backlog", lambda: shown("True", "1", "5", "0", "2100-01-01T00:00:00Z")
    )
    assert cluster.get(path(namespace, "orders"))["status"]["backlog"]["queues"] == [
        {"name": "mail", "pending": 3, "dead": 0},
        {"name": "jobs", "pending": 2, "dead": 0},
    ]
    cluster.until("it is connected", lambda: has_condition(cluster, namespace, "NatsConnected", "True"))

    nats_server.kill()
    make_pods_ready(cluster, namespace, 1, address=address, ready=False)
    cluster.until("it is not", lambda: has_condition(cluster, namespace, "NatsConnected", "False"))
    assert "orders-0: not connected to NATS" in condition(cluster, namespace, "NatsConnected")["message"]

    patch_spec(cluster, namespace, replicas=0)
    cluster.until("it is at zero", lambda: has_condition(cluster, namespace, "Ready", "True", "ScaledToZero"))
    assert shown("True", "0", "5", "0", "2100-01-01T00:00:00Z")
    assert "5 messages and 0 dead letters wait" in condition(cluster, namespace, "Ready")["message"]
