"""What a look found: a line with what is so, and what to do where it should not be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `check` is what was looked at; `advice` is empty where nothing is to be done."""

    check: str
    level: Level
    what: str
    advice: str = ""


def ok(check: str, what: str) -> Finding:
    """It is as it should be."""
    return Finding(check, "ok", what)


def warn(check: str, what: str, advice: str) -> Finding:
    """It works, and may soon not."""
    return Finding(check, "warn", what, advice)


def fail(check: str, what: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", what, advice)
