"""`logs`: what the pods of a fleet say, and the operator; lines of several pods have the pod's name before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import click

from requeue_operator.children.naming import Manifest
from requeue_operator.children.pod import WORKER
from requeue_operator.drains.job import CONTAINER as DRAIN
from requeue_operator.kube import Forbidden, Kube, KubeError
from requeue_operator.plugin.look import Fleet, find, fleets, name_of

ROLES: Final = ("workers", "drains", "operator")
OPERATOR: Final = {"app.kubernetes.io/name": "nats-requeue", "app.kubernetes.io/component": "operator"}
_LOOK_AGAIN_S: Final = 2.0


@dataclass(frozen=True)
class Source:
    """A container whose log is shown. Sidecars are not: what they say is not ours."""

    namespace: str
    pod: str
    container: str
    restarts: int = 0

    @property
    def path(self) -> str:
        """Of its log at the API server."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.pod}/log"


@dataclass(frozen=True)
class Wanted:
    """Which logs: `namespace` empty for all; `operator_namespace` None: where one is found."""

    namespace: str
    name: str | None
    roles: frozenset[str]
    operator_namespace: str | None = None


@dataclass(frozen=True)
class Window:
    """Which lines, as kubectl has it: `tail` -1 for all."""

    follow: bool = False
    since_s: int | None = None
    tail: int = -1
    previous: bool = False

    def query(self, container: str) -> dict[str, str]:
        """For the API server."""
        query = {"container": container}
        query |= {"follow": "true"} if self.follow else {}
        query |= {"sinceSeconds": str(self.since_s)} if self.since_s is not None else {}
        query |= {"tailLines": str(self.tail)} if self.tail >= 0 else {}
        query |= {"previous": "true"} if self.previous else {}
        return query


async def sources(kube: Kube, wanted: Wanted) -> list[Source]:
    """Those that there are now. Raises KubeError and PluginError."""
    found: list[Source] = []
    if wanted.roles - {"operator"}:
        for fleet in await fleets(kube, await find(kube, wanted.namespace, wanted.name)):
            found += of_fleet(fleet, wanted.roles)
    if "operator" in wanted.roles:
        pods = await operator_pods(kube, wanted.namespace, wanted.operator_namespace)
        found += [source_of(each, "operator") for each in pods]
    return found


def of_fleet(fleet: Fleet, roles: frozenset[str] = frozenset(ROLES)) -> list[Source]:
    """Of its workers and drains."""
    workers = [source_of(each, WORKER) for each in fleet.workers] if "workers" in roles else []
    drains = [source_of(each, DRAIN) for each in fleet.drain_pods] if "drains" in roles else []
    return [*workers, *drains]


async def operator_pods(kube: Kube, namespace: str, said: str | None = None) -> list[Manifest]:
    """Pods of operators: in the namespace that was said, else in all, else (without the right to that) in this one."""
    if said is None:
        try:
            return sorted(await kube.list("v1", "Pod", "", OPERATOR), key=name_of)
        except Forbidden:
            click.echo(
                "note: you may not look for the operator in all namespaces; --operator-namespace names its own",
                err=True,
            )
    return sorted(await kube.list("v1", "Pod", said or namespace, OPERATOR), key=name_of)


async def show(kube: Kube, wanted: Wanted, window: Window) -> bool:
    """Print them, one after the other; False when there is none."""
    found = await sources(kube, wanted)
    for source in found:
        await _print(kube, source, window, _prefix(source, found, wanted))
    return bool(found)


async def follow(kube: Kube, wanted: Wanted, window: Window) -> None:
    """Print them as they grow, of pods that come later too, until it is stopped.

    Raises KubeError and PluginError; an API server that is away is waited for.
    """
    try:
        async with asyncio.TaskGroup() as group:
            await _follow_all(kube, wanted, window, group)
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


async def _follow_all(kube: Kube, wanted: Wanted, window: Window, group: asyncio.TaskGroup) -> None:
    state, is_away = _Followed(), False
    while True:
        try:
            found = await sources(kube, wanted)
            is_away = False
        except KubeError as error:
            if isinstance(error, Forbidden) or not (state.running or state.last):
                raise
            if not is_away:
                click.echo(f"note: {error}; waiting", err=True)
            found, is_away = [], True
        for source in found:
            if source not in state.running:
                state.running.add(source)
                prefix = _prefix(source, found, wanted)
                group.create_task(_follow_one(kube, source, window, prefix, state))
        await asyncio.sleep(_LOOK_AGAIN_S)


@dataclass
class _Followed:
    """What is being followed, and the time of the last line of each, as the kubelet wrote it."""

    running: set[Source] = field(default_factory=set)
    last: dict[Source, str] = field(default_factory=dict)


async def _follow_one(kube: Kube, source: Source, window: Window, prefix: str, state: _Followed) -> None:
    query, last = window.query(source.container), state.last.get(source, "")
    if last:  # the stream ended, the container may go on; what came in that same second comes again
        query = {
            "container": source.container,
            "follow": "true",
            "sinceTime": last.partition(".")[0].rstrip("Z") + "Z",
        }
    try:
        async for line in lines(kube, source, {**query, "timestamps": "true"}):
            time, _, said = line.partition(" ")
            if time > last:
                click.echo(prefix + said)
                state.last[source] = time
    except Forbidden:
        raise
    except KubeError:
        pass  # not started yet, or gone: the next look tells
    await asyncio.sleep(_LOOK_AGAIN_S)
    state.running.discard(source)


async def _print(kube: Kube, source: Source, window: Window, prefix: str) -> None:
    try:
        async for line in lines(kube, source, window.query(source.container)):
            click.echo(prefix + line)
    except Forbidden:
        raise
    except KubeError as error:
        click.echo(f"note: {source.pod} has no log to show: {error}", err=True)


async def lines(kube: Kube, source: Source, query: dict[str, str]) -> AsyncIterator[str]:
    """Lines of one log. Raises KubeError."""
    rest = b""
    async for part in kube.stream(source.path, query):
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _prefix(source: Source, found: list[Source], wanted: Wanted) -> str:
    if len(found) == 1 and wanted.name is not None:
        return ""
    place = source.namespace != wanted.namespace
    return f"[{source.namespace}/{source.pod}] " if place else f"[{source.pod}] "


def source_of(pod: Manifest, container: str) -> Source:
    """This container of a pod."""
    statuses: list[dict[str, Any]] = (pod.get("status") or {}).get("containerStatuses") or []
    restarts = next((each.get("restartCount", 0) for each in statuses if each["name"] == container), 0)
    return Source(pod["metadata"]["namespace"], name_of(pod), container, restarts)
