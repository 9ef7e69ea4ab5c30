"""The instance's store: opening and checking the directory, loading queues, and the reads that block.

Reads run on one thread of their own, writes on another (committer.py); the event loop never touches the disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from requeue_worker.errors import CommitError, DataDirUnreadable, DataFormatTooNew
from requeue_worker.headroom import Room, give_back_ballast
from requeue_worker.registry import QueueRegistry
from requeue_worker.storage.claims import Claim, claim_of, take_over, uid_of
from requeue_worker.storage.keys import (
    META_FORMAT,
    META_QUEUE,
    TIME,
    after_prefix,
    ids_prefix,
    queue_prefix,
)
from requeue_worker.storage.queues import Lane
from requeue_worker.storage.rocksdb import DEAD, IDS, MESSAGES, META, Batch, Engine
from requeue_worker.storage.tenure import Tenure

log = logging.getLogger(__name__)

STORE_FORMAT = 1  #: of the directory as a whole: families, keys, meta
RECOVERY_S = 15.0  #: a write waits so long for room: RocksDB looks for some every 5 s
RECOVERY_LOOK_S = 0.2
READ_BYTES = 4 << 20  #: a read of one lane stops after about this much
HOP_MESSAGES = 4096  #: reads in one hop stop between two lanes after so many: others wait for its end
HOP_BYTES = 32 << 20

T = TypeVar("T")


class ReadRequest(NamedTuple):
    """Read what is due at `until_ns` in this lane, from its cursor, at most `limit` records."""

    lane: Lane
    cursor: bytes
    until_ns: int
    limit: int


class ReadResult(NamedTuple):
    """What a lane's read found: see `Lane.note_read`."""

    lane: Lane
    records: list[tuple[bytes, bytes]]
    next_key: bytes | None
    more: bool


class Store:
    """An open instance directory."""

    def __init__(self, path: Path, engine: Engine, tenure: Tenure) -> None:
        self.path = path
        self.uid = uid_of(engine)
        self._tenure = tenure
        self._engine = engine
        self._errors = engine.background_errors()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="requeue-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="requeue-write")
        #: looks at the disk before each commit, on the write thread, and hears of it on the event loop
        self.look: Callable[[], Room] | None = None
        self.looked: Callable[[Room], None] = lambda _: None
        #: False after a flush without room: RocksDB refuses every write until it finds some
        self.writable = True
        #: no threads until they are used: looks by the admin API must not make a due message wait, nor must copies
        self._browser = ThreadPoolExecutor(1, thread_name_prefix="requeue-browse")
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="requeue-backup")

    @classmethod
    def open(cls, data_dir: Path, instance_id: str, registry: QueueRegistry) -> Store:
        """Open `<data-dir>/<instance-id>/`, making it when new, and load its queues. Blocks.

        Raises DataDirLocked, DataDirUnreadable or DataFormatTooNew; then nothing was changed.
        """
        path = data_dir / instance_id
        if path.exists() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise DataDirUnreadable(f"{path} needs read, write and search rights for this user")
        give_back_ballast(data_dir)
        tenure = Tenure.await_own(path, instance_id)
        try:
            tenure.beat()
            return cls._open(path, instance_id, registry, tenure)
        except BaseException:
            tenure.release()
            raise

    @classmethod
    def _open(cls, path: Path, instance_id: str, registry: QueueRegistry, tenure: Tenure) -> Store:
        engine = Engine(path)
        try:
            _check_format(engine, path)
            if claim_of(engine) is not None:  # a neighbour began to merge it, and crashed
                own = Claim(uid_of(engine), instance_id)
                take_over(engine, path, own, lambda _: None, take_back=True)
            for key, value in engine.items(META, META_QUEUE, after_prefix(META_QUEUE)):
                registry.load(key[len(META_QUEUE) :].decode("ascii"), value)
        except DataFormatTooNew:
            engine.close()
            raise
        except Exception as error:
            engine.close()
            raise DataDirUnreadable(f"{path} can't be read: {error}") from error
        return cls(path, engine, tenure)

    def batch(self) -> Batch:
        """An empty batch (does not block)."""
        return self._engine.batch()

    async def write(self, batch: Batch) -> None:
        """Make a batch durable. Raises CommitError."""
        room = await asyncio.get_running_loop().run_in_executor(self._writer, self._write, batch)
        if room is not None:
            self.looked(room)

    def _write(self, batch: Batch) -> Room | None:
        room = None if self.look is None else self.look()
        self._await_recovery()
        self._tenure.check()
        self._engine.write(batch)
        return room

    def _await_recovery(self) -> None:
        """After a flush that failed, wait for RocksDB to make it good. Raises CommitError when it does not."""
        errors, give_up_s = self._engine.background_errors(), time.monotonic() + RECOVERY_S
        while errors != self._errors:
            try:
                self._engine.write(self._engine.batch())  # an empty one is refused as well
                self._errors = errors
            except CommitError:
                if time.monotonic() >= give_up_s:
                    raise
                time.sleep(RECOVERY_LOOK_S)

    def meta(self, key: bytes) -> bytes | None:
        """An entry of the `meta` family. Blocks, and may be called from any thread."""
        return self._engine.get(META, key)

    async def checkpoint(self, path: Path) -> None:
        """Make a copy at `path`, which must not exist, as of some moment between two commits. Raises OSError."""

        def copy() -> None:
            try:
                self._engine.checkpoint(path)
            except Exception as error:
                raise OSError(f"no checkpoint at {path}: {error}") from error

        await asyncio.get_running_loop().run_in_executor(self._copier, copy)

    async def reclaim(self, ranges: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Give the room of what was removed in these ranges (family, start, end) back to the disk. May take long.

        `writable` says afterwards whether the store still takes writes: `recover` is next, if not.
        """

        def compact() -> bool:
            try:
                self._engine.reclaim(ranges)
            except CommitError as error:
                log.warning("no room reclaimed", extra={"directory": str(self.path), "error": str(error)})
                return False
            return True

        self.writable = await asyncio.get_running_loop().run_in_executor(self._copier, compact)

    async def recover(self) -> None:
        """After a flush that found no room: set `writable` once RocksDB has made it good, which it does by itself."""
        if not self._engine.waits_for_flush():
            await self.reclaim([])

    def background_errors(self) -> int:
        """How often RocksDB could not flush or compact since it was opened; it tries on. Does not block."""
        return self._engine.background_errors()

    async def _read(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, function)

    async def read_due(self, requests: Sequence[ReadRequest]) -> list[ReadResult]:
        """Read several lanes in one hop: the first of them, as many as it has room for, and one at least."""
        return await self._read(partial(self._read_lanes, requests))

    def _read_lanes(self, requests: Sequence[ReadRequest]) -> list[ReadResult]:
        results: list[ReadResult] = []
        messages = held = 0
        for request in requests:
            if messages >= HOP_MESSAGES or held >= HOP_BYTES:
                break
            result = self._read_lane(request)
            messages += len(result.records)
            held += sum([len(value) for _, value in result.records])
            results.append(result)
        return results

    def _read_lane(self, request: ReadRequest) -> ReadResult:
        """One by one, since only a record's size says how many more there is room for."""
        lane, cursor, until_ns, limit = request
        beyond = lane.prefix + TIME.pack(until_ns + 1)
        records: list[tuple[bytes, bytes]] = []
        held = 0
        for item in self._engine.items(MESSAGES, cursor, lane.end):
            if item[0] >= beyond:
                return ReadResult(lane, records, item[0], False)
            records.append(item)
            held += len(item[1])
            if len(records) == limit or held >= READ_BYTES:
                return ReadResult(lane, records, None, True)
        return ReadResult(lane, records, None, False)

    async def keys_of_ids(self, client_ids: Sequence[bytes]) -> list[list[bytes]]:
        """For each client id the keys of the pending messages that carry it."""
        return await self._read(lambda: [self._keys_of_id(client_id) for client_id in client_ids])

    def _keys_of_id(self, client_id: bytes) -> list[bytes]:
        prefix = ids_prefix(client_id)
        return [key for _, key in self._engine.few(IDS, prefix, after_prefix(prefix))]

    async def get_messages(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of message keys, None for those that are gone."""
        return await self._read(lambda: [self._engine.get(MESSAGES, key) for key in keys])

    async def dead_before(
        self, queue: str, before_ns: int, limit: int, after: bytes = b""
    ) -> list[tuple[bytes, bytes]]:
        """A queue's oldest dead letters that died before this time; with `after` those behind that key.

        Fewer than `limit` where they are large: none at all says that there are no more.
        """
        prefix = queue_prefix(queue)
        start = after + b"\x00" if after else prefix
        return await self._read(partial(self._slice, DEAD, start, prefix + TIME.pack(before_ns), limit))

    async def marks(self, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Entries of the `meta` family with this prefix."""
        return await self._read(partial(self._slice, META, prefix, after_prefix(prefix), limit))

    async def present(self, family: str, keys: list[bytes]) -> set[bytes]:
        """Those of the keys of this family that are there."""
        return await self._read(partial(self._engine.present, family, keys))

    async def browse(self, function: Callable[[Engine], T]) -> T:
        """Let the admin API look at the data, on a thread of its own. The function must bound how much it reads."""
        return await asyncio.get_running_loop().run_in_executor(self._browser, function, self._engine)

    async def get_dead(self, key: bytes) -> bytes | None:
        """A dead letter's value, None when it is gone."""
        return await self._read(partial(self._engine.get, DEAD, key))

    def _slice(self, family: str, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        held = 0
        for item in islice(self._engine.items(family, start, end), limit):
            found.append(item)
            held += len(item[1])
            if held >= READ_BYTES:
                break
        return found

    def close(self) -> None:
        """Wait for what is under way, then close. Blocks."""
        self._copier.shutdown()
        self._browser.shutdown()
        self._reader.shutdown()
        self._writer.shutdown()
        self._engine.close()
        self._tenure.release()


def _check_format(engine: Engine, path: Path) -> None:
    if read_format(engine, path) is None:
        batch = engine.batch()
        batch.put_meta(META_FORMAT, bytes((STORE_FORMAT,)))
        engine.write(batch)


def read_format(engine: Engine, path: Path) -> int | None:
    """The directory's data format, None when none was written yet. Raises DataFormatTooNew."""
    stored = engine.get(META, META_FORMAT)
    if stored is None:
        return None
    if stored[0] > STORE_FORMAT:
        raise DataFormatTooNew(
            f"{path} has data format {stored[0]}, this release knows up to {STORE_FORMAT}: "
            "run the release that wrote it, or a newer one"
        )
    return stored[0]
