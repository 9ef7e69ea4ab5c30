"""`status`: what a RequeueQueue says about itself, beside its pods and volumes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from requeue_operator.children.naming import Manifest
from requeue_operator.drains import is_alarming
from requeue_operator.drains.claim import used_by
from requeue_operator.plugin.look import Fleet, name_of
from requeue_operator.plugin.output import Row, age, printable, table


def row_of(fleet: Fleet) -> Row:
    """All that is known of one."""
    queue, metadata = fleet.queue, fleet.queue["metadata"]
    status: dict[str, Any] = queue.get("status") or {}
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "state": state_of(queue),
        "message": _message_of(queue),
        "replicas": {
            "wanted": queue["spec"].get("replicas", 1),
            "there": status.get("replicas", 0),
            "ready": status.get("readyReplicas", 0),
        },
        "backlog": status.get("backlog") or {},
        "conditions": status.get("conditions") or [],
        "workers": [_pod(each) for each in fleet.workers],
        "drains": [_pod(each) for each in fleet.drain_pods],
        "volumes": [_volume(fleet, each) for each in fleet.claims],
    }


def state_of(queue: Manifest) -> str:
    """In one word: of its conditions the one that a person wants to know first."""
    if "deletionTimestamp" in queue["metadata"]:
        return "Deleting"
    conditions = _conditions(queue)
    for kind in ("Stalled", "Reconciling", "Ready"):
        if conditions.get(kind, {}).get("status") == "True":
            reason = conditions[kind]["reason"]
            return f"Stalled ({reason})" if kind == "Stalled" else kind
    return "Unknown"


def needs_a_hand(fleet: Fleet) -> bool:
    """Whether nothing goes on until somebody does something: it is stalled, or a drain does not succeed."""
    conditions = _conditions(fleet.queue)
    drained = conditions.get("Drained", {})
    is_stuck = drained.get("status") == "False" and is_alarming(drained["reason"])
    return is_stuck or conditions.get("Stalled", {}).get("status") == "True"


def show_all(rows: list[Row], *, namespaces: bool) -> None:
    """A line for each."""
    heads = ["NAME", "WORKERS", "BACKLOG", "DEAD", "NEXT DUE", "STATE", "MESSAGE"]
    lines = [
        [
            row["name"],
            f"{row['replicas']['ready']}/{row['replicas']['wanted']}",
            row["backlog"].get("pending"),
            row["backlog"].get("dead"),
            row["backlog"].get("nextDue"),
            row["state"],
            row["message"],
        ]
        for row in rows
    ]
    if namespaces:
        heads = ["NAMESPACE", *heads]
        lines = [[row["namespace"], *line] for row, line in zip(rows, lines, strict=True)]
    table(heads, lines)


def show_one(row: Row, now: datetime) -> None:
    """Everything about one."""
    click.echo(f"{row['namespace']}/{row['name']}: {row['state']}{': ' if row['message'] else ''}", nl=False)
    click.echo(printable(row["message"]) if row["message"] else "")
    _part("Conditions", ["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], [
        [each["type"], each["status"], each["reason"], age(each.get("lastTransitionTime"), now), each.get("message")]
        for each in row["conditions"]
    ])  # fmt: skip
    shown = ("name", "phase", "ready", "restarts", "node", "lastEnd")
    for title, pods in (("Workers", row["workers"]), ("Drains", row["drains"])):
        _part(title, ["POD", "PHASE", "READY", "RESTARTS", "NODE", "LAST END", "AGE"], [
            [*(each[key] for key in shown), age(each["since"], now)] for each in pods
        ])  # fmt: skip
    _part("Volumes", ["CLAIM", "PHASE", "SIZE", "CLASS", "USED BY"], [
        [each["claim"], each["phase"], each["size"], each["class"], ", ".join(each["usedBy"])]
        for each in row["volumes"]
    ])  # fmt: skip
    backlog = row["backlog"]
    if backlog:
        due = f", next due {backlog['nextDue']}" if backlog.get("nextDue") else ""
        heard = f"as {backlog.get('workers', 0)} workers said"
        click.echo(
            f"\nBacklog: {backlog.get('pending', 0)} pending, {backlog.get('dead', 0)} dead{due} ({heard})"
        )
        queues = [[each["name"], each["pending"], each["dead"]] for each in backlog.get("queues") or []]
        if queues:
            table(["QUEUE", "PENDING", "DEAD"], queues, "  ")


def _part(title: str, heads: list[str], lines: list[list[object]]) -> None:
    if lines:
        click.echo(f"\n{title}")
        table(heads, lines, "  ")


def _conditions(queue: Manifest) -> dict[str, Manifest]:
    return {each["type"]: each for each in (queue.get("status") or {}).get("conditions") or []}


def _message_of(queue: Manifest) -> str:
    conditions = _conditions(queue)
    for kind in ("Stalled", "Reconciling", "Drained", "NatsConnected", "StorageReady", "IntakeExclusive"):
        found = conditions.get(kind, {})
        is_told = found.get("status") == ("True" if kind in ("Stalled", "Reconciling") else "False")
        if is_told and found.get("message"):
            return str(found["message"])
    if (queue.get("status") or {}).get("observedGeneration", -1) < 0:
        return "no operator has seen it: is one running that looks after this namespace?"
    return ""


def _pod(pod: Manifest) -> Row:
    status: dict[str, Any] = pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or []}
    ended = [(each.get("lastState") or {}).get("terminated") or {} for each in containers]
    last = next((f"{each.get('reason')}, exit code {each.get('exitCode')}" for each in ended if each), None)
    return {
        "name": name_of(pod),
        "phase": "Terminating" if "deletionTimestamp" in pod["metadata"] else status.get("phase"),
        "ready": conditions.get("Ready") == "True",
        "restarts": sum(each.get("restartCount", 0) for each in containers),
        "since": pod["metadata"].get("creationTimestamp"),
        "node": pod["spec"].get("nodeName"),
        "lastEnd": last,
    }


def _volume(fleet: Fleet, claim: Manifest) -> Row:
    status: dict[str, Any] = claim.get("status") or {}
    asked = claim["spec"]["resources"]["requests"]["storage"]
    has = (status.get("capacity") or {}).get("storage")
    users = [name_of(pod) for pod in fleet.around.pods if name_of(claim) in used_by(pod)]
    return {
        "claim": name_of(claim),
        "phase": "Terminating" if "deletionTimestamp" in claim["metadata"] else status.get("phase"),
        "size": asked if has in (None, asked) else f"{has}, asks for {asked}",
        "class": claim["spec"].get("storageClassName"),
        "usedBy": users,
    }
