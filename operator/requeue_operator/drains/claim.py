"""A PersistentVolumeClaim of a pod, and what is written on it while it is drained."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from requeue_operator.children.naming import Manifest, Owner

NONCE: Final = "requeue.dev/drain-nonce"
"""`PVC-UID.RANDOM`: repeated in the proof, so that it is about this claim and this drain."""
SET: Final = "requeue.dev/drain-set"
"""`UID.GENERATION` of the StatefulSet when the drain began: in another one a pod may have used the volume since."""
BEGAN: Final = "requeue.dev/drain-began"
"""When it began (RFC 3339)."""
VOLUME: Final = "requeue.dev/drain-volume"
"""The volume's identity as a first, failed run told it: the last one has to tell the same."""
MARKS: Final = (NONCE, SET, BEGAN, VOLUME)

_ORDINAL: Final = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Claim:
    """A claim by its ordinal."""

    live: Manifest
    ordinal: int

    @property
    def name(self) -> str:
        """Of the PersistentVolumeClaim."""
        return str(self.live["metadata"]["name"])

    @property
    def uid(self) -> str:
        """Another one for each claim that was ever made under this name."""
        return str(self.live["metadata"]["uid"])

    @property
    def is_going(self) -> bool:
        """Deleted, and waiting for whoever uses it."""
        return self.live["metadata"].get("deletionTimestamp") is not None

    @property
    def is_marked(self) -> bool:
        """A drain has begun, or something is left of one."""
        return any(mark in self._annotations for mark in MARKS)

    @property
    def nonce(self) -> str | None:
        """Of the drain that has begun; None when it is not about this very claim."""
        nonce = self._annotations.get(NONCE)
        return nonce if nonce is not None and nonce.startswith(f"{self.uid}.") else None

    @property
    def began(self) -> datetime | None:
        """When."""
        return parse_time(self._annotations.get(BEGAN))

    @property
    def volume(self) -> str | None:
        """The volume's identity, when a run told it."""
        return self._annotations.get(VOLUME)

    def is_of(self, live_set: Manifest) -> bool:
        """Whether the drain began on this state of the StatefulSet."""
        return self._annotations.get(SET) == state_of(live_set)

    @property
    def _annotations(self) -> dict[str, str]:
        return self.live["metadata"].get("annotations") or {}


def claims_of(owner: Owner, live: Iterable[Manifest]) -> list[Claim]:
    """Those of the fleet's pods, by ordinal. `live` has the fleet's labels; other names are somebody else's."""
    ordinals = ((each, ordinal_in(f"data-{owner.name}-", each["metadata"]["name"])) for each in live)
    found = [Claim(each, ordinal) for each, ordinal in ordinals if ordinal is not None]
    return sorted(found, key=lambda claim: claim.ordinal)


def ordinal_in(prefix: str, name: str) -> int | None:
    """What follows the prefix in a name, when that is an ordinal."""
    suffix = name.removeprefix(prefix)
    return int(suffix) if name.startswith(prefix) and _ORDINAL.fullmatch(suffix) else None


def state_of(live_set: Manifest) -> str:
    """What is another one after each change of the StatefulSet's spec."""
    return f"{live_set['metadata']['uid']}.{live_set['metadata']['generation']}"


def used_by(pod: Manifest) -> set[str]:
    """Names of the claims among a pod's volumes."""
    volumes: list[dict[str, Any]] = pod["spec"].get("volumes") or []
    claims = (each.get("persistentVolumeClaim") for each in volumes)
    return {str(each["claimName"]) for each in claims if each}


def parse_time(text: object) -> datetime | None:
    """An RFC 3339 time as Kubernetes writes it."""
    if not isinstance(text, str):
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return read if read.tzinfo is not None else read.replace(tzinfo=UTC)


def write_time(time: datetime) -> str:
    """The same, in whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
