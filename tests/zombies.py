"""Instance directories that nobody runs any more, and eyes on what directories hold.

zombie = Zombie(data_dir, "gone").fill(messages=1000, dead=10)
...
assert contents(data_dir / "heir") == zombie.contents
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from requeue_worker.counts import Counts
from requeue_worker.record import HAS_CLIENT_ID, HEAD, PLAIN, RECORD_VERSION, Attempt, Extras
from requeue_worker.registry import QueueRegistry
from requeue_worker.settings import Settings
from requeue_worker.storage.claims import META_MERGED
from requeue_worker.storage.keys import (
    DEFAULT_PRIORITY,
    META_QUEUE,
    TIME_ID,
    dead_key,
    ids_prefix,
    lane_prefix,
)
from requeue_worker.storage.pages import META_UNPUBLISHED
from requeue_worker.storage.queues import QueueState
from requeue_worker.storage.rocksdb import DEAD, IDS, MESSAGES, META, Engine
from requeue_worker.storage.store import Store
from requeue_worker.storage.transaction import Transaction

END = b"\xff" * 200
LONG_AGO = (1_000_000_000, 1_000_000_000)


@dataclass
class Contents:
    """Everything of a directory that a merge has to keep, by key."""

    messages: dict[bytes, bytes] = field(default_factory=dict)
    dead: dict[bytes, bytes] = field(default_factory=dict)
    ids: dict[bytes, bytes] = field(default_factory=dict)
    unpublished: set[bytes] = field(default_factory=set)
    pauses: dict[str, int] = field(default_factory=dict)

    def __or__(self, other: Contents) -> Contents:
        assert not self.messages.keys() & other.messages.keys(), "a message in both"
        assert not self.dead.keys() & other.dead.keys(), "a dead letter in both"
        return Contents(
            self.messages | other.messages,
            self.dead | other.dead,
            self.ids | other.ids,
            self.unpublished | other.unpublished,
            self.pauses | other.pauses,
        )


def registry_of(settings: Settings) -> QueueRegistry:
    return QueueRegistry(settings.policy_for, settings.subject, settings.max_queues, Counts())


def contents(path: Path) -> Contents:
    """What a directory holds. Nobody may write to it meanwhile."""
    engine = Engine(path, read_only=True)
    try:
        registry = registry_of(Settings(data_dir=path.parent))
        for key, value in engine.items(META, META_QUEUE, META_QUEUE + b"\xff"):
            registry.load(key[1:].decode(), value)
        return Contents(
            dict(engine.items(MESSAGES, b"", END)),
            dict(engine.items(DEAD, b"", END)),
            dict(engine.items(IDS, b"", END)),
            {key[1:] for key in engine.keys(META, META_UNPUBLISHED, META_UNPUBLISHED + b"\xff")},
            {queue.name: queue.paused_until_ns for queue in registry if queue.paused_until_ns},
        )
    finally:
        engine.close()


def marks_in(path: Path) -> list[bytes]:
    """Marks of merges that the directory keeps."""
    engine = Engine(path, read_only=True)
    try:
        return list(engine.keys(META, META_MERGED, META_MERGED + b"\xff"))
    finally:
        engine.close()


def stored(
    subject: str,
    payload: bytes,
    *,
    client_id: str | None = None,
    attempts: int = 0,
    deadline_ns: int = 0,
    **extras: Any,
) -> bytes:
    """A stored message, as the plain intake writes it."""
    said = f"Nats-Msg-Id: {client_id}\r\n" if client_id is not None else ""
    block = f"NATS/1.0\r\n{said}Requeue-Subject: {subject}\r\n\r\n".encode()
    raw = Extras(**extras).encode()
    subject_at = len(block) - 4 - len(subject)
    flags = PLAIN | (HAS_CLIENT_ID if client_id is not None else 0)
    sizes = (len(subject), len(raw), len(block), subject_at, len(block), len(payload))
    now_ns = 1_700_000_000_000_000_000
    return (
        HEAD.pack(RECORD_VERSION, flags, 255, attempts, *sizes, 5, 2**64 - 1, now_ns, deadline_ns)
        + raw
        + block
        + payload
    )


class Zombie:
    """A directory under construction; it is closed, and its heartbeat was long ago."""

    def __init__(self, data_dir: Path, instance_id: str) -> None:
        self.path = data_dir / instance_id
        self.settings = Settings(data_dir=data_dir, instance_id=instance_id)
        self._epoch = os.urandom(8)
        self._sequence = 0
        self.fill()

    def fill(
        self,
        messages: int = 0,
        dead: int = 0,
        *,
        queue: str = "default",
        priority: int = DEFAULT_PRIORITY,
        due_ns: int = 1_700_000_000_000_000_000,
        subject: str = "jobs.a",
        client_ids: bool = False,
        unpublished: bool = False,
        paused_until_ns: int = 0,
        size: int = 40,
    ) -> Zombie:
        """Add records, in transactions as the worker writes them."""
        registry = registry_of(self.settings)
        store = Store.open(self.settings.data_dir, self.settings.instance_id, registry)
        try:
            state = registry.adopt(queue)
            state.paused_until_ns = paused_until_ns
            for start in range(0, max(messages, 1), 5000):
                transaction = Transaction(store.batch(), time.time_ns())
                transaction.touch([state])
                count = min(5000, messages - start)
                if count > 0:
                    self._messages(transaction, state, count, priority, due_ns, subject, client_ids, size)
                if start == 0:
                    self._dead(transaction, state, dead, subject, unpublished)
                transaction.seal(False)
                store._engine.write(transaction.batch, sync=False)
                transaction.settle_in_memory()
                del transaction  # its batch holds the database open
        finally:
            store.close()
        self.still()
        return self

    def still(self) -> None:
        """The last heartbeat was long ago."""
        os.utime(self.path / "heartbeat", LONG_AGO)

    @property
    def contents(self) -> Contents:
        return contents(self.path)

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _messages(
        self,
        transaction: Transaction,
        queue: QueueState,
        count: int,
        priority: int,
        due_ns: int,
        subject: str,
        client_ids: bool,
        size: int,
    ) -> None:
        prefix, records, sizes = lane_prefix(queue.name, priority), [], 0
        for _ in range(count):
            number = self._next()
            key = prefix + TIME_ID.pack(due_ns + number, self._epoch, number)
            client_id = f"{self.path.name}-{number}" if client_ids else None
            value = stored(subject, b"%0*d" % (size, number), client_id=client_id)
            records.append((key, value))
            sizes += len(value) - HEAD.size
            if client_id is not None:
                transaction.adopt_id(ids_prefix(client_id.encode()) + key[-16:], key)
        transaction.adopt(queue.lane(priority), records, sizes)

    def _dead(
        self, transaction: Transaction, queue: QueueState, count: int, subject: str, unpublished: bool
    ) -> None:
        letters, sizes = [], 0
        now_ns = time.time_ns()
        for _ in range(count):
            number = self._next()
            message_id = self._epoch + number.to_bytes(8, "big")
            key = dead_key(queue.name, now_ns + number, message_id)
            history = [Attempt(1, now_ns, "nobody listens")]
            value = stored(
                subject, b"dead", attempts=1, history=history, reason="exhausted", died_ns=now_ns + number
            )
            letters.append((key, value))
            sizes += len(value) - HEAD.size - int.from_bytes(value[12:16], "big")
            if unpublished:
                transaction.batch.put_meta(META_UNPUBLISHED + key, b"")
        transaction.adopt_dead(queue, letters, sizes)
