"""Keys of `requeue top`: what bytes of a terminal mean, and what a key changes of the view."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

SORTS: Final = ("name", "pending", "in_flight", "dead", "late", "in", "out")
_NAMES: Final = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "page-up",
    "\x1b[6~": "page-down",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "back",
    "\x08": "back",
    "\x1b": "escape",
    "\x03": "q",
}
_KEY: Final = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class View:
    """What the person chose."""

    sort: str = "pending"
    filter: str = ""
    typing: bool = False  #: keys go to the filter
    stopped: bool = False  #: nothing is asked
    first: int = 0  #: rows that are scrolled away
    help: bool = False
    quit: bool = False


def keys_of(data: bytes) -> list[str]:
    """The keys in what a terminal sent; sequences that mean nothing here keep their bytes."""
    return [_NAMES.get(key, key) for key in _KEY.findall(data.decode(errors="ignore"))]


def pressed(view: View, key: str, page: int) -> View:
    """The view after a key; `page` is the number of rows on the screen."""
    if view.typing:
        return _typed(view, key)
    steps = {"up": -1, "down": 1, "page-up": -page, "page-down": page}
    if key in steps:
        return replace(view, first=max(0, view.first + steps[key]))
    at = SORTS.index(view.sort)
    sorts = {"s": at + 1, ">": at + 1, "<": at - 1, **{str(n + 1): n for n in range(len(SORTS))}}
    if key in sorts:
        return replace(view, sort=SORTS[sorts[key] % len(SORTS)], first=0)
    if key == "q":
        return replace(view, quit=True)
    if key in ("p", " "):
        return replace(view, stopped=not view.stopped)
    if key == "/":
        return replace(view, typing=True, filter="", first=0)
    if key == "?":
        return replace(view, help=not view.help)
    return view


def _typed(view: View, key: str) -> View:
    if key == "enter":
        return replace(view, typing=False)
    if key == "escape":
        return replace(view, typing=False, filter="")
    if key == "back":
        return replace(view, filter=view.filter[:-1])
    return replace(view, filter=view.filter + key) if len(key) == 1 and key.isprintable() else view
