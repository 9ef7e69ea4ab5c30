"""Secrets that end or change, and limits that shrink, while a worker is at work: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from requeue_worker.broker.client import BulkClient
from requeue_worker.broker.login import Login, read_login
from requeue_worker.settings import NatsSettings

from tests.faults.scene import WAIT_S, Scene, arguments
from tests.integration.worker.conftest import start  # noqa: F401 - a fixture
from tests.integration.worker.logins import trusting
from tests.integration.worker.secured import Certificates, Operator, change, jwt, public_key, reload
from tests.integration.worker.support import HOUR, Handler, StartWorker, attempt_of
from tests.servers import NatsServer, NatsServerFactory, WorkerFactory, settle, until

NOBODY = Login()

# -- secrets -------------------------------------------------------------------------------------------------


@pytest.fixture
async def clients() -> AsyncIterator[list[Client]]:
    """Connections of the load, closed at the end."""
    made: list[Client] = []
    yield made
    for client in made:
        await client.close()


async def connected(
    clients: list[Client], server: NatsServer, login: Login | Path = NOBODY, **options: Any
) -> Client:
    """One that, unlike nats-py's own, goes on after errors of the server too."""
    client = BulkClient(
        lambda: login if isinstance(login, Login) else read_login(NatsSettings(creds_file=login))
    )
    clients.append(client)
    await client.connect(
        server.url,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.05,
        **options,
    )
    return client


@pytest.mark.slow
async def test_a_password_that_is_changed_under_load(
    nats_server_factory: NatsServerFactory,
    worker_factory: WorkerFactory,
    clients: list[Client],
    tmp_path: Path,
) -> None:
    def users(password: str) -> str:
        return f"authorization {{ users: [{{user: worker, password: {password}}}, {{user: load, password: load}}] }}"

    server = nats_server_factory(config=users("before"))
    secret = tmp_path / "password"
    secret.write_text("before")
    flags = (*arguments(tmp_path), "--user", "worker", "--password-file", str(secret))
    worker = await asyncio.to_thread(worker_factory, server, *flags)
    async with Scene(worker, await connected(clients, server, Login(user="load", password="load"))) as scene:
        await scene.flows()
        with scene.fault():
            reload(server, users("after"))
            await scene.logged('error="Authorization Violation"')
            secret.write_text("after")
            await scene.logged("reconnected to NATS")
        await scene.flows()


@pytest.mark.slow
async def test_credentials_that_expire_under_load_are_followed_by_what_is_in_the_file_then(
    nats_server_factory: NatsServerFactory,
    worker_factory: WorkerFactory,
    clients: list[Client],
    tmp_path: Path,
) -> None:
    operator, creds, other = Operator(), tmp_path / "worker.creds", tmp_path / "load.creds"
    other.write_text(operator.creds())
    expires_s = time.time() + 4
    creds.write_text(operator.creds(expires_s=4))
    server = nats_server_factory(config=operator.config)
    flags = (*arguments(tmp_path), "--creds", str(creds))
    worker = await asyncio.to_thread(worker_factory, server, *flags)
    creds.write_text(operator.creds())
    async with Scene(worker, await connected(clients, server, other)) as scene:
        await scene.flows()
        with scene.fault():
            await scene.logged("reconnected to NATS")
        assert time.time() >= expires_s - 1
        assert scene.lines("User Authentication Expired")
        await scene.flows()


async def test_a_user_who_is_revoked_under_load_is_followed_by_the_next_one_in_the_file(
    nats_server_factory: NatsServerFactory,
    worker_factory: WorkerFactory,
    clients: list[Client],
    tmp_path: Path,
) -> None:
    operator, creds, other = Revoking(), tmp_path / "worker.creds", tmp_path / "load.creds"
    other.write_text(operator.creds())
    creds.write_text(operator.creds())
    server = nats_server_factory(config=operator.config)
    flags = (*arguments(tmp_path), "--creds", str(creds))
    worker = await asyncio.to_thread(worker_factory, server, *flags)
    async with Scene(worker, await connected(clients, server, other)) as scene:
        await scene.flows()
        with scene.fault():
            operator.revoke(creds.read_text())
            reload(server, operator.config)
            await scene.logged("cannot connect to NATS, trying on")
            assert scene.lines('error="User Authentication Revoked"') or scene.lines(
                "Authorization Violation"
            )
            creds.write_text(operator.creds())
            await scene.logged("reconnected to NATS")
            await until(lambda: clients[0].is_connected, WAIT_S)
        await scene.flows()


class Revoking(Operator):
    """An operator who takes back what was given."""

    def __init__(self) -> None:
        super().__init__()
        self._revoked: dict[str, int] = {}
        self._head = super().config.partition("resolver_preload")[0]

    def revoke(self, creds: str) -> None:
        """Users that were made until now with this key."""
        seed = creds.partition("-----BEGIN USER NKEY SEED-----\n")[2].partition("\n")[0]
        self._revoked[public_key(seed)] = int(time.time()) + 1

    @property
    def config(self) -> str:
        limits = {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
        claims = {
            "type": "account",
            "limits": {**limits, "subs": -1, "data": -1, "payload": -1},
            "revocations": self._revoked,
        }
        account = jwt(self._key, self._account.public, claims)
        return f"{self._head}resolver_preload: {{ {self._account.public}: {account} }}\n"


@pytest.mark.slow
async def test_certificates_that_are_renewed_under_load(
    nats_server_factory: NatsServerFactory,
    worker_factory: WorkerFactory,
    clients: list[Client],
    tmp_path: Path,
) -> None:
    """Certificate, key and CA: all that the worker has on disk is another one after the server's restart."""
    before, after = Certificates(tmp_path / "before"), Certificates(tmp_path / "after")
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "worker.pem", "worker-key.pem"))
    ca.write_bytes(before.ca_file.read_bytes())
    before.client(cert, key)
    server = nats_server_factory(config=before.config("verify: true"))
    flags = ("--tls-ca", str(ca), "--tls-cert", str(cert), "--tls-key", str(key))
    worker = await asyncio.to_thread(worker_factory, server, *arguments(tmp_path), *flags)

    context = trusting(before.ca_file)
    context.load_verify_locations(after.ca_file)
    for issuer, name in ((before, "old"), (after, "new")):
        issuer.client(tmp_path / f"{name}.pem", tmp_path / f"{name}-key.pem")
    context.load_cert_chain(tmp_path / "old.pem", tmp_path / "old-key.pem")
    nc = await connected(clients, server, tls=context)
    async with Scene(worker, nc) as scene:
        await scene.flows()
        with scene.fault():
            after.client(cert, key)
            ca.write_bytes(after.ca_file.read_bytes())
            context.load_cert_chain(tmp_path / "new.pem", tmp_path / "new-key.pem")
            change(server, after.config("verify: true"))
            await asyncio.to_thread(server.restart)
            await scene.logged("reconnected to NATS")
            await until(lambda: nc.is_connected, WAIT_S)
        await scene.flows()


# -- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "attempts"), [("a restart", 0), ("a reload", 1)])
async def test_a_pending_message_above_a_max_payload_that_shrank_becomes_a_dead_letter(
    start: StartWorker,  # noqa: F811
    nats_server_factory: NatsServerFactory,
    clients: list[Client],
    by: str,
    attempts: int,
) -> None:
    """Whole, as `too-large`; what still fits goes on.

    After a reload the server tells nobody: it hangs up on the first that is too large, and its greeting then tells.
    """
    server = nats_server_factory(config="max_payload: 1MiB\n")
    nc = await connected(clients, server)
    worker = await start(
        nats={"servers": [server.url], "reconnect_wait": "50ms"}, defaults={"ack_timeout": "1s"}
    )
    worker.nc = nc
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    await worker.publish("jobs.large", bytes(100_000), queue="large", delay_ns=HOUR)
    await worker.publish("jobs.small", b"small", delay_ns=HOUR)
    if by == "a reload":
        reload(server, "max_payload: 64KiB\n")
    else:
        change(server, "max_payload: 64KiB\n")
        await asyncio.to_thread(server.restart)
        await until(lambda: worker.worker._broker.max_payload == 65536)
        await until(lambda: worker.worker.ready()[0] and nc.is_connected)
        await settle(nc)
    await worker.forward(HOUR)
    assert (await jobs.next()).data == b"small"
    dead = await worker.one_dead("large")
    assert dead.extras.reason == "too-large"
    assert len(dead.record.payload) == 100_000
    assert dead.record.attempts == 0
    await worker.until_empty()
    assert worker.queue("large").counts.held == worker.queue("large").counts.replays == attempts


# -- nobody there --------------------------------------------------------------------------------------------


async def test_after_a_reconnect_handlers_have_time_to_come_back_before_an_attempt_is_spent(
    start: StartWorker,  # noqa: F811
    nats_server: NatsServer,
    nc: Client,
) -> None:
    worker = await start(reconnect_grace="10m", defaults={"min_backoff": "50ms"})
    worker.worker._replayer._connected_at_ns = -HOUR  # the grace of the first connection is over
    await worker.publish("jobs.first", retries=2)
    await worker.until_failed()

    await asyncio.to_thread(nats_server.restart)
    await until(lambda: worker.worker.ready()[0] and nc.is_connected)
    await worker.publish("jobs.second", retries=1)
    await until(lambda: worker.queue().counts.held >= 3)
    jobs = await Handler.listen(nc, "jobs.second", answer=lambda msg: msg.ack())
    assert attempt_of(await jobs.next()) == 1
    assert worker.dead() == []
