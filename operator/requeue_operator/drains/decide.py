"""Which write brings each claim one step further. Pure: live objects in, actions out.

A claim is drained when its ordinal is not below `replicas` of both the RequeueQueue and the live StatefulSet, whose
controller has seen that, and no pod uses it. Everybody else's claim is let go of: Job, its pod, then the nonce.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from requeue_operator.api import RequeueQueueSpec
from requeue_operator.children.naming import Manifest, Owner
from requeue_operator.children.pull import PLAIN, Pull
from requeue_operator.drains.actions import (
    Action,
    Begin,
    Cancel,
    Clear,
    Drains,
    Note,
    Progress,
    Remove,
    Run,
    State,
)
from requeue_operator.drains.claim import NONCE, Claim, claims_of, ordinal_in, parse_time, used_by, write_time
from requeue_operator.drains.job import JOB_LABELS, drain_job, job_name
from requeue_operator.drains.proof import Proven, outcome

_AT_ONCE: Final = 8
_SHORTEST_WAIT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 600.0
_STUCK_AFTER_S: Final = 120.0
_LOOK_EVERY_S: Final = 30.0


@dataclass(frozen=True)
class Scene:
    """What is judged: live objects, read one after the other just now. `pods`: all that may use a claim."""

    owner: Owner
    spec: RequeueQueueSpec
    image: str
    live_set: Manifest | None
    claims: tuple[Manifest, ...]
    jobs: tuple[Manifest, ...]
    pods: tuple[Manifest, ...]
    now: datetime
    pull: Pull = PLAIN
    ending_to: str | None = None
    """Of a RequeueQueue that is being deleted: the UID of the one whose workers take over everything."""

    @property
    def fleet(self) -> str:
        """To whom messages are handed."""
        return self.ending_to or self.owner.uid


def concern(queue: Manifest, live_set: Manifest | None, claims: list[Manifest], jobs: list[Manifest]) -> bool:
    """Whether a drain may go on or the fleet grows, so that the pods of the namespace have to be looked at."""
    owner = Owner.of(queue)
    replicas = int(queue["spec"].get("replicas", 1))
    grows = live_set is None or int(live_set["spec"]["replicas"]) < replicas
    return (
        bool(jobs)
        or grows
        or any(
            claim.ordinal >= replicas or claim.is_marked or claim.is_going
            for claim in claims_of(owner, claims)
        )
    )


def decide(scene: Scene) -> Drains:
    """Judge every claim."""
    claims = claims_of(scene.owner, scene.claims)
    views = [_View(scene, claim) for claim in claims]
    actions: list[Action] = [*_left_over(scene, claims)]
    slots = _AT_ONCE - sum(view.is_running for view in views)
    steps = []
    for view in views:
        step = view.step(slots > 0)
        slots -= isinstance(step.action, Run)
        actions += [step.action] if step.action is not None else []
        steps.append(step)
    busy = frozenset((*(view.claim.ordinal for view in views if view.is_busy), *_left_behind(scene)))
    again_s = min((step.again_s for step in steps), default=math.inf)
    progress = tuple(step.progress for step in steps if step.progress is not None)
    return Drains(tuple(actions), progress, busy, _LOOK_EVERY_S if actions else again_s)


def _left_over(scene: Scene, claims: list[Claim]) -> Iterator[Cancel]:
    """Jobs whose claim is gone."""
    names = {job_name(scene.owner, claim) for claim in claims}
    for job in scene.jobs:
        if job["metadata"]["name"] not in names and _is_own(job, scene.owner) and not _is_going(job):
            yield Cancel(job)


def _left_behind(scene: Scene) -> Iterator[int]:
    """Ordinals of Jobs and of their pods, whether there is a claim or not: they would take a new one of its name."""
    jobs = (ordinal_in(f"{scene.owner.name}-drain-", job["metadata"]["name"]) for job in scene.jobs)
    names = (name for pod in scene.pods if _is_drain(pod) for name in used_by(pod))
    pods = (ordinal_in(f"data-{scene.owner.name}-", name) for name in names)
    yield from (ordinal for ordinal in (*jobs, *pods) if ordinal is not None)


@dataclass(frozen=True)
class _Step:
    action: Action | None = None
    progress: Progress | None = None
    again_s: float = math.inf


class _View:
    """One claim, with everything that has to do with it."""

    def __init__(self, scene: Scene, claim: Claim) -> None:
        self._scene = scene
        self.claim = claim
        name = job_name(scene.owner, claim)
        self._job = next((each for each in scene.jobs if each["metadata"]["name"] == name), None)
        users = [pod for pod in scene.pods if claim.name in used_by(pod)]
        self._drain_pods = [pod for pod in users if _is_drain(pod)]
        self._others = [pod for pod in users if not _is_drain(pod)]
        self._outcome = None
        if self._job is not None:
            own = [pod for pod in self._drain_pods if _is_of(pod, self._job)]
            self._outcome = outcome(self._job, own, claim, scene.fleet)

    @property
    def is_running(self) -> bool:
        return self._job is not None and self._outcome is None

    @property
    def is_busy(self) -> bool:
        """No pod of the fleet may use it yet."""
        return self.claim.is_going or self.claim.is_marked or self._job is not None or bool(self._drain_pods)

    @property
    def _is_wanted(self) -> bool:
        """Somebody has to be left who can take it."""
        spec = self._scene.spec
        if self._scene.ending_to is not None:
            return spec.replicas <= self.claim.ordinal
        drains = spec.storage.on_scale_down == "Drain" and spec.storage.mode == "PerPod"
        return drains and 1 <= spec.replicas <= self.claim.ordinal

    @property
    def _settled_set(self) -> Manifest | None:
        """The live StatefulSet when it has no pod for the claim, its controller knows, and so makes none."""
        live_set = self._scene.live_set
        if live_set is None or _is_going(live_set):
            return None
        seen = live_set.get("status", {}).get("observedGeneration", 0) >= live_set["metadata"]["generation"]
        return live_set if seen and int(live_set["spec"]["replicas"]) <= self.claim.ordinal else None

    def step(self, has_slot: bool) -> _Step:
        """The next write, and what to tell."""
        if self.claim.is_going:
            return _Step(self._cancel(), self._progress(State.GOING, "is being deleted"), _LOOK_EVERY_S)
        if not self._is_wanted:
            return self._let_go()
        if self._settled_set is None:
            told = self._progress(State.DRAINING, "waits for the StatefulSet to shrink")
            return _Step(None, told, _LOOK_EVERY_S)
        return self._drain(self._settled_set, has_slot)

    def _let_go(self) -> _Step:
        if not self.is_busy:
            is_kept = self.claim.ordinal >= self._scene.spec.replicas
            return _Step(None, self._progress(State.RETAINED) if is_kept else None)
        told = self._progress(State.LETTING_GO, "its drain is being taken back")
        if self._job is not None or self._drain_pods:
            return _Step(self._cancel(), told, _LOOK_EVERY_S)
        return _Step(Clear(self.claim), told)

    def _drain(self, live_set: Manifest, has_slot: bool) -> _Step:
        claim, job = self.claim, self._job
        if self._others:
            users = ", ".join(pod["metadata"]["name"] for pod in self._others)
            return _Step(
                None,
                self._progress(State.DRAINING, f"waits for whoever uses it to end: {users}"),
                _LOOK_EVERY_S,
            )
        is_current = claim.nonce is not None and claim.is_of(live_set)
        if job is None:
            told = self._progress(State.DRAINING, "its drain begins")
            if self._drain_pods:
                return _Step(None, told, _LOOK_EVERY_S)
            if not is_current:
                return _Step(Begin(claim, live_set), told)
            if not has_slot:
                waits = self._progress(
                    State.DRAINING, f"waits until fewer than {_AT_ONCE} others are drained"
                )
                return _Step(None, waits, _LOOK_EVERY_S)
            scene = self._scene
            job = drain_job(
                scene.owner, scene.spec, scene.image, claim, str(claim.nonce), scene.fleet, scene.pull
            )
            return _Step(Run(job), told)
        if not _is_own(job, self._scene.owner):
            text = f"Job {job['metadata']['name']} belongs to something else; delete it"
            return _Step(None, self._progress(State.FAILED, text, "NameTaken"), _LOOK_EVERY_S)
        is_old = claim.nonce is None or (job["metadata"].get("annotations") or {}).get(NONCE) != claim.nonce
        if _is_going(job) or is_old or (self._outcome is not None and not is_current):
            return _Step(self._cancel(), self._progress(State.DRAINING, "a new drain begins"), _LOOK_EVERY_S)
        return self._judge(job)

    def _judge(self, job: Manifest) -> _Step:
        """The Job is the one of this drain: it runs, has a proof, or is tried again."""
        result, claim = self._outcome, self.claim
        if result is None:
            return self._running(job)
        if isinstance(result, Proven):
            return _Step(Remove(claim), self._progress(State.GOING, "is drained"))
        if result.volume is not None and claim.volume is None:
            return _Step(Note(claim, result.volume), self._progress(State.FAILED, result.text, result.reason))
        # The longer it has gone on like this, the longer the next wait: they double.
        at, now = result.at or self._scene.now, self._scene.now
        gone_s = (at - (claim.began or at)).total_seconds()
        due = at + timedelta(seconds=min(max(gone_s, _SHORTEST_WAIT_S), _LONGEST_WAIT_S))
        text = f"{result.text}; tried again at {write_time(due)}"
        told = self._progress(State.FAILED, text, result.reason)
        if now < due:
            return _Step(None, told, (due - now).total_seconds())
        return _Step(Cancel(job), told)

    def _running(self, job: Manifest) -> _Step:
        name = job["metadata"]["name"]
        own = [pod for pod in self._drain_pods if _is_of(pod, job)]
        if any(pod.get("status", {}).get("phase") == "Running" for pod in own):
            return _Step(None, self._progress(State.DRAINING, f"Job {name} drains it"), _LOOK_EVERY_S)
        since = parse_time((own[0] if own else job)["metadata"].get("creationTimestamp")) or self._scene.now
        left_s = _STUCK_AFTER_S - (self._scene.now - since).total_seconds()
        if left_s > 0:
            return _Step(None, self._progress(State.DRAINING, f"Job {name} begins"), left_s)
        why = (
            _hindrance(own[0]) if own else "it has no pod (a quota, or admission): see the events of the Job"
        )
        text = f"Job {name} cannot begin: {why}"
        return _Step(None, self._progress(State.FAILED, text, "DrainStuck"), _LOOK_EVERY_S)

    def _cancel(self) -> Cancel | None:
        job = self._job
        if job is None or not _is_own(job, self._scene.owner) or _is_going(job):
            return None
        return Cancel(job)

    def _progress(self, state: State, text: str = "", reason: str = "") -> Progress:
        return Progress(self.claim.name, state, text, reason)


def _hindrance(pod: Manifest) -> str:
    """Why a pod does not run, in the words of whoever keeps it from that."""
    status = pod.get("status", {})
    for each in status.get("containerStatuses") or []:
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason"):
            return f"{waiting['reason']}: {waiting.get('message') or 'see the events of the pod'}"
    for each in status.get("conditions") or []:
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return f"{each.get('reason')}: {each.get('message') or 'see the events of the pod'}"
    return f"its pod {pod['metadata']['name']} is not running: see the events of the pod"


def _is_drain(pod: Manifest) -> bool:
    labels: dict[str, Any] = pod["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in JOB_LABELS.items())


def _is_of(pod: Manifest, job: Manifest) -> bool:
    references: list[dict[str, Any]] = pod["metadata"].get("ownerReferences") or []
    return any(each.get("uid") == job["metadata"]["uid"] and each.get("controller") for each in references)


def _is_own(live: Manifest, owner: Owner) -> bool:
    references: list[dict[str, Any]] = live["metadata"].get("ownerReferences") or []
    return any(each.get("uid") == owner.uid for each in references)


def _is_going(live: Manifest) -> bool:
    return live["metadata"].get("deletionTimestamp") is not None
