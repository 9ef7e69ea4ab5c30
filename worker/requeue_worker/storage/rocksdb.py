"""RocksDB by rocksdict, which `options` alone imports besides: opening, batches, scans and point reads, in raw bytes.

Four column families (`messages`, `dead`, `meta`, `ids`) in one database, so that one WriteBatch covers them all.
Every write goes through the WAL with an fsync before it returns, and is seen by nobody before that.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from requeue_worker.errors import CommitError, DataDamaged, DataDirLocked, DataDirUnreadable
from requeue_worker.storage.options import (
    BLOCK_CACHE_BYTES,
    MIB,
    OTHER_BUFFERS_SHARE,
    SCAN_CACHE_BYTES,
    SOURCE_BUFFER_BYTES,
    buffer_bytes,
    db_options,
    family_options,
)
from requeue_worker.storage.wal import damaged_at
from rocksdict import (
    AccessType,
    Cache,
    Checkpoint,
    ColumnFamily,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

MESSAGES, DEAD, META, IDS = "messages", "dead", "meta", "ids"
FAMILIES = (MESSAGES, DEAD, META, IDS)

_BEYOND = b"\xff" * 256  # no key is larger
WHAT_TO_DO = "; `requeue-worker salvage` copies what can be read into another directory, and says what can't"


class Batch:
    """One atomic WriteBatch over the four families. `put` and `delete` without a family mean `messages`."""

    __slots__ = ("_dead", "_families", "_ids", "_meta", "delete", "put", "raw")

    def __init__(self, engine: Engine) -> None:
        self.raw = WriteBatch(raw_mode=True)
        self.raw.set_default_column_family(engine.handles[MESSAGES])
        self._families = engine.handles
        self._dead, self._meta, self._ids = (engine.handles[name] for name in (DEAD, META, IDS))
        self.put = self.raw.put
        self.delete = self.raw.delete

    def put_dead(self, key: bytes, value: bytes) -> None:
        """Store a dead letter."""
        self.raw.put(key, value, self._dead)

    def delete_dead(self, key: bytes) -> None:
        """Remove a dead letter."""
        self.raw.delete(key, self._dead)

    def put_meta(self, key: bytes, value: bytes) -> None:
        """Store counters, checkpoints or marks."""
        self.raw.put(key, value, self._meta)

    def delete_meta(self, key: bytes) -> None:
        """Remove a mark."""
        self.raw.delete(key, self._meta)

    def put_id(self, key: bytes, value: bytes) -> None:
        """Store a client id's entry."""
        self.raw.put(key, value, self._ids)

    def delete_id(self, key: bytes) -> None:
        """Remove a client id's entry."""
        self.raw.delete(key, self._ids)

    def delete_range(self, family: str, start: bytes, end: bytes) -> None:
        """Remove everything in ``start <= key < end``, whatever it holds."""
        self.raw.delete_range(start, end, self._families[family])


class Engine:
    """An open database. All methods but `batch` may block on the disk: call them from a storage thread."""

    def __init__(
        self, path: Path, *, read_only: bool = False, source: bool = False, salvage: bool = False
    ) -> None:
        """Open or create the database at `path`; `read_only` neither creates, nor writes, nor takes the lock.

        `source` is for one that is emptied into another: it takes little memory, creates nothing and compacts nothing.
        `salvage` opens what `run` would not: what is damaged in a log is left out, and said nowhere.

        Raises DataDirLocked when another process has it open, DataDirUnreadable for anything else.
        """
        if not salvage:
            _check_logs(path)
        cache = Cache(SCAN_CACHE_BYTES if read_only or source else BLOCK_CACHE_BYTES)
        buffer = buffer_bytes(path)
        options = db_options(buffer)
        if salvage:
            options.set_wal_recovery_mode(DBRecoveryMode.skip_any_corrupted_record())
        if source:
            options.create_if_missing(False)
            options.set_db_write_buffer_size(SOURCE_BUFFER_BYTES)
            options.set_disable_auto_compactions(True)
        try:
            self._db = Rdict(
                str(path),
                options,
                {
                    name: family_options(
                        cache,
                        buffer if name == MESSAGES else max(buffer // OTHER_BUFFERS_SHARE, MIB),
                        bloom=name == IDS,
                    )
                    for name in FAMILIES
                },
                AccessType.read_only(False) if read_only else AccessType.read_write(),
            )
        except Exception as error:
            text = str(error)
            if "lock hold" in text or "While lock file" in text:
                raise DataDirLocked(f"{path} is open in another process") from error
            if "Corruption" in text and ".sst" not in text and (tables := _damaged_tables(path)):
                text = f"{text} Rather: {', '.join(tables)} can't be opened"  # it blames the manifest for a table
            hint = WHAT_TO_DO if "Corruption" in text or "No such file" in text else ""
            raise DataDirUnreadable(f"{path} can't be opened: {text}{hint}") from error
        self.handles: dict[str, ColumnFamily] = {
            name: self._db.get_column_family_handle(name) for name in FAMILIES
        }
        self._families = {name: self._db.get_column_family(name) for name in FAMILIES}
        #: held while a write is not durable yet: scans begin before it or after it
        self._durable = threading.Lock()
        self._unsynced = ""

    def batch(self) -> Batch:
        """An empty batch."""
        return Batch(self)

    def write(self, batch: Batch, *, sync: bool = True) -> None:
        """Make the batch durable: returns after the WAL's fsync (without `sync` before it). Raises CommitError."""
        with self._durable:
            try:
                # Not with an fsync of its own: rocksdict holds the GIL all through a write, and the event loop would wait
                # for the disk. While it syncs a log it does not.
                self._db.write(batch.raw)
            except Exception as error:
                raise CommitError(str(error)) from error
            try:
                if sync:
                    self._db.flush_wal(sync=True)
            except Exception as error:
                self._unsynced = str(error)  # `error` itself would hold the database open
                raise CommitError(str(error)) from error

    def get(self, family: str, key: bytes) -> bytes | None:
        """The value, or None. Raises DataDamaged."""
        # No scan: that would look into tables which do not hold the key, and may be damaged.
        value: bytes | None = self._read(family, key.hex(), partial(self._families[family].get, key))
        return value

    def present(self, family: str, keys: list[bytes]) -> set[bytes]:
        """Those of the keys that are there. Raises DataDamaged."""
        get = cast("Callable[[list[bytes]], list[bytes | None]]", self._families[family].get)
        found = self._read(family, f"{len(keys)} keys", partial(get, keys))
        return {key for key, value in zip(keys, found, strict=True) if value is not None}

    def _read(self, family: str, place: str, read: Callable[[], T]) -> T:
        """Read at once. Raises DataDamaged."""
        try:
            return self._begin(read)
        except DataDamaged:
            raise
        except Exception as error:
            raise DataDamaged(f"{family} can't be read at {place}: {error}{WHAT_TO_DO}") from error

    def _scan(self, family: str, end: bytes) -> tuple[RdictIter, ReadOptions]:
        """A scan up to `end`, and what has to live as long: the bound is in the options, which the scan does not hold."""
        options = ReadOptions()
        options.set_iterate_upper_bound(end)
        return self._begin(partial(self._families[family].iter, options)), options

    def _begin(self, scan: Callable[[], T]) -> T:
        """Begin a scan, which sees the database as it is now: when all of it is durable. Raises DataDamaged.

        What is not could be lost in a power cut after a handover confirmed it, or a publisher heard of a duplicate.
        """
        with self._durable:
            if self._unsynced:
                raise DataDamaged(f"what was written last may not be on disk: {self._unsynced}")
            return scan()

    def items(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of everything in ``start <= key < end``, in key order. Raises DataDamaged.

        A generator, since its frame keeps the options alive: rocksdict's iterator does not, and the bound that they
        hold is freed memory once they are collected (seen as scans that end early).
        """
        options = ReadOptions()
        options.set_iterate_upper_bound(end)
        beyond: bytes | None = start
        looked: bytes | None = None
        while beyond is not None:
            before, looked, last = looked, beyond, b""
            items: Iterator[tuple[bytes, bytes]] = self._begin(
                partial(self._families[family].items, from_key=beyond, read_opt=options)  # type: ignore[arg-type]
            )
            for item in items:
                last = item[0]
                yield item
            beyond = self._what_follows(family, looked, last, options, once_more=looked == before)

    def few(self, family: str, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """As `items`, all at once: for ranges of a few records, where a second look at the end would cost the most."""
        found: list[tuple[bytes, bytes]] = []
        scan, _options = self._scan(family, end)
        scan.seek(start)
        while scan.valid():
            found.append((scan.key(), scan.value()))
            scan.next()
        _check(scan, family, start)
        return found

    def first_key(self, family: str, start: bytes) -> bytes | None:
        """The first key at or behind `start`. Raises DataDamaged."""
        scan, _options = self._scan(family, _BEYOND)
        scan.seek(start)
        _check(scan, family, start)
        key: bytes | None = scan.key() if scan.valid() else None
        return key

    def keys(self, family: str, start: bytes, end: bytes) -> Iterator[bytes]:
        """As `items`, keys alone."""
        options = ReadOptions()
        options.set_iterate_upper_bound(end)
        beyond: bytes | None = start
        looked: bytes | None = None
        while beyond is not None:
            before, looked, last = looked, beyond, b""
            keys: Iterator[bytes] = self._begin(
                partial(self._families[family].keys, from_key=beyond, read_opt=options)  # type: ignore[arg-type]
            )
            for last in keys:
                yield last
            beyond = self._what_follows(family, looked, last, options, once_more=looked == before)

    def _what_follows(
        self, family: str, start: bytes, last: bytes, options: ReadOptions, *, once_more: bool
    ) -> bytes | None:
        """Where a scan that gave nothing behind `last` goes on; None at the end of its range. Raises DataDamaged.

        rocksdict's iterators end just so at a damaged block, silently: there this second look finds the damage. What it
        finds otherwise was written since the scan began, which sees the database as it was then. A record at the very
        `start` may have come meanwhile, but once: a scan that gives nothing there `once_more` can't read it.
        """
        beyond = last + b"\x00" if last else start
        end = self._begin(partial(self._families[family].iter, options))
        end.seek(beyond)
        _check(end, family, beyond)
        found: bytes | None = end.key() if end.valid() else None
        if found == start and not last and once_more:
            raise DataDamaged(f"{family} can't be read at {start.hex()}: a scan from there gives nothing")
        return found

    def reclaim(self, ranges: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Flush what is in memory, so that logs go, and rewrite these ranges without what was removed from them.

        Raises CommitError when it can't be flushed. Then RocksDB refuses every write until it finds room, for which it
        looks every 5 s; to be asked for a flush meanwhile puts it off (`waits_for_flush` does not ask). What can't be
        rewritten is said by `background_errors` alone.
        """
        try:
            for each in self._families.values():
                each.flush()
        except Exception as error:
            raise CommitError(str(error)) from error
        for family, start, end in ranges:
            self._families[family].compact_range(start, end)

    def waits_for_flush(self) -> bool:
        """Whether memory is closed for writes and not in a table yet. Does not block."""
        pending = "rocksdb.num-immutable-mem-table"
        return any(family.property_int_value(pending) for family in self._families.values())

    def background_errors(self) -> int:
        """Tables that could not be written since it was opened; `reclaim` says nothing of that. Does not block."""
        return int(self._db.property_int_value("rocksdb.background-errors") or 0)

    def checkpoint(self, path: Path) -> None:
        """Make a copy as of now at `path`, which must not exist: hard links where the file system is the same."""
        # Memory goes to disk first: that is the long part, and rocksdict holds the GIL all through a checkpoint.
        for family in self._families.values():
            family.flush()
        Checkpoint(self._db).create_checkpoint(str(path))

    def close(self) -> None:
        """Flush and close. The lock is free afterwards: each family holds the database open, so they close first.

        After a failed write nothing can be flushed; that is logged, since all that counts is in the log already.
        """
        self.handles.clear()
        for part in (*self._families.values(), self._db):
            try:
                part.close()
            except Exception as error:
                log.warning("closed without a flush", extra={"error": str(error)})
        self._families.clear()


def _check(scan: RdictIter, family: str, key: bytes) -> None:
    """Raise DataDamaged where the scan could not go on."""
    try:
        scan.status()
    except Exception as error:
        raise DataDamaged(f"{family} can't be read at {key.hex()}: {error}{WHAT_TO_DO}") from error


def is_blank(path: Path) -> bool:
    """Whether the database, of which families may be missing yet, can be read and holds nothing. Changes nothing.

    Raises DataDirUnreadable.
    """
    _check_logs(path)
    options = db_options(MIB)
    try:
        families = {name: Options(raw_mode=True) for name in Rdict.list_cf(str(path))}
        db = Rdict(str(path), options, families, AccessType.read_only(False))
        opened = [db.get_column_family(name) for name in families]
        try:
            return not any(True for family in opened for _ in family.keys())  # noqa: SIM118 - a database is no dict
        finally:
            for part in (*opened, db):
                part.close()
    except Exception as error:
        raise DataDirUnreadable(f"{path} can't be read: {error}") from error


def repair(path: Path) -> None:
    """Make a database that can be opened of the tables and logs that are there; changes the directory.

    Raises DataDirUnreadable.
    """
    try:
        Rdict.repair(str(path), db_options(MIB))
    except Exception as error:
        raise DataDirUnreadable(f"{path} can't be repaired: {error}") from error


def _check_logs(path: Path) -> None:
    """RocksDB would take some damage for a torn tail: see `wal`. The manifest has the format of a log, too."""
    for log_file in (*path.glob("*.log"), *path.glob("MANIFEST-*")):
        try:
            place = damaged_at(log_file)
        except OSError:
            continue  # gone meanwhile, or RocksDB says the same
        if place is not None:
            raise DataDirUnreadable(f"{log_file} is damaged at byte {place}, before its end{WHAT_TO_DO}")


def _damaged_tables(path: Path) -> list[str]:
    """The tables here that RocksDB can't open. No public call says so but a refused import, and that refuses them all."""
    damaged: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        db = Rdict(scratch, Options(raw_mode=True))
        for table in sorted(path.glob("*.sst")):
            try:
                db.ingest_external_file([str(table)])
            except Exception as error:
                # With this error it was opened, and is but no table made for imports.
                if "External file version" not in str(error):
                    damaged.append(table.name)
        db.close()
    return damaged
