"""The admin API through the real `nats` command: discovered, described, counted, and called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.toolchains import nats_command
from tests.servers import NatsServer, WorkerFactory

Nats = Callable[..., str]


@pytest.fixture
def nats(nats_server: NatsServer, tmp_path: Path, say: Callable[[str], None]) -> Nats:
    command = nats_command(say)

    def call(*args: str) -> str:
        done = subprocess.run(
            [command, "--server", nats_server.url, *args],
            env={"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout + done.stderr

    return call


def test_the_nats_command_discovers_every_worker_and_calls_its_endpoints(
    nats_server: NatsServer, worker_factory: WorkerFactory, nats: Nats
) -> None:
    for instance in ("worker-0", "worker-1"):
        worker_factory(nats_server, "--instance-id", instance)
    listed = nats("micro", "ls")
    assert "requeue" in listed
    assert "worker-0" in listed
    assert "worker-1" in listed
    described = nats("micro", "info", "requeue", "worker-1")
    assert "_requeue.admin.list.worker-1" in described
    assert "request_schema" in described
    nats("request", "requeue.publish", "hello", "-H", "Requeue-Subject:a.b", "-H", "Requeue-Delay:1h")
    held = [
        json.loads(nats("request", f"_requeue.admin.list.{instance}", "{}", "--raw"))["messages"]
        for instance in ("worker-0", "worker-1")
    ]
    [message] = [entry for entries in held for entry in entries]
    assert (message["subject"], message["state"]) == ("a.b", "pending")
    counted = nats("micro", "stats", "requeue")
    assert "list-one" in counted


def test_requeue_takes_the_context_that_the_nats_command_has_saved(
    nats_server: NatsServer, worker_factory: WorkerFactory, nats: Nats, tmp_path: Path
) -> None:
    worker_factory(nats_server, "--instance-id", "worker-0")
    nats("context", "add", "ops")  # with the server that `nats` names
    done = subprocess.run(
        [Path(sys.executable).parent / "requeue", "instances", "--context", "ops", "-o", "json"],
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert [row["instance"] for row in json.loads(done.stdout)] == ["worker-0"]
