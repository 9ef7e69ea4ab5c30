"""One idempotent, level-triggered reconcile: observe → plan → apply → observe → status.

Reads live objects at each run and keeps nothing between two. A run that changes nothing writes nothing.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from requeue_operator.api import GROUP, KIND, VERSION
from requeue_operator.children import MONITORING, Manifest, Owner, Pull
from requeue_operator.children.pull import PLAIN
from requeue_operator.drains import JOB_LABELS, Drains, carry_out, concern
from requeue_operator.ending import Ending, finalizers, holds, others
from requeue_operator.expansion import TRY_AGAIN_S, Refusal, refusal
from requeue_operator.kube import Forbidden, Kube, KubeError, NamespaceGoes, Rejected
from requeue_operator.plan import Observed, Plan, Stall, plan
from requeue_operator.status import Event, Known, changed, status_of, transitions
from requeue_operator.symptoms import look_for_trouble

_API: Final = f"{GROUP}/{VERSION}"


@dataclass(frozen=True)
class Outcome:
    """The RequeueQueue as it was read, what is worth telling, what is to be tried again, and when to look again."""

    queue: Manifest
    events: list[Event]
    error: KubeError | None = None
    again_s: float = math.inf


async def reconcile(
    kube: Kube,
    namespace: str,
    name: str,
    default_image: str,
    known: Known | None = None,
    default_pull: Pull = PLAIN,
) -> Outcome | None:
    """Lead one RequeueQueue to what it asks for. None when it is gone, or going without our finalizer: the garbage
    collector does the rest.

    Raises KubeError when the API server cannot be asked; a refusal of one action ends up in the status first.
    """
    queue = await kube.get(_API, KIND, namespace, name)
    if queue is None or (_is_going(queue) and not holds(queue)):
        return None
    known = known or Known()
    try:
        wanted = None if _is_going(queue) else finalizers(queue)
        if wanted is not None:
            queue = await kube.set_finalizers(queue, wanted)
        observed = await _observe(kube, queue, known)
    except Forbidden as denied:
        return await _tell_forbidden(kube, queue, denied)
    planned = plan(observed, default_image, datetime.now(UTC), default_pull)
    if planned.release is not None:
        await kube.set_finalizers(queue, others(queue))
        why = planned.release
        return Outcome(queue, [Event(why.is_warning, why.reason, why.message)])
    heard = known

    async def look_again() -> Drains:
        return await _look_again(kube, queue, default_image, default_pull, heard)

    stall, error, again_s = planned.stall, None, planned.drains.again_s
    if stall is None:
        try:
            observed = await _carry_out(kube, observed, planned)
            await carry_out(kube, planned.drains, look_again)
            refused = await _expand(kube, planned)
            trouble, look_s = await look_for_trouble(kube, observed, planned)
            again_s = min(again_s, look_s, TRY_AGAIN_S if refused else math.inf)
            again_s = min(again_s, planned.course.again_s if planned.course else math.inf)
            known = replace(known, refused=refused)
            if trouble is not None and trouble.is_final:
                stall = Stall(trouble.reason, trouble.message)
            elif trouble is not None:
                known = replace(known, awaited=trouble.message)
        except NamespaceGoes:
            return Outcome(queue, [])  # no fault of anybody: its own deletion comes next
        except (Forbidden, Rejected) as denied:
            error = denied
            stall = _stall(denied)
    status = status_of(observed, planned, stall, _now(), known)
    difference = changed(observed, status)
    if difference:
        await kube.patch_status(queue, difference)
    return Outcome(queue, transitions(observed, status), error, again_s)


async def _tell_forbidden(kube: Kube, queue: Manifest, denied: Forbidden) -> Outcome:
    """It may not even be looked at: the conditions say so, and all else in the status stays."""
    observed, stall = Observed(queue, {}, ()), _stall(denied)
    told = status_of(observed, Plan(stall=stall), stall, _now())
    status = {key: told[key] for key in ("observedGeneration", "conditions")}
    difference = changed(observed, status)
    if difference:
        await kube.patch_status(queue, difference)
    return Outcome(queue, transitions(observed, status), denied)


def _is_going(queue: Manifest) -> bool:
    return queue["metadata"].get("deletionTimestamp") is not None


async def _observe(kube: Kube, queue: Manifest, known: Known) -> Observed:
    owner = Owner.of(queue)
    has_monitoring = await kube.serves(MONITORING, "PodMonitor")
    wanted = [
        ("v1", "ServiceAccount", owner.service_account),
        ("v1", "ConfigMap", owner.config_map),
        ("v1", "Service", owner.name),
        ("v1", "Service", f"{owner.name}-metrics"),
        ("networking.k8s.io/v1", "NetworkPolicy", owner.name),
        ("policy/v1", "PodDisruptionBudget", owner.name),
        ("apps/v1", "StatefulSet", owner.name),
        *([(MONITORING, "PodMonitor", owner.name)] if has_monitoring else []),
        *([("v1", "PersistentVolumeClaim", owner.shared_claim)] if _is_shared(queue) else []),
    ]
    found = await asyncio.gather(*(kube.get(api, kind, owner.namespace, name) for api, kind, name in wanted))
    live = {
        (kind, name): each for (_, kind, name), each in zip(wanted, found, strict=True) if each is not None
    }
    claims, jobs = await asyncio.gather(
        kube.list("v1", "PersistentVolumeClaim", owner.namespace, owner.labels),
        kube.list("batch/v1", "Job", owner.namespace, {**owner.labels, **JOB_LABELS}),
    )
    ending = await _ending(kube, queue, known) if _is_going(queue) else None
    looks = ending is not None or concern(queue, live.get(("StatefulSet", owner.name)), claims, jobs)
    # After the StatefulSet: a pod that is not there now was not made by a state of it that came before.
    pods = await kube.list("v1", "Pod", owner.namespace, {}) if looks else []
    return Observed(queue, live, tuple(claims), tuple(jobs), tuple(pods), has_monitoring, ending)


async def _ending(kube: Kube, queue: Manifest, known: Known) -> Ending:
    namespace = queue["metadata"]["namespace"]
    name = queue["spec"]["storage"].get("drainTo")
    target = await kube.get(_API, KIND, namespace, name) if name else None
    if target is not None and _is_going(target):
        target = None
    is_empty = known.heard is not None and known.heard.is_empty
    return Ending(target, is_empty, await kube.namespace_goes(namespace))


def _is_shared(queue: Manifest) -> bool:
    return bool(queue["spec"]["storage"].get("mode") == "Shared")


async def _look_again(
    kube: Kube, queue: Manifest, default_image: str, default_pull: Pull, known: Known
) -> Drains:
    """The drains as live objects have them now; none when the RequeueQueue is another one, or going."""
    metadata = queue["metadata"]
    live = await kube.get(_API, KIND, metadata["namespace"], metadata["name"])
    if live is None or live["metadata"]["uid"] != metadata["uid"] or (_is_going(live) and not holds(live)):
        return Drains()
    return plan(await _observe(kube, live, known), default_image, datetime.now(UTC), default_pull).drains


async def _carry_out(kube: Kube, observed: Observed, planned: Plan) -> Observed:
    """Delete, then apply in order; the state after that."""
    for live in planned.delete:
        await kube.delete(live)
    after = dict(observed.children)
    for manifest in planned.apply:
        key = (manifest["kind"], manifest["metadata"]["name"])
        after[key] = await kube.apply(manifest, observed.children.get(key))
    return replace(observed, children=after)


async def _expand(kube: Kube, planned: Plan) -> dict[str, Refusal]:
    """Expand each claim by itself; by name, those that may not grow. The workers go on all the same."""
    refused = {}
    for claim in planned.growing:
        assert planned.spec is not None
        try:
            await kube.expand(claim, planned.spec.storage.size)
        except (Forbidden, Rejected) as denied:
            refused[claim["metadata"]["name"]] = refusal(claim, str(denied))
    return refused


def _stall(denied: Forbidden | Rejected) -> Stall:
    if isinstance(denied, Forbidden):
        return Stall("Forbidden", f"the operator lacks a permission; grant it: {denied}")
    return Stall("Rejected", f"the API server refuses a child; change what it names: {denied}")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
