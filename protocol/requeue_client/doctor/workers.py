"""The workers: are they there, ready, of one version, with room on their disks and the right time?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from requeue_protocol.admin import InstanceAnswer, QueueEntry

from requeue_client.commands.output import size, span
from requeue_client.doctor.findings import Finding, fail, ok, warn

LOW_DISK_BYTES: Final = 1 << 30
SKEW_WARN_NS: Final = 1_000_000_000
SKEW_FAIL_NS: Final = 60_000_000_000
OVERDUE_NS: Final = 60_000_000_000
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Asked:
    """What the workers said, between these two moments of our clock."""

    workers: tuple[InstanceAnswer, ...]
    before_ns: int
    after_ns: int


def examine(asked: Asked) -> list[Finding]:
    """What the workers' own figures say."""
    return [*_readiness(asked), *_versions(asked), *_disks(asked), *_clocks(asked)]


def _readiness(asked: Asked) -> list[Finding]:
    found: list[Finding] = []
    for worker in asked.workers:
        if not worker.ready:
            found.append(
                fail(
                    "workers",
                    f"{worker.instance} is not ready: {worker.state}",
                    "its log says why; docs/operations.md, Faults",
                )
            )
        elif worker.state != "ready":
            found.append(
                warn(
                    "workers",
                    f"{worker.instance}: {worker.state}",
                    "docs/operations.md, NATS permissions, what is missing",
                )
            )
    names = ", ".join(worker.instance for worker in asked.workers[:_SHOWN])
    more = f" and {len(asked.workers) - _SHOWN} more" if len(asked.workers) > _SHOWN else ""
    return found or [ok("workers", f"{len(asked.workers)} ready: {names}{more}")]


def _versions(asked: Asked) -> list[Finding]:
    versions = sorted({worker.version for worker in asked.workers})
    if len(versions) == 1:
        return [ok("versions", f"all workers are {versions[0]}")]
    advice = "fine during an upgrade; else bring all to one version"
    return [warn("versions", f"workers differ: {', '.join(versions)}", advice)]


def _disks(asked: Asked) -> list[Finding]:
    found: list[Finding] = []
    for worker in asked.workers:
        free = size(worker.disk_free_bytes)
        if worker.disk_full:
            found.append(
                fail(
                    "disk",
                    f"the disk of {worker.instance} is full ({free} free): new messages are refused with 507",
                    "make room or grow the volume; docs/operations.md, A full disk",
                )
            )
        elif worker.disk_free_bytes < LOW_DISK_BYTES:
            found.append(
                warn(
                    "disk",
                    f"{worker.instance} has {free} free",
                    "make room before its disk_reserve is reached",
                )
            )
    least = min(worker.disk_free_bytes for worker in asked.workers)
    return found or [ok("disk", f"{size(least)} free at least")]


def _clocks(asked: Asked) -> list[Finding]:
    found: list[Finding] = []
    for worker in asked.workers:
        # Zero where its time lies between question and last answer: more can't be known.
        behind_ns, ahead_ns = asked.before_ns - worker.time_ns, worker.time_ns - asked.after_ns
        off_ns = max(behind_ns, ahead_ns, 0)
        if off_ns > SKEW_WARN_NS:
            tell: Callable[[str, str, str], Finding] = fail if off_ns > SKEW_FAIL_NS else warn
            which = "behind" if behind_ns > 0 else "ahead of"
            found.append(
                tell(
                    "clock",
                    f"{worker.instance} is {span(off_ns)} {which} this machine: delays with --at end by its clock",
                    "run NTP on both machines",
                )
            )
    return found or [ok("clock", "no worker is off by more than a second")]


def examine_queues(instance: str, queues: Iterable[QueueEntry], now_ns: int) -> list[Finding]:
    """What a worker's queues say, by its own clock."""
    queues = list(queues)
    late = [
        (now_ns - queue.next_due_ns, queue)
        for queue in queues
        if queue.next_due_ns is not None
        and queue.paused_until_ns is None
        and now_ns - queue.next_due_ns > OVERDUE_NS
    ]
    found = [
        warn(
            "overdue",
            f"{queue.name} on {instance} is {span(late_ns)} late; "
            f"{queue.pending:,} pending, {queue.in_flight:,} of them in flight",
            "too few handlers, or max_in_flight or max_rate holds it back: requeue list " + queue.name,
        )
        for late_ns, queue in sorted(late, key=lambda each: -each[0])[:_SHOWN]
    ]
    found += [
        warn(
            "dead letters",
            f"{queue.name} on {instance} has {queue.dead:,}",
            f"requeue dead list {queue.name}, then requeue dead redrive",
        )
        for queue in sorted(queues, key=lambda each: -each.dead)[:_SHOWN]
        if queue.dead
    ]
    found += [
        warn(
            "paused",
            f"{queue.name} on {instance} sends nothing",
            f"requeue resume {queue.name}, when it may go on",
        )
        for queue in queues
        if queue.paused_until_ns is not None
    ][:_SHOWN]
    return found
