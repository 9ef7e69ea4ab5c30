"""`driver`: each NATS library in turn, connected to `nats_server`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.clients.drivers import ChildDriver, Driver, PythonDriver
from tests.clients.toolchains import go_driver, node_driver
from tests.integration.worker.conftest import start
from tests.servers import NatsServer

__all__ = ["start"]

LIBRARIES = ("go", "node", "node2", "python")
_NODE_PACKAGES = {"node": "@nats-io/transport-node", "node2": "nats"}


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Write a line for whoever watches, past pytest's capture."""

    def to_terminal(text: str) -> None:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", flush=True)

    return to_terminal


@pytest.fixture(scope="session")
def go_command(tmp_path_factory: pytest.TempPathFactory, say: Callable[[str], None]) -> list[str]:
    return go_driver(tmp_path_factory.mktemp("clients"), say)


@pytest.fixture(scope="session")
def node_command(say: Callable[[str], None]) -> list[str]:
    return node_driver(say)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def driver(
    library: str, request: pytest.FixtureRequest, nats_server: NatsServer, nc: Client, tmp_path: Path
) -> AsyncIterator[Driver]:
    if library == "python":
        yield PythonDriver(nc)
        return
    if library == "go":
        argv = [*request.getfixturevalue("go_command"), nats_server.url]
    else:
        argv = [*request.getfixturevalue("node_command"), _NODE_PACKAGES[library], nats_server.url]
    child = await ChildDriver.start(argv, tmp_path / "driver.log", has_verbs=library == "go")
    yield child
    await child.close()
