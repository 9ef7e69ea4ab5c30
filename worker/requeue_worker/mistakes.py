"""Configuration mistakes as sentences: where, what was wrong, what would be right. All at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from requeue_protocol.errors import RequeueError
from requeue_worker.setting_keys import (
    CONFIG_VARIABLE,
    ENV_PREFIX,
    FLAGS,
    Key,
    keys_of,
    model_at,
    nearest,
    shown,
    suggestion,
)

_SECRET = frozenset({"password", "token", "servers"})
_SHOWN_CHARS = 80

Where = Callable[[tuple[str | int, ...]], str]
"""Names the place that a value came from: `worker.yaml:3: http`, `REQUEUE_HTTP`, `--http`."""


class ConfigError(RequeueError, ValueError):
    """The configuration cannot be used. `mistakes` holds a sentence for each; the text is a line for each."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


def sentences(error: ValidationError, root: type[BaseModel], where: Where) -> list[str]:
    """Each mistake that pydantic found in `root`, in words."""
    found: list[str] = []
    for each in error.errors(include_url=False, include_context=False):
        place = where(each["loc"])
        for text in _text(dict(each), root).split("\n"):
            found.append(f"{place}: {text}" if place else text)
    return list(dict.fromkeys(found))


def _text(error: dict[str, Any], root: type[BaseModel]) -> str:
    loc, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        model = model_at(loc, root) or root
        return f"unknown key; {suggestion(str(loc[-1]), model, root)}"
    if kind == "missing":
        return _missing(loc, root)
    message = str(error["msg"])
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    message = message.replace("Input should be", "should be").removesuffix(".")
    message = message[:1].lower() + message[1:]
    value = error.get("input")
    if _SECRET & {part for part in loc if isinstance(part, str)}:
        return message
    return f"{message}{_got(value)}{_hint(kind, value)}"


def _missing(loc: tuple[str | int, ...], root: type[BaseModel]) -> str:
    key = next((key for key in keys_of(root) if key.path == loc), None)
    if key is None:
        return "is missing"
    flag = f"{key.flag} or " if key.flag else ""
    return f"is missing; give {flag}{key.env}, or {key.dotted} in the configuration file"


def _got(value: object) -> str:
    if isinstance(value, BaseModel):
        return ""
    text = repr(value)
    return f"; got {text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + '…'}"


def _hint(kind: str, value: object) -> str:
    if kind == "string_type" and value is not None and not isinstance(value, (list, dict)):
        return "; put quotes around it"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "; it holds keys of its own"
    return ""


def unknown_variable(name: str, keys: Iterable[Key]) -> str | None:
    """A sentence about an environment variable that looks like a misspelt setting; None when it does not."""
    known = {key.env: key for key in keys}
    close = nearest(name, [*known, CONFIG_VARIABLE])
    if close is None:
        tails = {key.path[-1].upper(): key.env for key in known.values()}
        close = tails.get(name.removeprefix(ENV_PREFIX))
    return f"{name} is no setting and was ignored; did you mean {close}?" if close else None


def flag_place(path: tuple[str | int, ...]) -> str:
    """The flag that set the value at `path`, or the path itself."""
    names = tuple(part for part in path if isinstance(part, str))
    for end in range(len(names), 0, -1):
        flag = FLAGS.get(".".join(names[:end]))
        if flag is not None:
            return flag
    return shown(path)
