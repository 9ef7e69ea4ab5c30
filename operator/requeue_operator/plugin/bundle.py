"""`report`: a support bundle. Everything in it goes through redact.py; payloads are on volumes, of which nothing is read."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Final

import yaml

from requeue_operator.children.naming import Manifest
from requeue_operator.children.worker_config import HTTP_PORT
from requeue_operator.kube import Forbidden, Kube, KubeError
from requeue_operator.plugin import overview, redact, volumes
from requeue_operator.plugin.errors import denied
from requeue_operator.plugin.logs import Source, Window, lines, of_fleet, operator_pods, source_of
from requeue_operator.plugin.look import MANAGED, Fleet, find, fleets, name_of

_KINDS: Final = (
    ("requeue.dev/v1alpha1", "RequeueQueue"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "ConfigMap"),
    ("v1", "Service"),
)
_OF_WORKERS: Final = {
    "metrics": "metrics.txt",
    "readyz": "readyz.txt",
    "livez": "livez.txt",
    "overview": "overview.jsonl",
}


@dataclass
class Bundle:
    """Files by their path, and what could not be read."""

    files: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, value: object) -> None:
        """A document as YAML, or a text. The one way in: redacted."""
        if isinstance(value, str):
            self.files[path] = redact.text(value)
        else:
            self.files[path] = yaml.safe_dump(redact.document(value), sort_keys=False, allow_unicode=True)

    async def read(self, path: str, answer: Awaitable[object]) -> None:
        """Add what is answered, or note why nothing is."""
        try:
            self.add(path, await answer)
        except Forbidden as error:
            self.missing[path] = denied(error)
        except KubeError as error:
            self.missing[path] = redact.text(str(error))

    def write(self, file: Path) -> None:
        """A tar.gz, of one directory named as the file is."""
        top = file.name.removesuffix(".tar.gz")
        # For its owner alone: somebody has to look into it before it goes to others.
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            self._pack(opened, top)

    def _pack(self, opened: IO[bytes], top: str) -> None:
        with tarfile.open(fileobj=opened, mode="w:gz") as archive:
            for path, said in sorted(self.files.items()):
                content = said.encode()
                entry = tarfile.TarInfo(f"{top}/{path}")
                entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o644
                archive.addfile(entry, io.BytesIO(content))


async def collect(
    kube: Kube, namespace: str, name: str | None, tail: int, operator_namespace: str | None
) -> Bundle:
    """Everything about one RequeueQueue or all. Raises KubeError and PluginError when not even these can be read."""
    bundle, now = Bundle(), datetime.now(UTC)
    found = await fleets(kube, await find(kube, namespace, name))
    for each in sorted({fleet.owner.namespace for fleet in found} | ({namespace} - {""})):
        await _of_namespace(bundle, kube, each)
    for fleet in found:
        await _of_fleet(bundle, kube, fleet, tail, now)
    await _of_operator(bundle, kube, namespace, operator_namespace, tail)
    await bundle.read("kubernetes.yaml", _json(kube, "/version"))
    about = {
        "made": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "nats-requeue": version("nats-requeue"),
        "requeuequeues": [f"{each.owner.namespace}/{each.owner.name}" for each in found],
        "missing": bundle.missing,
    }
    bundle.add("about.yaml", about)
    return bundle


async def _of_namespace(bundle: Bundle, kube: Kube, namespace: str) -> None:
    for api_version, kind in _KINDS:
        labels = {} if kind == "RequeueQueue" else MANAGED
        path = f"{namespace}/{kind.lower()}s.yaml"
        await bundle.read(path, kube.list(api_version, kind, namespace, labels))
    await bundle.read(f"{namespace}/events.yaml", _events(kube, namespace))


async def _events(kube: Kube, namespace: str) -> list[Manifest]:
    keys = (
        "type",
        "reason",
        "message",
        "count",
        "involvedObject",
        "firstTimestamp",
        "lastTimestamp",
        "eventTime",
    )
    found = await kube.list("v1", "Event", namespace, {})
    found.sort(key=lambda each: str(each.get("lastTimestamp") or each.get("eventTime")))
    return [{key: each[key] for key in keys if each.get(key)} for each in found]


async def _of_fleet(bundle: Bundle, kube: Kube, fleet: Fleet, tail: int, now: datetime) -> None:
    place = f"{fleet.owner.namespace}/{fleet.owner.name}"
    bundle.add(f"{place}/status.yaml", overview.row_of(fleet))
    bundle.add(f"{place}/volumes.yaml", [each.row for each in volumes.verdicts(fleet, now)])
    bundle.add(f"{place}/pods.yaml", [*fleet.workers, *fleet.drain_pods])
    for source in of_fleet(fleet):
        await _logs(bundle, kube, source, f"{place}/logs", tail)
    for pod in fleet.workers:
        at = f"/api/v1/namespaces/{fleet.owner.namespace}/pods/{name_of(pod)}:{HTTP_PORT}/proxy"
        for endpoint, file in _OF_WORKERS.items():
            path = f"{place}/workers/{name_of(pod)}/{file}"
            await bundle.read(path, _text(kube, f"{at}/{endpoint}"))


async def _of_operator(
    bundle: Bundle, kube: Kube, namespace: str, operator_namespace: str | None, tail: int
) -> None:
    try:
        pods = await operator_pods(kube, namespace, operator_namespace)
    except Forbidden as error:
        bundle.missing["operator"] = denied(error)
        return
    if not pods:
        bundle.missing["operator"] = (
            "no pod of an operator was found; --operator-namespace names its namespace"
        )
    bundle.add("operator/pods.yaml", pods)
    for pod in pods:
        await _logs(bundle, kube, source_of(pod, "operator"), "operator/logs", tail)
        at = (
            f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{name_of(pod)}:{HTTP_PORT}/proxy/metrics"
        )
        await bundle.read(f"operator/metrics/{name_of(pod)}.txt", _text(kube, at))


async def _logs(bundle: Bundle, kube: Kube, source: Source, place: str, tail: int) -> None:
    windows = {"": Window(tail=tail)} | (
        {".previous": Window(tail=tail, previous=True)} if source.restarts else {}
    )
    for suffix, window in windows.items():
        path = f"{place}/{source.pod}{suffix}.log"
        await bundle.read(path, _log(kube, source, window))


async def _log(kube: Kube, source: Source, window: Window) -> str:
    said = [line async for line in lines(kube, source, window.query(source.container))]
    return "".join(f"{line}\n" for line in said)


async def _text(kube: Kube, path: str) -> str:
    return b"".join([part async for part in kube.stream(path, {})]).decode(errors="replace")


async def _json(kube: Kube, path: str) -> object:
    read: object = json.loads(await _text(kube, path))
    return read
