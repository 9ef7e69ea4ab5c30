"""Places where a crash is worth a test. In production `fault_point` is one comparison.

A test installs a function with `install`, and ends the process in it; `tests/faults` visits every place there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FAULT_POINTS: Final = (
    "merge: locked",  # the source is locked and open, nothing was written
    "merge: claimed",  # the source says who merges it
    "merge: begun",  # pauses and marks of the source are durable here
    "merge: page read",  # records are in memory
    "merge: page durable",  # and on disk here, together with the mark; the source still has them
    "merge: page trimmed",  # the source has them no more
    "merge: emptied",  # the last record is durable here
    "merge: closed",  # the source's database is closed
    "merge: moved aside",  # nobody can open it under its name
    "merge: mark dropped",
    "merge: half removed",  # some files are gone
    "merge: removed",
    "takeover: mark found",  # of a merge that another began, or that we began before a crash
    "takeover: page trimmed",
    "takeover: claimed",
    "drain: opened",  # a directory of the volume is locked and open, nothing was written
    "drain: chosen",  # the source says whom it is handed to
    "drain: begun",  # that one has a session, with pauses and marks
    "drain: caught up",  # the source has nothing that the target had taken before
    "drain: sending noted",  # the source says that pages may be on that one's disk
    "drain: page read",
    "drain: page sent",  # it is on its way
    "drain: page acknowledged",  # durable there; the source still has it
    "drain: page trimmed",  # the source has it no more
    "drain: ended",  # the target has told its last mark and takes no late page
    "drain: let go",  # the source is nobody's: durable
    "drain: mark forgotten",  # the target has dropped its mark
    "drain: proof half written",
    "drain: proof written",
    "handover: begun",  # session, pauses and marks are durable in the target
    "handover: page received",  # in memory
    "handover: page durable",  # together with its mark; the source does not know
    "handover: mark dropped",
    "change: step read",  # pending messages that are meant are in memory
    "change: step claimed",  # nobody else may send or change them, and nothing is on its way to disk
    "change: step durable",
    "redrive: step read",  # what some dead letters become is in memory
    "redrive: step sealed",  # the transaction has it all, and is not on its way to disk
    "redrive: step durable",
)

_hook: Callable[[str], None] | None = None


def fault_point(name: str) -> None:
    """A place in FAULT_POINTS is reached."""
    if _hook is not None:
        _hook(name)


def install(hook: Callable[[str], None] | None) -> None:
    """Have `hook` called with the name of each place reached; None for nothing."""
    global _hook  # noqa: PLW0603 - one switch for the process, off but in tests
    _hook = hook
