"""Scaled-away volumes: handed over by drain Jobs, and deleted on the word of a proof alone.

    claim of a pod that is gone ── begin: nonce onto the claim ── Job ── its pod's proof ── live state again ── delete
                   ▲                                              │
                   └──── nonce off ◀── its pod is gone ◀── Job deleted: failed and tried again, or scaled up

The nonce is the outermost lock: on the claim before there is a Job, off it when there is no pod of the Job any more. Up to
then the StatefulSet does not grow into the claim. `decide.py` judges each claim anew from live objects at each reconcile
and asks for one write; `carry_out.py` writes. Killed between any two writes, the next reconcile goes on from there.
"""

from __future__ import annotations

from requeue_operator.drains.actions import Drains
from requeue_operator.drains.carry_out import carry_out
from requeue_operator.drains.claim import claims_of
from requeue_operator.drains.decide import Scene, concern, decide
from requeue_operator.drains.job import JOB_LABELS
from requeue_operator.drains.report import is_alarming, report

__all__ = [
    "JOB_LABELS",
    "Drains",
    "Scene",
    "carry_out",
    "claims_of",
    "concern",
    "decide",
    "is_alarming",
    "report",
]
