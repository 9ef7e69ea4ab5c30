"""Observed state → what to do: pure.

    observe (reconcile.py) → plan → apply in order (reconcile.py) → status (status.py)

A plan is judged anew at every reconcile, from live objects alone; nothing is remembered between two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from requeue_operator.api import RequeueQueueSpec
from requeue_operator.children import Manifest, Owner, children
from requeue_operator.children.pod import WORKER
from requeue_operator.children.pull import PLAIN, Pull, pull_of
from requeue_operator.drains import Drains, Scene, decide
from requeue_operator.ending import Course, Ending, Release, course, release
from requeue_operator.expansion import growing
from requeue_operator.validation import InvalidSpec, read_spec

Key = tuple[str, str]
"""Kind and name of a child."""


@dataclass(frozen=True)
class Observed:
    """Live objects: the RequeueQueue, what stands under the names of its children, its claims, its drain Jobs, and
    (where a drain may go on) all pods that may use a claim.
    """

    queue: Manifest
    children: Mapping[Key, Manifest]
    claims: tuple[Manifest, ...]
    jobs: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    has_monitoring: bool = False
    """Whether the cluster knows PodMonitors."""
    ending: Ending | None = None
    """When its deletion waits for us."""

    @property
    def owner(self) -> Owner:
        """Whose children they are."""
        return Owner.of(self.queue)

    @property
    def stateful_set(self) -> Manifest | None:
        """The live StatefulSet."""
        return self.children.get(("StatefulSet", self.owner.name))


@dataclass(frozen=True)
class Stall:
    """Nothing goes on until somebody does something: a reason in one word, and what to do."""

    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What to delete, then what to apply, in order, then the drains, then the claims to expand. `stall`: nothing of it,
    and why. `spec` is None when it can't be read.
    """

    spec: RequeueQueueSpec | None = None
    delete: tuple[Manifest, ...] = ()
    apply: tuple[Manifest, ...] = ()
    stall: Stall | None = None
    image: str | None = None
    drains: Drains = field(default_factory=Drains)
    growing: tuple[Manifest, ...] = ()
    course: Course | None = None
    """Of a deletion that waits for us: how it goes on, and nothing but that is done ..."""
    release: Release | None = None
    """... until it does not wait any more."""


def plan(observed: Observed, default_image: str, now: datetime, default_pull: Pull = PLAIN) -> Plan:
    """The actions that lead from `observed` to what its spec asks for. The defaults are those of a new fleet."""
    try:
        spec = read_spec(observed.queue["spec"])
    except InvalidSpec as wrong:
        stall = Stall("InvalidSpec", str(wrong))
        if observed.ending is None:
            return Plan(stall=stall)
        freed = release(observed.queue, None, None, observed.claims, observed.ending, now)
        return Plan(stall=stall, release=freed)
    live_set, ending = observed.stateful_set, observed.ending
    way = None
    if ending is not None:
        freed = release(observed.queue, spec, live_set, observed.claims, ending, now)
        if freed is not None:
            return Plan(spec, release=freed)
        way = course(observed.queue, spec, live_set, ending, now)
        spec = spec.model_copy(update={"replicas": way.replicas})
    image = spec.image or _image_of(live_set) or default_image
    pull = default_pull if live_set is None else pull_of(live_set)
    drains = decide(
        Scene(
            observed.owner,
            spec,
            image,
            live_set,
            observed.claims,
            observed.jobs,
            observed.pods,
            now,
            pull,
            ending_to=None if way is None else way.fleet,
        )
    )
    if spec.paused:
        return Plan(spec, image=image, drains=drains.without_actions(), course=way)
    held = spec.model_copy(update={"replicas": drains.replicas(spec.replicas, live_set)})
    shared = observed.children.get(("PersistentVolumeClaim", observed.owner.shared_claim))
    wanted = children(
        observed.owner,
        held,
        image=image,
        pull=pull,
        volume_size=_volume_size(live_set),
        shared_size=None if shared is None else _size_of(shared),
        intake=way is None,
        is_emptied=way is not None and way.is_emptied,
    )
    wanted = [each for each in wanted if each["kind"] != "PodMonitor" or observed.has_monitoring]
    taken = [each for each in wanted if _is_foreign(observed, each)]
    if taken:
        names = ", ".join(f"{each['kind']} {each['metadata']['name']}" for each in taken)
        text = (
            f"{names} exists and belongs to something else; delete it, or give the RequeueQueue another name"
        )
        return Plan(spec, stall=Stall("NameTaken", text), image=image, drains=drains.without_actions())
    keys = {_key(each) for each in wanted}
    unwanted = tuple(
        live
        for key, live in observed.children.items()
        if key not in keys and _is_own(live, observed.owner) and not _is_going(live)
    )
    grow = growing(observed.owner, spec, observed.claims) if way is None else ()
    return Plan(spec, unwanted, tuple(wanted), image=image, drains=drains, growing=grow, course=way)


def _key(manifest: Manifest) -> Key:
    return manifest["kind"], manifest["metadata"]["name"]


def _is_own(live: Manifest, owner: Owner) -> bool:
    references: list[Any] = live["metadata"].get("ownerReferences") or []
    return any(each.get("uid") == owner.uid for each in references)


def _is_foreign(observed: Observed, wanted: Manifest) -> bool:
    live = observed.children.get(_key(wanted))
    if live is not None and wanted["kind"] == "PersistentVolumeClaim":
        # It outlives its RequeueQueue, and the next one of that name takes it up.
        labels: dict[str, str] = live["metadata"].get("labels") or {}
        return any(labels.get(key) != value for key, value in observed.owner.labels.items())
    return live is not None and not _is_own(live, observed.owner)


def _is_going(live: Manifest) -> bool:
    return live["metadata"].get("deletionTimestamp") is not None


def _image_of(stateful_set: Manifest | None) -> str | None:
    """The image in use goes on where the spec names none: an upgrade of the operator restarts no worker."""
    if stateful_set is None:
        return None
    containers = stateful_set["spec"]["template"]["spec"]["containers"]
    return next((str(each["image"]) for each in containers if each["name"] == WORKER), None)


def _volume_size(stateful_set: Manifest | None) -> str | None:
    if stateful_set is None:
        return None
    templates: list[Manifest] = stateful_set["spec"].get("volumeClaimTemplates") or []
    return _size_of(templates[0]) if templates else None


def _size_of(claim: Manifest) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])
