"""Asks all workers how they are, so that no reconcile has to wait for one: a task for each fleet.

    pods come and go → /metrics of each, every `_EVERY_S` → the backlog, written when it is another one
                                                          → `Heard`, reconciled when it is another one

A backlog is written every `_EVERY_S` at most. A fleet that tells the same again is asked half as often. A worker that does
not answer counts with what it told last. While no worker is asked for (replicas 0) nobody is asked, and the last backlog
stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from requeue_operator.backlog import Told, backlog_of
from requeue_operator.children.naming import Manifest
from requeue_operator.heard import Heard
from requeue_operator.workers import NoAnswer, Workers

log = logging.getLogger(__name__)

_EVERY_S: Final = 30.0
_SETTLING_S: Final = 1.0

Write = Callable[[Manifest, Manifest], Awaitable[None]]
"""Writes a backlog (second) into the status of a RequeueQueue (first)."""
Poke = Callable[[str, str], None]


@dataclass(frozen=True)
class Pod:
    """A worker's pod as far as asking goes."""

    ordinal: int
    address: str
    is_ready: bool


def seen_pod(pod: Mapping[str, Any], ordinal: int) -> Pod | None:
    """A live pod; None when there is nobody to ask: it is going, has ended, or has no address yet."""
    status = pod.get("status") or {}
    address = status.get("podIP")
    has_ended = status.get("phase") in ("Succeeded", "Failed")
    if pod["metadata"].get("deletionTimestamp") or has_ended or not address:
        return None
    conditions = status.get("conditions") or []
    is_ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return Pod(ordinal, address, is_ready)


@dataclass
class _Fleet:
    queue: Manifest | None = None
    pods: dict[str, Pod] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    heard: Heard | None = None
    backlog: Manifest | None = None
    written_at_s: float = float("-inf")
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Collector:
    """All fleets that are known. Lives on one event loop."""

    def __init__(self, workers: Workers, write: Write, poke: Poke) -> None:
        self._workers = workers
        self._write = write
        self._poke = poke
        self._fleets: dict[tuple[str, str], _Fleet] = {}

    def see_queue(self, namespace: str, name: str, queue: Manifest | None) -> None:
        """A RequeueQueue as it stands now; None when it is gone."""
        key = (namespace, name)
        fleet = self._fleets.setdefault(key, _Fleet())
        if queue is None or (fleet.queue is not None and _uid(fleet.queue) != _uid(queue)):
            del self._fleets[key]
            if fleet.task is not None:
                fleet.task.cancel()
            if queue is None:
                return
            fleet = self._fleets[key] = _Fleet(pods=fleet.pods)
        fleet.queue = queue
        if fleet.task is None:
            fleet.task = asyncio.create_task(self._follow(key, fleet), name=f"ask {namespace}/{name}")

    def see_pod(self, namespace: str, name: str, pod: str, at: Pod | None) -> None:
        """A pod of the fleet `name`; None when it is gone or going."""
        fleet = self._fleets.setdefault((namespace, name), _Fleet())
        if fleet.pods.get(pod) != at:
            fleet.wake.set()
        if at is not None:
            fleet.pods[pod] = at
            return
        fleet.pods.pop(pod, None)
        if fleet.queue is None and not fleet.pods:
            del self._fleets[namespace, name]

    def heard(self, namespace: str, name: str) -> Heard | None:
        """What its workers said last; None when none was asked yet."""
        fleet = self._fleets.get((namespace, name))
        return None if fleet is None else fleet.heard

    async def close(self) -> None:
        """Ask no more."""
        tasks = [each.task for each in self._fleets.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, key: tuple[str, str], fleet: _Fleet) -> None:
        told: dict[str, Told] = {}
        while True:
            wait_s = _EVERY_S if told != fleet.told else 2 * _EVERY_S
            told = dict(fleet.told)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(fleet.wake.wait(), wait_s * random.uniform(1.0, 1.2))
                await asyncio.sleep(_SETTLING_S)
            fleet.wake.clear()
            try:
                await self._ask_all(key, fleet)
            except Exception as error:
                extra = {"namespace": key[0], "requeuequeue": key[1], "error": str(error)}
                log.warning("the workers' state is not written, trying again", extra=extra)

    async def _ask_all(self, key: tuple[str, str], fleet: _Fleet) -> None:
        assert fleet.queue is not None
        replicas = fleet.queue["spec"]["replicas"]
        pods = {name: pod for name, pod in fleet.pods.items() if pod.ordinal < replicas}
        answers = dict(
            zip(pods, await asyncio.gather(*(self._ask(pod) for pod in pods.values())), strict=True)
        )
        self._remember(key[1], fleet, answers, replicas)
        heard = Heard(
            sum(reason is None for told, reason in answers.values() if told is not None),
            {name: reason for name, (_, reason) in sorted(answers.items()) if reason is not None},
            tuple(sorted(name for name, (told, _) in answers.items() if told is None)),
            len(answers) == replicas > 0
            and all(told is not None and told.is_empty for told, _ in answers.values()),
        )
        if answers or fleet.heard is not None:
            changed, fleet.heard = fleet.heard != heard, heard
            if changed:
                self._poke(*key)
        if fleet.told and replicas:
            await self._tell(fleet)

    async def _ask(self, pod: Pod) -> tuple[Told | None, str | None]:
        """What it tells, and why it is not connected to NATS or not allowed what it needs there."""
        try:
            told = await self._workers.metrics(pod.address)
            if told.is_connected and pod.is_ready:
                return told, None
            reason = await self._workers.why_not_ready(pod.address)
        except NoAnswer as error:
            log.debug("a worker does not answer", extra={"address": pod.address, "error": str(error)})
            return None, None
        if told.is_connected:
            # Ready for the worker, and not yet for the kubelet: its next probe tells.
            return told, reason
        return told, reason or "not connected to NATS"

    def _remember(
        self, name: str, fleet: _Fleet, answers: Mapping[str, tuple[Told | None, str | None]], replicas: int
    ) -> None:
        fleet.told.update({pod: told for pod, (told, _) in answers.items() if told is not None})
        if replicas:  # at 0 they are kept: the same workers come back
            expected = {f"{name}-{ordinal}" for ordinal in range(replicas)}
            for pod in fleet.told.keys() - expected:
                del fleet.told[pod]

    async def _tell(self, fleet: _Fleet) -> None:
        assert fleet.queue is not None
        backlog = backlog_of(fleet.told.values())
        if backlog == fleet.backlog:
            return
        now_s = asyncio.get_running_loop().time()
        if now_s - fleet.written_at_s < _EVERY_S:
            return
        if _plain(backlog) != _plain((fleet.queue.get("status") or {}).get("backlog") or {}):
            await self._write(fleet.queue, backlog)
            fleet.written_at_s = now_s
        fleet.backlog = backlog


def _plain(backlog: Manifest) -> Manifest:
    return {key: value for key, value in backlog.items() if value is not None}


def _uid(queue: Manifest) -> str:
    return str(queue["metadata"]["uid"])
