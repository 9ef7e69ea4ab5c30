"""RequeueQueues that take in the same messages: whose intake subjects overlap on the same NATS servers.

In one queue group NATS gives each message to one of the two fleets; in different groups each fleet takes it, and it is
delivered twice. Both are told, on both, in the condition IntakeExclusive. `Intakes` knows all RequeueQueues that the
operator sees; everything else is pure.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from requeue_protocol.subjects import INTAKE_DEFAULT, QUEUE_GROUP

from requeue_operator.children import Manifest, port_of
from requeue_operator.finding import Finding

TYPE: Final = "IntakeExclusive"
_NAMED: Final = 3

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class Intake:
    """What a fleet takes in: a subject in a queue group, on servers as `server_names` writes them."""

    namespace: str
    name: str
    servers: frozenset[str]
    subject: str
    queue_group: str

    def overlaps(self, other: Intake) -> bool:
        """Whether there are messages that both would take."""
        return not self.servers.isdisjoint(other.servers) and overlap(self.subject, other.subject)


def overlap(one: str, other: str) -> bool:
    """Whether a subject can match both patterns, with the wildcards of NATS."""
    tokens, others = one.split("."), other.split(".")
    for token, another in zip(tokens, others, strict=False):
        if ">" in (token, another):
            return True
        if token != another and "*" not in (token, another):
            return False
    return len(tokens) == len(others)


def server_names(servers: list[str], namespace: str) -> frozenset[str]:
    """Host and port of each, a Service's host as NAME.NAMESPACE: `nats` means another one in each namespace."""
    names = set()
    for server in servers:
        url = server if "://" in server else f"nats://{server}"
        host = (urlsplit(url).hostname or "").removesuffix(".").removesuffix(".svc.cluster.local")
        host = host.removesuffix(".svc")
        if "." not in host and ":" not in host:
            host = f"{host}.{namespace}"
        names.add(f"{host}:{port_of(server)}")
    return frozenset(names)


def intake_of(queue: Manifest) -> Intake:
    """The intake that a RequeueQueue asks for."""
    metadata, spec = queue["metadata"], queue["spec"]
    return Intake(
        metadata["namespace"],
        metadata["name"],
        server_names(spec["nats"]["servers"], metadata["namespace"]),
        spec.get("subject", INTAKE_DEFAULT),
        spec.get("queueGroup", QUEUE_GROUP),
    )


def intake_exclusive(own: Intake, others: list[Intake]) -> Finding:
    """True when `others`, those that overlap with `own`, are none."""
    twice = [each for each in others if each.queue_group != own.queue_group]
    if twice:
        text = (
            f"{own.subject} overlaps with {_names(own, twice)} on the same NATS servers, in another queue group: each "
            "message that fits both is taken by both and delivered twice; give one of them another spec.subject, or both "
            "the same spec.queueGroup. Nothing is wrong if they log in to different accounts"
        )
        return Finding(TYPE, False, "TakenTwice", text)
    if others:
        text = (
            f"{own.subject} overlaps with {_names(own, others)} on the same NATS servers, in the same queue group: each "
            "message that fits both goes to one of them, as NATS chooses, and is kept under the policy of that one; give "
            "one of them another spec.subject if that is not meant"
        )
        return Finding(TYPE, False, "Shared", text)
    return Finding(TYPE, True, "Fine")


def _names(own: Intake, others: list[Intake]) -> str:
    """No count: a fleet more among hundreds would change the sentence of all of them."""
    ordered = sorted(others, key=lambda each: (each.namespace, each.name))
    words = [
        f"{each.subject} of {each.name if each.namespace == own.namespace else f'{each.namespace}/{each.name}'}"
        for each in ordered[:_NAMED]
    ]
    return ", ".join([*words, *(["others"] if len(ordered) > _NAMED else [])])


class Intakes:
    """The intakes of all RequeueQueues that are seen."""

    def __init__(self) -> None:
        self._intakes: dict[Key, Intake] = {}
        self._by_server: defaultdict[str, set[Key]] = defaultdict(set)

    def see(self, namespace: str, name: str, queue: Manifest | None) -> set[Key]:
        """A RequeueQueue as it stands now; None when it is gone. Gives the others for whom that makes a difference."""
        key = (namespace, name)
        is_going = queue is None or "deletionTimestamp" in queue["metadata"]
        past, now = self._intakes.get(key), None if is_going or queue is None else intake_of(queue)
        if past == now:
            return set()
        concerned = set() if past is None else {(each.namespace, each.name) for each in self._others(past)}
        for server in past.servers if past is not None else ():
            self._by_server[server].discard(key)
        if now is None:
            self._intakes.pop(key, None)
            return concerned
        self._intakes[key] = now
        for server in now.servers:
            self._by_server[server].add(key)
        return concerned | {(each.namespace, each.name) for each in self._others(now)}

    def finding(self, namespace: str, name: str) -> Finding | None:
        """The condition of one of them; None when it is not known."""
        own = self._intakes.get((namespace, name))
        return None if own is None else intake_exclusive(own, self._others(own))

    def _others(self, own: Intake) -> list[Intake]:
        keys = {key for server in own.servers for key in self._by_server[server]}
        keys.discard((own.namespace, own.name))
        return [self._intakes[key] for key in keys if own.overlaps(self._intakes[key])]
