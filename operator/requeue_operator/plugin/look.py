"""Live objects around RequeueQueues, as the operator sees them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime

from requeue_operator.api import GROUP, KIND, VERSION
from requeue_operator.children.naming import MANAGER, Manifest, Owner
from requeue_operator.drains import JOB_LABELS
from requeue_operator.ending import Ending, holds
from requeue_operator.kube import Kube
from requeue_operator.plan import Observed, Plan, plan
from requeue_operator.plugin.errors import NOT_FOUND, PluginError

API = f"{GROUP}/{VERSION}"
MANAGED = {"app.kubernetes.io/managed-by": MANAGER}
_AT_ONCE = 8
INSTANCE = "app.kubernetes.io/instance"


@dataclass(frozen=True)
class Surroundings:
    """What there is in one namespace: all RequeueQueues, what the operator made for them, and all pods."""

    namespace: str
    queues: tuple[Manifest, ...]
    sets: tuple[Manifest, ...]
    claims: tuple[Manifest, ...]
    jobs: tuple[Manifest, ...]
    pods: tuple[Manifest, ...]


@dataclass(frozen=True)
class Fleet:
    """One RequeueQueue and what belongs to it."""

    queue: Manifest
    around: Surroundings

    @property
    def owner(self) -> Owner:
        """Whose children they are."""
        return Owner.of(self.queue)

    @property
    def stateful_set(self) -> Manifest | None:
        """The live one."""
        own = [each for each in self.around.sets if is_of(each, self.owner.uid)]
        return next((each for each in own if each["metadata"]["name"] == self.owner.name), None)

    @property
    def claims(self) -> list[Manifest]:
        """All that have its name among their labels, by name."""
        return sorted((each for each in self.around.claims if _has(each, self.owner.labels)), key=name_of)

    @property
    def jobs(self) -> list[Manifest]:
        """Its drains."""
        return [each for each in self.around.jobs if _has(each, {**self.owner.labels, **JOB_LABELS})]

    @property
    def workers(self) -> list[Manifest]:
        """Its workers' pods, by name."""
        return sorted((each for each in self.around.pods if _has(each, self.owner.labels)), key=name_of)

    @property
    def drain_pods(self) -> list[Manifest]:
        """Pods of its drains, by name."""
        labels = {INSTANCE: self.owner.name, **JOB_LABELS}
        return sorted((each for each in self.around.pods if _has(each, labels)), key=name_of)

    @property
    def is_going(self) -> bool:
        """It is being deleted."""
        return "deletionTimestamp" in self.queue["metadata"]

    def plan(self, now: datetime) -> Plan | None:
        """What the operator would do with its volumes now; None when it does nothing for it any more.

        Of a deletion the operator knows more: whether the workers say that they have nothing left.
        """
        if self.is_going and not holds(self.queue):
            return None
        children = {} if (live := self.stateful_set) is None else {("StatefulSet", self.owner.name): live}
        claims, jobs, pods = tuple(self.claims), tuple(self.jobs), self.around.pods
        ending = Ending(self._target()) if self.is_going else None
        return plan(Observed(self.queue, children, claims, jobs, pods, ending=ending), "", now)

    def _target(self) -> Manifest | None:
        name = self.queue["spec"]["storage"].get("drainTo")
        known = (each for each in self.around.queues if name_of(each) == name)
        return next((each for each in known if "deletionTimestamp" not in each["metadata"]), None)


async def find(kube: Kube, namespace: str, name: str | None) -> list[Manifest]:
    """The RequeueQueue of that name, or all (in all namespaces when `namespace` is empty). Raises PluginError, KubeError."""
    if name is not None:
        found = await kube.get(API, KIND, namespace, name)
        queues = [] if found is None else [found]
    else:
        queues = await kube.list(API, KIND, namespace, {})
    if not queues and not await kube.serves(API, KIND):
        text = f"this cluster knows no {KIND}s: install the CRD (the chart nats-requeue, or kubectl apply -f crds/)"
        raise PluginError(NOT_FOUND, text)
    if not queues and name is not None:
        raise PluginError(
            NOT_FOUND,
            f"there is no RequeueQueue {name} in the namespace {namespace}; -n names another one, -A lists all",
        )
    return sorted(queues, key=lambda each: (each["metadata"]["namespace"], name_of(each)))


async def fleets(kube: Kube, queues: list[Manifest]) -> list[Fleet]:
    """The same with what belongs to each. Raises KubeError."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def look(namespace: str) -> Surroundings:
        async with slots:
            return await look_around(kube, namespace)

    namespaces = sorted({str(each["metadata"]["namespace"]) for each in queues})
    around = dict(zip(namespaces, await asyncio.gather(*map(look, namespaces)), strict=True))
    return [Fleet(each, around[each["metadata"]["namespace"]]) for each in queues]


async def look_around(kube: Kube, namespace: str) -> Surroundings:
    """One namespace. Raises KubeError."""
    queues, sets, claims, jobs = await asyncio.gather(
        kube.list(API, KIND, namespace, {}),
        kube.list("apps/v1", "StatefulSet", namespace, MANAGED),
        kube.list("v1", "PersistentVolumeClaim", namespace, MANAGED),
        kube.list("batch/v1", "Job", namespace, MANAGED),
    )
    pods = await kube.list("v1", "Pod", namespace, {})
    return Surroundings(namespace, tuple(queues), tuple(sets), tuple(claims), tuple(jobs), tuple(pods))


def is_of(live: Manifest, uid: str) -> bool:
    """Whether the object with this UID is its owner."""
    return any(each.get("uid") == uid for each in live["metadata"].get("ownerReferences") or [])


def name_of(live: Manifest) -> str:
    """Its name."""
    return str(live["metadata"]["name"])


def labels_of(live: Manifest) -> dict[str, str]:
    """Its labels."""
    found: dict[str, str] = live["metadata"].get("labels") or {}
    return found


def _has(live: Manifest, labels: dict[str, str]) -> bool:
    return all(labels_of(live).get(key) == value for key, value in labels.items())
