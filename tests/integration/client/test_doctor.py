"""`requeue doctor` as users run it: each fault is a real one, and each line says what is wrong and what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import trustme
from nats.aio.client import Client
from requeue_client import RequeueClient
from requeue_worker.settings import Settings

from tests.faults.disks import MIB, mounted
from tests.integration.client.test_command import run
from tests.integration.worker.support import HOUR, Clock, LiveWorker
from tests.servers import NatsServer, NatsServerFactory, WorkerFactory

USERS = """
authorization {{ users: [
  {{ user: all, password: secret }}
  {{ user: me, password: secret, permissions: {{ publish: {{ deny: [{publish}] }}, subscribe: {{ deny: [{subscribe}] }} }} }}
] }}
"""


async def looked(*args: str, code: int) -> dict[str, dict[str, Any]]:
    """The findings by what was looked at, the worst one of each."""
    done = await run("doctor", *args, "-o", "json")
    assert (done.returncode, done.stderr) == (code, b""), done
    said = json.loads(done.stdout)
    assert said["ok"] == (code == 0)
    ranks = {"ok": 0, "warn": 1, "fail": 2}
    found = sorted(said["findings"], key=lambda row: ranks[row["level"]])
    assert all(bool(row["advice"]) == (row["level"] != "ok") for row in found)
    return {row["check"]: row for row in found}


async def test_where_all_is_well_every_line_is_ok_and_nothing_stays_behind(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    await asyncio.to_thread(worker_factory, nats_server, "--instance-id", "worker-0")
    found = await looked("--server", nats_server.url, code=0)
    assert sorted(found) == sorted(
        ["nats", "workers", "versions", "disk", "clock", "queues", "round trip", "permissions"]
    )
    assert {row["level"] for row in found.values()} == {"ok"}
    assert "worker-0" in found["workers"]["what"]
    again = await looked("--server", nats_server.url, "--no-probe", "--strict", code=0)
    assert set(found) - set(again) == {"round trip"}
    assert again["queues"]["level"] == "ok"  # the probe left no dead letter


async def test_workers_of_two_releases_are_named_with_their_versions(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(worker_factory, nats_server, "--instance-id", "worker-0")
    other = tmp_path / "other/nats_requeue-99.1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: nats-requeue\nVersion: 99.1.0\n")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    await asyncio.to_thread(worker_factory, nats_server, "--instance-id", "worker-1")
    monkeypatch.delenv("PYTHONPATH")
    found = await looked("--server", nats_server.url, code=0)
    assert (found["versions"]["level"], found["workers"]["level"]) == ("warn", "ok")
    assert found["versions"]["what"] == f"workers differ: {version('nats-requeue')}, 99.1.0"
    strict = await run("doctor", "--server", nats_server.url, "--strict", "--no-probe")
    assert strict.returncode == 7


async def test_a_person_reads_a_line_for_each_with_advice_below(nats_server: NatsServer) -> None:
    done = await run("doctor", "--timeout", "1s", "--server", nats_server.url)
    assert done.returncode == 7
    assert b"ok    nats: nats-server 2." in done.stdout
    assert b"fail  workers: no worker listens" in done.stdout
    assert b"      -> start one: requeue-worker run" in done.stdout


async def test_a_wrong_url_is_told(nats_server: NatsServer) -> None:
    nats_server.kill()
    found = await looked("--server", nats_server.url, "--timeout", "500ms", code=7)
    assert (list(found), found["nats"]["level"]) == (["nats"], "fail")
    assert "check --server" in found["nats"]["advice"]


async def test_a_wrong_login_is_told(nats_server_factory: NatsServerFactory, tmp_path: Path) -> None:
    server = nats_server_factory(config="authorization { user: me, password: secret }")
    (tmp_path / "password").write_text("wrong")
    args = ("--user", "me", "--password-file", str(tmp_path / "password"), "--timeout", "1s")
    found = await looked("--server", server.url, *args, code=7)
    assert (list(found), found["login"]["level"]) == (["login"], "fail")
    assert "--password-file" in found["login"]["advice"]


async def test_a_server_whose_certificate_is_not_trusted_is_told(
    nats_server_factory: NatsServerFactory, tmp_path: Path
) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    key, chain, other = tmp_path / "key.pem", tmp_path / "chain.pem", tmp_path / "other.pem"
    certificate.private_key_pem.write_to_path(str(key))
    certificate.cert_chain_pems[0].write_to_path(str(chain))
    trustme.CA().cert_pem.write_to_path(str(other))
    server = nats_server_factory(config=f'tls {{ cert_file: "{chain}", key_file: "{key}" }}')
    url = server.url.replace("nats://", "tls://")
    found = await looked("--server", url, "--tls-ca", str(other), "--timeout", "1s", code=7)
    assert (list(found), found["tls"]["level"]) == (["tls"], "fail")
    assert "--tls-ca" in found["tls"]["advice"]


@pytest.mark.parametrize(
    ("publish", "subscribe", "says"),
    [
        ('"requeue.>"', "", "may not publish to requeue.publish: nothing can be published"),
        ('"_requeue.admin.>"', "", "may not publish to _requeue.admin.instances: workers can't be asked"),
        ("", '"_INBOX.>"', "no acknowledgement arrives"),
        ("", '"requeue-check.>"', "the probe can't come back"),
    ],
)
async def test_a_missing_permission_is_named(
    nats_server_factory: NatsServerFactory,
    worker_factory: WorkerFactory,
    tmp_path: Path,
    publish: str,
    subscribe: str,
    says: str,
) -> None:
    server = nats_server_factory(config=USERS.format(publish=publish, subscribe=subscribe))
    password = tmp_path / "password"
    password.write_text("secret")
    await asyncio.to_thread(worker_factory, server, "--user", "all", "--password-file", str(password))
    found = await looked("--server", server.url, "--user", "me", "--password-file", str(password), code=7)
    assert says in found["permissions"]["what"]
    assert "NATS permissions" in found["permissions"]["advice"]


async def test_a_worker_that_is_not_allowed_all_is_told(
    nats_server_factory: NatsServerFactory, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    server = nats_server_factory(config=USERS.format(publish="", subscribe='"_requeue.handover.>"'))
    password = tmp_path / "password"
    password.write_text("secret")
    await asyncio.to_thread(worker_factory, server, "--user", "me", "--password-file", str(password))
    found = await looked("--server", server.url, "--user", "all", "--password-file", str(password), code=0)
    assert found["workers"]["level"] == "warn"
    assert "_requeue.handover" in found["workers"]["what"]


async def test_a_full_disk_is_told_by_the_worker_and_by_the_probe(
    nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "tmpfs", 64 * MIB) as disk:
        config = tmp_path / "worker.yaml"
        config.write_text("disk_reserve: 16MiB")
        await asyncio.to_thread(
            worker_factory, nats_server, "--config", str(config), data_dir=disk.path / "data"
        )
        found = await looked("--server", nats_server.url, code=0)
        assert found["disk"]["level"] == "warn"  # 64 MiB are few
        disk.fill(leave_bytes=MIB)
        while (found := await _whatever(nats_server))["disk"]["level"] != "fail":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert "refused with 507" in found["disk"]["what"]
        assert found["round trip"]["level"] == "fail"
        assert "make room" in found["round trip"]["advice"]
        disk.make_room()


async def _whatever(server: NatsServer) -> dict[str, dict[str, Any]]:
    done = await run("doctor", "--server", server.url, "--timeout", "1s", "-o", "json")
    ranks = {"ok": 0, "warn": 1, "fail": 2}
    rows = sorted(json.loads(done.stdout)["findings"], key=lambda row: ranks[row["level"]])
    return {row["check"]: row for row in rows}


@pytest.fixture
async def skewed(nats_server: NatsServer, nc: Client, tmp_path: Path) -> AsyncIterator[LiveWorker]:
    """A worker whose wall clock a test can step."""
    said = {"data_dir": tmp_path / "data", "instance_id": "skewed", "nats": {"servers": [nats_server.url]}}
    worker = LiveWorker(Settings.model_validate(said), nc, Clock())
    await worker.start()
    yield worker
    await worker.stop()


@pytest.mark.parametrize(("offset_ns", "says"), [(HOUR, "1h ahead of"), (-HOUR, "1h behind")])
async def test_a_clock_that_is_off_is_told(
    nats_server: NatsServer, skewed: LiveWorker, offset_ns: int, says: str
) -> None:
    await skewed.forward(offset_ns)
    found = await looked("--server", nats_server.url, "--no-probe", code=7)
    assert found["clock"]["level"] == "fail"
    assert says.split()[1] in found["clock"]["what"]
    assert "NTP" in found["clock"]["advice"]


async def test_late_queues_paused_ones_and_dead_letters_are_warnings(
    nats_server: NatsServer, skewed: LiveWorker, nc: Client
) -> None:
    async with RequeueClient(nc) as client:
        await client.publish("slow.job", b"x", queue="slow", delay="10m")
        await client.publish("nobody.is.here", b"x", queue="lost", retries=1)
    await skewed.one_dead("lost")
    skewed.clock.offset_ns = 2 * HOUR  # and nobody tells the worker yet: what it does about it comes later
    done = await run("doctor", "--server", nats_server.url, "--no-probe", "-o", "json")
    rows = {(row["check"], row["level"]): row for row in json.loads(done.stdout)["findings"]}
    assert "lost on skewed has 1" in rows["dead letters", "warn"]["what"]
    assert "slow on skewed is 1h" in rows["overdue", "warn"]["what"]
    skewed.clock.offset_ns = 0
    assert (await run("pause", "slow", "--server", nats_server.url)).returncode == 0
    assert (await looked("--server", nats_server.url, code=0))["paused"]["level"] == "warn"
    assert (await run("doctor", "--strict", "--server", nats_server.url)).returncode == 7


async def test_workers_that_do_not_take_from_this_intake_are_told(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    await asyncio.to_thread(worker_factory, nats_server, "--subject", "jobs.>")
    found = await looked("--server", nats_server.url, "--timeout", "2s", code=7)
    assert found["workers"]["level"] == "ok"
    assert found["round trip"]["level"] == "fail"
    assert "--intake" in found["round trip"]["advice"]
    await looked("--server", nats_server.url, "--intake", "jobs.new", code=0)


async def test_a_wrong_option_looks_at_nothing() -> None:
    done = await run("doctor", "--timeout", "soon")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"timeout" in done.stderr
    done = await run("doctor", "--context", "no-such")
    assert done.returncode == 2
    assert b"no-such" in done.stderr
