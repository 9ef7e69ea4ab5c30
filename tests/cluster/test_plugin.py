"""`kubectl requeue` on the real control plane. With real pods it is run by tests/e2e/test_plugin.py."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from nats.aio.client import Client
from requeue_client import RequeueClient
from requeue_operator.children.worker_config import HTTP_PORT

from tests.cluster.build import control_plane_binary
from tests.cluster.control_plane import ControlPlane
from tests.cluster.draining import end, proof, remains, until_draining
from tests.cluster.operating import (
    OPERATOR,
    Operator,
    claims,
    condition,
    create_queue,
    has_condition,
    make_pods_ready,
    patch_spec,
)
from tests.cluster.plugin import VIEWER, Plugin, unpacked
from tests.cluster.rights import PLUGIN, cluster_rights
from tests.cluster.specs import path, requeue_queue
from tests.servers import NatsServer, WorkerFactory

pytestmark = pytest.mark.usefixtures("operator")

_PAGE = (Path(__file__).parents[2] / "docs/kubectl.md").read_text(encoding="utf-8")
_COMMANDS = re.findall(r"^kubectl requeue [^\n#]*", _PAGE, re.M)


@pytest.fixture
def plugin(cluster: ControlPlane, namespace: str, tmp_path: Path) -> Plugin:
    return Plugin.at(cluster, namespace, tmp_path / "person")


def _make(cluster: ControlPlane, namespace: str, replicas: int, **spec: Any) -> None:
    create_queue(cluster, namespace, replicas=replicas, **spec)
    make_pods_ready(cluster, namespace, replicas)
    cluster.until("volumes are claimed", lambda: len(claims(cluster, namespace)) == replicas)
    cluster.until("it is ready", lambda: has_condition(cluster, namespace, "Ready", "True"))


def _by_claim(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["claim"]: row for row in rows}


def test_status_shows_conditions_workers_volumes_and_what_is_wrong(
    cluster: ControlPlane, namespace: str, plugin: Plugin
) -> None:
    _make(cluster, namespace, 2)
    (row,) = plugin.json("status")
    assert (row["name"], row["state"]) == ("orders", "Ready")
    assert row["replicas"] == {"wanted": 2, "there": 2, "ready": 2}
    assert [each["name"] for each in row["workers"]] == ["orders-0", "orders-1"]
    assert [(each["claim"], each["usedBy"]) for each in row["volumes"]] == [
        ("data-orders-0", ["orders-0"]),
        ("data-orders-1", ["orders-1"]),
    ]
    assert yaml.safe_load(plugin("status", "orders", "-o", "yaml").stdout) == row
    line = plugin("status").stdout.splitlines()[1].split()
    assert line[:2] == ["orders", "2/2"]
    told = plugin("status", "orders").stdout
    for word in ("NatsConnected", "orders-1", "data-orders-1"):
        assert word in told

    patch_spec(cluster, namespace, queues=[{"name": "slow", "minBackoff": "2h"}])
    cluster.until("it is stalled", lambda: has_condition(cluster, namespace, "Stalled", "True"))
    stalled = plugin("status", code=1).stdout
    assert "Stalled (InvalidSpec)" in stalled
    assert condition(cluster, namespace, "Stalled")["message"] in stalled


def test_all_namespaces_and_one_and_that_of_the_context(
    cluster: ControlPlane,
    namespace: str,
    new_namespace: Callable[[], str],
    plugin: Plugin,
) -> None:
    other = new_namespace()
    create_queue(cluster, namespace)
    create_queue(cluster, other)
    assert [row["namespace"] for row in plugin.json("status")] == [namespace]
    assert [row["namespace"] for row in plugin.json("status", "-n", other)] == [other]
    # Others of the cluster may be stalled.
    said = plugin.shell("kubectl requeue status -A -o json || [[ $? == 1 ]]").stdout
    assert {namespace, other} <= {row["namespace"] for row in json.loads(said)}
    assert "NAMESPACE" in plugin.shell("kubectl requeue status -A || true").stdout
    # As kubectl has them: a file and a context by name.
    same = plugin.json("status", "--kubeconfig", str(plugin.kubeconfig), "--context", "own")
    assert [row["namespace"] for row in same] == [namespace]


def test_reap_says_what_the_operator_does_next_and_why_it_does_not(
    cluster: ControlPlane, namespace: str, plugin: Plugin, operator: Operator
) -> None:
    _make(cluster, namespace, 3)
    kept = _by_claim(plugin.json("reap", "--dry-run"))
    assert {name: each["would"] for name, each in kept.items()} == dict.fromkeys(kept, "keep")
    assert kept["data-orders-2"]["why"] == "a worker of the fleet uses it"

    patch_spec(cluster, namespace, replicas=1)
    pods = until_draining(cluster, namespace, "data-orders-1", "data-orders-2")
    judged = _by_claim(plugin.json("reap", "--dry-run", "orders"))
    assert judged["data-orders-0"]["would"] == "keep"
    assert (judged["data-orders-1"]["would"], judged["data-orders-2"]["would"]) == ("wait", "wait")

    end(cluster, pods["data-orders-1"], proof(pods["data-orders-1"]))
    cluster.until("one is gone", lambda: "data-orders-1" not in claims(cluster, namespace))
    end(
        cluster,
        pods["data-orders-2"],
        proof(pods["data-orders-2"], remains=remains("no-survivor"), nobody=True),
    )
    cluster.until("it is told", lambda: has_condition(cluster, namespace, "Drained", "False", "NoSurvivor"))
    operator.stop()  # it would try again after 5 s
    try:
        assert "NoSurvivor" in plugin("status", "orders", code=1).stdout
        told = plugin("drain", "status", code=1).stdout
        assert re.search(r"data-orders-2 +Failed .*NoSurvivor: ", told)
        failed = _by_claim(plugin.json("reap", "--dry-run"))["data-orders-2"]
        assert failed["would"] in ("wait", "take back"), "when it is due to be tried again"
        assert failed["why"].startswith("NoSurvivor: ")
    finally:
        operator.start(cluster.kubeconfig(OPERATOR))


def test_reap_never_changes_anything(cluster: ControlPlane, namespace: str, plugin: Plugin) -> None:
    _make(cluster, namespace, 2)
    patch_spec(cluster, namespace, replicas=1, paused=True)
    before = _all(cluster, namespace)
    assert "give --dry-run" in plugin("reap", code=2).stderr
    row = _by_claim(plugin.json("reap", "--dry-run"))["data-orders-1"]
    assert (row["would"], row["why"]) == ("keep", "paused: the operator changes nothing")
    assert _all(cluster, namespace) == before
    verbs = {verb for rule in yaml.safe_load(_RULES.read_text())["rules"] for verb in rule["verbs"]}
    assert verbs == {"get", "list"}


_RULES = Path(__file__).parents[2] / "examples/kubectl-requeue.yaml"


def _all(cluster: ControlPlane, namespace: str) -> list[str]:
    found = cluster.kubectl(
        "get", "rq,sts,job,pod,pvc", "-n", namespace, "-o", "jsonpath={.items[*].metadata.uid}"
    )
    return found.stdout.split()


def test_volumes_that_stay_are_shown_with_the_reason(
    cluster: ControlPlane, namespace: str, plugin: Plugin
) -> None:
    _make(cluster, namespace, 2, storage={"onScaleDown": "Retain"})
    patch_spec(cluster, namespace, replicas=1)
    cluster.until("it is kept", lambda: has_condition(cluster, namespace, "Drained", "False", "Retained"))
    (row,) = plugin.json("drain", "status")
    assert (row["claim"], row["state"]) == ("data-orders-1", "Retained")
    assert row["message"] == "storage.onScaleDown is Retain; scale up to use it again"

    assert cluster.request("DELETE", path(namespace, "orders"))[0] == 200
    cluster.until("it is gone", lambda: cluster.get(path(namespace, "orders")) is None)
    for claim in plugin.json("reap", "--dry-run"):
        assert claim["would"] == "keep"
        assert claim["why"].startswith("its RequeueQueue is gone; a new one named orders takes it up")
    assert "No RequeueQueues in the namespace" in plugin("status").stderr


def test_what_is_wrong_is_told_with_what_would_be_right(
    cluster: ControlPlane, namespace: str, plugin: Plugin, tmp_path: Path
) -> None:
    assert "there is no RequeueQueue nothing in the namespace" in plugin("status", "nothing", code=5).stderr
    assert "-n names one namespace" in plugin("status", "-n", "a", "-A", code=2).stderr
    assert "--context one of its contexts" in plugin("status", "--context", "other", code=3).stderr
    assert "there is no file /nowhere" in plugin("status", "--kubeconfig", "/nowhere", code=3).stderr

    stranger = Plugin.at(cluster, namespace, tmp_path / "stranger", user="system:kube-scheduler")
    told = stranger("status", code=4).stderr
    assert f"a Role in the namespace {namespace} that is bound to you" in told
    assert "{apiGroups: [requeue.dev], resources: [requeuequeues], verbs: [list]}" in told

    dead = yaml.safe_load(plugin.kubeconfig.read_text())
    dead["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "dead").write_text(yaml.safe_dump(dead))
    told = plugin("status", "--kubeconfig", str(tmp_path / "dead"), code=3).stderr
    assert "the API server cannot be reached" in told


def test_every_command_of_its_page_runs(cluster: ControlPlane, namespace: str, plugin: Plugin) -> None:
    _make(cluster, namespace, 1)
    assert len(_COMMANDS) > 5
    for command in (each for each in _COMMANDS if " -f" not in each):
        # Of all namespaces, others may be stalled.
        plugin.shell(f"{command} || [[ '{command}' == *-A* && $? == 1 ]]")


def test_its_page_has_the_exit_codes_of_its_help(plugin: Plugin) -> None:
    said = plugin("status", "--help").stdout
    assert said.startswith("Usage: kubectl requeue status ")
    told = re.findall(r"^ +(\d)  ", said, re.M)
    assert told == re.findall(r"^\| (\d) \|", _PAGE, re.M)


def test_without_the_crd_it_says_what_to_install(say: Callable[[str], None], tmp_path: Path) -> None:
    bare = ControlPlane(control_plane_binary(say), tmp_path / "bare")
    try:
        bare.start()
        told = Plugin.at(bare, "default", tmp_path / "person", user="admin")("status", code=5).stderr
        assert "this cluster knows no RequeueQueues: install the CRD" in told
    finally:
        bare.stop()


def test_a_report_has_what_helps_and_no_secret_that_somebody_wrote_anywhere(
    cluster: ControlPlane, namespace: str, plugin: Plugin
) -> None:
    hidden = "hunter2hunter2"
    cluster.kubectl("-n", namespace, "create", "secret", "generic", "creds", f"--from-literal=token={hidden}")
    queue = requeue_queue(
        replicas=2,
        nats={"credentials": {"token": {"secretName": "creds", "key": "token"}}},
        podTemplate={
            "metadata": {"annotations": {"note": hidden}},
            "spec": {"containers": [{"name": "worker", "env": [{"name": "KEY", "value": hidden}]}]},
        },
    )
    # Applied by kubectl, it has all of it in an annotation once more.
    cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=yaml.safe_dump(queue))
    make_pods_ready(cluster, namespace, 2)
    assert hidden in cluster.kubectl("-n", namespace, "get", "rq,sts,pod", "-o", "yaml").stdout

    said = plugin("report", "orders", "--file", "here.tar.gz").stdout
    assert said.startswith("here.tar.gz: ")
    files = unpacked(plugin.directory / "here.tar.gz")
    assert not [path for path, content in files.items() if hidden in content]
    about = yaml.safe_load(files["about.yaml"])
    assert about["requeuequeues"] == [f"{namespace}/orders"]
    assert about["nats-requeue"]
    # Nobody runs pods here: that there are no logs and no metrics is told, for each.
    assert {
        f"{namespace}/orders/{each}"
        for each in ("logs/orders-0.log", "logs/orders-1.log", "workers/orders-0/metrics.txt")
    } <= about["missing"].keys()
    assert "gitVersion" in files["kubernetes.yaml"]
    (live,) = yaml.safe_load(files[f"{namespace}/requeuequeues.yaml"])
    assert live["spec"]["nats"] == queue["spec"]["nats"]
    assert [each["metadata"]["name"] for each in yaml.safe_load(files[f"{namespace}/orders/pods.yaml"])] == [
        "orders-0",
        "orders-1",
    ]
    assert {each["claim"] for each in yaml.safe_load(files[f"{namespace}/orders/volumes.yaml"])} == {
        "data-orders-0",
        "data-orders-1",
    }
    assert (plugin.directory / "here.tar.gz").stat().st_mode & 0o777 == 0o600
    assert "is there already" in plugin("report", "--file", "here.tar.gz", code=2).stderr
    assert "can't be made" in plugin("report", "--file", "/nowhere/here.tar.gz", code=2).stderr


async def test_a_report_has_what_each_worker_tells_and_nothing_of_a_message(
    cluster: ControlPlane,
    namespace: str,
    plugin: Plugin,
    nats_server: NatsServer,
    nc: Client,
    worker_factory: WorkerFactory,
) -> None:
    address = _own_address()
    worker_factory(nats_server, "--http", f"{address}:{HTTP_PORT}", "--instance-id", "orders-0")
    async with RequeueClient(nc) as client:
        for queue, delay in (("mail", "1h"), ("bills", "2h")):
            await client.publish("jobs.a", b"hunter2", queue=queue, delay=delay, headers={"Note": "hunter3"})
    create_queue(cluster, namespace)
    make_pods_ready(cluster, namespace, 1, address=address)
    plugin("report", "--file", "here.tar.gz")
    files = unpacked(plugin.directory / "here.tar.gz")
    told = files[f"{namespace}/orders/workers/orders-0/overview.jsonl"]
    instance, queues, stats = map(json.loads, told.splitlines())
    assert instance["answer"]["instance"] == "orders-0"
    assert [each["name"] for each in queues["answer"]["queues"]] == ["bills", "mail"]
    assert [each["accepted"] for each in stats["answer"]["queues"]] == [1, 1]
    assert not [path for path, content in files.items() if "hunter" in content]


def _own_address() -> str:
    """Of this machine, with port 8080 free: the API server passes nothing on to loopback addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, socket.socket() as taken:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            address = str(probe.getsockname()[0])
            taken.bind((address, HTTP_PORT))
        except OSError as error:
            pytest.skip(f"this needs an address besides loopback with port {HTTP_PORT} free: {error}")
    return address


def test_a_report_says_which_rights_it_lacked(
    cluster: ControlPlane, namespace: str, plugin: Plugin, tmp_path: Path
) -> None:
    create_queue(cluster, namespace)
    # With the cluster's own role `view` and what the chart adds to it.
    add = [{"apiGroups": ["requeue.dev"], "resources": ["requeuequeues"], "verbs": ["get", "list"]}]
    cluster.kubectl("apply", "-f", "-", stdin=cluster_rights(VIEWER, add))
    cluster.kubectl(
        "-n", namespace, "create", "rolebinding", "view", "--clusterrole=view", f"--user={VIEWER}"
    )
    viewer = Plugin.at(cluster, namespace, tmp_path / "viewer", user=VIEWER)
    make_pods_ready(cluster, namespace, 1)
    viewer("status", "orders")
    viewer("reap", "--dry-run")
    viewer("report", "--file", "here.tar.gz")
    missing = yaml.safe_load(unpacked(viewer.directory / "here.tar.gz")["about.yaml"])["missing"]
    metrics = missing[f"{namespace}/orders/workers/orders-0/metrics.txt"]
    assert '{apiGroups: [""], resources: [pods/proxy], verbs: [get]}' in metrics


def test_logs_of_pods_that_do_not_run_are_no_error_and_operators_are_looked_for(
    cluster: ControlPlane, namespace: str, plugin: Plugin
) -> None:
    create_queue(cluster, namespace)
    make_pods_ready(cluster, namespace, 1)
    done = plugin("logs", "--tail", "3", "--since", "1h")
    assert done.stdout == ""
    assert "note: orders-0 has no log to show: there is nothing yet: it does not run" in done.stderr
    assert "No pods to show logs of." in plugin("logs", "--of", "drains").stderr
    assert "--since" in plugin("logs", "--since", "soon", code=2).stderr


def test_following_ends_with_the_rule_that_is_missing(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    create_queue(cluster, namespace)
    make_pods_ready(cluster, namespace, 1)
    rules = [rule for rule in PLUGIN if rule["resources"] != ["pods/log"]]
    cluster.kubectl("apply", "-f", "-", stdin=cluster_rights(VIEWER, rules))
    told = Plugin.at(cluster, namespace, tmp_path / "viewer", user=VIEWER)("logs", "-f", code=4).stderr
    assert '{apiGroups: [""], resources: [pods/log], verbs: [get]}' in told
