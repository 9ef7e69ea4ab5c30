"""What helm makes of the parts that are off by default, and what `helm test` runs."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from requeue_client.cli import main
from requeue_client.local import find_executable, free_port
from requeue_operator.children import Owner
from requeue_operator.validation import read_spec

from tests.chart.rendering import IMAGE, MONITORING, render
from tests.helm import CHART, Helm
from tests.servers import NatsServer, WorkerFactory


def test_one_monitor_finds_the_workers_of_all_requeuequeues(helm: Helm) -> None:
    worker = Owner("orders", "shop", "uid").labels
    settings = ("podMonitor.workers=true",)
    monitor = render(helm, *settings, "watchNamespaces={shop,mail}", flags=MONITORING)[
        "PodMonitor/ops/rq-nats-requeue-workers"
    ]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= worker.items()
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["shop", "mail"]}
    everywhere = render(helm, *settings, "watchAllNamespaces=true", flags=MONITORING)
    assert everywhere["PodMonitor/ops/rq-nats-requeue-workers"]["spec"]["namespaceSelector"] == {"any": True}


def test_alerts_come_with_their_texts_and_runbooks(helm: Helm) -> None:
    objects = render(
        helm,
        "prometheusRule.enabled=true",
        "prometheusRule.runbooks=https://g.example/docs",
        flags=MONITORING,
    )
    written = yaml.safe_load((CHART / "files/alerts.yaml").read_text(encoding="utf-8"))
    rules = [rule for each in written["groups"] for rule in each["rules"]]
    made = objects["PrometheusRule/ops/rq-nats-requeue"]["spec"]["groups"]
    assert [rule["expr"] for each in made for rule in each["rules"]] == [rule["expr"] for rule in rules]
    for rule in (rule for each in made for rule in each["rules"]):
        assert rule["annotations"]["runbook_url"].startswith("https://g.example/docs/operations.md#")
    assert "{{ $labels.pod }}" in made[0]["rules"][0]["annotations"]["summary"]


def test_dashboard_is_the_one_of_the_file(helm: Helm) -> None:
    config_map = render(helm, "dashboard.enabled=true")["ConfigMap/ops/rq-nats-requeue-dashboard"]
    file = CHART / "files/dashboard.json"
    assert config_map["data"] == {"nats-requeue.json": file.read_text(encoding="utf-8")}
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize(
    ("settings", "servers"),
    [
        ((), ["nats://nats:4222"]),
        (("trialNats.enabled=true", "trialNats.name=bus"), ["nats://bus:4222"]),
        (("test.servers={tls://a,tls://b}",), ["tls://a", "tls://b"]),
    ],
)
def test_requeue_takes_the_command_of_helm_test(
    helm: Helm, settings: tuple[str, ...], servers: list[str]
) -> None:
    pod = render(helm, *settings, "test.args={--subject,shop.check}")["Pod/ops/rq-nats-requeue-check"]
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["requeue"]
    given = main.commands["check"].make_context("check", container["args"][1:]).params
    assert (list(given["server"]), given["intake"], given["subject"]) == (
        servers,
        "requeue.publish",
        "shop.check",
    )


def test_helm_test_passes_where_there_is_a_worker_and_fails_where_there_is_none(
    helm: Helm, nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    settings = f"test.servers={{{nats_server.url}}}", "test.timeout=2s"
    (container,) = render(helm, *settings)["Pod/ops/rq-nats-requeue-check"]["spec"]["containers"]
    argv = [str(find_executable(*container["command"], "make install")), *container["args"]]
    alone = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (alone.returncode, "start a worker" in alone.stderr) == (3, True), alone.stderr
    worker_factory(nats_server)
    served = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (served.returncode, served.stderr) == (0, "")


def test_trial_nats_runs_with_its_arguments(helm: Helm, tmp_path: Path) -> None:
    deployment = render(helm, "trialNats.enabled=true")["Deployment/ops/nats"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    port, monitor = str(free_port()), str(free_port())
    args = [each.replace("4222", port).replace("8222", monitor) for each in container["args"]]
    where = f"http://127.0.0.1:{monitor}{container['readinessProbe']['httpGet']['path']}"
    binary = find_executable(*container["command"], "make install")
    server = subprocess.Popen([str(binary), *args], stderr=subprocess.DEVNULL, cwd=tmp_path)
    try:
        while not _is_well(where):
            assert server.poll() is None, "nats-server ended"
            time.sleep(0.05)
    finally:
        server.kill()
        server.wait()
    assert list(tmp_path.iterdir()) == []  # it runs with a read-only root


def _is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _notes(helm: Helm, *settings: str) -> str:
    sets = [word for each in (IMAGE, *settings) for word in ("--set", each)]
    done = helm("install", "rq", str(CHART), "--namespace", "ops", "--dry-run=client", *sets)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\nNOTES:\n")[1]


@pytest.mark.parametrize(
    ("settings", "scope", "server"),
    [
        ((), "namespace ops, and in no other", "nats://nats:4222"),
        (("watchNamespaces={shop,mail}",), "namespaces shop, mail, and in no other", "nats://nats:4222"),
        (("watchAllNamespaces=true", "trialNats.enabled=true"), "all namespaces", "nats://nats.ops:4222"),
    ],
)
def test_notes_tell_the_scope_and_show_a_requeuequeue_that_is_right(
    helm: Helm, settings: tuple[str, ...], scope: str, server: str
) -> None:
    notes = _notes(helm, *settings)
    assert f"RequeueQueues in {scope}." in notes
    shown = yaml.safe_load(notes.split("<<'EOF'\n")[1].split("  EOF\n")[0])
    assert read_spec(shown["spec"]).nats.servers == (server,)
    assert "helm test rq -n ops --logs" in notes


def test_notes_tell_what_was_left_out_and_what_is_for_trial(helm: Helm) -> None:
    notes = _notes(helm, "podMonitor.enabled=true", "trialNats.enabled=true")
    assert "No monitors and rules for Prometheus were made" in notes
    assert "is for trial alone: no login, no TLS, one pod" in notes
