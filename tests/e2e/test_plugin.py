"""`kubectl requeue` with real pods, logged in with the rights that its page names: logs that are followed, and a report."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
import yaml
from requeue_client import RequeueClient

from tests.cluster.plugin import Plugin, unpacked
from tests.e2e.cluster import OPERATOR, Cluster

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs/kubectl.md").read_text(encoding="utf-8")
_COMMANDS = re.findall(r"^kubectl requeue [^\n#]*", _PAGE, re.M)
_PAYLOAD = b"the-account-of-somebody-4711"
_SECRET = "hunter2hunter2"


@pytest.fixture
def plugin(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Plugin]:
    """As a service account that is bound to the ClusterRole of the page, everywhere."""
    cluster.kubectl("apply", "-f", str(_ROOT / "examples/kubectl-requeue.yaml"))
    cluster.kubectl("-n", namespace, "create", "serviceaccount", "person")
    binding = ("clusterrolebinding", namespace)
    account = f"--serviceaccount={namespace}:person"
    cluster.kubectl("create", *binding, "--clusterrole=kubectl-requeue", account)
    token = cluster.kubectl("-n", namespace, "create", "token", "person").stdout.strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    yield Plugin(cluster.kubectl_argv, config, namespace, tmp_path / "person")
    cluster.kubectl("delete", *binding)


def test_logs_follow_pods_that_come_and_drains_that_begin(
    cluster: Cluster, namespace: str, plugin: Plugin, tmp_path: Path
) -> None:
    cluster.create_queue(namespace, replicas=1)
    said = plugin("logs", "--of", "workers").stdout.splitlines()
    assert said
    assert all(line.startswith("[orders-0] ") for line in said)
    assert any("ready" in line for line in said)
    assert len(plugin("logs", "--of", "workers", "--tail", "2").stdout.splitlines()) == 2
    assert f"[{OPERATOR}/" in plugin("logs", "--of", "operator").stdout

    with (tmp_path / "followed").open("wb") as file:
        argv = ["bash", "-c", f"exec {shlex.join(['kubectl', 'requeue', 'logs', 'orders', '-f'])}"]
        follower = subprocess.Popen(argv, env=plugin.environ, stdout=file, stderr=file)
    try:
        _until_seen(cluster, tmp_path / "followed", r"\[orders-0\] .*ready")
        cluster.patch(namespace, replicas=2)
        _until_seen(cluster, tmp_path / "followed", r"\[orders-1\] .*ready")
        cluster.patch(namespace, replicas=1)
        _until_seen(cluster, tmp_path / "followed", r"\[orders-drain-1-\w+\] .*drain")
        assert follower.poll() is None
    finally:
        follower.send_signal(signal.SIGINT)
        code = follower.wait(30)
    assert code == 130
    lines = (tmp_path / "followed").read_text().splitlines()
    own = [line for line in lines if line.startswith("[orders-0] ")]
    assert len(own) == len(set(own)), "no line comes twice"


async def test_a_report_has_logs_and_metrics_and_neither_payloads_nor_secrets(
    cluster: Cluster, namespace: str, plugin: Plugin
) -> None:
    cluster.kubectl("-n", namespace, "create", "secret", "generic", "own", f"--from-literal=token={_SECRET}")
    worker = {"name": "worker", "env": [{"name": "KEY", "value": _SECRET}]}
    cluster.create_queue(namespace, replicas=1, podTemplate={"spec": {"containers": [worker]}})
    with cluster.nats(namespace) as url:
        async with await RequeueClient.connect(url) as client:
            await client.publish("jobs.later", _PAYLOAD, delay="1h", msg_id="later")
            await client.publish("jobs.nobody", _PAYLOAD, retries=1)
        # No envelope, and no headers: kept as an invalid message.
        nc = await nats.connect(url)
        await nc.publish("requeue.jobs", _PAYLOAD)
        await nc.drain()
    await asyncio.to_thread(
        cluster.until,
        "they are counted",
        lambda: plugin.json("status", "orders")["backlog"].get("dead"),
    )

    plugin("report", "--file", "here.tar.gz")
    files = unpacked(plugin.directory / "here.tar.gz")
    about = yaml.safe_load(files["about.yaml"])
    assert about["missing"] == {}
    place = f"{namespace}/orders"
    assert "ready" in files[f"{place}/logs/orders-0.log"]
    assert "requeue_pending_messages" in files[f"{place}/workers/orders-0/metrics.txt"]
    lines = map(json.loads, files[f"{place}/workers/orders-0/overview.jsonl"].splitlines())
    assert [line["endpoint"] for line in lines] == ["instances", "queues", "stats"]
    assert any(path.startswith("operator/logs/") and content for path, content in files.items())
    (numbers,) = (content for path, content in files.items() if path.startswith("operator/metrics/"))
    assert "requeue_operator_reconciles_total" in numbers
    for path, content in files.items():
        assert _PAYLOAD.decode() not in content, path
        assert _SECRET not in content, path

    for command in _COMMANDS:
        if " -f" not in command:
            await asyncio.to_thread(plugin.shell, command)


def _until_seen(cluster: Cluster, file: Path, pattern: str) -> None:
    cluster.until(f"{pattern} is seen", lambda: re.search(pattern, file.read_text()), 120)
