"""Where the intake's answers may go: a client names the subject, and the worker writes there with its own rights.

Refused are subjects that the worker itself takes in (an ack would be the next message, or settle somebody else's
replay), its stats, admin and handover subjects, and those of the NATS system, where an empty message deletes a stream
or overwrites a key. `$JS.ACK.>` is no such one: there an empty message is what a JetStream consumer waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from requeue_protocol.errors import RefusedError, SubjectNotAllowed
from requeue_protocol.subjects import ADMIN_PREFIX, MAX_SUBJECT_BYTES, subject_matches
from requeue_worker.broker.parser import Raw

_INBOX: Final = b"_INBOX."
_JETSTREAM_ACK: Final = b"$JS.ACK."


class Answers:
    """Takes out of a batch what must not be answered, and refuses it without a word."""

    def __init__(self, intake: str, refuse: Callable[[Raw, RefusedError], None]) -> None:
        self._intake = intake
        self._first_tokens = (intake.partition(".")[0].encode(), ADMIN_PREFIX.encode(), b"_INBOX")
        self._refuse = refuse
        #: the worker's own reply inbox, with its last dot
        self.inbox = b""

    def check(self, batch: list[Raw]) -> list[Raw]:
        """The messages of a batch whose reply subject, if any, is one to answer to."""
        # By their beginnings, of which there are few: a third less time than looking at each subject.
        length = max(len(self.inbox), len(_INBOX))
        starts = {raw[1][:length] for raw in batch}
        if all(start.startswith(_INBOX) and start != self.inbox for start in starts) and not _too_long(batch):
            return batch
        passed = []
        for raw in batch:
            subject, reply, headers, payload = raw
            if reply and not self.allows(reply):
                error = SubjectNotAllowed(f"no answer may go to {reply[:100].decode(errors='replace')!r}")
                self._refuse((subject, b"", headers, payload), error)
            else:
                passed.append(raw)
        return passed

    def allows(self, reply: bytes) -> bool:
        """Whether an answer may be sent to this subject."""
        if len(reply) > MAX_SUBJECT_BYTES:  # the server ends a connection for a longer protocol line
            return False
        if reply.startswith(b"$"):
            return reply.startswith(_JETSTREAM_ACK)
        first = reply.partition(b".")[0]
        if first not in self._first_tokens:
            return True
        if first == _INBOX[:-1]:
            return not reply.startswith(self.inbox)
        return first != self._first_tokens[1] and not subject_matches(
            self._intake, reply.decode(errors="replace")
        )


def _too_long(batch: list[Raw]) -> bool:
    return max([len(raw[1]) for raw in batch], default=0) > MAX_SUBJECT_BYTES
