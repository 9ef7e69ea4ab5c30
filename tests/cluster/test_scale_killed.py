"""Fleets scaled at random while the operator is killed at random: whatever comes between, a volume goes on its proof
alone, no worker gets one that is drained, and none is left behind.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from requeue_operator.children.naming import Manifest
from requeue_operator.kube import Kube, KubeError
from requeue_operator.reconcile import reconcile

from tests.cluster.control_plane import START_TIMEOUT_S, ControlPlane
from tests.cluster.interleaving import Interleaving, until_recorded
from tests.cluster.operating import OPERATOR, Operator, claims
from tests.cluster.recording import Recording, recorded

_MOVES = 40
_OFTEN_SCALED = 0.15
_OFTEN_ENDED = 0.3
_FOR_EVER = 1 << 30
_WRITES = (0, 1, 2, 3, _FOR_EVER, _FOR_EVER)


class Killed(Exception):
    """The operator is no more."""


class MortalKube(Kube):
    """Dies just before or just after its next write but `writes`. A reconcile keeps nothing: that is a SIGKILL to it.

    Not counted is what is applied again and again, but for Jobs and the StatefulSet.
    """

    writes = _FOR_EVER
    before = True

    async def _call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Manifest | None:
        is_applied = "application/apply-patch+yaml" in args
        is_counted = method != "GET" and (not is_applied or "/jobs/" in path or "/statefulsets/" in path)
        self.writes -= is_counted
        is_last = is_counted and self.writes < 0
        if is_last and self.before:
            raise Killed
        answer = await super()._call(method, path, *args, **kwargs)
        if is_last:
            raise Killed
        return answer


async def _live(cluster: ControlPlane, fleet: Interleaving, recording: Recording) -> None:
    """One interleaving, with reconciles of its own, each killed at a write or not."""
    fleet.make()

    async def look(writes: int, before: bool) -> None:
        async with await MortalKube.connect() as kube:
            kube.writes, kube.before = writes, before
            try:
                await reconcile(kube, fleet.namespace, "orders", "requeue:1")
            except (Killed, KubeError):
                return

    while len(claims(cluster, fleet.namespace)) < 3:
        await look(_FOR_EVER, True)
    await asyncio.to_thread(until_recorded, cluster, recording, fleet)
    for _ in range(_MOVES):
        if fleet.random.random() < _OFTEN_SCALED:
            fleet.scale()
        if fleet.random.random() < _OFTEN_ENDED:
            fleet.end_drains()
        await look(fleet.random.choice(_WRITES), fleet.random.random() < 0.5)
        await asyncio.sleep(fleet.random.choice((0.05, 0.2, 0.5)))
    size = fleet.begin_to_settle()
    until_s = time.monotonic() + START_TIMEOUT_S
    while not fleet.is_settled(size):
        assert time.monotonic() < until_s, f"seed {fleet.seed} does not settle at {size}"
        await look(_FOR_EVER, True)
        await asyncio.sleep(0.1)
    await asyncio.to_thread(fleet.check, recording)


def _run(cluster: ControlPlane, fleets: list[Interleaving], directory: Path) -> None:
    """All at once, each in a thread of its own."""
    directory.mkdir(exist_ok=True)
    with recorded(cluster, directory) as recording, ThreadPoolExecutor(len(fleets)) as threads:
        lives = [
            threads.submit(lambda one=fleet: asyncio.run(_live(cluster, one, recording))) for fleet in fleets
        ]
        for life in lives:
            life.result()


@pytest.fixture
def logged_in(cluster: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the operator, with its rights alone."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(OPERATOR)))


@pytest.mark.usefixtures("logged_in")
def test_no_volume_goes_without_its_proof_and_none_is_left_at_whatever_write_the_operator_dies(
    cluster: ControlPlane, new_namespace: Callable[[], str], tmp_path: Path
) -> None:
    _run(cluster, [Interleaving(cluster, new_namespace(), seed) for seed in (1, 2, 3, 4)], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("logged_in")
def test_the_same_50_times(cluster: ControlPlane, new_namespace: Callable[[], str], tmp_path: Path) -> None:
    for turn in range(10):
        seeds = [random.randrange(1 << 32) for _ in range(5)]
        fleets = [Interleaving(cluster, new_namespace(), seed) for seed in seeds]
        _run(cluster, fleets, tmp_path / str(turn))


def test_a_process_that_is_killed_amid_drains_goes_on_where_it_was(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    fleet = Interleaving(cluster, namespace, seed=5)
    operator = Operator("requeue-operator", tmp_path / "operator.log")

    def begin() -> None:
        operator.start(cluster.kubeconfig(OPERATOR), namespace)

    with recorded(cluster, tmp_path) as recording:
        begin()
        try:
            fleet.make()
            until_recorded(cluster, recording, fleet)
            size = fleet.begin_to_settle()
            cluster.until("something is drained", fleet.is_draining)
            operator.kill()
            fleet.end_drains()
            begin()
            cluster.until("it is settled", lambda: fleet.is_settled(size))
        finally:
            operator.kill()
        fleet.check(recording)
