"""The names of every setting: its key in the file, its environment variable, its flag.

Derived from the models, so that a new field has all of them at once. A key is the field without its unit
(`shutdown_grace_ns` → `shutdown_grace`); the variable is `REQUEUE_` and the key's path in capitals
(`nats.tls.ca_file` → `REQUEUE_NATS_TLS_CA_FILE`). Flags are few and short, and listed here.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]
"""Where a value stands: `("nats", "tls", "ca_file")`, `("queues", 0, "retries")`."""

ENV_PREFIX: Final = "REQUEUE_"
CONFIG_VARIABLE: Final = f"{ENV_PREFIX}CONFIG"
"""Names the configuration file itself, as `--config` does."""
FLAGS: Final[Mapping[str, str]] = {
    "nats.servers": "--server",
    "data_dir": "--data-dir",
    "subject": "--subject",
    "queue_group": "--queue-group",
    "intake": "--intake",
    "admin.read_only": "--admin-read-only",
    "instance_id": "--instance-id",
    "shards": "--shards",
    "fleet": "--fleet",
    "http": "--http",
    "web.listen": "--web",
    "web.changes": "--web-changes",
    "nats.creds_file": "--creds",
    "nats.nkey_file": "--nkey",
    "nats.user": "--user",
    "nats.password_file": "--password-file",
    "nats.token_file": "--token-file",
    "nats.tls.ca_file": "--tls-ca",
    "nats.tls.cert_file": "--tls-cert",
    "nats.tls.key_file": "--tls-key",
    "log_level": "--log-level",
    "log_format": "--log-format",
    "shutdown_grace": "--shutdown-grace",
}


@dataclass(frozen=True)
class Key:
    """One setting. `info` is the model's field; a list of queues is one key."""

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def dotted(self) -> str:
        """As it is written in messages and the documentation."""
        return ".".join(self.path)

    @property
    def env(self) -> str:
        """Name of its environment variable."""
        return ENV_PREFIX + "_".join(self.path).upper()

    @property
    def flag(self) -> str | None:
        """Its flag, if it has one."""
        return FLAGS.get(self.dotted)


def keys_of(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[Key]:
    """Every setting of `model`, sections entered."""
    for name, info in model.model_fields.items():
        path = (*prefix, key_of(name))
        section = section_of(info)
        if section is None:
            yield Key(path, info)
        else:
            yield from keys_of(section, path)


def key_of(field: str) -> str:
    """The key of a field: its name without the unit of a duration."""
    return field.removesuffix("_ns")


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a section."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def item_of(info: FieldInfo) -> type[BaseModel] | None:
    """The model of each item of a field that is a list of mappings."""
    items = get_args(info.annotation) if get_origin(info.annotation) is tuple else ()
    return items[0] if items and isinstance(items[0], type) and issubclass(items[0], BaseModel) else None


def is_list(info: FieldInfo) -> bool:
    """Whether a text such as `a,b` means several values."""
    return get_origin(info.annotation) is tuple and item_of(info) is None


def admits_none(info: FieldInfo) -> bool:
    """Whether `null` is a value of its own; elsewhere it means: not said."""
    union = get_origin(info.annotation) in (Union, types.UnionType)
    return union and type(None) in get_args(info.annotation)


@cache
def spellings(model: type[BaseModel]) -> Mapping[str, str]:
    """Every way to write a key of `model`, and the key that is meant."""
    ways: dict[str, str] = {}
    for name, info in model.model_fields.items():
        alias = info.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        for way in (name, info.alias, *choices, key_of(name)):
            if isinstance(way, str):
                ways[way] = key_of(name)
    return ways


_Text = TypeVar("_Text", bound=str)


def nearest(word: str, known: Iterable[_Text]) -> _Text | None:
    """The known word that `word` was most likely meant to be; `maxRate` and `max-rate` mean `max_rate`."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in known}
    found = get_close_matches(re.sub(r"[^a-z0-9]", "", word.lower()), plain, n=1, cutoff=0.75)
    return plain[found[0]] if found else None


def suggestion(key: str, model: type[BaseModel], root: type[BaseModel]) -> str:
    """What an unknown key of `model` was most likely meant to be, as the end of a sentence."""
    here = [key_of(name) for name in model.model_fields]
    close = nearest(key, here)
    if close is not None:
        return f"did you mean {close}?"
    elsewhere = {each.path[-1]: each.dotted for each in keys_of(root)}
    close = nearest(key, elsewhere)
    if close is not None:
        return f"did you mean {elsewhere[close]}?"
    return f"known here: {', '.join(here)}"


def model_at(path: Iterable[str | int], root: type[BaseModel]) -> type[BaseModel] | None:
    """The model whose key the last part of `path` is."""
    model: type[BaseModel] | None = root
    info: Any = None
    for part in tuple(path)[:-1]:
        if model is None:
            return None
        if isinstance(part, int):
            continue
        name = spellings(model).get(part)
        info = next((i for n, i in model.model_fields.items() if key_of(n) == name), None)
        model = (section_of(info) or item_of(info)) if info is not None else None
    return model


def shown(path: Iterable[str | int]) -> str:
    """A path as a user writes it: `queues[0].min_backoff`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
