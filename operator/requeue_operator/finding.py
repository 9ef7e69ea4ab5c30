"""One aspect of a RequeueQueue's state, before it is written as a condition."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A condition without its times. `status` None: Unknown."""

    type: str
    status: bool | None
    reason: str
    message: str = ""
