"""Reads every record of an instance directory and checks every invariant of docs/architecture.md. Changes nothing.

    meta: counters, checkpoints, marks ─▶ messages ─▶ dead ─▶ ids ─▶ compare ─▶ ids that stand twice (`repeated.py`)

One scan of each family from end to end, so that RocksDB checks every checksum; nothing per record stays in memory. That
`ids` and the messages with a client id agree is seen by two sums of hashes, one over each; only where these differ are
the entries looked up one by one.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from requeue_worker.errors import DataDamaged, DataDirUnreadable
from requeue_worker.record import Record
from requeue_worker.repeated import repeated_ids
from requeue_worker.soundness import Shape, Wrong, sound_dead, sound_message, stored_queue
from requeue_worker.storage.damage import Gap, readable
from requeue_worker.storage.directory import data_files, held
from requeue_worker.storage.keys import ID_LEN, META_MARK, META_QUEUE, id_of, ids_prefix
from requeue_worker.storage.rocksdb import DEAD, FAMILIES, IDS, MESSAGES, META, Engine
from requeue_worker.storage.store import read_format
from requeue_worker.storage.unborn import is_unborn

FINDINGS_KEPT: Final = 100  #: of each check in each directory; the rest are counted
_TOLD_EVERY: Final = 1 << 15  #: records between two calls of `progress`
_BEYOND: Final = b"\xff" * 256  #: larger than any key

Progress = Callable[[int], None]
"""Hears how many records of the directory have been read so far."""


class Finding(NamedTuple):
    """Something that does not hold: which check, where, and what there is instead."""

    check: str
    where: str
    what: str


@dataclass
class Report:
    """What a directory holds and what is wrong with it. `records` counts by family."""

    instance: str
    path: Path
    format: int | None = None
    records: Counter[str] = field(default_factory=Counter)
    queues: int = 0
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Whether all holds."""
        return not self.counts

    def add(self, check: str, where: str, what: str) -> None:
        """Note a finding."""
        self.counts[check] += 1
        if self.counts[check] <= FINDINGS_KEPT:
            self.findings.append(Finding(check, where, what))


def verify(path: Path, progress: Progress = lambda _: None) -> Report:
    """Check the instance directory at `path`. Blocks, for seconds with a million records.

    Raises DataDirLocked, DataDirUnreadable (no rights) or DataFormatTooNew. What cannot be opened for damage is a
    finding. Never for a directory that this process has open.
    """
    report = Report(path.name, path)
    with held(path):
        files = data_files(path)
        if not files:
            return report
        if not all(os.access(file, os.R_OK) for file in files):
            raise DataDirUnreadable(f"{path} holds files that this user may not read")
        if is_unborn(path):
            return report
        try:
            engine = Engine(path, read_only=True)
        except DataDirUnreadable as error:
            report.add("open", str(path), str(error))
            return report
        try:
            report.format = read_format(engine, path)
            _Check(engine, report, progress).run()
        finally:
            engine.close()
    return report


class _Totals:
    """What the records of a queue add up to, and what its stored state says."""

    __slots__ = ("bytes", "checkpoints", "dead", "dead_bytes", "pending", "stored")

    def __init__(self) -> None:
        self.pending = self.bytes = self.dead = self.dead_bytes = 0
        self.stored: tuple[int, int, int, int] | None = None
        self.checkpoints: dict[int, bytes] = {}


class _Check:
    def __init__(self, engine: Engine, report: Report, progress: Progress) -> None:
        self._engine = engine
        self._report = report
        self._progress = progress
        self._read = 0
        self._queues: dict[str, _Totals] = {}
        self._unread: set[str] = set()
        self._client_ids = [0, 0]  # how many messages carry one, and the sum of their hashes
        self._entries = [0, 0]

    def run(self) -> None:
        with self._family(META):
            self._check_meta()
        with self._family(MESSAGES):
            self._check_messages()
        with self._family(DEAD):
            self._check_dead()
        with self._family(IDS):
            self._check_ids()
        self._compare_counters()
        if not {MESSAGES, IDS} & self._unread and self._client_ids != self._entries:
            self._find_entries()
        if not {MESSAGES, DEAD} & self._unread:
            self._find_repeated()
        self._report.queues = len(self._queues)

    @contextmanager
    def _family(self, family: str) -> Iterator[None]:
        """What cannot be read is a finding, and what depends on all of the family is then left out."""
        try:
            yield
        except DataDamaged as error:
            self._unread.add(family)
            self._report.add(
                "readable", family, f"{error}. What lies behind that, and what depends on it, is unchecked"
            )

    def _scan(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        count = 0
        try:
            for item in readable(self._engine, family):
                if isinstance(item, Gap):
                    self._tell_gap(item)
                    continue
                count += 1
                yield item
                if not count % _TOLD_EVERY:
                    self._progress(self._read + count)
        finally:
            self._read += count
            self._report.records[family] = count
            self._progress(self._read)

    def _tell_gap(self, gap: Gap) -> None:
        """What cannot be read is a finding, and what depends on all of the family is then left out."""
        self._unread.add(gap.family)
        end = "to its end" if gap.end is None else f"up to {gap.end.hex()}"
        self._report.add("readable", gap.family, f"{gap.error} ({end}). What depends on that is unchecked")

    # -- one family at a time --------------------------------------------------------------------------------

    def _check_meta(self) -> None:
        for key, value in self._scan(META):
            if key.startswith(META_QUEUE):
                self._check_queue(key, value)
            elif key.startswith(META_MARK) and not self._has_letter(key[len(META_MARK) :]):
                self._report.add("marks", f"meta {key.hex()}", "marks a dead letter that is not there")
        if self._report.format is None and self._read:
            self._report.add("format", "meta", "there is data, and no format version")

    def _has_letter(self, key: bytes) -> bool:
        try:
            return self._engine.get(DEAD, key) is not None
        except DataDamaged:
            return True  # told when that family is read

    def _check_queue(self, key: bytes, value: bytes) -> None:
        try:
            name, numbers, checkpoints = stored_queue(key[len(META_QUEUE) :], value)
        except Wrong as wrong:
            self._report.add("queue state", f"meta {key.hex()}", str(wrong))
            return
        totals = self._queues.setdefault(name, _Totals())
        totals.stored, totals.checkpoints = numbers, checkpoints

    def _check_messages(self) -> None:
        prefix, shape, checkpoint = b"", None, None
        totals = _Totals()
        for key, value in self._scan(MESSAGES):
            try:
                if shape is None or key[:-24] != prefix:
                    shape = Shape.of_message(key)
                    prefix, totals = key[:-24], self._queues.setdefault(shape.queue, _Totals())
                    checkpoint = totals.checkpoints.get(shape.priority)
                record = sound_message(key, value)
            except Wrong as wrong:
                self._report.add("record", f"message {key.hex()}", str(wrong))
                continue
            totals.pending += 1
            totals.bytes += record.size
            if checkpoint is None or key < checkpoint:
                self._tell_checkpoint(shape, key, checkpoint)
            if record.flags:
                self._note_client_id(key, record)

    def _tell_checkpoint(self, shape: Shape, key: bytes, checkpoint: bytes | None) -> None:
        if META in self._unread:
            return
        what = (
            f"its queue has no lane of priority {shape.priority}: no worker would read it"
            if checkpoint is None
            else f"lies below the checkpoint {checkpoint.hex()}: no worker would read it"
        )
        self._report.add("checkpoint", shape.where(key), what)

    def _note_client_id(self, key: bytes, record: Record) -> None:
        client_id = record.client_id
        if client_id is not None:
            self._client_ids[0] += 1
            self._client_ids[1] += hash(ids_prefix(client_id) + key[-ID_LEN:] + key)

    def _check_dead(self) -> None:
        for key, value in self._scan(DEAD):
            try:
                queue, record = sound_dead(key, value)
            except Wrong as wrong:
                self._report.add("record", f"dead letter {key.hex()}", str(wrong))
                continue
            totals = self._queues.setdefault(queue, _Totals())
            totals.dead += 1
            totals.dead_bytes += record.size

    def _check_ids(self) -> None:
        count = total = 0
        for key, value in self._scan(IDS):
            count += 1
            total += hash(key + value)
        self._entries = [count, total]

    # -- what several families say together ------------------------------------------------------------------

    def _compare_counters(self) -> None:
        if META in self._unread:
            return
        names = ("pending", "pending bytes", "dead", "dead bytes")
        for queue, totals in self._queues.items():
            counted = (totals.pending, totals.bytes, totals.dead, totals.dead_bytes)
            families = (MESSAGES, MESSAGES, DEAD, DEAD)
            if totals.stored is None:
                self._report.add("counters", f"queue {queue}", "has records and no counters")
                continue
            for name, stored, found, family in zip(names, totals.stored, counted, families, strict=True):
                if stored != found and family not in self._unread:
                    self._report.add(
                        "counters", f"queue {queue}", f"{name}: stored {stored:,}, found {found:,}"
                    )

    def _find_entries(self) -> None:
        """The sums differ: look every entry and every message with a client id up."""
        engine, report = self._engine, self._report
        with self._family(IDS):
            for entry, key in engine.items(IDS, b"", _BEYOND):
                value = engine.get(MESSAGES, key)
                if value is None:
                    report.add("ids", f"ids {entry.hex()}", "points to a message that is not there")
                elif _entry_of(key, value) != entry:
                    report.add(
                        "ids", f"ids {entry.hex()}", "points to a message that does not carry that client id"
                    )
        with self._family(MESSAGES):
            for key, value in engine.items(MESSAGES, b"", _BEYOND):
                expected = _entry_of(key, value)
                if expected is not None and engine.get(IDS, expected) != key:
                    where = f"message {key.hex()}"
                    report.add("ids", where, "carries a client id that has no entry pointing to it")

    def _find_repeated(self) -> None:
        records = self._report.records
        with self._family(MESSAGES):
            for message_id, keys in repeated_ids(self._all_keys, records[MESSAGES] + records[DEAD]):
                what = "stands in several places: " + ", ".join(key.hex() for key in keys)
                self._report.add("unique", f"id {message_id.hex()}", what)

    def _all_keys(self) -> Iterator[bytes]:
        for family in (MESSAGES, DEAD):
            yield from self._engine.keys(family, b"", _BEYOND)


def _entry_of(key: bytes, value: bytes) -> bytes | None:
    """The key in `ids` that this message is to have, if any."""
    try:
        client_id = sound_message(key, value).client_id
    except (Wrong, struct.error):
        return None  # told already
    return None if client_id is None else ids_prefix(client_id) + id_of(key)


assert set(FAMILIES) == {MESSAGES, DEAD, META, IDS}, "a family that is not checked"
