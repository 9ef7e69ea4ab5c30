"""An instance directory's records, page by page in key order, and their removal from it.

What a merge or a drain moves is a `Page`: pending messages first, then dead letters. A `Mark` says how far one has come;
it is the last page's place in that order, so that marks compare. `trim` removes a page and takes it off the counters
in one batch, so that a directory agrees with its own counters however often it was left half-way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, NamedTuple

from requeue_worker.errors import DataDamaged, DataFormatTooNew
from requeue_worker.record import HAS_CLIENT_ID, HEAD, RECORD_VERSION, decode
from requeue_worker.storage.keys import (
    META_QUEUE,
    SUFFIX_LEN,
    after_prefix,
    id_of,
    ids_prefix,
    meta_queue_key,
)
from requeue_worker.storage.queues import counters_of, less
from requeue_worker.storage.rocksdb import DEAD, MESSAGES, META, Engine

#: a page is what one commit takes over: a few milliseconds of the event loop, and about the fsync's worth of bytes
PAGE_RECORDS: Final = 1024
PAGE_BYTES: Final = 1 << 20
META_UNPUBLISHED: Final = b"p"  #: and key of a dead letter: still to be published
BEYOND: Final = b"\xff" * 160  #: no key is larger

_PHASES: Final = (MESSAGES, DEAD)
# version, flags, extras_len: see record.HEAD
_PEEK: Final = Struct(">BB10xI")


class Mark(NamedTuple):
    """How far a directory was taken over: everything up to `key` in this phase, and all of the phases before.

    Phase 0 is what stands in `meta`, 1 messages, 2 dead letters.
    """

    phase: int
    key: bytes

    def encode(self) -> bytes:
        """For the `meta` family."""
        return bytes((self.phase,)) + self.key

    @classmethod
    def decode(cls, raw: bytes) -> Mark:
        """The reverse of `encode`."""
        return cls(raw[0], raw[1:])


START: Final = Mark(0, b"")


@dataclass(slots=True)
class Group:
    """Neighbouring records of one lane, or of one queue's dead letters (then `priority` is None)."""

    queue: str
    priority: int | None
    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    size: int = 0  #: bytes that count for `max_bytes`


@dataclass(slots=True)
class Page:
    """Some records in key order, and what belongs to them."""

    phase: int
    groups: list[Group] = field(default_factory=list)
    ids: list[tuple[bytes, bytes]] = field(default_factory=list)  #: entries of the `ids` family
    unpublished: list[bytes] = field(default_factory=list)  #: keys of the dead letters that carry a mark

    @property
    def first(self) -> bytes:
        """Its smallest key."""
        return self.groups[0].records[0][0]

    @property
    def mark(self) -> Mark:
        """Where a merge stands once it has this page."""
        return Mark(self.phase, self.groups[-1].records[-1][0])

    def __len__(self) -> int:
        return sum(len(group.records) for group in self.groups)


def pages(engine: Engine, until: Mark | None = None, page_bytes: int = PAGE_BYTES) -> Iterator[Page]:
    """All pages of a directory; with `until` those up to this mark alone. Blocks on each.

    Raises DataDamaged for what cannot be read and DataFormatTooNew for a record that this release does not know. The
    scan sees the directory as it was when it began, so that pages may be trimmed meanwhile.
    """
    for phase, family in enumerate(_PHASES, start=1):
        if until is not None and phase > until.phase:
            return
        end = until.key + b"\x00" if until is not None and phase == until.phase else BEYOND
        for page in _pages_of(engine, phase, family, end, page_bytes):
            if phase == 2:
                page.unpublished = _unpublished(engine, page)
            yield page


def _pages_of(engine: Engine, phase: int, family: str, end: bytes, page_bytes: int) -> Iterator[Page]:
    items = engine.items(family, b"", end)
    while (page := page_of(phase, items, PAGE_RECORDS, page_bytes)).groups:
        yield page


def page_of(phase: int, items: Iterable[tuple[bytes, bytes]], most: int, most_bytes: int) -> Page:
    """A page of the next records, `most` of them or about `most_bytes`; without any when there are none left.

    Raises DataDamaged for what is no record, and DataFormatTooNew.
    """
    page, group, prefix, length = Page(phase), Group("", None), b"", 0
    held = 0
    for count, item in enumerate(items, 1):
        key, value = item
        if len(key) != length or not key.startswith(prefix) or not page.groups:
            group = _group_of(key, phase)
            page.groups.append(group)
            prefix, length = key[:-SUFFIX_LEN], len(key)
        version, flags, extras_len = _PEEK.unpack_from(value) if len(value) >= HEAD.size else (0, 0, 0)
        if version != RECORD_VERSION:
            raise _unknown(version, key)
        group.records.append(item)
        group.size += len(value) - HEAD.size - extras_len
        if flags & HAS_CLIENT_ID and phase == 1:
            client_id = decode(value).client_id
            if client_id is not None:
                page.ids.append((ids_prefix(client_id) + id_of(key), key))
        held += len(value)
        if count >= most or held >= most_bytes:
            break
    return page


def _group_of(key: bytes, phase: int) -> Group:
    end = 1 + key[0] if key else 0
    if len(key) != end + SUFFIX_LEN + (phase == 1) or not key[1:end].isascii():
        raise DataDamaged(f"a key that is no key of {_PHASES[phase - 1]}: {key.hex()}")
    return Group(key[1:end].decode("ascii"), key[end] if phase == 1 else None)


def _unknown(version: int, key: bytes) -> Exception:
    text = f"record version {version} at {key.hex()}; this release knows {RECORD_VERSION}"
    return DataFormatTooNew(text) if version > RECORD_VERSION else DataDamaged(text)


def _unpublished(engine: Engine, page: Page) -> list[bytes]:
    start, end = META_UNPUBLISHED + page.first, META_UNPUBLISHED + page.mark.key + b"\x00"
    return [key[len(META_UNPUBLISHED) :] for key in engine.keys(META, start, end)]


def trim(engine: Engine, page: Page) -> None:
    """Remove a page's records from their directory, in one batch that is not synced. Blocks.

    Nothing is lost when that batch is: whoever comes next finds the mark and trims again. Raises CommitError, and
    DataDamaged when the counters do not agree with the records.
    """
    batch = engine.batch()
    batch.delete_range(_PHASES[page.phase - 1], page.first, page.mark.key + b"\x00")
    for entry, _ in page.ids:
        batch.delete_id(entry)
    for key in page.unpublished:
        batch.delete_meta(META_UNPUBLISHED + key)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for group in page.groups:
        counts[group.queue] += len(group.records)
        sizes[group.queue] += group.size
    for queue, count in counts.items():
        key = meta_queue_key(queue)
        gone = (count, sizes[queue], 0, 0) if page.phase == 1 else (0, 0, count, sizes[queue])
        try:
            batch.put_meta(key, less(engine.get(META, key) or b"", *gone))
        except Exception as error:
            raise DataDamaged(
                f"the counters of queue {queue} don't agree with its records: {error}"
            ) from error
    engine.write(batch, sync=False)


def queues_of(engine: Engine) -> dict[str, tuple[int, int, int]]:
    """For each queue pending, dead and until when it is paused (Unix ns, 0: it is not). Blocks. Raises DataDamaged."""
    try:
        return {
            key[len(META_QUEUE) :].decode("ascii"): counters_of(value)
            for key, value in engine.items(META, META_QUEUE, after_prefix(META_QUEUE))
        }
    except DataDamaged:
        raise
    except Exception as error:
        raise DataDamaged(f"the state of its queues can't be read: {error}") from error


def check_empty(engine: Engine) -> None:
    """Raise DataDamaged unless nothing is left, by the records and by the counters. Blocks."""
    for family in _PHASES:
        for key in engine.keys(family, b"", BEYOND):
            raise DataDamaged(f"a record is left in {family}: {key.hex()}")
    for name, (pending, dead, _) in queues_of(engine).items():
        if pending or dead:
            raise DataDamaged(
                f"queue {name} should have {pending} more messages and {dead} more dead letters than can be found"
            )
