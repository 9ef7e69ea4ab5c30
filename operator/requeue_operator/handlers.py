"""The operator as a process. Alone imports kopf, which watches and reconnects; everything else is our own.

Only raw events are taken: they write nothing into objects, force no finalizer, and each pokes the same reconcile. So
nothing hangs while the operator is down, and an event that is lost costs a resync.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, Final, cast

import kopf

from requeue_operator.api import GROUP, KIND, PLURAL, VERSION
from requeue_operator.children.naming import MANAGER, Manifest
from requeue_operator.children.pull import Pull
from requeue_operator.collector import Collector, seen_pod
from requeue_operator.drains import JOB_LABELS
from requeue_operator.fleet import Fleet
from requeue_operator.http import Address, serving
from requeue_operator.kube import Kube, KubeError
from requeue_operator.metrics import Metrics
from requeue_operator.overlap import Intakes
from requeue_operator.reconcile import reconcile
from requeue_operator.status import Known
from requeue_operator.troubles import is_in_trouble
from requeue_operator.workers import Workers

log = logging.getLogger(__name__)

_INSTANCE: Final = "app.kubernetes.io/instance"
_LABELS: Final = {"app.kubernetes.io/managed-by": MANAGER}
_CHILDREN: Final = (
    ("", "v1", "configmaps"),
    ("", "v1", "services"),
    ("", "v1", "serviceaccounts"),
    ("", "v1", "persistentvolumeclaims"),
    ("apps", "v1", "statefulsets"),
    ("batch", "v1", "jobs"),
    ("policy", "v1", "poddisruptionbudgets"),
    ("networking.k8s.io", "v1", "networkpolicies"),
)


async def operate(
    *,
    namespaces: tuple[str, ...],
    image: str,
    pull: Pull,
    http: Address | None = None,
    resync_s: float = 600.0,
) -> None:
    """Reconcile until a signal stops it; no namespaces: all of them. Raises ListenError, and what ends the watching."""
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line for each event otherwise
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(await Kube.connect(metrics.requested))
        workers = await stack.enter_async_context(Workers())

        async def run(namespace: str, name: str) -> float | None:
            known = Known(collector.heard(namespace, name), intakes.finding(namespace, name))
            outcome = await reconcile(kube, namespace, name, image, known, pull)
            if outcome is None:
                return None
            for event in outcome.events:
                kind = "Warning" if event.is_warning else "Normal"
                kopf.event(
                    cast(kopf.Body, outcome.queue), type=kind, reason=event.reason, message=event.message
                )
            if outcome.error is not None:
                raise outcome.error
            return outcome.again_s

        async def write(queue: Manifest, backlog: Manifest) -> None:
            await kube.patch_status(queue, {"backlog": backlog})

        def note(seconds: float, failed: bool) -> None:
            metrics.reconciled(seconds, failed=failed)

        fleet = Fleet(run, note, resync_s)
        collector = Collector(workers, write, fleet.poke)
        intakes = Intakes()
        if http is not None:
            await stack.enter_async_context(serving(http, fleet.stuck, metrics.registry))
        await _see_all(kube, namespaces, intakes)
        try:
            await kopf.operator(
                registry=_registry(fleet, collector, metrics, intakes),
                settings=_settings(namespaces),
                namespaces=namespaces,
                clusterwide=not namespaces,
                standalone=True,
                # kopf would look up the user's name, and end where a container's user has none.
                identity=cast(Any, "requeue-operator"),
            )
        finally:
            await collector.close()
            await fleet.close()


class _Backoffs:
    """Seconds between attempts to reach the API server: without end, since an operator that gives up helps nobody."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 1.0, 2.0, 3.0, 5.0, 8.0), itertools.repeat(10.0))


def _settings(namespaces: tuple[str, ...]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # Whoever looks after some namespaces need not be allowed to see which namespaces and resources there are.
    settings.scanning.disabled = bool(namespaces)
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = _Backoffs()
    settings.watching.server_timeout = 300
    settings.posting.loggers = False
    # Never used by raw events; set all the same, so that a handler of another kind could not leave kopf's defaults.
    settings.persistence.finalizer = f"{GROUP}/operator"
    return settings


async def _see_all(kube: Kube, namespaces: tuple[str, ...], intakes: Intakes) -> None:
    """Before the first reconcile: else each start would write for a moment that nothing overlaps."""
    for wait_s in _Backoffs():
        try:
            queues = await kube.list_all(f"{GROUP}/{VERSION}", KIND, namespaces)
        except KubeError as error:
            log.warning("RequeueQueues cannot be listed, trying again in %g s: %s", wait_s, error)
            await asyncio.sleep(wait_s)
        else:
            for queue in queues:
                intakes.see(queue["metadata"]["namespace"], queue["metadata"]["name"], queue)
            return


def _registry(
    fleet: Fleet, collector: Collector, metrics: Metrics, intakes: Intakes
) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> Any:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.cleanup(registry=registry)
    async def end(**_: Any) -> None:
        # Before kopf looks for tasks that it does not know, and waits for them.
        await collector.close()
        await fleet.close()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def of_queue(namespace: str | None, name: str, body: Any, type: Any, **_: Any) -> None:  # noqa: A002
        queue = None if type == "DELETED" else dict(body)
        collector.see_queue(namespace or "", name, queue)
        metrics.see_queue(namespace or "", name, queue)
        for other in intakes.see(namespace or "", name, queue):
            fleet.poke(*other)
        fleet.poke(namespace or "", name)

    @kopf.on.event("", "v1", "pods", labels=_LABELS, registry=registry)
    async def of_pod(namespace: str | None, name: str, body: Any, type: Any, **_: Any) -> None:  # noqa: A002
        instance, dash, ordinal = name.rpartition("-")
        if dash and ordinal.isdecimal() and instance == body["metadata"]["labels"].get(_INSTANCE):
            pod = None if type == "DELETED" else seen_pod(body, int(ordinal))
            collector.see_pod(namespace or "", instance, name, pod)
            if is_in_trouble(body):
                fleet.poke(namespace or "", instance)

    async def of_child(namespace: str | None, labels: Any, **_: Any) -> None:
        if _INSTANCE in labels:
            fleet.poke(namespace or "", labels[_INSTANCE])

    kopf.on.event("", "v1", "pods", labels=dict(JOB_LABELS), registry=registry, id="of_drains")(of_child)
    for group, version, plural in _CHILDREN:
        watched = kopf.on.event(group, version, plural, labels=_LABELS, registry=registry, id=f"of_{plural}")
        watched(of_child)
    return registry
