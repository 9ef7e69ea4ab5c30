"""What is decided about claims: writes, and what to tell."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum, auto

from requeue_operator.children.naming import Manifest
from requeue_operator.drains.claim import Claim


@dataclass(frozen=True)
class Begin:
    """Write a new nonce onto the claim, and of which state of the StatefulSet it is."""

    claim: Claim
    live_set: Manifest


@dataclass(frozen=True)
class Note:
    """Write the volume's identity onto the claim."""

    claim: Claim
    volume: str


@dataclass(frozen=True)
class Clear:
    """Take everything off the claim again."""

    claim: Claim


@dataclass(frozen=True)
class Run:
    """Make the Job."""

    job: Manifest


@dataclass(frozen=True)
class Cancel:
    """Delete the Job; its pod is told to stop."""

    job: Manifest


@dataclass(frozen=True)
class Remove:
    """Delete the claim: nothing remains on its volume."""

    claim: Claim


Action = Begin | Note | Clear | Run | Cancel | Remove


class State(Enum):
    """Where a claim stands."""

    RETAINED = auto()
    DRAINING = auto()
    FAILED = auto()
    GOING = auto()  #: deleted, or about to be
    LETTING_GO = auto()  #: a drain is taken back


@dataclass(frozen=True)
class Progress:
    """One claim. `reason` (of FAILED) in a word, `text` in a sentence."""

    claim: str
    state: State
    text: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Drains:
    """What to do now; how far the StatefulSet may grow; where each claim stands; when to look again."""

    actions: tuple[Action, ...] = ()
    progress: tuple[Progress, ...] = ()
    busy: frozenset[int] = frozenset()
    again_s: float = math.inf

    def replicas(self, wanted: int, live_set: Manifest | None) -> int:
        """`wanted`, or as many as there are without a pod for a claim that is being let go of."""
        live = 0 if live_set is None else int(live_set["spec"]["replicas"])
        if wanted <= live:
            return wanted
        return min([wanted, *(ordinal for ordinal in self.busy if live <= ordinal < wanted)])

    def without_actions(self) -> Drains:
        """The same, for somebody who is told to do nothing."""
        return replace(self, actions=(), again_s=math.inf)
