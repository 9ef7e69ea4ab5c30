"""Looks at the pods of a fleet that is not ready, and at their events, for what is wrong (troubles.py judges).

Not at once, since pods take their time, and ever more seldom, since nobody may mend it for a long while.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Final

from requeue_operator.children import Manifest
from requeue_operator.kube import Kube
from requeue_operator.plan import Observed, Plan
from requeue_operator.status import unready_since, waiting_for
from requeue_operator.troubles import Scene, Trouble, concerned, trouble_of

_FIRST_LOOK_S: Final = 5.0
_LONGEST_S: Final = 120.0
_MOST_PODS: Final = 3


async def look_for_trouble(kube: Kube, observed: Observed, plan: Plan) -> tuple[Trouble | None, float]:
    """What is wrong, if anything, and seconds until it should be looked for again. Raises KubeError."""
    live_set = observed.stateful_set
    if live_set is None or waiting_for(observed, plan) is None:
        return None, math.inf
    since, now = unready_since(observed), datetime.now(UTC)
    age_s = 0.0 if since is None else (now - datetime.fromisoformat(since)).total_seconds()
    if age_s < _FIRST_LOOK_S:
        return None, _FIRST_LOOK_S
    owner = observed.owner
    alike = await kube.list("v1", "Pod", owner.namespace, owner.selector)
    pods = [pod for pod in alike if _belongs_to(pod, live_set["metadata"]["uid"])]
    about = concerned(pods, observed.claims, live_set, _MOST_PODS)
    warnings = await asyncio.gather(*(kube.warnings(owner.namespace, uid) for uid in about))
    events = {uid: tuple(each) for uid, each in zip(about, warnings, strict=True)}
    trouble = trouble_of(Scene(tuple(pods), observed.claims, live_set, events), now)
    return trouble, min(max(age_s / 2, _FIRST_LOOK_S), _LONGEST_S)


def _belongs_to(pod: Manifest, uid: str) -> bool:
    return any(each.get("uid") == uid for each in pod["metadata"].get("ownerReferences") or [])
