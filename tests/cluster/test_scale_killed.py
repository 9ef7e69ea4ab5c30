"""Fleets scaled at random while the operator is killed at random: whatever comes between, a volume goes on its proof
alone, and none is left behind.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from requeue_worker.drain.proof import Proof

from tests.cluster.control_plane import ControlPlane
from tests.cluster.draining import drain_pods, end, jobs, marks, proof, remains, replicas_of_set
from tests.cluster.operating import OPERATOR, Operator, claims, create_queue, patch_spec
from tests.cluster.recording import Recording, recorded

_STEPS = 10
_SIZES = (0, 1, 1, 2, 3)


class _Interleaving:
    """One fleet and what happens to it."""

    def __init__(self, cluster: ControlPlane, namespace: str, seed: int) -> None:
        self._cluster = cluster
        self.namespace = namespace
        self.seed = seed
        self._random = random.Random(seed)
        self._earlier: dict[str, Proof] = {}

    def make(self) -> None:
        create_queue(self._cluster, self.namespace, replicas=3)

    def step(self) -> None:
        """Another size, or ends of drains: with a proof, without one, or with that of an earlier drain."""
        pods = drain_pods(self._cluster, self.namespace)
        if not pods or self._random.random() < 0.4:
            patch_spec(self._cluster, self.namespace, replicas=self._random.choice(_SIZES))
            return
        for claim, pod in sorted(pods.items()):
            earlier = self._earlier.setdefault(claim, proof(pod, nonce="another"))
            said = {
                "proven": proof(pod),
                "remains": proof(pod, remains=remains("no-survivor"), nobody=True),
                "earlier": earlier,
            }[self._random.choice(("proven", "remains", "earlier"))]
            self._earlier[claim] = proof(pod)
            # The pod may be gone by now: then the drain was killed before it could say anything.
            end(self._cluster, pod, said)

    def settle(self) -> None:
        """The last size; every drain succeeds from now on."""
        last = self._random.choice((1, 1, 2))
        patch_spec(self._cluster, self.namespace, replicas=last)
        names = [f"data-orders-{ordinal}" for ordinal in range(last)]

        def settled() -> bool:
            for pod in drain_pods(self._cluster, self.namespace).values():
                end(self._cluster, pod, proof(pod))
            return (
                claims(self._cluster, self.namespace) == names
                and replicas_of_set(self._cluster, self.namespace) == last
                and not jobs(self._cluster, self.namespace)
                and not marks(self._cluster, self.namespace)
            )

        self._cluster.until(f"seed {self.seed}: {last} volumes are left, and nothing of a drain", settled)


def _run(cluster: ControlPlane, namespaces: list[str], seeds: list[int], tmp_path: Path) -> None:
    """All at once, with one operator, which is killed in between."""
    tmp_path.mkdir(exist_ok=True)
    chaos = random.Random(seeds[0])
    fleets = [_Interleaving(cluster, *each) for each in zip(namespaces, seeds, strict=True)]
    operator = Operator("requeue-operator", tmp_path / "operator.log")
    with recorded(cluster, tmp_path) as recording:
        operator.start(cluster.kubeconfig(OPERATOR), *namespaces)
        try:
            for fleet in fleets:
                fleet.make()
            cluster.until(
                "the recording has begun", lambda: _claims_seen(recording, namespaces) == 3 * len(fleets)
            )
            for number in range(_STEPS):
                for fleet in fleets:
                    fleet.step()
                time.sleep(chaos.uniform(0, 1.5))
                if number % 3 == 2:
                    operator.kill()
                    operator.start(cluster.kubeconfig(OPERATOR), *namespaces)
            for fleet in fleets:
                fleet.settle()
        finally:
            operator.kill()
        for fleet in fleets:
            _check(cluster, recording, fleet)


def _claims_seen(recording: Recording, namespaces: list[str]) -> int:
    return len(
        {
            e.object["metadata"]["uid"]
            for e in recording.events("pvc")
            if e.object["metadata"]["namespace"] in namespaces
        }
    )


def _check(cluster: ControlPlane, recording: Recording, fleet: _Interleaving) -> None:
    def is_complete() -> bool:
        seen = {
            each.object["metadata"]["uid"]
            for each in recording.events("pvc")
            if each.object["metadata"]["namespace"] == fleet.namespace
        }
        return len(seen) - len(recording.deletions(fleet.namespace)) == len(claims(cluster, fleet.namespace))

    cluster.until("all deletions are recorded", is_complete)
    assert recording.deletions(fleet.namespace), f"seed {fleet.seed} deleted nothing"
    assert recording.without_proof(fleet.namespace) == [], f"seed {fleet.seed}"
    assert recording.used_twice(fleet.namespace) == [], f"seed {fleet.seed}"


def test_no_volume_goes_without_its_proof_and_none_is_left_whenever_the_operator_is_killed(
    cluster: ControlPlane, new_namespace: Callable[[], str], tmp_path: Path
) -> None:
    _run(cluster, [new_namespace() for _ in range(4)], [1, 2, 3, 4], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_same_50_times(cluster: ControlPlane, new_namespace: Callable[[], str], tmp_path: Path) -> None:
    for turn in range(10):
        seeds = [random.randrange(1 << 32) for _ in range(5)]
        _run(cluster, [new_namespace() for _ in seeds], seeds, tmp_path / str(turn))
