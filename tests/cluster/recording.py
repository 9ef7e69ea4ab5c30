"""What happened to volumes: every event about claims and pods, and whether each deletion was right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from requeue_operator.drains.claim import NONCE

from tests.cluster.control_plane import ControlPlane


class Event(NamedTuple):
    """`version` orders the events of all kinds."""

    version: int
    type: str
    object: dict[str, Any]


class Recording:
    """Of claims and pods, or other kinds, all namespaces."""

    def __init__(self, directory: Path, *kinds: str) -> None:
        self.files = {kind: directory / f"{kind}.events" for kind in kinds or ("pvc", "pods")}

    def events(self, kind: str) -> list[Event]:
        """All so far; one that is half written is left for later."""
        text, decoder, found, at = self.files[kind].read_text(errors="replace"), json.JSONDecoder(), [], 0
        while at < len(text):
            try:
                event, at = decoder.raw_decode(text, at)
            except ValueError:
                break
            while at < len(text) and text[at].isspace():
                at += 1
            version = int(event["object"]["metadata"]["resourceVersion"])
            found.append(Event(version, event["type"], event["object"]))
        return found

    def claims(self, namespace: str) -> set[str]:
        """UIDs of all that there were."""
        metadata = (each.object["metadata"] for each in self.events("pvc"))
        return {each["uid"] for each in metadata if each["namespace"] == namespace}

    def deletions(self, namespace: str) -> list[Event]:
        """Of claims; with the version at which each was told to go."""
        told: dict[str, int] = {}
        found = []
        for version, kind, live in self.events("pvc"):
            metadata = live["metadata"]
            if metadata["namespace"] != namespace:
                continue
            if "deletionTimestamp" in metadata or kind == "DELETED":
                told.setdefault(metadata["uid"], version)
            if kind == "DELETED":
                found.append(Event(told[metadata["uid"]], kind, live))
        return found

    def without_proof(self, namespace: str) -> list[str]:
        """Claims that were deleted on no proof of theirs, or on one that a worker's pod came after."""
        return [
            f"{each.object['metadata']['name']} at {each.version}"
            for each in self.deletions(namespace)
            if not self._is_proven(namespace, each)
        ]

    def used_twice(self, namespace: str) -> list[str]:
        """Claims that a worker's pod and a drain's had at the same time."""
        users: dict[str, set[str]] = {}
        found = []
        for each in self.events("pods"):
            metadata = each.object["metadata"]
            if metadata["namespace"] != namespace:
                continue
            (claim,) = _claims(each.object)
            pods = users.setdefault(claim, set())
            (pods.discard if each.type == "DELETED" else pods.add)(metadata["name"])
            if len(pods) > 1:
                found.append(f"{claim} at {each.version} by {', '.join(sorted(pods))}")
        return found

    def _is_proven(self, namespace: str, deletion: Event) -> bool:
        metadata = deletion.object["metadata"]
        nonce = (metadata.get("annotations") or {}).get(NONCE)
        pods = [each for each in self.events("pods") if each.object["metadata"]["namespace"] == namespace]
        proven = [each.version for each in pods if nonce in _proofs(each.object)]
        if not proven or min(proven) > deletion.version:
            return False
        worker = metadata["name"].removeprefix("data-")
        since = min(proven)
        return not any(
            since <= each.version <= deletion.version
            for each in pods
            if each.object["metadata"]["name"] == worker and each.type != "DELETED"
        )


def _claims(pod: dict[str, Any]) -> set[str]:
    volumes = (each.get("persistentVolumeClaim") for each in pod["spec"]["volumes"])
    return {each["claimName"] for each in volumes if each}


def _proofs(pod: dict[str, Any]) -> set[str]:
    """Nonces of what a pod proved."""
    found = set()
    for status in pod["status"].get("containerStatuses") or []:
        ended = status["state"].get("terminated") or {}
        if ended.get("exitCode") == 0:
            said = json.loads(ended["message"])
            found |= {said["nonce"]} if said["remaining"] == 0 else set()
    return found


@contextmanager
def recorded(cluster: ControlPlane, directory: Path, *kinds: str) -> Iterator[Recording]:
    recording = Recording(directory, *kinds)
    watches = [cluster.watch(kind, file) for kind, file in recording.files.items()]
    try:
        yield recording
    finally:
        for watch in watches:
            watch.kill()
