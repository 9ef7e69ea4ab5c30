"""Shared fixtures: real servers on free loopback ports, stopped at teardown, their logs shown on failure."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import nats
import pytest
from hypothesis import settings
from nats.aio.client import Client

from tests.servers import (
    LocalProcess,
    NatsServer,
    NatsServerFactory,
    WorkerFactory,
    WorkerProcess,
    keep_ports_apart,
)

# The suite repeats itself, so that a red run is the change's own; `make soak` looks for what nobody has seen yet.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

_PROCESSES = pytest.StashKey[list[LocalProcess]]()
_LOG_TAIL_CHARS = 6000


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[list[LocalProcess]]:
    """Child processes of this test; the ones started last are stopped first."""
    started: list[LocalProcess] = []
    request.node.stash[_PROCESSES] = started
    yield started
    for process in reversed(started):
        process.kill() if isinstance(process, WorkerProcess) else process.stop()


@pytest.fixture
def nats_server_factory(tmp_path: Path, processes: list[LocalProcess]) -> NatsServerFactory:
    """Make any number of nats-servers: `nats_server_factory(config="...", jetstream=True)`."""
    number = itertools.count()

    def make(
        *, config: str = "", jetstream: bool = False, args: Sequence[str] = (), start: bool = True
    ) -> NatsServer:
        directory = tmp_path / f"nats-{next(number)}"
        server = NatsServer(directory, config=config, jetstream=jetstream, args=args)
        processes.append(server)
        return server.start() if start else server

    return make


@pytest.fixture
def nats_server(nats_server_factory: NatsServerFactory) -> NatsServer:
    """One plain nats-server."""
    return nats_server_factory()


@pytest.fixture
def worker_factory(tmp_path: Path, processes: list[LocalProcess]) -> WorkerFactory:
    """Make any number of workers: `worker_factory(nats_server, "--subject", "jobs.>", data_dir=...)`."""
    number = itertools.count()

    def make(
        server: NatsServer | str,
        *args: str,
        data_dir: Path | None = None,
        start: bool = True,
    ) -> WorkerProcess:
        own = tmp_path / f"worker-{next(number)}"
        url = server if isinstance(server, str) else server.url
        worker = WorkerProcess(url, data_dir or own / "data", args=args, log_file=own.with_suffix(".log"))
        processes.append(worker)
        return worker.start() if start else worker

    return make


@pytest.fixture
async def nc(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A plain nats-py connection to `nats_server`, closed at teardown."""
    client = await nats.connect(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
    yield client
    if not client.is_closed:
        await client.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for process in item.stash.get(_PROCESSES, []):
            report.sections.append((f"log of {process.name}", process.log[-_LOG_TAIL_CHARS:]))
    return report


def pytest_configure(config: pytest.Config) -> None:
    # A proxy or a NATS context in the caller's environment must not change what the tests see.
    for name in [name for name in os.environ if name.startswith(("REQUEUE_", "NATS_"))]:
        del os.environ[name]
    keep_ports_apart()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.parallel import Files  # needs pytest-xdist, which calls this

    return Files(config, log)
