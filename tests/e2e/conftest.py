"""`cluster`: a node of one's own, or the cluster that KUBECONFIG names. `namespace`: a fresh one, with NATS, for each test.

KUBECONFIG=... REQUEUE_E2E_IMAGE=... REQUEUE_E2E_NATS_IMAGE=... runs them on a cluster that is there; its nodes need to get
these images. Everything goes into fresh namespaces; the CRD and the operator's cluster role are the cluster's.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import OPERATOR, RELEASE, Cluster
from tests.e2e.images import NATS, NEWER, PROJECT, Images
from tests.e2e.node import Node
from tests.e2e.tools import tools

_HERE = Path(__file__).parent
_RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
_NUMBERS = itertools.count(1)
_GIVEN = {
    name: os.environ.get(name, "") for name in ("KUBECONFIG", "REQUEUE_E2E_IMAGE", "REQUEUE_E2E_NATS_IMAGE")
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tell the terminal: setting up takes minutes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def to_terminal(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{time.strftime('%H:%M:%S')} {text}", flush=True)

    return to_terminal


@pytest.fixture(scope="session")
def images(say: Callable[[str], None]) -> Images:
    """Builder of images. Skips where there is no root, or no Linux."""
    found = tools(say)
    return Images(found.control_plane.parent / "images", found, say)


@pytest.fixture(scope="session")
def bare_cluster(
    request: pytest.FixtureRequest, say: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Nothing of the project is in it but the image."""
    home = tmp_path_factory.mktemp("home")
    if _GIVEN["KUBECONFIG"]:
        yield _given(home)
        return
    archives = request.getfixturevalue("images").all()
    node = Node(tools(say))
    try:
        say("starting a node ...")
        node.start_node(archives)
        kubectl = [str(tools(say).control_plane), "kubectl"]
        yield Cluster(
            kubectl,
            node.kubeconfig(),
            (PROJECT, NEWER, NATS),
            lambda namespace, pod: node.kill_in_pod(namespace, pod, "requeue-worker"),
            home,
        )
    finally:
        node.stop()


def _given(home: Path) -> Cluster:
    if not (_GIVEN["REQUEUE_E2E_IMAGE"] and _GIVEN["REQUEUE_E2E_NATS_IMAGE"]):
        pytest.skip(
            "on a cluster that is there, REQUEUE_E2E_IMAGE and REQUEUE_E2E_NATS_IMAGE name images it can get"
        )
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("on a cluster that is there, kubectl has to be on PATH")

    def kill(namespace: str, pod: str) -> None:
        given.kubectl("delete", "pod", "-n", namespace, pod, "--grace-period=0", "--force")

    project, nats = _GIVEN["REQUEUE_E2E_IMAGE"], _GIVEN["REQUEUE_E2E_NATS_IMAGE"]
    given = Cluster([kubectl], Path(_GIVEN["KUBECONFIG"]), (project, project, nats), kill, home)
    return given


@pytest.fixture(scope="module")
def cluster(bare_cluster: Cluster) -> Iterator[Cluster]:
    """The operator is installed by helm, and looks after all namespaces."""
    if not bare_cluster.kubectl("get", "namespace", OPERATOR, "--ignore-not-found").stdout:
        _make_namespace(bare_cluster, OPERATOR)
    bare_cluster.install(OPERATOR, "--set", "watchAllNamespaces=true", "--take-ownership")
    yield bare_cluster
    bare_cluster.helm("uninstall", RELEASE, "--namespace", OPERATOR, "--wait")


@pytest.fixture
def empty_namespace(bare_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh one, with restricted Pod Security."""
    name = f"e2e-{int(time.time()) % 100_000}-{next(_NUMBERS)}"
    _make_namespace(bare_cluster, name)
    request.node.user_properties.append(("namespace", name))
    yield name
    bare_cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(cluster: Cluster, empty_namespace: str) -> str:
    """A fresh one with a NATS server in it."""
    cluster.start_nats(empty_namespace)
    return empty_namespace


def _make_namespace(cluster: Cluster, name: str) -> None:
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, _RESTRICTED)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    cluster = item.funcargs.get("bare_cluster") if isinstance(item, pytest.Function) else None
    namespaces = [value for name, value in item.user_properties if name == "namespace"]
    if report.failed and isinstance(cluster, Cluster):
        for each in [*namespaces, OPERATOR]:
            report.sections.append((f"namespace {each}", cluster.story(str(each))))
    return report
