"""Who takes a directory over, and how far that has come: `meta` entries on both sides of a merge.

    in every directory    uid             16 random bytes of its first start: another directory of the same name has others
    in the source         claim           uid and instance id of the directory that merges it
    in the target         merged/<uid>    the mark: everything of that source up to here is in the target

A mark is written in the batch that brings the records, so target and mark never disagree. The source is trimmed after
that; what both have is therefore known from the mark. Whoever holds a source's lock may finish or take back its merge:
it finds the mark, trims the source up to it, and from then on the source has what nobody else has.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from requeue_protocol.errors import RequeueError
from requeue_worker.faults import fault_point
from requeue_worker.storage.pages import START, Mark, pages, trim
from requeue_worker.storage.rocksdb import META, Batch, Engine

log = logging.getLogger(__name__)

META_UID: Final = b"uid"
META_CLAIM: Final = b"claim"
META_HANDOVER: Final = b"handover"  #: beside a claim that a drain wrote: see `drain/directory.py`
META_MERGED: Final = b"merged/"
_UID_LEN: Final = 16


class Claim(NamedTuple):
    """The directory that merges another one."""

    uid: bytes
    instance_id: str

    def encode(self) -> bytes:
        """For the `meta` family."""
        return self.uid + self.instance_id.encode()

    @classmethod
    def decode(cls, raw: bytes) -> Claim:
        """The reverse of `encode`."""
        return cls(raw[:_UID_LEN], raw[_UID_LEN:].decode())


def mark_key(uid: bytes) -> bytes:
    """Key of the mark for the source with this uid."""
    return META_MERGED + uid


def uid_of(engine: Engine) -> bytes:
    """The directory's uid; made, and made durable, when it has none. Blocks."""
    uid = engine.get(META, META_UID)
    if uid is None:
        uid = os.urandom(_UID_LEN)
        batch = engine.batch()
        batch.put_meta(META_UID, uid)
        engine.write(batch)
    return uid


def renew_uid(engine: Engine) -> None:
    """Make a copy a source of its own: marks of the original say nothing about what the copy will take in. Blocks.

    A claim is left alone: the start that takes the copy back needs the uid that it was made under, and renews it then.
    """
    if claim_of(engine) is None:
        batch = engine.batch()
        batch.put_meta(META_UID, os.urandom(_UID_LEN))
        engine.write(batch)


def claim_of(engine: Engine) -> Claim | None:
    """Who merges this directory, if anybody does. Blocks."""
    raw = engine.get(META, META_CLAIM)
    return None if raw is None else Claim.decode(raw)


def take_over(
    engine: Engine,
    path: Path,
    claim: Claim,
    own_mark: Callable[[bytes], Mark | None],
    *,
    take_back: bool = False,
) -> bool:
    """Make the source at `path` the one place of its records, and claim it; with `take_back` it is nobody's claim.

    True when this directory had begun with it before. `own_mark` reads a mark of the directory in `claim`. Blocks. The
    caller holds the source's lock. Raises DataDamaged, and DataDirError when the mark may stand where it can't be read.
    """
    uid, before = uid_of(engine), claim_of(engine)
    if before is not None:
        mark = own_mark(uid) if before.uid == claim.uid else None
        if mark is None and before.uid != claim.uid:
            mark = _find_mark(path, uid, before, own_mark)
        fault_point("takeover: mark found")
        for page in pages(engine, until=mark or START):
            trim(engine, page)
            fault_point("takeover: page trimmed")
    batch = engine.batch()
    batch.delete_meta(META_HANDOVER)  # whatever a drain knew of the claim before
    if take_back:
        # Under a new uid: it will take in messages again, below the marks that were made of it so far.
        batch.put_meta(META_UID, os.urandom(_UID_LEN))
        batch.delete_meta(META_CLAIM)
    else:
        batch.put_meta(META_CLAIM, claim.encode())
    engine.write(batch)  # synced: with it everything that was trimmed is durable
    if before is not None:
        fault_point("takeover: claimed")
    return before is not None and before.uid == claim.uid


def _find_mark(
    path: Path, uid: bytes, claimant: Claim, own_mark: Callable[[bytes], Mark | None]
) -> Mark | None:
    """The mark of a merge that another directory began: there, or where that one was itself merged to."""
    named = path.parent / claimant.instance_id
    if (named / "CURRENT").exists():
        with _opened(named) as other:  # it has to be readable: the mark is there or nowhere
            if other.get(META, META_UID) == claimant.uid:
                return _mark_in(other, uid)
    marks = [own_mark(uid)]
    for sibling in _databases_beside(path):
        try:
            with _opened(sibling) as other:
                marks.append(_mark_in(other, uid))
        except RequeueError as error:
            log.warning("a directory can't be asked", extra={"directory": str(sibling), "error": str(error)})
    found = [mark for mark in marks if mark is not None]
    if not found:
        log.warning(
            "no mark of a merge that was begun: its last records may be sent twice",
            extra={"directory": str(path), "claimed_by": claimant.instance_id},
        )
    return max(found, default=None)


def _mark_in(engine: Engine, uid: bytes) -> Mark | None:
    raw = engine.get(META, mark_key(uid))
    return None if raw is None else Mark.decode(raw)


def _databases_beside(path: Path) -> Iterator[Path]:
    for sibling in path.parent.iterdir():
        if sibling != path and not sibling.name.startswith(".") and (sibling / "CURRENT").exists():
            yield sibling


class _opened:  # noqa: N801 - a context manager, used as a function
    """A directory's database without its lock, to look something up; its owner may go on meanwhile."""

    def __init__(self, path: Path) -> None:
        self._engine = Engine(path, read_only=True)

    def __enter__(self) -> Engine:
        return self._engine

    def __exit__(self, *_: object) -> None:
        self._engine.close()


def put_mark(batch: Batch, uid: bytes, mark: Mark) -> None:
    """Write the mark for this source into the batch that brings its records."""
    batch.put_meta(mark_key(uid), mark.encode())
