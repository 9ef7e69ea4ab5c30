"""A small instance directory with some of everything, written by the storage layer itself without a worker."""

from __future__ import annotations

import shutil
from pathlib import Path

from requeue_protocol.policy import QueuePolicy
from requeue_protocol.subjects import SubjectRules
from requeue_worker.counts import QueueCounts
from requeue_worker.record import (
    HAS_CLIENT_ID,
    HEAD_STATIC,
    HEAD_TIMES,
    PLAIN,
    UNSET_BACKOFF,
    UNSET_DELAY,
    Attempt,
    DeadReason,
    Extras,
    decode,
    encode,
)
from requeue_worker.storage.keys import DEFAULT_PRIORITY, META_FORMAT, META_MARK, TIME, lane_prefix
from requeue_worker.storage.queues import INVALID_QUEUE, QueueState
from requeue_worker.storage.rocksdb import Engine
from requeue_worker.storage.store import STORE_FORMAT
from requeue_worker.storage.transaction import Ids, NewMessage, Transaction

PENDING, DEAD_LETTERS = 6, 3
NOW_NS = 1_800_000_000 * 10**9
FIRST_NS = 10**9  #: nothing is due before this: the checkpoints stand there
EPOCH = b"sampleid"
SUBJECT = b"jobs.sample"


def stored(
    payload: bytes, *, client_id: bytes | None = None, enqueued_ns: int = FIRST_NS, deadline_ns: int = 0
) -> bytes:
    """The value of a message with headers, as `record.py` lays it out."""
    head, tail, _ = _parts(payload, client_id)
    return head + HEAD_TIMES.pack(enqueued_ns, deadline_ns) + tail


def message_key(
    queue: str,
    *,
    priority: int = DEFAULT_PRIORITY,
    time_ns: int = NOW_NS,
    number: int = 0,
    message_id: bytes = b"",
) -> bytes:
    return lane_prefix(queue, priority) + TIME.pack(time_ns) + (message_id or b"addition" + TIME.pack(number))


def write_sample(path: Path, *, copies: int = 1, crash: bool = False) -> Path:
    """Write the directory, `copies` times as many messages; with `crash` it is what a process that died would leave."""
    database = path.with_name(path.name + "-open") if crash else path
    database.mkdir(parents=True)
    engine = Engine(database)
    transaction = Transaction(engine.batch(), NOW_NS)
    mail, jobs, invalid = (_queue(name) for name in ("mail", "jobs", INVALID_QUEUE))
    ids = Ids(EPOCH)
    for _ in range(copies):
        _insert(transaction, ids, mail, (b"one", b"two", b"three"))
        _insert(transaction, ids, mail, (b"urgent",), priority=0)
        _insert(transaction, ids, jobs, (b"a", b"b"), client_ids=(b"id-a", b"id-b"))
    for queue, number in ((mail, 1), (mail, 2), (invalid, 3)):
        value = _dead_value(b"dead %d" % number)
        key = transaction.add_dead(queue, b"deadones" + TIME.pack(number), value, decode(value).size)
        if number == 1:
            transaction.batch.put_meta(META_MARK + key, b"")
    transaction.batch.put_meta(META_FORMAT, bytes((STORE_FORMAT,)))
    transaction.seal(checkpoints_due=True)
    engine.write(transaction.batch)
    if crash:
        shutil.copytree(database, path)
    engine.close()
    return path


def _queue(name: str) -> QueueState:
    policy = QueuePolicy.model_validate({})
    return QueueState(name, policy, SubjectRules(intake="requeue.>"), QueueCounts())


def _insert(
    transaction: Transaction,
    ids: Ids,
    queue: QueueState,
    payloads: tuple[bytes, ...],
    *,
    priority: int = DEFAULT_PRIORITY,
    client_ids: tuple[bytes | None, ...] = (),
) -> None:
    lane = queue.lane(priority)
    lane.cursor = lane.prefix + TIME.pack(FIRST_NS) + bytes(16)
    new = []
    for payload, client_id in zip(payloads, client_ids or (None,) * len(payloads), strict=True):
        head, tail, size = _parts(payload, client_id)
        queue.waiting, queue.waiting_bytes = queue.waiting + 1, queue.waiting_bytes + size
        new.append(NewMessage(lane, 10**9, None, 0, head, tail, size, client_id, b"", True))
    transaction.insert_new(new, ids)


def _parts(payload: bytes, client_id: bytes | None) -> tuple[bytes, bytes, int]:
    said = b"NATS/1.0\r\nRequeue-Subject: "
    id_line = b"" if client_id is None else b"Nats-Msg-Id: " + client_id + b"\r\n"
    headers = said + SUBJECT + b"\r\n" + id_line + b"\r\n"
    flags = PLAIN if client_id is None else PLAIN | HAS_CLIENT_ID
    head = HEAD_STATIC.pack(
        1,
        flags,
        UNSET_BACKOFF,
        0,
        len(SUBJECT),
        0,
        len(headers),
        len(said),
        len(headers),
        len(payload),
        0,
        UNSET_DELAY,
    )
    return head, headers + payload, len(headers) + len(payload)


def _dead_value(payload: bytes) -> bytes:
    extras = Extras(reason=str(DeadReason.EXHAUSTED), died_ns=NOW_NS)
    extras.remember(Attempt(1, NOW_NS, "no reply within the ack timeout"))
    return encode(decode(stored(payload)), attempts=1, extras=extras)
