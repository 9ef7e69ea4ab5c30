"""`cluster`: one control plane for the whole run. `namespace`: a fresh one in it for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.build import BUILD_TIMEOUT_S, control_plane_binary
from tests.cluster.control_plane import ControlPlane
from tests.cluster.operating import OPERATOR, SOME_NAMESPACES, Operator
from tests.cluster.plugin import PERSON, VIEWER
from tests.cluster.rights import PLUGIN, cluster_rights

_CRDS = Path(__file__).parents[2] / "crds"
_NUMBERS = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Whichever test comes first may have to wait for the build.
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_S + 300))


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Write a line for whoever watches, past pytest's capture."""

    def to_terminal(text: str) -> None:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", flush=True)

    return to_terminal


@pytest.fixture(scope="session")
def cluster(say: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    plane = ControlPlane(control_plane_binary(say), tmp_path_factory.mktemp("cluster"))
    try:
        plane.add_user(OPERATOR, groups="")
        plane.add_user(SOME_NAMESPACES, groups="")
        plane.add_user(PERSON, groups="")
        plane.add_user(VIEWER, groups="")
        plane.start(_CRDS)
        plane.kubectl("apply", "-f", "-", stdin=cluster_rights(OPERATOR))
        plane.kubectl("apply", "-f", "-", stdin=cluster_rights(PERSON, PLUGIN))
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def new_namespace(cluster: ControlPlane) -> Callable[[], str]:
    """Makes a fresh one. Left to the end of the control plane: a namespace takes seconds to go."""

    def make() -> str:
        name = f"test-{next(_NUMBERS)}"
        body = {"metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
        status, answer = cluster.request("POST", "/api/v1/namespaces", body)
        assert status == 201, answer
        return name

    return make


@pytest.fixture
def namespace(new_namespace: Callable[[], str]) -> str:
    return new_namespace()


@pytest.fixture(scope="module")
def operator(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """One that looks after all namespaces. A test that kills it starts it again."""
    process = Operator("requeue-operator", tmp_path_factory.mktemp("operator") / "operator.log")
    process.start(cluster.kubeconfig(OPERATOR))
    yield process
    process.stop()
