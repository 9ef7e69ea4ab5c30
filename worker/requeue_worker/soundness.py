"""What a single stored record has to be like, whatever the others say: keys, heads, extras, queue states.

`verify` asks this of every record. Whatever the bytes, nothing but `Wrong` is raised.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Final, NamedTuple

from requeue_protocol.envelope import Backoff
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.policy import QueuePolicy
from requeue_protocol.subjects import INTAKE_DEFAULT, SubjectRules, check_queue_name
from requeue_worker.counts import QueueCounts
from requeue_worker.record import HAS_CLIENT_ID, MAX_TIME_NS, PLAIN, UNSET_BACKOFF, Record, decode
from requeue_worker.storage.keys import ID_LEN, PRIORITIES, SUFFIX_LEN, id_of, time_of
from requeue_worker.storage.queues import INVALID_QUEUE, QueueState

#: a message in flight is keyed by its ack deadline, which may lie this far behind its own deadline
_BEHIND_DEADLINE_NS: Final = 24 * 3600 * 10**9
_BACKOFFS: Final = frozenset({*map(int, Backoff), UNSET_BACKOFF})
_POLICY: Final = QueuePolicy.model_validate({})
_RULES: Final = SubjectRules(intake=INTAKE_DEFAULT)
_COUNTS: Final = QueueCounts()


class Wrong(Exception):
    """A record is not what it has to be; the text says in what."""


class Shape(NamedTuple):
    """The parts of a message key that its neighbours share."""

    queue: str
    priority: int

    @classmethod
    def of_message(cls, key: bytes) -> Shape:
        """Queue and priority of a message key."""
        queue = _queue_in(key, 1)
        priority = key[1 + len(queue)]
        if priority >= PRIORITIES:
            raise Wrong(f"priority {priority} is not one of 0 to {PRIORITIES - 1}")
        return cls(queue, priority)

    def where(self, key: bytes) -> str:
        """A message, for who reads a report."""
        return f"queue {self.queue}, priority {self.priority}, {_date(time_of(key))}, id {id_of(key).hex()}"


def sound_message(key: bytes, value: bytes) -> Record:
    """The pending message, once its value agrees with itself and its key. Its key's shape is `Shape.of_message`."""
    record = _sound_value(value)
    time_ns, deadline_ns = time_of(key), record.deadline_ns
    if time_ns > MAX_TIME_NS:
        raise Wrong("its time is after the year 2262")
    if deadline_ns and time_ns > deadline_ns + _BEHIND_DEADLINE_NS:
        raise Wrong(f"its time, {_date(time_ns)}, is behind its deadline, {_date(deadline_ns)}")
    if not record.subject_len:
        raise Wrong("it has no subject")
    return record


def sound_dead(key: bytes, value: bytes) -> tuple[str, Record]:
    """Queue and record of a dead letter."""
    queue = _queue_in(key, 0)
    record = _sound_value(value)
    if time_of(key) > MAX_TIME_NS:
        raise Wrong("its time of death is after the year 2262")
    if not record.extras_len or not record.extras.reason:
        raise Wrong("it has no reason")
    return queue, record


def stored_queue(name: bytes, value: bytes) -> tuple[str, tuple[int, int, int, int], dict[int, bytes]]:
    """Name, counters (pending, bytes, dead, dead bytes) and checkpoints by priority of a stored queue state."""
    queue = _queue_name(name)
    state = QueueState(queue, _POLICY, _RULES, _COUNTS)
    try:
        state.load(value)
    except (ValueError, IndexError, struct.error) as error:
        raise Wrong(f"can't be decoded: {error}") from error
    checkpoints = {priority: lane.checkpoint for priority, lane in state.lanes.items()}
    if any(priority >= PRIORITIES for priority in checkpoints):
        raise Wrong(f"a lane's priority is not one of 0 to {PRIORITIES - 1}")
    if state.encode() != value:
        raise Wrong("is longer or shorter than what it says that it holds")
    return queue, (state.pending, state.bytes, state.dead, state.dead_bytes), checkpoints


def _sound_value(value: bytes) -> Record:
    try:
        record = decode(value)
    except (ValueError, struct.error) as error:
        raise Wrong(f"can't be decoded: {error}") from error
    wire_len = record.size
    if record.headers_len > wire_len:
        raise Wrong("its extras and headers are longer than all of it")
    if max(record.subject_at + record.subject_len, record.payload_at + record.payload_len) > wire_len:
        raise Wrong("its subject or payload ends behind its end")
    if record.flags & ~(PLAIN | HAS_CLIENT_ID) or record.backoff not in _BACKOFFS:
        raise Wrong(f"flags {record.flags} or backoff {record.backoff} are unknown")
    if max(record.enqueued_ns, record.deadline_ns) > MAX_TIME_NS:
        raise Wrong("a time is after the year 2262")
    if record.deadline_ns and record.deadline_ns < record.enqueued_ns:
        raise Wrong("its deadline is before it was taken in")
    if record.extras_len:
        _check_extras(record)
    if record.flags & HAS_CLIENT_ID and record.client_id is None:
        raise Wrong("its client id is not in its headers")
    return record


def _check_extras(record: Record) -> None:
    try:
        record.extras  # noqa: B018 - decoding is the check
    except (ValueError, TypeError, RecursionError) as error:
        raise Wrong(f"its extras can't be decoded: {error}") from error


def _queue_in(key: bytes, between: int) -> str:
    """The queue's name in a key that has `between` bytes between that and time and id."""
    if len(key) < 2 + between + SUFFIX_LEN or len(key) != 1 + key[0] + between + SUFFIX_LEN:
        raise Wrong(f"a key of {len(key)} bytes is none of this family (id: {key[-ID_LEN:].hex()})")
    return _queue_name(key[1 : 1 + key[0]])


def _queue_name(raw: bytes) -> str:
    try:
        name = raw.decode("ascii")
        if name != INVALID_QUEUE:
            check_queue_name(name)
    except (UnicodeDecodeError, MalformedMessage) as error:
        raise Wrong(f"{raw!r} is no queue name") from error
    return name


def _date(ns: int) -> str:
    return datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
