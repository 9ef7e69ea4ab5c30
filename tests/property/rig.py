"""Store and committer on a real directory, with the disk's steps in the test's hands.

A commit has three moments: *sealed* (the batch is made), *landed* (it is on disk), *finished* (memory knows). A read
has three as well: it is asked for, it looks at the disk, and it comes back. Whatever else happens in between is what
the tests of this directory are about.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from requeue_protocol.policy import QueuePolicy
from requeue_worker.counts import Counts
from requeue_worker.errors import CommitError
from requeue_worker.readahead import ReadAhead
from requeue_worker.record import (
    HAS_CLIENT_ID,
    HEAD_STATIC,
    RECORD_VERSION,
    UNSET_BACKOFF,
    decode,
)
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage import committer as committing
from requeue_worker.storage import transaction as transactions
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.keys import (
    META_QUEUE,
    after_prefix,
    ids_prefix,
    parse_message_key,
)
from requeue_worker.storage.queues import Lane, QueueState
from requeue_worker.storage.rocksdb import DEAD, IDS, MESSAGES, META, Batch, Engine
from requeue_worker.storage.store import Store
from requeue_worker.storage.transaction import Ids, NewMessage

MS = 1_000_000
S = 1_000_000_000
START_NS = 1_700_000_000 * S
INSTANCE = "rig"
POLICY = QueuePolicy.model_validate({})

T = TypeVar("T")


def new_message(
    lane: Lane,
    payload: bytes,
    *,
    delay_ns: int = 0,
    at_ns: int | None = None,
    ttl_ns: int = 0,
    client_id: bytes | None = None,
    reply: bytes = b"",
    has_headers: bool = False,
) -> NewMessage:
    """An accepted message, as ingest makes it; its body is the payload alone."""
    headers = b"" if client_id is None else b"NATS/1.0\r\nNats-Msg-Id: " + client_id + b"\r\n\r\n"
    flags = 0 if client_id is None else HAS_CLIENT_ID
    head = HEAD_STATIC.pack(
        RECORD_VERSION, flags, UNSET_BACKOFF, 0, 0, 0, len(headers), 0, len(headers), len(payload), 1, 0
    )
    size = len(headers) + len(payload)
    return NewMessage(
        lane, delay_ns, at_ns, ttl_ns, head, headers + payload, size, client_id, reply, has_headers
    )


class SteppedStore(Store):
    """A store whose writes land and finish when they are told to."""

    _may_land: asyncio.Event
    _may_finish: asyncio.Event
    #: a batch is sealed and waits to land, or landed and waits to finish
    sealed = landed = False
    fail: CommitError | None = None
    writes = 0

    async def write(self, batch: Batch) -> None:
        self._may_land, self._may_finish = asyncio.Event(), asyncio.Event()
        self.sealed = True
        self.writes += 1
        await self._may_land.wait()
        if self.fail is not None:
            raise self.fail
        self._engine.write(batch)
        self.landed = True
        await self._may_finish.wait()
        self.sealed = self.landed = False

    async def _read(self, function: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        return function()


class Stored:
    """Everything on disk, by a full scan, checked against the counters, checkpoints and ids beside it."""

    def __init__(self, engine: Engine) -> None:
        self.pending = dict(engine.items(MESSAGES, b"", b"\xff"))
        self.dead = dict(engine.items(DEAD, b"", b"\xff"))
        self.ids = dict(engine.items(IDS, b"", b"\xff" * 8))
        registry = make_registry()
        for key, value in engine.items(META, META_QUEUE, after_prefix(META_QUEUE)):
            registry.load(key[len(META_QUEUE) :].decode(), value)
        self.queues = {queue.name: queue for queue in registry}
        self._check_counters()
        self._check_ids()

    def _check_counters(self) -> None:
        counted: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in self.queues}
        for key, value in self.pending.items():
            name, priority, _, _ = parse_message_key(key)
            counted[name][0] += 1
            counted[name][1] += decode(value).size
            assert key >= self.queues[name].lanes[priority].checkpoint, "pending below the checkpoint"
        for key, value in self.dead.items():
            name = key[1 : 1 + key[0]].decode()
            counted[name][2] += 1
            counted[name][3] += decode(value).size
        for name, queue in self.queues.items():
            stored = [queue.pending, queue.bytes, queue.dead, queue.dead_bytes]
            assert stored == counted[name], f"counters of {name}"

    def _check_ids(self) -> None:
        wanted = {}
        for key, value in self.pending.items():
            client_id = decode(value).client_id
            if client_id is not None:
                wanted[ids_prefix(client_id) + key[-16:]] = key
        assert self.ids == wanted, "ids say what is pending, and nothing else"


def make_registry() -> QueueRegistry:
    return QueueRegistry(lambda _: POLICY, "requeue.>", 1000, Counts())


def _copy(source: Path, target: Path) -> None:
    """Copy a database that nobody writes to. Its background may still compact: take a copy during which it did not."""
    while True:
        before = sorted(str(path) for path in source.rglob("*"))
        with contextlib.suppress(OSError):  # shutil.Error: a file went away
            shutil.copytree(source, target)
            if sorted(str(path) for path in source.rglob("*")) == before:
                return
        shutil.rmtree(target)


class _Time:
    """Stands for `time` in the committer: decides when checkpoints move."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def monotonic_ns(self) -> int:
        return self._rig.mono_ns

    def perf_counter(self) -> float:
        return 0.0


class Rig:
    """One life of a store: from `open` to `close` or a crash."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._lives = 0
        self._opened = 0
        #: of the ids' epochs: one salt gives the lives of a run the same epochs each time, and another an order of its own
        self.salt = 0
        self.now_ns = START_NS
        self.mono_ns = 10 * S
        self.loop = asyncio.new_event_loop()
        self.acked: list[NewMessage] = []
        self.refused: list[NewMessage] = []
        self.earlier: list[Lane] = []
        #: what is sealed from now on is retained when it is due until then
        self.retain_until_ns = 0
        self.errors: list[CommitError] = []
        self._patches = pytest.MonkeyPatch()
        self._patches.setattr(committing, "time", _Time(self))
        # Settlements alone wait for a timer of the real clock: here they wait for `seal`, so that a run can be repeated.
        self._patches.setattr(committing, "SETTLE_WAIT_S", 1e9)
        self.open()

    def open(self) -> None:
        self.registry = make_registry()
        self.counts = Counts()
        self.read_ahead: Any = SimpleNamespace(ready_bytes=0)  #: all that its methods for one lane need
        self.store = SteppedStore.open(self.data_dir, INSTANCE, self.registry)
        assert isinstance(self.store, SteppedStore)
        self.committer = Committer(
            self.store,
            self.counts,
            lambda: self.now_ns,
            on_durable=self.acked.extend,
            on_earlier=self.earlier.extend,
            room=self._room,
            on_retained=lambda messages: self.earlier.extend(ReadAhead.retain(self.read_ahead, messages)),
            on_failed=self._on_failed,
        )
        # A random epoch decides the order of keys with equal times: a run could not be repeated.
        self._opened += 1
        self.committer._ids = Ids(hashlib.sha256(b"%d %d" % (self.salt, self._opened)).digest()[:8])

    def _room(self) -> int:
        """Room for all that is due until `retain_until_ns`."""
        self._patches.setattr(transactions, "RETAIN_NS", self.retain_until_ns - self.now_ns)
        return 1 << 30

    def _on_failed(self, error: CommitError, messages: list[NewMessage]) -> None:
        self.errors.append(error)
        self.refused += messages

    # -- steps of a commit -----------------------------------------------------------------------------------

    def call(self, function: Callable[[], T]) -> T:
        """Call on the loop."""

        async def run() -> T:
            return function()

        return self.loop.run_until_complete(run())

    def spin(self) -> None:
        """Let everything go on that waits for nothing."""

        async def run() -> None:
            for _ in range(8):
                await asyncio.sleep(0)

        self.loop.run_until_complete(run())

    def seal(self) -> bool:
        """Make a batch of what waits. False when nothing does, or one is under way."""
        if not self.store.sealed:
            self.call(self.committer._kick)
            self.spin()
            return bool(self.store.sealed)
        return False

    def land(self) -> None:
        self.store._may_land.set()
        self.spin()

    def finish(self) -> None:
        """Memory hears of the commit; the next one is sealed when something waits."""
        self.store._may_finish.set()
        self.spin()

    def commit_all(self) -> None:
        """Commit until nothing waits."""
        self.seal()
        while self.store.sealed:
            self.land()
            self.finish()

    # -- ends ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close in good order."""
        self._end_tasks()
        self.store.close()

    def crash(self) -> None:
        """What is on disk at this moment is all that is left; then open it again."""
        self._lives += 1
        image = self.data_dir.with_name(f"data-{self._lives}")
        _copy(self.data_dir, image)
        self.close()
        self.data_dir = image
        self.open()

    def _end_tasks(self) -> None:
        if self.committer._lazy is not None:
            self.committer._lazy.cancel()

        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.loop.run_until_complete(cancel())
        self.store.sealed = self.store.landed = False

    def dispose(self) -> None:
        """The end of the test."""
        self.close()
        self.loop.close()
        self._patches.undo()

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def stored(self) -> Stored:
        """A checked full scan."""
        return Stored(self.store._engine)

    def lanes(self) -> Iterable[Lane]:
        return [lane for queue in self.registry for lane in queue.lanes.values()]

    def queue(self, name: str = "default") -> QueueState:
        return self.registry.get(name)

    def payloads(self, values: Iterable[bytes]) -> list[bytes]:
        return [decode(value).payload for value in values]
