"""A filter of the admin API as a test of one record: the same for looking, counting and changing."""

from __future__ import annotations

import re
from collections.abc import Callable

from requeue_protocol.admin import MessageFilter
from requeue_protocol.subjects import subject_matches
from requeue_worker.record import Record
from requeue_worker.storage.keys import id_of

Wanted = Callable[[bytes, Record], bool]

_ID = re.compile(r"[0-9a-f]{32}")


def is_requeue_id(text: str) -> bool:
    """Whether it has the form of a Requeue-Id; a Nats-Msg-Id may have that, too."""
    return _ID.fullmatch(text) is not None


def wanted_by(request: MessageFilter) -> Wanted:
    """Whether a record is what the filter means. Its queue is not looked at: it says where to look."""
    before_ns, after_ns = request.enqueued_before_ns, request.enqueued_after_ns
    by_id = None if request.id is None else wanted_by_id(request.id)

    def wanted(key: bytes, record: Record) -> bool:
        if before_ns is not None and record.enqueued_ns >= before_ns:
            return False
        if after_ns is not None and record.enqueued_ns <= after_ns:
            return False
        if request.subject is not None and not subject_matches(
            request.subject, record.subject.decode(errors="replace")
        ):
            return False
        if by_id is not None and not by_id(key, record):
            return False
        return request.reason is None or record.extras.reason == request.reason

    return wanted


def wanted_by_id(wanted_id: str) -> Wanted:
    """Whether a record has this Requeue-Id or Nats-Msg-Id."""
    own = bytes.fromhex(wanted_id) if is_requeue_id(wanted_id) else None
    client_id = wanted_id.encode()

    def wanted(key: bytes, record: Record) -> bool:
        return (own is not None and id_of(key) == own) or record.client_id == client_id

    return wanted
