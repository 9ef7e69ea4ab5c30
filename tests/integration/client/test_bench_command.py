"""`requeue bench` on the real parts, with a small load: that it measures and loses nothing, not how fast."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import NatsServer, WorkerFactory


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = str(Path(sys.executable).parent / "requeue")
    return subprocess.run([command, "bench", *args], capture_output=True, text=True, check=False, timeout=120)


OF_ALL = ("ingest", "replay", "both", "ack", "lateness", "headofline", "startup")


def test_all_scenarios_run_on_own_parts_with_jetstream_beside(tmp_path: Path) -> None:
    small = [
        "all",
        "--n",
        "2000",
        "--rate",
        "500",
        "--backlog",
        "1000",
        "--queues",
        "3",
        "--window",
        "64",
        "--json",
    ]
    done = bench(*small, "--peer", "jetstream", "--peer", "jetstream-sync", "--data-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = {(r["scenario"], r["system"]): r["figures"] for r in json.loads(done.stdout)["results"]}
    peers = [
        (scenario, peer) for scenario in ("ingest", "replay") for peer in ("jetstream", "jetstream-sync")
    ]
    own = [(scenario, "requeue") for scenario in OF_ALL]
    assert sorted(results) == sorted(own + peers)
    for _, figures in results.items():
        assert figures.get("missing", 0) == 0
        assert figures.get("early", 0) == 0
    assert results["ingest", "requeue"]["worker_cpu_us_per_msg"] > 0
    assert results["startup", "requeue"]["ready_s"] > 0
    assert results["ack", "requeue"]["fsync_p50_ms"] > 0
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_growth_measures_at_each_backlog(tmp_path: Path) -> None:
    small = ["--n", "500", "--rate", "200", "--backlog", "3000", "--backlog", "1000"]
    done = bench("growth", *small, "--json", "--data-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [result["system"] for result in results] == ["1,000 pending", "3,000 pending"]
    for result in results:
        assert result["figures"]["missing"] == result["figures"]["early"] == 0
        assert result["figures"]["replay_per_s"] > 0
        assert result["figures"]["disk_share"] > 1


def test_growth_measures_with_each_number_of_queues(tmp_path: Path) -> None:
    small = ["--n", "200", "--rate", "100", "--backlog", "1000", "--queues", "1", "--queues", "50"]
    done = bench("growth", *small, "--json", "--data-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [result["system"] for result in results] == ["1,000 pending", "1,000 pending, 50 queues"]
    assert [result["figures"]["missing"] for result in results] == [0, 0]


def test_schedules_of_jetstream_fire_all_that_was_scheduled(tmp_path: Path) -> None:
    args = ["--n", "300", "--peer", "jetstream-schedules", "--json", "--data-dir", str(tmp_path)]
    done = bench("replay", *args)
    assert done.returncode == 0, done.stderr
    own, peer = json.loads(done.stdout)["results"]
    assert own["figures"]["missing"] == peer["figures"]["missing"] == 0
    assert peer["system"] == "jetstream-schedules"


@pytest.mark.skipif(
    shutil.which("beanstalkd") is None, reason="needs beanstalkd, a package of most distributions"
)
def test_beanstalkd_beside_it_gets_and_gives_every_job(tmp_path: Path) -> None:
    for scenario in ("ingest", "replay"):
        done = bench(scenario, "--n", "300", "--peer", "beanstalkd", "--json", "--data-dir", str(tmp_path))
        assert done.returncode == 0, done.stderr
        _, peer = json.loads(done.stdout)["results"]
        assert peer["system"] == "beanstalkd"
        assert peer["figures"]["rate_per_s"] > 0
        assert peer["figures"].get("missing", 0) == 0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="binds processes to cores")
def test_shards_on_cores_of_their_own_are_measured_together(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    args = ["--n", "2000", "--shards", "2", "--cores", str(core), "--data-dir", str(tmp_path), "--json"]
    done = bench("both", *args)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["notes"] == [f"the worker: 2 shards on cores {core}"]
    (result,) = said["results"]
    assert result["figures"]["missing"] == 0
    assert result["figures"]["worker_cpu_us_per_msg"] > 0


def test_shards_and_cores_that_cannot_be_are_refused() -> None:
    assert bench("both", "--shards", "2", "--server", "nats://127.0.0.1:1").returncode == 2
    done = bench("both", "--cores", "0,9999")
    assert done.returncode == 2
    assert "the cores here are" in done.stderr
    assert "no list of numbers" in bench("both", "--cores", "first").stderr


def test_a_running_worker_is_measured_and_left_empty(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    worker_factory(nats_server)
    done = bench("ingest", "--n", "1000", "--server", nats_server.url, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["figures"]["rate_per_s"] > 0
    assert "worker_rss_mb" not in result["figures"]  # of a foreign worker nothing is known


def test_tables_name_the_figures(nats_server: NatsServer, worker_factory: WorkerFactory) -> None:
    worker_factory(nats_server)
    done = bench("replay", "--n", "500", "--server", nats_server.url)
    assert done.returncode == 0, done.stderr
    assert "replay (n 500, size 256, window 1,024, queues 1)" in done.stdout
    assert "rate_per_s" in done.stdout


def test_without_a_worker_it_says_so(nats_server: NatsServer) -> None:
    done = bench("ingest", "--n", "10", "--server", nats_server.url)
    assert done.returncode == 3
    assert "10 messages were refused" in done.stderr
    assert "503" in done.stderr


def test_a_server_without_jetstream_is_said(nats_server: NatsServer, worker_factory: WorkerFactory) -> None:
    worker_factory(nats_server)
    done = bench("ingest", "--n", "10", "--server", nats_server.url, "--peer", "jetstream")
    assert done.returncode == 3
    assert "has no JetStream" in done.stderr


def test_what_needs_own_parts_refuses_a_server() -> None:
    assert bench("startup", "--server", "nats://127.0.0.1:1").returncode == 2
    assert bench("growth", "--server", "nats://127.0.0.1:1").returncode == 2
    assert bench("ingest", "--server", "nats://127.0.0.1:1", "--peer", "jetstream-sync").returncode == 2
    assert bench("ingest", "--server", "nats://127.0.0.1:1", "--peer", "beanstalkd").returncode == 2


def test_several_backlogs_or_queues_are_for_growth() -> None:
    assert bench("ingest", "--queues", "1", "--queues", "2").returncode == 2
    done = bench("lateness", "--backlog", "1", "--backlog", "2")
    assert done.returncode == 2
    assert "growth" in done.stderr
