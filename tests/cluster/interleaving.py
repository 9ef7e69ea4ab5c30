"""A fleet that is scaled at random, and whose drains end at random."""

from __future__ import annotations

import random

from requeue_worker.drain.proof import Proof

from tests.cluster.control_plane import ControlPlane
from tests.cluster.draining import drain_pods, end, jobs, marks, proof, remains, replicas_of_set
from tests.cluster.operating import claims, create_queue, patch_spec
from tests.cluster.recording import Recording

_SIZES = (0, 1, 1, 2, 3, 3)


class Interleaving:
    """One fleet, and what is to be true of it whatever happens."""

    def __init__(self, cluster: ControlPlane, namespace: str, seed: int) -> None:
        self._cluster = cluster
        self.namespace = namespace
        self.seed = seed
        self.random = random.Random(seed)
        self._earlier: dict[str, Proof] = {}

    def make(self) -> None:
        create_queue(self._cluster, self.namespace, replicas=3)

    def scale(self) -> None:
        patch_spec(self._cluster, self.namespace, replicas=self.random.choice(_SIZES))

    def is_draining(self) -> bool:
        return bool(drain_pods(self._cluster, self.namespace))

    def end_drains(self) -> None:
        """All there are: with a proof, without one, or with that of an earlier drain."""
        for claim, pod in sorted(drain_pods(self._cluster, self.namespace).items()):
            earlier = self._earlier.setdefault(claim, proof(pod, nonce="another"))
            said = {
                "proven": proof(pod),
                "remains": proof(pod, remains=remains("no-survivor"), nobody=True),
                "earlier": earlier,
            }[self.random.choice(("proven", "remains", "earlier"))]
            self._earlier[claim] = proof(pod)
            # The pod may be gone by now: then the drain was killed before it could say anything.
            end(self._cluster, pod, said)

    def begin_to_settle(self) -> int:
        """The last size; every drain succeeds from now on."""
        last = self.random.choice((1, 1, 2))
        patch_spec(self._cluster, self.namespace, replicas=last)
        return last

    def is_settled(self, size: int) -> bool:
        """Drains end well; whether as many volumes as workers are left, and nothing of a drain."""
        for pod in drain_pods(self._cluster, self.namespace).values():
            end(self._cluster, pod, proof(pod))
        return (
            claims(self._cluster, self.namespace) == [f"data-orders-{ordinal}" for ordinal in range(size)]
            and replicas_of_set(self._cluster, self.namespace) == size
            and not jobs(self._cluster, self.namespace)
            and not marks(self._cluster, self.namespace)
        )

    def check(self, recording: Recording) -> None:
        def is_complete() -> bool:
            alive = len(recording.claims(self.namespace)) - len(recording.deletions(self.namespace))
            return alive == len(claims(self._cluster, self.namespace))

        self._cluster.until("all deletions are recorded", is_complete)
        assert recording.deletions(self.namespace), f"seed {self.seed} deleted nothing"
        assert recording.without_proof(self.namespace) == [], f"seed {self.seed}"
        assert recording.used_twice(self.namespace) == [], f"seed {self.seed}"


def until_recorded(cluster: ControlPlane, recording: Recording, fleet: Interleaving) -> None:
    """Wait until the recording has begun; it may miss what was before."""
    cluster.until("the recording has begun", lambda: len(recording.claims(fleet.namespace)) == 3)
