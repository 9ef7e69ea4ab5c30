"""Salvage: what can still be read of a damaged instance directory, as a new and sound one, and a report of what can't be.

    copy the files ─▶ open, or repair and open ─▶ read each family over its gaps ─▶ write records, ids, counters anew

The damaged directory is not changed. Records keep their keys, so a message has the same `Requeue-Id`, due time, attempts
and deadline. Counters, checkpoints and entries of client ids are made from the records; from what `meta` says come pauses,
marks, and what the counters said: it tells how many records are missing.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from requeue_protocol.policy import QueuePolicy
from requeue_protocol.subjects import INTAKE_DEFAULT, SubjectRules
from requeue_worker.backup import BackupError, copy_files, copy_table, new_directory, to_copy
from requeue_worker.counts import QueueCounts
from requeue_worker.errors import DataDirError, DataDirUnreadable
from requeue_worker.soundness import Shape, Wrong, sound_dead, sound_message, stored_queue
from requeue_worker.storage.damage import Gap, readable
from requeue_worker.storage.directory import held
from requeue_worker.storage.keys import META_FORMAT, META_MARK, META_QUEUE, id_of, ids_prefix
from requeue_worker.storage.queues import QueueState, counters_of
from requeue_worker.storage.rocksdb import DEAD, MESSAGES, META, Engine, repair
from requeue_worker.storage.store import STORE_FORMAT, read_format
from requeue_worker.storage.transaction import Transaction
from requeue_worker.storage.wal import damaged_at, mend_type

_PAGE: Final = 1000
_TABLE: Final = re.compile(r"\d+\.sst")
_POLICY: Final = QueuePolicy.model_validate({})


@dataclass
class Salvaged:
    """What came out of one directory, and what did not. `missing` counts records by queue, by the old counters."""

    instance: str
    path: Path
    messages: int = 0
    dead: int = 0
    gaps: list[Gap] = field(default_factory=list)
    unsound: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing."""
        return not (self.gaps or self.unsound or self.notes or self.missing)


def salvage(data_dir: Path, to: Path, chosen: Sequence[str] = ()) -> Iterator[Salvaged]:
    """Salvage instance directories (all, unless some are chosen) into the directory `to`, one after the other.

    Raises DataDirError for a directory that is in use, of a newer format, or there already, and BackupError for one of
    which nothing can be read, or that cannot be written.
    """
    for instance in to_copy(data_dir, to, chosen):
        with held(data_dir / instance), new_directory(to, instance) as stage:
            work = Path(tempfile.mkdtemp(prefix=f".{instance}~work-", dir=to))
            result = Salvaged(instance, to / instance)
            try:
                copy_files(data_dir / instance, work, link=True)
                _mend_logs(work)
                source = _open(data_dir / instance, work, result)
                with closing(source), closing(Engine(stage)) as target:
                    read_format(source, data_dir / instance)
                    _Rebuild(source, target, result, work).run()
            finally:
                shutil.rmtree(work, ignore_errors=True)
        yield result


def _mend_logs(work: Path) -> None:
    """RocksDB would hang at a record of a type that only damage can make: the copy's gets another."""
    for log in (*work.glob("*.log"), *work.glob("MANIFEST-*")):
        mended = -1
        while (place := damaged_at(log)) is not None and place > mended:
            mend_type(log, place)
            mended = place


def _open(path: Path, work: Path, result: Salvaged) -> Engine:
    """The copy, opened by whatever means help; what that may cost goes into the notes."""
    try:
        Engine(path, read_only=True).close()
    except DataDirError as error:
        result.notes.append(
            f"{error}. The latest changes may be missing: messages that came last, and removals of some that were settled"
        )
    try:
        return Engine(work, source=True, salvage=True)
    except DataDirUnreadable:
        try:
            repair(work)
            return Engine(work, source=True, salvage=True)
        except DataDirUnreadable as error:
            raise BackupError(f"nothing can be read of {path}: {error}") from error


class _Rebuild:
    def __init__(self, source: Engine, target: Engine, result: Salvaged, work: Path) -> None:
        self._source = source
        self._target = target
        self._work = work
        self._result = result
        self._queues: dict[str, QueueState] = {}
        self._stored: dict[str, tuple[int, int]] = {}
        self._marks: list[tuple[bytes, bytes]] = []
        self._transaction = Transaction(target.batch(), 0)
        self._held = 0

    def run(self) -> None:
        self._transaction.batch.put_meta(META_FORMAT, bytes((STORE_FORMAT,)))
        for key, value in self._readable(META):
            self._take_meta(key, value)
        for key, value in self._readable(MESSAGES):
            self._take_message(key, value)
        for key, value in self._readable(DEAD):
            self._take_dead(key, value)
        self._transaction.touch(self._queues.values())
        self._write()
        self._keep_marks()
        for name, (pending, dead) in self._stored.items():
            queue = self._queues[name]
            missing = max(pending - queue.pending, 0) + max(dead - queue.dead, 0)
            if missing:
                self._result.missing[name] = missing
        self._result.messages = sum(queue.pending for queue in self._queues.values())
        self._result.dead = sum(queue.dead for queue in self._queues.values())

    def _readable(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        for item in readable(self._source, family):
            if isinstance(item, Gap):
                self._result.gaps.append(item)
                yield from self._behind(item)
            else:
                yield item

    def _behind(self, gap: Gap) -> list[tuple[bytes, bytes]]:
        """What other tables have in a gap: one damaged block hides what they have beside it."""
        damaged = set(_TABLE.findall(gap.error))
        if not damaged:
            return []
        found = []
        with tempfile.TemporaryDirectory(prefix=f"{self._work.name}-", dir=self._work.parent) as name:
            others = Path(name)
            for table in self._work.glob("*.sst"):
                if table.name not in damaged:
                    copy_table(table, others)
            try:
                repair(others)
                with closing(Engine(others, source=True, salvage=True)) as engine:
                    for item in readable(engine, gap.family):
                        if isinstance(item, Gap) or (gap.end is not None and item[0] >= gap.end):
                            break
                        if item[0] >= gap.start:
                            found.append(item)
            except DataDirError:
                return found
        return found

    def _queue(self, name: str) -> QueueState:
        queue = self._queues.get(name)
        if queue is None:
            rules = SubjectRules(intake=INTAKE_DEFAULT)
            queue = self._queues[name] = QueueState(name, _POLICY, rules, QueueCounts())
        return queue

    def _take_meta(self, key: bytes, value: bytes) -> None:
        if key.startswith(META_QUEUE):
            try:
                name, *_ = stored_queue(key[len(META_QUEUE) :], value)
            except Wrong as wrong:
                self._result.unsound.append(f"meta {key.hex()}: {wrong}")
                return
            pending, dead, self._queue(name).paused_until_ns = counters_of(value)
            self._stored[name] = (pending, dead)
        elif key.startswith(META_MARK):
            self._marks.append((key, value))
        elif key != META_FORMAT:
            self._transaction.batch.put_meta(key, value)  # who merges it, and what it has merged

    def _take_message(self, key: bytes, value: bytes) -> None:
        try:
            shape, record = Shape.of_message(key), sound_message(key, value)
        except Wrong as wrong:
            self._result.unsound.append(f"message {key.hex()}: {wrong}")
            return
        self._transaction.adopt(self._queue(shape.queue).lane(shape.priority), [(key, value)], record.size)
        if record.client_id is not None:
            self._transaction.adopt_id(ids_prefix(record.client_id) + id_of(key), key)
        self._count()

    def _take_dead(self, key: bytes, value: bytes) -> None:
        try:
            name, record = sound_dead(key, value)
        except Wrong as wrong:
            self._result.unsound.append(f"dead letter {key.hex()}: {wrong}")
            return
        self._transaction.adopt_dead(self._queue(name), [(key, value)], record.size)
        self._count()

    def _keep_marks(self) -> None:
        """Dead letters that are still to be published, of those that are here."""
        for key, value in self._marks:
            if self._target.get(DEAD, key[len(META_MARK) :]) is not None:
                self._transaction.batch.put_meta(key, value)
        self._write()

    def _count(self) -> None:
        self._held += 1
        if self._held % _PAGE == 0:
            self._write()

    def _write(self) -> None:
        self._transaction.seal(False)
        self._target.write(self._transaction.batch)
        self._transaction.settle_in_memory()
        self._transaction = Transaction(self._target.batch(), 0)
