"""The worker as a library: `async with Worker(settings, hooks)`, and every hook fired by what it is for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.envelope import build_envelope
from requeue_worker.app import Worker
from requeue_worker.errors import CommitError, DataDirLocked
from requeue_worker.hooks import Hooks
from requeue_worker.settings import Settings
from requeue_worker.storage.rocksdb import Batch, Engine

from tests.servers import NatsServer, NatsServerFactory, settle, until

INTAKE = "requeue.embedded"
ENVELOPE = build_envelope(subject="jobs.embedded", payload=b"payload")


class Heard:
    """Hooks that write down what they were called for, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.errors: list[Exception] = []
        self.hooks = Hooks(
            ready=lambda: self.events.append("ready"),
            write_error=self._error("write_error"),
            connection_error=self._error("connection_error"),
            disconnected=lambda: self.events.append("disconnected"),
            reconnected=lambda: self.events.append("reconnected"),
            closed=lambda: self.events.append("closed"),
        )

    def _error(self, name: str) -> Callable[[Exception], None]:
        def heard(error: Exception) -> None:
            self.events.append(name)
            self.errors.append(error)

        return heard

    async def until(self, event: str, times: int = 1) -> None:
        await until(lambda: self.events.count(event) >= times)


def settings_for(server: NatsServer, data_dir: Path, **more: Any) -> Settings:
    nats_settings = {"servers": [server.url], "reconnect_wait": "20ms"}
    said = {"data_dir": data_dir, "instance_id": "embedded", "nats": nats_settings, "reconnect_grace": 0}
    return Settings(**{**said, **more})


async def handled(nc: Client) -> asyncio.Queue[Msg]:
    """What comes to `jobs.>`, each message settled."""
    received: asyncio.Queue[Msg] = asyncio.Queue()

    async def handle(msg: Msg) -> None:
        await msg.ack()
        received.put_nowait(msg)

    await nc.subscribe("jobs.>", cb=handle)
    await settle(nc)
    return received


async def test_worker_runs_inside_a_program_until_it_is_stopped(
    nats_server: NatsServer, nc: Client, tmp_path: Path
) -> None:
    heard = Heard()
    jobs = await handled(nc)
    async with Worker(settings_for(nats_server, tmp_path), heard.hooks) as worker:
        await heard.until("ready")
        assert worker.ready() == (True, "ready")
        assert (await nc.request(INTAKE, ENVELOPE)).data == b""
        assert (await asyncio.wait_for(jobs.get(), 20)).data == b"payload"
        await worker.stop()
        await worker.closed()
        await worker.stop()
    assert heard.events == ["ready", "closed"]


async def test_worker_without_hooks_hears_and_says_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    async with Worker(settings_for(nats_server, tmp_path)) as worker:
        await until(lambda: worker.ready()[0])
    await worker.closed()


async def test_leaving_the_block_frees_the_directory_for_the_next_worker(
    nats_server: NatsServer, nc: Client, tmp_path: Path
) -> None:
    settings = settings_for(nats_server, tmp_path)
    for _ in range(2):
        heard = Heard()
        async with Worker(settings, heard.hooks):
            await heard.until("ready")
            await nc.request(INTAKE, build_envelope(subject="jobs.later", payload=b"", delay_ns=3600 * 10**9))
    async with Worker(settings) as worker:
        [queue] = worker.reporter.snapshot()
        assert queue.pending == 2


async def test_cancelling_the_program_stops_the_worker(nats_server: NatsServer, tmp_path: Path) -> None:
    heard = Heard()

    async def program() -> None:
        async with Worker(settings_for(nats_server, tmp_path), heard.hooks) as worker:
            await worker.closed()

    task = asyncio.create_task(program())
    await heard.until("ready")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard.events == ["ready", "closed"]


async def test_directory_that_another_worker_has_is_an_error_and_disturbs_neither(
    nats_server: NatsServer, nc: Client, tmp_path: Path
) -> None:
    settings, first, second = settings_for(nats_server, tmp_path), Heard(), Heard()
    async with Worker(settings, first.hooks):
        await first.until("ready")
        with pytest.raises(DataDirLocked):
            async with Worker(settings, second.hooks):
                pytest.fail("two workers have one directory")
        assert (await nc.request(INTAKE, ENVELOPE)).data == b""
    assert second.events == []


async def test_two_workers_live_in_one_program(nats_server: NatsServer, nc: Client, tmp_path: Path) -> None:
    jobs = await handled(nc)
    one, two = Heard(), Heard()
    async with (
        Worker(settings_for(nats_server, tmp_path, instance_id="one"), one.hooks) as first,
        Worker(settings_for(nats_server, tmp_path, instance_id="two"), two.hooks) as second,
    ):
        await one.until("ready")
        await two.until("ready")
        for _ in range(50):
            await nc.request(INTAKE, ENVELOPE)
        for _ in range(50):
            await asyncio.wait_for(jobs.get(), 20)
        taken = [worker.counts.intake_messages for worker in (first, second)]
    assert sum(taken) == 50
    assert min(taken) > 0


async def test_connection_error_fires_while_nats_is_not_there_and_ready_when_it_is(
    nats_server_factory: NatsServerFactory, tmp_path: Path
) -> None:
    server = nats_server_factory()
    server.stop()
    heard = Heard()
    async with Worker(settings_for(server, tmp_path), heard.hooks) as worker:
        await heard.until("connection_error", times=2)
        assert "ready" not in heard.events
        assert not worker.ready()[0]
        assert worker.ready()[1].startswith("not connected to NATS: ")
        assert worker.live() == (True, "alive")
        await asyncio.to_thread(server.start)
        await heard.until("ready")
    assert heard.events[-2:] == ["ready", "closed"]


async def test_connection_error_fires_for_a_permission_that_is_denied(
    nats_server_factory: NatsServerFactory, tmp_path: Path
) -> None:
    server = nats_server_factory(
        config='authorization { users: [{user: worker, password: x, permissions: {subscribe: "_INBOX.>"}}] }'
    )
    login = {"servers": [server.url], "user": "worker", "password": "x"}
    heard = Heard()
    async with Worker(settings_for(server, tmp_path, nats=login), heard.hooks) as worker:
        await until(lambda: any("requeue.>" in str(error) for error in heard.errors))
        await until(lambda: "ermission" in worker.ready()[1])
        assert not worker.ready()[0]


async def test_disconnected_and_reconnected_fire_when_nats_goes_and_comes_back(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    heard = Heard()
    async with Worker(settings_for(nats_server, tmp_path), heard.hooks) as worker:
        await heard.until("ready")
        await asyncio.to_thread(nats_server.stop)
        await heard.until("disconnected")
        assert not worker.ready()[0]
        await asyncio.to_thread(nats_server.start)
        await heard.until("reconnected")
        assert worker.ready()[0]
    without_errors = [event for event in heard.events if event != "connection_error"]
    assert without_errors == ["ready", "disconnected", "reconnected", "closed"]


class FailingDisk(Engine):
    """A real database on a disk that fails when it is told to."""

    broken = False

    def write(self, batch: Batch) -> None:
        if self.broken:
            raise CommitError("IO error: No space left on device")
        super().write(batch)


async def test_write_error_fires_ends_the_worker_and_nothing_of_the_batch_is_acknowledged(
    nats_server: NatsServer, nc: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.storage.store.Engine", FailingDisk)
    settings, heard = settings_for(nats_server, tmp_path), Heard()
    later = build_envelope(subject="jobs.later", payload=b"", delay_ns=3600 * 10**9)
    async with Worker(settings, heard.hooks) as worker:
        await heard.until("ready")
        assert (await nc.request(INTAKE, later)).data == b""
        monkeypatch.setattr(FailingDisk, "broken", True)
        with pytest.raises(nats.errors.Error):
            await nc.request(INTAKE, later, timeout=0.5)
        with pytest.raises(CommitError, match="No space left"):
            await worker.closed()
    assert heard.events == ["ready", "write_error", "closed"]
    assert [str(error) for error in heard.errors] == ["IO error: No space left on device"]

    monkeypatch.setattr(FailingDisk, "broken", False)
    async with Worker(settings) as worker:
        [queue] = worker.reporter.snapshot()
        assert queue.pending == 1


async def test_write_error_is_told_to_a_client_that_sends_headers(
    nats_server: NatsServer, nc: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.storage.store.Engine", FailingDisk)
    heard = Heard()
    async with Worker(settings_for(nats_server, tmp_path), heard.hooks) as worker:
        await heard.until("ready")
        monkeypatch.setattr(FailingDisk, "broken", True)
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        async def on_answer(msg: Msg) -> None:
            answer.set_result(msg)

        inbox = nc.new_inbox()
        await nc.subscribe(inbox, cb=on_answer)
        await nc.publish(INTAKE, b"x", reply=inbox, headers={"Requeue-Subject": "jobs.x"})
        msg = await asyncio.wait_for(answer, 20)
        assert msg.headers is not None
        assert (msg.headers["Status"], msg.headers["Nats-Service-Error-Code"]) == ("503", "500")
        with pytest.raises(CommitError):
            await worker.closed()


async def test_settings_made_by_hand_read_no_environment(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUEUE_SUBJECT", "elsewhere.>")
    assert settings_for(nats_server, tmp_path).subject == "requeue.>"
