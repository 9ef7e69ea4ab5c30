"""The child processes that other tests stand on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nats
import pytest

from tests.servers import LocalProcessError, NatsServer, NatsServerFactory, WorkerProcess


async def test_a_restarted_server_keeps_its_port(nats_server: NatsServer) -> None:
    url = nats_server.url
    nats_server.kill()
    assert not nats_server.running
    nats_server.start()
    assert nats_server.url == url
    nc = await nats.connect(url, allow_reconnect=False)
    await nc.close()


def test_two_servers_get_two_ports(nats_server_factory: NatsServerFactory) -> None:
    assert nats_server_factory().port != nats_server_factory().port


def test_a_rejected_configuration_is_shown(nats_server_factory: NatsServerFactory) -> None:
    with pytest.raises(LocalProcessError, match="nonsense"):
        nats_server_factory(config="nonsense: true")


def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put an executable called requeue-worker beside a stand-in for this Python."""
    tmp_path.mkdir(exist_ok=True)
    script = tmp_path / "requeue-worker"
    script.write_text(f"#!{sys.executable}\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))


def test_a_worker_is_started_once_it_said_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(
        tmp_path, monkeypatch, "import sys,time\nprint('ready', sys.argv[1:], flush=True)\ntime.sleep(60)"
    )
    with WorkerProcess("nats://x", tmp_path / "data", args=["--subject", "a.>"]) as worker:
        worker.start()
        assert "'--server', 'nats://x'" in worker.log
        assert "'--subject', 'a.>'" in worker.log
        worker.kill()
        assert worker.returncode == -9


def test_a_worker_that_ends_before_ready_shows_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(tmp_path, monkeypatch, "import sys\nsys.exit('data directory is locked')")
    with pytest.raises(LocalProcessError, match=r"exit code 1(.|\n)*data directory is locked"):
        WorkerProcess("nats://x", tmp_path / "data").start()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc, binds to cores")
def test_a_worker_and_its_shards_stay_on_the_cores_they_were_given(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    core = max(os.sched_getaffinity(0))
    args = ["--shards", "2"]
    with WorkerProcess(nats_server.url, tmp_path / "data", args=args, cores={core}) as worker:
        worker.start()
        children = [file.read_text() for file in Path(f"/proc/{worker.pid}/task").glob("*/children")]
        shards = " ".join(children).split()
        processes = [str(worker.pid), *shards]
        threads = [task.name for pid in processes for task in Path(f"/proc/{pid}/task").iterdir()]
        assert len(shards) == 2
        assert len(threads) > 3
        assert {frozenset(os.sched_getaffinity(int(thread))) for thread in threads} == {frozenset({core})}
