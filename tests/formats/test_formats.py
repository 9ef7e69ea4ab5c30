"""Data directories of every released format: what was written once can be read for ever.

`v<format>/` holds what a real worker of that format left (make_golden.py), stopped and killed. None is ever written again.
"""

from __future__ import annotations

import asyncio
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client.local import LocalProcessError
from requeue_worker.cli import main
from requeue_worker.settings import Settings
from requeue_worker.storage.keys import META_FORMAT
from requeue_worker.storage.rocksdb import Engine
from requeue_worker.storage.store import STORE_FORMAT

from tests.formats.contents import contents
from tests.formats.make_golden import INSTANCE
from tests.integration.worker.support import Clock, LiveWorker
from tests.servers import NatsServer, WorkerFactory, settle, until

HERE = Path(__file__).parent
FORMATS = sorted(path for path in HERE.glob("v*") if path.is_dir())
ARCHIVES = [path / archive for path in FORMATS for archive in ("stopped.tar.gz", "crashed.tar.gz")]
LATER_NS = 41 * 365 * 24 * 3600 * 10**9  #: by then everything golden is due, and nothing is past its deadline
KEPT = {"defaults": {"dead_letter_retention": "2000000h"}}

every_golden_directory = pytest.mark.parametrize(
    "archive", ARCHIVES, ids=lambda archive: f"{archive.parent.name}-{archive.name.partition('.')[0]}"
)


#: Python 3.11.2 (Debian 12) knows no filters yet, and the archives are our own
_SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


@pytest.fixture
def data_dir(archive: Path, tmp_path: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "golden", **_SAFELY)
    return tmp_path / "golden"


@pytest.fixture
def expected(archive: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((archive.parent / "expected.json").read_text())
    return said


def requeue_worker(*args: object) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_present_format_has_its_golden_directory_and_none_is_large() -> None:
    assert [path.name for path in FORMATS] == [f"v{number}" for number in range(1, STORE_FORMAT + 1)]
    assert sum(file.stat().st_size for path in FORMATS for file in path.iterdir()) < 200_000


@every_golden_directory
def test_golden_data_reads_as_it_was_written(data_dir: Path, expected: dict[str, Any]) -> None:
    assert contents(data_dir / INSTANCE) == expected
    assert all(expected.values()), "some of everything"


@every_golden_directory
def test_golden_data_is_sound(data_dir: Path, expected: dict[str, Any]) -> None:
    said = json.loads(requeue_worker("verify", "--data-dir", data_dir, "--json"))
    [instance] = said["instances"]
    assert (instance["ok"], instance["findings"]) == (True, [])
    assert instance["records"]["messages"] == len(expected["pending"])
    assert instance["records"]["dead"] == len(expected["dead"])


@every_golden_directory
def test_golden_data_is_backed_up_and_restored_as_it_is(
    data_dir: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    requeue_worker("backup", "--data-dir", data_dir, "--to", tmp_path / "copy")
    requeue_worker("restore", "--from", tmp_path / "copy", "--data-dir", tmp_path / "restored")
    assert contents(tmp_path / "restored" / INSTANCE) == expected


@every_golden_directory
def test_a_worker_takes_golden_data_over_and_changes_no_record(
    data_dir: Path,
    expected: dict[str, Any],
    nats_server: NatsServer,
    worker_factory: WorkerFactory,
    tmp_path: Path,
) -> None:
    config = tmp_path / "worker.yaml"
    config.write_text(
        json.dumps({**KEPT, "queues": [{"name": "published", "dead_letter_subject": "dead.x"}]})
    )
    args = ("--config", str(config), "--instance-id", INSTANCE)
    worker = worker_factory(nats_server, *args, data_dir=data_dir)
    assert worker.stop() == 0
    found = contents(data_dir / INSTANCE)
    assert {**found, "unpublished": None} == {**expected, "unpublished": None}
    requeue_worker("verify", "--data-dir", data_dir)


@every_golden_directory
async def test_golden_messages_go_out_when_they_are_due(
    data_dir: Path, expected: dict[str, Any], nats_server: NatsServer, nc: Client
) -> None:
    received: list[Msg] = []

    async def settle_it(msg: Msg) -> None:
        received.append(msg)
        await msg.respond(b"")

    await nc.subscribe("jobs.>", cb=settle_it)
    await settle(nc)
    nats = {"servers": [nats_server.url]}
    settings = Settings.model_validate({"data_dir": data_dir, "instance_id": INSTANCE, "nats": nats, **KEPT})
    clock = Clock()
    clock.offset_ns = LATER_NS
    worker = await LiveWorker(settings, nc, clock).start()
    await until(lambda: len(received) >= len(expected["pending"]))
    await worker.idle()
    await worker.stop()

    sent = sorted((headers(msg)["Requeue-Id"], msg.subject, msg.data.hex()) for msg in received)
    assert sent == sorted((said["id"], said["subject"], said["payload"]) for said in expected["pending"])
    attempts = {headers(msg)["Requeue-Id"]: int(headers(msg)["Requeue-Attempt"]) for msg in received}
    assert attempts == {said["id"]: said["attempts"] + 1 for said in expected["pending"]}
    left = contents(data_dir / INSTANCE)
    assert (left["pending"], left["client_ids"], left["dead"]) == ([], [], expected["dead"])


def headers(msg: Msg) -> dict[str, str]:
    assert msg.headers is not None
    return msg.headers


@pytest.mark.parametrize("archive", ARCHIVES[-2:-1])
async def test_a_worker_refuses_a_newer_format_and_rewrites_no_record(
    data_dir: Path, expected: dict[str, Any], nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    engine = Engine(data_dir / INSTANCE)
    batch = engine.batch()
    batch.put_meta(META_FORMAT, bytes((STORE_FORMAT + 1,)))
    engine.write(batch)
    engine.close()
    del batch  # it would hold the database open
    worker = worker_factory(nats_server, "--instance-id", INSTANCE, data_dir=data_dir, start=False)
    with pytest.raises(LocalProcessError):
        await asyncio.to_thread(worker.start)
    assert worker.returncode == 3
    assert f"has data format {STORE_FORMAT + 1}, this release knows up to {STORE_FORMAT}" in worker.log
    assert contents(data_dir / INSTANCE) == expected
