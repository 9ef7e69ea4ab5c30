"""What NATS denies the worker, as the server's errors tell it: `Permissions Violation for Publish to "orders.new"`.

The server drops the message or subscription and says so on the connection, of which nothing breaks. Denied publishes
are remembered by subject, so that a replay or dead letter that went nowhere is known. Readiness and logs tell of them by
the first token of the subject, since each reply inbox is a subject of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

SHOWN_FOR_NS: Final = (
    600 * 10**9
)  #: a denied publish stands in the readiness text for so long after the last one
LOGGED_EVERY_NS: Final = 60 * 10**9
MAX_ENTRIES: Final = 10_000

_VIOLATION = re.compile(r'permissions violation for (publish|subscription)[^"]*"([^"]*)"', re.IGNORECASE)


class Violation(NamedTuple):
    """One error of the server. `subject` in lower case; empty where the error names none."""

    is_subscription: bool
    subject: str
    text: str


def read_violation(error: str) -> Violation | None:
    """The violation that a server's error tells of; None when it is about something else."""
    text = error.removeprefix("nats: ").strip("'")
    if "permissions violation" not in text.lower():
        return None
    found = _VIOLATION.search(text)
    if found is None:
        return Violation(False, "", text)
    return Violation(found[1].lower() == "subscription", found[2].lower(), text)


@dataclass(slots=True)
class Denials:
    """Those of one subject, or of one first token. Times are monotonic ns. `serial`: of the latest, among all publishes."""

    count: int = 0
    text: str = ""
    last_ns: int = 0
    serial: int = 0


class Permissions:
    """Violations on the connection that stands. Subjects are compared without case: nats-py gives errors in lower case."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._subscriptions: dict[str, Denials] = {}
        self._publishes: dict[str, Denials] = {}
        self._first_tokens: dict[str, Denials] = {}
        self._logged_ns: dict[tuple[bool, str], int] = {}
        #: publishes denied so far: a mark for `denied_since`
        self.denied = 0
        self._forgotten_serial = 0

    def note(self, violation: Violation) -> bool:
        """Remember it. True when it is to be logged: one like it was not within the last minute."""
        now_ns = self._clock()
        first_token = violation.subject.partition(".")[0]
        if violation.is_subscription:
            _add(self._subscriptions, violation.subject, violation.text, now_ns, 0)
        else:
            self.denied += 1
            gone = _add(self._publishes, violation.subject, violation.text, now_ns, self.denied)
            self._forgotten_serial = max(self._forgotten_serial, 0 if gone is None else gone.serial)
            _add(self._first_tokens, first_token, violation.text, now_ns, self.denied)
        like = (violation.is_subscription, first_token)
        if now_ns - self._logged_ns.get(like, -LOGGED_EVERY_NS) < LOGGED_EVERY_NS:
            return False
        if len(self._logged_ns) >= MAX_ENTRIES:
            self._logged_ns.clear()
        self._logged_ns[like] = now_ns
        return True

    def new_connection(self) -> None:
        """What was denied is asked for anew. (What was logged a moment ago is not logged again.)"""
        self._subscriptions.clear()
        self._publishes.clear()
        self._first_tokens.clear()

    def subscription(self, subject: str) -> Denials | None:
        """The denials of a subscription of the worker's own; None while it stands."""
        return self._subscriptions.get(subject.lower())

    def granted(self, subject: str) -> None:
        """The subscription stands now."""
        self._subscriptions.pop(subject.lower(), None)

    def publish(self, subject: bytes) -> Denials | None:
        """The denials of publishing to this very subject; None when there were none."""
        if not self._publishes:
            return None
        return self._publishes.get(subject.decode(errors="replace").lower())

    def denied_since(self, subject: bytes, mark: int) -> bool:
        """Whether publishing to this very subject was denied after `denied` was `mark`; also when that is not known."""
        denials = self.publish(subject)
        return (self._forgotten_serial if denials is None else denials.serial) > mark

    def lately(self) -> str | None:
        """The latest denied publish, if it is not long past."""
        latest = max(self._first_tokens.values(), key=lambda denials: denials.last_ns, default=None)
        if latest is None or self._clock() - latest.last_ns > SHOWN_FOR_NS:
            return None
        return latest.text


def _add(entries: dict[str, Denials], key: str, text: str, now_ns: int, serial: int) -> Denials | None:
    """Count one. When there are too many, the entry whose latest is the longest ago goes, and is returned."""
    gone = None
    denials = entries.pop(key, None)
    if denials is None:
        if len(entries) >= MAX_ENTRIES:
            gone = entries.pop(next(iter(entries)))
        denials = Denials()
    entries[key] = denials
    denials.count += 1
    denials.text, denials.last_ns, denials.serial = text, now_ns, serial
    return gone
