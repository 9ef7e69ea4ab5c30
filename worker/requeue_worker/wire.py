"""Protocol lines for what the worker sends in bulk: acks, refusals and replays."""

from __future__ import annotations

from collections.abc import Iterable


def pub(subject: bytes, payload: bytes) -> bytes:
    """A PUB operation."""
    return b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload)


def hpub(subject: bytes, headers: bytes, payload: bytes) -> bytes:
    """An HPUB operation; `headers` is a whole block."""
    size = len(headers)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, size, size + len(payload), headers, payload)


def empty_pubs(subjects: Iterable[bytes]) -> bytes:
    """A PUB with an empty payload for each subject (one at least): acks."""
    return b"PUB %b 0\r\n\r\n" % b" 0\r\n\r\nPUB ".join(subjects)
