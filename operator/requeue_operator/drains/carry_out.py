"""The writes of a drain. Each holds only for the object as it was judged: resourceVersion and UID go along."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from requeue_operator.drains.actions import Begin, Cancel, Clear, Drains, Note, Remove, Run
from requeue_operator.drains.claim import BEGAN, MARKS, NONCE, SET, VOLUME, Claim, state_of, write_time
from requeue_operator.kube import Kube

_NONCE_BYTES: Final = 16


async def carry_out(kube: Kube, drains: Drains, look: Callable[[], Awaitable[Drains]]) -> None:
    """Do what was decided. `look` judges the live state anew: a claim is deleted only when that says so once more.

    Raises KubeError; what was not done then is decided again.
    """
    for action in drains.actions:
        match action:
            case Begin(claim, live_set):
                nonce = f"{claim.uid}.{secrets.token_hex(_NONCE_BYTES)}"
                marks = {
                    NONCE: nonce,
                    SET: state_of(live_set),
                    BEGAN: write_time(datetime.now(UTC)),
                    VOLUME: None,
                }
                await kube.annotate(claim.live, marks)
            case Note(claim, volume):
                await kube.annotate(claim.live, {VOLUME: volume})
            case Clear(claim):
                await kube.annotate(claim.live, dict.fromkeys(MARKS))
            case Run(job):
                await kube.apply(job)
            case Cancel(job):
                await kube.delete(job)
            case Remove(claim):
                again = _still(await look(), claim)
                if again is not None:
                    await kube.delete(again.live, unchanged=True)


def _still(drains: Drains, claim: Claim) -> Claim | None:
    """The claim as it is now, if it is to be removed still."""
    removes = (each.claim for each in drains.actions if isinstance(each, Remove))
    return next((each for each in removes if each.uid == claim.uid), None)
