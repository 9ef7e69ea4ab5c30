"""Keys of the four column families.

A message key is ``len(queue) | queue | priority | time | id``: a queue is one contiguous range, one sub-range (*lane*)
for each priority, in due order. The length comes first so that no queue name is a prefix of another's range. ``time``
is the next attempt or the deadline, the earlier, in big-endian Unix nanoseconds; ``id`` is the 16-byte Requeue-Id
(8 random bytes drawn at each start, 8 bytes of sequence), so that a key is unique for ever, across merges too.
"""

from __future__ import annotations

import struct
from typing import Final

ID_LEN: Final = 16
SUFFIX_LEN: Final = 8 + ID_LEN  #: time and id
TIME: Final = struct.Struct(">Q")
TIME_ID: Final = struct.Struct(">Q8sQ")
PRIORITIES: Final = 10
DEFAULT_PRIORITY: Final = 4
_ID_KEY_LEN: Final = struct.Struct(">H")

META_FORMAT: Final = b"format"
META_QUEUE: Final = b"q"
META_MARK: Final = b"p"  #: and the key of a dead letter: it is still to be published
META_BRIDGED: Final = b"bridged/"  #: and the id of an advisory of JetStream: done, and perhaps not acked yet


def queue_prefix(queue: str) -> bytes:
    """Prefix of every message and dead letter of this queue."""
    name = queue.encode("ascii")
    return bytes((len(name),)) + name


def lane_prefix(queue: str, priority: int) -> bytes:
    """Prefix of the queue's messages with this priority (0 goes first, 9 last)."""
    return queue_prefix(queue) + bytes((priority,))


def after_prefix(prefix: bytes) -> bytes:
    """The smallest key beyond everything with this prefix. Raises ValueError when there is none."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        raise ValueError("no key lies beyond this prefix")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))


def queue_of(key: bytes) -> str:
    """The queue of a message or dead-letter key."""
    return key[1 : 1 + key[0]].decode("ascii")


def time_of(key: bytes) -> int:
    """The time part of a message or dead-letter key, Unix ns."""
    return int.from_bytes(key[-SUFFIX_LEN:-ID_LEN], "big")


def id_of(key: bytes) -> bytes:
    """The Requeue-Id part of a message or dead-letter key."""
    return key[-ID_LEN:]


def parse_message_key(key: bytes) -> tuple[str, int, int, bytes]:
    """Queue, priority, time in ns and id of a message key."""
    return queue_of(key), key[1 + key[0]], time_of(key), id_of(key)


def retimed(key: bytes, time_ns: int) -> bytes:
    """The same message's key at another time."""
    return key[:-SUFFIX_LEN] + TIME.pack(time_ns) + key[-ID_LEN:]


def dead_key(queue: str, died_ns: int, message_id: bytes) -> bytes:
    """Key in the `dead` family: a queue's dead letters in order of death."""
    return queue_prefix(queue) + TIME.pack(died_ns) + message_id


def ids_prefix(client_id: bytes) -> bytes:
    """Prefix of a client id's entries in the `ids` family, one entry for each message that carries it."""
    return _ID_KEY_LEN.pack(len(client_id)) + client_id


def meta_queue_key(queue: str) -> bytes:
    """Key of a queue's counters and checkpoints in the `meta` family."""
    return META_QUEUE + queue.encode("ascii")
