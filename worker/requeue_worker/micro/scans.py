"""One bounded look at the records on disk, for the endpoints that list, count and change messages.

A look reads on the store's browse thread, at most SCAN_RECORDS records or SCAN_BYTES, and says where it stopped; beside
the intake it is shorter, since it competes for the interpreter's lock. What lies below a lane's checkpoint is settled, and
no look walks over it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from requeue_worker.micro.filters import Wanted
from requeue_worker.record import decode
from requeue_worker.storage.keys import after_prefix, queue_prefix
from requeue_worker.storage.queues import QueueState
from requeue_worker.storage.rocksdb import DEAD, Engine

SCAN_RECORDS: Final = 4096
SCAN_BYTES: Final = 4 << 20
FEW: Final = 4  #: a short look is so much shorter
RANGE_RECORDS: Final = 16  #: what opening a range costs, in records

Item = tuple[bytes, bytes]
Range = tuple[bytes, bytes]  #: first key, and the one beyond the last


@dataclass(frozen=True, slots=True)
class Scan:
    """What a page found: the records wanted, how many it looked at, and where it stopped (None: at the end)."""

    found: list[Item]
    scanned: int
    stopped: bytes | None

    @property
    def cursor(self) -> str | None:
        """As `next` of an answer says it."""
        return None if self.stopped is None else self.stopped.hex()


def read_cursor(cursor: str) -> bytes:
    """The key behind which a look goes on. Raises ValueError."""
    try:
        return bytes.fromhex(cursor)
    except ValueError:
        raise ValueError(f"after: {cursor!r} is no cursor; take `next` of the last answer") from None


def ranges(queue: QueueState, family: str) -> Iterator[Range]:
    """Where this queue's records may lie."""
    if family == DEAD:
        if queue.dead:
            prefix = queue_prefix(queue.name)
            yield prefix, after_prefix(prefix)
    elif queue.pending:
        for lane in queue.lanes.values():
            yield lane.checkpoint, lane.end


def look(
    engine: Engine,
    family: str,
    places: list[Range],
    limit: int,
    wanted: Wanted,
    but: Collection[bytes] = (),
    *,
    is_short: bool,
) -> Scan:
    """The first records in these ranges that are wanted, all but `but`. Blocks, though not for long."""
    most = max(SCAN_RECORDS // FEW, 1) if is_short else SCAN_RECORDS
    found: list[Item] = []
    scanned = spent = held = 0
    for start, end in places:
        spent += RANGE_RECORDS
        for item in engine.items(family, start, end):
            scanned += 1
            spent += 1
            held += len(item[1])
            if item[0] not in but and wanted(item[0], decode(item[1])):
                found.append(item)
            if len(found) == limit or spent >= most or held >= SCAN_BYTES:
                return Scan(found, scanned, item[0])
    return Scan(found, scanned, None)


def pick(items: list[Item], after: bytes, limit: int, wanted: Wanted) -> Scan:
    """As `look`, of what is in memory: `items` in key order."""
    found: list[Item] = []
    for scanned, item in enumerate(items[bisect_right(items, after, key=lambda each: each[0]) :], 1):
        if wanted(item[0], decode(item[1])):
            found.append(item)
        if len(found) == limit or scanned == SCAN_RECORDS:
            return Scan(found, scanned, item[0])
    return Scan(found, len(items), None)
