"""Where settings come from: flags over environment over file, nested mappings with the models' own keys.

`layer_*` read one source each and bring every spelling of a key (`minBackoff`, `min_backoff_ns`) to the one
that the models' errors use; `merged` lays them over each other. Of several ways to log in to NATS one is
left: a higher source replaces whatever a lower one says about logging in, inside a source the order of
`NatsSettings` decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from requeue_worker.config_file import ConfigFile
from requeue_worker.mistakes import ConfigError, flag_place, unknown_variable
from requeue_worker.setting_keys import (
    CONFIG_VARIABLE,
    ENV_PREFIX,
    Path,
    admits_none,
    is_list,
    item_of,
    key_of,
    keys_of,
    section_of,
    shown,
    spellings,
)

_LOGINS: Final = (
    ("creds_file",),
    ("nkey_file",),
    ("token_file", "token"),
    ("user_file", "user", "password_file", "password"),
)
_FILE_OR_VALUE: Final = (("token_file", "token"), ("user_file", "user"), ("password_file", "password"))
# Kubernetes puts these into every pod for a Service whose name begins with "requeue".
_SERVICE_LINK: Final = re.compile(r"_SERVICE_(HOST|PORT(_.*)?)$|_PORT$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
_SURELY_NO_NS: Final = 1_000_000
"""A bare number below this many nanoseconds was meant as something else."""


@dataclass
class Layer:
    """What one source says. `place` names the spot in it that a value came from."""

    place: Callable[[Path], str]
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def put(self, path: tuple[str, ...], value: object) -> None:
        """Set the value at a path of keys."""
        at = self.values
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = value


def layer_flags(flags: Mapping[str, object], model: type[BaseModel]) -> Layer:
    """Flags by dotted key (`{"nats.servers": (...)}`), or nested; None and () mean: not given."""
    layer = Layer(flag_place)
    for dotted, value in flags.items():
        if value is not None and value != ():
            layer.put(tuple(dotted.split(".")), value)
    layer.values = _canonical(layer.values, model, (), layer)
    return layer


def layer_environment(environ: Mapping[str, str], model: type[BaseModel]) -> Layer:
    """`REQUEUE_*`. An empty variable is one that is not set; an unknown one is a warning, not a mistake."""
    keys = {key.env: key for key in keys_of(model)}
    by_path: dict[Path, str] = {key.path: key.env for key in keys.values()}

    def place(path: Path) -> str:
        cuts = (path[:end] for end in range(len(path), 0, -1))
        return next((by_path[cut] for cut in cuts if cut in by_path), shown(path))

    layer = Layer(place)
    for name, value in sorted(environ.items()):
        key = keys.get(name)
        if name == CONFIG_VARIABLE:
            continue
        if key is None and name.startswith(ENV_PREFIX) and not _SERVICE_LINK.search(name):
            layer.warnings.extend(filter(None, [unknown_variable(name, keys.values())]))
        if key is None or not value.strip():
            continue
        if item_of(key.info) is not None:
            layer.put(key.path, _parsed(name, value, layer))
        elif is_list(key.info):
            layer.put(key.path, tuple(part.strip() for part in value.split(",") if part.strip()))
        else:
            layer.put(key.path, value)
    layer.values = _canonical(layer.values, model, (), layer)
    return layer


def _parsed(name: str, value: str, layer: Layer) -> object:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        hint = "write a list, like [{name: orders, retries: 5}]"
        layer.mistakes.append(f"{name}: is not YAML or JSON; {hint}")
        return ()


def layer_file(file: ConfigFile, model: type[BaseModel]) -> Layer:
    """The configuration file."""
    lines = {_canonical_path(path, model): path for path in file.lines}

    def place(path: Path) -> str:
        written = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), path)
        return f"{file.place(written)}: {shown(path)}" if path else str(file.path)

    layer = Layer(place)
    layer.values = _canonical(file.values, model, (), layer)
    _warn_of_bare_numbers(layer.values, model, (), layer)
    return layer


def merged(layers: Iterable[Layer]) -> tuple[dict[str, Any], Callable[[Path], str]]:
    """All layers in one, the first over the later, and the function that says where a value came from."""
    order = list(layers)
    values: dict[str, Any] = {}
    for layer in reversed(order):
        _lay_over(values, layer.values)

    def where(path: Path) -> str:
        for end in range(len(path), 0, -1):
            for layer in order:
                if _holds(layer.values, path[:end]):
                    return layer.place(path)
        return shown(path)

    return values, where


def keep_one_login(layers: Iterable[Layer]) -> None:
    """Leave one way to log in to NATS in `layers` (highest first); warn of what a source gives in vain."""
    chosen: tuple[str, ...] | None = None
    taken: set[str] = set()
    for layer in layers:
        nats = layer.values.get("nats")
        if not isinstance(nats, dict):
            continue
        given = [keys for keys in _LOGINS if any(nats.get(key) is not None for key in keys)]
        if not given:
            continue
        chosen = chosen or given[0]
        used = next((key for key in chosen if nats.get(key) is not None), "")
        for keys in given:
            if keys != chosen:
                dropped = [key for key in keys if nats.pop(key, None) is not None]
                if chosen == given[0]:
                    _warn_in_vain(layer, dropped[0], used)
        for file, value in _FILE_OR_VALUE:
            if taken & {file, value}:
                nats.pop(file, None)
                nats.pop(value, None)
            elif nats.get(file) is not None and nats.pop(value, None) is not None:
                _warn_in_vain(layer, value, file)
        taken |= nats.keys()


def _warn_in_vain(layer: Layer, ignored: str, used: str) -> None:
    place, instead = layer.place(("nats", ignored)), layer.place(("nats", used))
    layer.warnings.append(f"{place}: is ignored, because {instead} is given too; keep one")


def _lay_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping):
            at = below.get(key)
            below[key] = at = at if isinstance(at, dict) else {}
            _lay_over(at, value)
        else:
            below[key] = value


def _holds(values: object, path: Path) -> bool:
    for part in path:
        if isinstance(part, int):
            if not isinstance(values, (list, tuple)) or part >= len(values):
                return False
            values = values[part]
        elif isinstance(values, Mapping) and part in values:
            values = values[part]
        else:
            return False
    return True


def _canonical(values: Mapping[str, Any], model: type[BaseModel], path: Path, layer: Layer) -> dict[str, Any]:
    """`values` under the models' own keys. `null` is dropped where it is no value; unknown keys stay."""
    infos = {key_of(name): info for name, info in model.model_fields.items()}
    result: dict[str, Any] = {}
    for written, value in values.items():
        key = spellings(model).get(written, str(written))
        info = infos.get(key)
        if info is not None and value is None and not admits_none(info):
            continue
        if key in result:
            layer.mistakes.append(f"{layer.place((*path, key))}: stands twice, as {written} too; keep one")
            continue
        result[key] = value if info is None else _canonical_value(value, info, (*path, key), layer)
    return result


def _canonical_value(value: Any, info: FieldInfo, path: Path, layer: Layer) -> Any:
    section, item = section_of(info), item_of(info)
    if section is not None and isinstance(value, Mapping):
        return _canonical(value, section, path, layer)
    if item is not None and isinstance(value, (list, tuple)):
        return [
            _canonical(each, item, (*path, position), layer) if isinstance(each, Mapping) else each
            for position, each in enumerate(value)
        ]
    return value


def _canonical_path(path: Path, model: type[BaseModel]) -> Path:
    result: list[str | int] = []
    at: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int) or at is None:
            result.append(part)
            continue
        key = spellings(at).get(part, part)
        result.append(key)
        info = next((info for name, info in at.model_fields.items() if key_of(name) == key), None)
        at = (section_of(info) or item_of(info)) if info is not None else None
    return tuple(result)


def _warn_of_bare_numbers(values: object, model: type[BaseModel], path: Path, layer: Layer) -> None:
    if not isinstance(values, dict):
        return
    for name, info in model.model_fields.items():
        key = key_of(name)
        value = values.get(key)
        section, item = section_of(info), item_of(info)
        if section is not None:
            _warn_of_bare_numbers(value, section, (*path, key), layer)
        elif item is not None:
            for position, each in enumerate(value if isinstance(value, list) else ()):
                _warn_of_bare_numbers(each, item, (*path, key, position), layer)
        elif name != key or key == "backoff":
            for number in value if isinstance(value, list) else [value]:
                if type(number) is int and 0 < number < _SURELY_NO_NS:
                    layer.warnings.append(
                        f"{layer.place((*path, key))}: {number} has no unit and is taken as nanoseconds; "
                        f"write {number}s or {number}ns"
                    )


def check(layers: Iterable[Layer]) -> None:
    """Raise ConfigError when reading the sources found mistakes."""
    mistakes = [mistake for layer in layers for mistake in layer.mistakes]
    if mistakes:
        raise ConfigError(mistakes)
