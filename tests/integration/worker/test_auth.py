"""How a worker logs in to NATS: every way, from inline values and from files, and what a wrong or rotated secret does.

Secrets in files are read at each connect: a corrected or rotated one is used without a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import nats
import pytest
from requeue_protocol.envelope import build_envelope
from requeue_worker.app import Worker
from requeue_worker.hooks import Hooks
from requeue_worker.settings import Settings

from tests.integration.worker.logins import (
    ALL,
    IN_FILES,
    Login,
    handshake_first,
    mutual_tls,
    nkey_file,
    password_files,
    tls,
    token_file,
    url_password,
    websocket,
    websocket_over_tls,
)
from tests.integration.worker.secured import Certificates, Operator, change, public_key, reload, user_key
from tests.integration.worker.support import HOUR, INTAKE, WAIT_S
from tests.servers import NatsServer, NatsServerFactory, free_port, until

pytestmark = pytest.mark.filterwarnings(
    "ignore:parameter 'timeout' of type 'float':DeprecationWarning"
)  # nats-py's

# -- the parts -----------------------------------------------------------------------------------------------


class Attempts:
    """Failed attempts to connect, and what was said of them."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    async def fail(self, worker: Worker, times: int = 2) -> None:
        """Wait until so many have failed from now on, and the worker is not ready."""
        seen = len(self.errors)
        await until(lambda: len(self.errors) >= seen + times)
        assert not worker.ready()[0]


class Run(Protocol):
    async def __call__(self, login: Login, server: NatsServer) -> Worker: ...


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


@pytest.fixture
async def run(
    tmp_path: Path, attempts: Attempts, nats_server_factory: NatsServerFactory
) -> AsyncIterator[Run]:
    """Start a worker with a login, without waiting for NATS; stopped before the servers, and never by itself."""
    workers: list[Worker] = []

    async def begin(login: Login, server: NatsServer) -> Worker:
        said = {"servers": [login.url(server)], "reconnect_wait": "20ms", **login.settings}
        settings = Settings(
            data_dir=tmp_path / "data", instance_id="me", nats=said, shutdown_grace=0, reconnect_grace=0
        )
        worker = Worker(settings, Hooks(connection_error=lambda error: attempts.errors.append(str(error))))
        workers.append(worker)
        await worker.start()
        return worker

    yield begin
    for worker in workers:
        assert worker.live() == (True, "alive")
        await asyncio.wait_for(worker.stop(), WAIT_S)
        await worker.closed()


@pytest.fixture(params=ALL, ids=lambda make: make.__name__)
def login(request: pytest.FixtureRequest, tmp_path: Path) -> Login:
    made: Login = request.param(tmp_path)
    write(made.files)
    return made


in_files = pytest.mark.parametrize("login", IN_FILES, ids=lambda make: make.__name__, indirect=True)


def write(files: dict[Path, str]) -> None:
    for path, text in files.items():
        path.write_text(text)


async def until_ready(worker: Worker) -> None:
    await until(lambda: worker.ready()[0])


async def takes_messages(login: Login, server: NatsServer) -> None:
    """A client that may log in is acked."""
    client = await nats.connect(server.url, **login.client)
    envelope = build_envelope(subject="jobs.a", payload=b"work", delay_ns=HOUR)
    ack = await client.request(INTAKE, envelope, timeout=WAIT_S)
    await client.close()
    assert ack.data == b""


# -- what holds ----------------------------------------------------------------------------------------------


async def test_it_logs_in_and_takes_messages(
    login: Login, run: Run, nats_server_factory: NatsServerFactory
) -> None:
    server = nats_server_factory(config=login.config)
    worker = await run(login, server)
    await until_ready(worker)
    await takes_messages(login, server)


@in_files
async def test_with_a_wrong_secret_it_keeps_trying_and_is_ready_once_the_file_is_corrected(
    login: Login, run: Run, nats_server_factory: NatsServerFactory, attempts: Attempts
) -> None:
    server = nats_server_factory(config=login.config)
    write(login.wrong)
    worker = await run(login, server)
    await attempts.fail(worker)
    assert worker.ready()[1].startswith("not connected to NATS: "), worker.ready()

    write(login.files)
    await until_ready(worker)
    await takes_messages(login, server)


@pytest.mark.parametrize("login", [password_files], indirect=True)
async def test_the_log_tells_a_reason_once_and_no_secret(
    login: Login,
    run: Run,
    nats_server_factory: NatsServerFactory,
    attempts: Attempts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = nats_server_factory(config=login.config)
    write(login.wrong)
    worker = await run(login, server)
    await attempts.fail(worker, times=10)

    # Now and then the connection is reset before the reason was read: that is another one.
    told = [vars(record) for record in caplog.records if record.levelname == "WARNING"]
    reasons = [str(fields["error"]) for fields in told]
    assert "Authorization Violation" in reasons
    assert len(reasons) == len(set(reasons)) < len(attempts.errors)
    for fields in told:
        assert fields["message"] == "cannot connect to NATS, trying on"
        assert (fields["login"], fields["servers"]) == ("nats.user_file", (server.url,))
    assert not any("before" in str(vars(record)) for record in caplog.records)


@in_files
@pytest.mark.parametrize("content", [None, "", "garbage", "SU"], ids=["gone", "empty", "garbage", "short"])
async def test_an_unusable_secret_file_ends_nothing(
    login: Login,
    content: str | None,
    run: Run,
    nats_server_factory: NatsServerFactory,
    attempts: Attempts,
) -> None:
    server = nats_server_factory(config=login.config)
    for path in login.files:
        path.unlink() if content is None else path.write_text(content)
    worker = await run(login, server)
    await attempts.fail(worker)

    write(login.files)
    await until_ready(worker)
    for path in login.files:
        path.unlink() if content is None else path.write_text(content)
    await asyncio.to_thread(server.restart)
    await attempts.fail(worker)

    write(login.files)
    await until_ready(worker)


# -- rotation ------------------------------------------------------------------------------------------------


def other_password(login: Login) -> None:
    [password] = [path for path in login.files if path.name == "password"]
    login.config = login.config.replace("password: secret", "password: renewed")
    login.client["password"] = "renewed"
    login.files = {**login.files, password: "renewed"}


def other_user(login: Login) -> None:
    [user] = [path for path in login.files if path.name == "user"]
    login.config = login.config.replace("user: worker", "user: other")
    login.client["user"] = "other"
    login.files = {**login.files, user: "other"}


def other_token(login: Login) -> None:
    login.config = login.config.replace("T0", "T9")
    login.client["token"] = "T9"
    login.files = dict.fromkeys(login.files, "T9")


def other_nkey(login: Login) -> None:
    old, new = public_key(login.settings["nkey_file"].read_text()), user_key()
    login.config = login.config.replace(old, new.public)
    login.files = dict.fromkeys(login.files, new.seed)


@pytest.mark.parametrize(
    ("login", "rotate"),
    [
        (password_files, other_password),
        (password_files, other_user),
        (token_file, other_token),
        (nkey_file, other_nkey),
    ],
    ids=["password", "user", "token", "nkey"],
    indirect=["login"],
)
async def test_a_reload_of_the_server_with_another_secret_is_followed_once_the_file_is_rotated(
    login: Login,
    rotate: Callable[[Login], None],
    run: Run,
    nats_server_factory: NatsServerFactory,
    attempts: Attempts,
) -> None:
    server = nats_server_factory(config=login.config)
    worker = await run(login, server)
    await until_ready(worker)

    rotate(login)
    reload(server, login.config)
    await attempts.fail(worker)
    assert "Authorization Violation" in worker.ready()[1]
    write(login.files)
    await until_ready(worker)
    await takes_messages(login, server)


async def test_a_user_that_expires_is_followed_by_the_next_one_in_the_file(
    run: Run, nats_server_factory: NatsServerFactory, attempts: Attempts, tmp_path: Path
) -> None:
    operator, creds, client = Operator(), tmp_path / "worker.creds", tmp_path / "client.creds"
    client.write_text(operator.creds())
    creds.write_text(operator.creds(expires_s=2))
    login = Login(operator.config, {"creds_file": creds}, {"user_credentials": str(client)})
    server = nats_server_factory(config=login.config)
    worker = await run(login, server)
    await until_ready(worker)

    await attempts.fail(worker, times=3)
    assert any("User Authentication Expired" in error for error in attempts.errors)
    creds.write_text(operator.creds())
    await until_ready(worker)
    await takes_messages(login, server)


async def test_another_ca_and_another_certificate_are_used_at_the_next_connect(
    run: Run, nats_server_factory: NatsServerFactory, attempts: Attempts, tmp_path: Path
) -> None:
    login = mutual_tls(tmp_path)
    ca = tmp_path / "ca.pem"
    ca.write_text(login.settings["tls"]["ca_file"].read_text())
    login.settings["tls"]["ca_file"] = ca
    write(login.files)
    server = nats_server_factory(config=login.config)
    worker = await run(login, server)
    await until_ready(worker)

    renewed = Certificates(tmp_path / "renewed")
    change(server, renewed.config("verify: true"))
    await asyncio.to_thread(server.restart)
    await attempts.fail(worker)
    ca.write_text(renewed.ca_file.read_text())
    await attempts.fail(worker)  # the server is trusted again, and does not trust the worker
    renewed.client(login.settings["tls"]["cert_file"], login.settings["tls"]["key_file"])
    await until_ready(worker)


# -- a server that hangs up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "until_sent", [b"", b"CONNECT", b"PING", b"SUB"], ids=["accept", "connect", "ping", "sub"]
)
async def test_a_connection_that_is_cut_while_it_is_made_ends_nothing(
    until_sent: bytes, run: Run, nats_server: NatsServer
) -> None:
    """A proxy in between cuts the first connections once the worker has sent this."""
    cuts = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal cuts
        cut = cuts < 2
        cuts += cut
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
        back = asyncio.create_task(pass_on(far_reader, writer, None))
        await pass_on(reader, far_writer, until_sent if cut else None)
        back.cancel()
        far_writer.close()
        writer.close()

    async def pass_on(
        source: asyncio.StreamReader, target: asyncio.StreamWriter, until: bytes | None
    ) -> None:
        seen = b""
        while until is None or until not in seen:
            data = await source.read(1 << 16)
            if not data:
                return
            seen = data if until is not None else b""
            if until is None or until not in seen:
                target.write(data)

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    worker = await run(Login("", {}, {}, url=lambda _: f"nats://127.0.0.1:{port}"), nats_server)
    await until_ready(worker)
    assert cuts == 2
    proxy.close()


async def test_a_user_in_the_url_holds_for_the_other_servers_of_the_cluster_too(
    run: Run, nats_server_factory: NatsServerFactory
) -> None:
    """The worker is told of one server; the other one is known from it."""
    ports = free_port(), free_port()
    first, second = (
        nats_server_factory(
            config="authorization { users: [{user: worker, password: secret}] }\n"
            f'cluster {{ name: c, listen: "127.0.0.1:{own}", routes: ["nats://127.0.0.1:{other}"] }}\n',
            start=False,
        )
        for own, other in (ports, ports[::-1])
    )
    await asyncio.to_thread(first.start)
    await asyncio.to_thread(second.start)
    login = url_password(Path())
    worker = await run(login, first)
    await until_ready(worker)
    await until(lambda: second.port in [url.port for url in worker._broker._client.discovered_servers])

    await asyncio.to_thread(first.stop)
    await until(lambda: worker._broker.server == f"127.0.0.1:{second.port}")
    await until_ready(worker)
    await takes_messages(login, second)


@pytest.mark.parametrize("login", [tls, handshake_first, websocket, websocket_over_tls], indirect=True)
async def test_it_reconnects_when_the_server_is_restarted(
    login: Login, run: Run, nats_server_factory: NatsServerFactory
) -> None:
    server = nats_server_factory(config=login.config)
    worker = await run(login, server)
    for _ in range(2):
        await until_ready(worker)
        await takes_messages(login, server)
        await asyncio.to_thread(server.stop)
        await until(lambda: not worker.ready()[0])
        await asyncio.to_thread(server.start)
    await until_ready(worker)
    await takes_messages(login, server)
