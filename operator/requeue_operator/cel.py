"""The rules of the custom resource that the API server checks itself, as CEL.

A rule goes where its value is (`self`), so that the API server names the field; its message says what would be
right. Every rule has an accept and a reject case in tests/cluster/test_rules.py. Values have maximum lengths and
lists maximum sizes, since the API server adds up what a rule may cost at worst.

Rules about two values repeat what one of them must look like where they compute with it: the API server judges
every rule, and a computation that fails would hide the sentence that helps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Each unit once and in this order, with so many digits that the sum of all stays below 292 years, and that no
# fraction is less than a nanosecond.
_UNITS: Final = (("d", 5, 0), ("h", 5, 9), ("m", 6, 9), ("s", 7, 9), ("ms", 9, 6), ("us", 9, 3), ("ns", 9, 0))
_PARTS: Final = "".join(
    f"([0-9]{{1,{digits}}}{f'([.][0-9]{{1,{decimals}}})?' if decimals else ''}{unit})?"
    for unit, digits, decimals in _UNITS
)
DURATION: Final = f"^(0|{_PARTS})$"
SUBJECT_TOKEN: Final = r"[^.\\s\\pZ\\pC]+"
SIZE: Final = "^[0-9]{1,12}([KMGT]i?B?|B)?$"


@dataclass(frozen=True)
class Rule:
    """One CEL expression that has to hold, and the sentence for when it does not."""

    expression: str
    message: str

    def as_schema(self) -> dict[str, str]:
        """An item of `x-kubernetes-validations`."""
        return {"rule": self.expression, "message": self.message}


def rules(*given: Rule) -> list[dict[str, str]]:
    """The value of `x-kubernetes-validations`."""
    return [rule.as_schema() for rule in given]


def _matches(pattern: str, value: str = "self") -> str:
    return f"{value}.matches('{pattern}')"


def _is_duration(value: str) -> str:
    return f"(size({value}) > 0 && {_matches(DURATION, value)})"


DURATION_SHAPE: Final = Rule(
    _is_duration("self"),
    "is no duration; write numbers with units, the largest first, like 1m30s, 500ms, 14d or 0",
)
DURATION_POSITIVE: Final = Rule(_matches("[1-9]"), "is 0; it is more than 0, like 10s")
ACK_TIMEOUT: Final = Rule(
    f"!{_is_duration('self')} || "
    "(!self.contains('d') && duration(self) > duration('0s') && duration(self) <= duration('12h'))",
    "is out of range; it is more than 0 and at most 12h",
)
# CEL's durations know no days; those are compared by `validation`.
MIN_MAX_BACKOFF: Final = Rule(
    "!has(self.minBackoff) || !has(self.maxBackoff) || "
    "self.minBackoff.contains('d') || self.maxBackoff.contains('d') || "
    f"!{_is_duration('self.minBackoff')} || !{_is_duration('self.maxBackoff')} || "
    "duration(self.minBackoff) <= duration(self.maxBackoff)",
    "minBackoff is more than maxBackoff; it is at most that",
)
BACKOFF_STEPS: Final = Rule(
    "!has(self.backoff) || self.backoff != 'list' || (has(self.backoffList) && size(self.backoffList) > 0)",
    "backoff is list and backoffList has no steps; write them, like backoffList: [1s, 10s, 1m]",
)
BACKOFF_SHAPE: Final = Rule(
    "!has(self.backoffList) || size(self.backoffList) == 0 || (has(self.backoff) && self.backoff == 'list')",
    "backoffList is given and backoff is not list; write backoff: list beside it",
)
RETRIES: Final = Rule(
    "type(self) == int ? self >= 1 : self == 'unlimited'",
    "is no number of attempts; it is 1 or more, or unlimited",
)
COUNT_OR_UNLIMITED: Final = Rule(
    "type(self) == int ? self >= 1 : self == 'unlimited'", "is no limit; it is 1 or more, or unlimited"
)
SIZE_OR_UNLIMITED: Final = Rule(
    f"type(self) == int ? self >= 1 : (self == 'unlimited' || "
    f"({_matches(SIZE, 'string(self)')} && !{_matches('^0+[KMGTiB]*$', 'string(self)')}))",
    "is no size; write it like 512MiB, 10Gi, a number of bytes of 1 or more, or unlimited",
)
QUEUE_NAME: Final = Rule(
    _matches("^[A-Za-z0-9_.-]{1,128}$"), "is no queue name; it is 1 to 128 of A-Z a-z 0-9 _ . -"
)
PUBLISH_SUBJECT: Final = Rule(
    _matches(rf"^{SUBJECT_TOKEN}([.]{SUBJECT_TOKEN})*$")
    + " && self.split('.').all(token, token != '*' && token != '>')",
    "is no subject to publish to; write words between dots, without spaces and wildcards, like orders.dead",
)
SUBJECT_PATTERN: Final = Rule(
    _matches(rf"^({SUBJECT_TOKEN}[.])*{SUBJECT_TOKEN}$") + " && " + "!('.' + self).contains('.>.')",
    "is no subject pattern; write words, * or a last > between dots, like orders.* or orders.>",
)
INTAKE: Final = Rule(
    "!self.startsWith('$') && !self.startsWith('_') && !['*', '>'].exists(first, self.split('.')[0] == first)",
    "would take in more than what is meant for it; begin with a word of your own, like requeue.>",
)
QUEUE_GROUP: Final = Rule(
    _matches(r"^[^\\s\\pZ\\pC]+$"), "is no queue group; it is a word without spaces, like requeue-workers"
)
SERVER: Final = Rule(
    _matches(r"^((nats|tls|ws|wss)://)?([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?/?$"),
    "is no server; write it like nats://nats.example:4222 (or tls, ws, wss), credentials go into a Secret",
)
ONE_KIND_OF_SERVER: Final = Rule(
    "self.all(url, url.startsWith('ws')) || !self.exists(url, url.startsWith('ws://') || url.startsWith('wss://'))",
    "mixes websocket (ws, wss) and plain NATS servers; use one kind",
)
ONE_LOGIN: Final = Rule(
    "[has(self.creds), has(self.nkey), has(self.token), has(self.userPassword)].filter(given, given).size() == 1",
    "names no way to log in or several; name one of creds, nkey, token, userPassword",
)
SECRET_NAME: Final = Rule(
    _matches("^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
    "is no name of a Secret; it is lower case, like nats-credentials",
)
SECRET_KEY: Final = Rule(
    _matches("^[A-Za-z0-9_.-]+$") + " && !self.startsWith('..')",
    "is no key of a Secret; it is of A-Z a-z 0-9 _ . -, like user.creds",
)
STORAGE_SIZE: Final = Rule(
    "isQuantity(self) && quantity(self).compareTo(quantity('64Mi')) >= 0",
    "is no size of a volume; write it like 10Gi, at least 64Mi",
)
STORAGE_NO_SHRINK: Final = Rule(
    "!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0",
    "is smaller than before, and volumes cannot shrink; write the old size or a larger one",
)
STORAGE_MODE_FIXED: Final = Rule(
    "self == oldSelf", "cannot change, since the data would stay behind; make another RequeueQueue for it"
)
STORAGE_CLASS_FIXED: Final = Rule(
    "(has(self.storageClassName) ? self.storageClassName : '') == "
    "(has(oldSelf.storageClassName) ? oldSelf.storageClassName : '')",
    "storageClassName cannot change, since volumes stay in their class; make another RequeueQueue for it",
)
DRAIN_TO: Final = Rule(
    "(!has(self.drainTo) && !has(self.drainTimeout)) || self.onDelete == 'Drain'",
    "drainTo and drainTimeout are for onDelete: Drain; leave them out or write that",
)
NAME: Final = Rule(
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 40",
    "metadata.name names Services and pods; it is 1 to 40 of a-z 0-9 -, begins with a letter and ends with none of -",
)
DRAIN_TO_OTHER: Final = Rule(
    "!has(self.spec.storage.drainTo) || self.spec.storage.drainTo != self.metadata.name",
    "spec.storage.drainTo is this RequeueQueue itself; name another one",
)
