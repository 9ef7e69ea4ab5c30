"""Reads the YAML configuration file: plain values, and the line of each, for messages that can be followed.

The YAML is read as YAML 1.2 has it: `no`, `on` and `1:30` are texts, not false, true and 90. A key that
stands twice in one mapping is a mistake (YAML would let the last one win, unseen).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from requeue_worker.mistakes import ConfigError
from requeue_worker.setting_keys import Path as KeyPath
from requeue_worker.setting_keys import shown


@dataclass(frozen=True)
class ConfigFile:
    """The content of a file: `values` as written, `lines` by path (1-based)."""

    path: Path
    digest: bytes = b""
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """`worker.yaml:12`: the line of `path`, or of what it would stand in."""
        for end in range(len(path), 0, -1):
            line = self.lines.get(path[:end])
            if line is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def read_config_file(path: Path, content: bytes | None = None) -> ConfigFile:
    """Read `path` (or `content` that was read from it). An empty file says nothing.

    Raises ConfigError when it cannot be read, is no YAML, or is no mapping.
    """
    try:
        content = path.read_bytes() if content is None else content
        text = content.decode()
    except OSError as error:
        raise ConfigError([f"{path}: cannot read the configuration file: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not text in UTF-8"]) from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _check_ends(node)
        mistakes = [f"{path}:{line}: {what}" for line, what in _double_keys(node)]
        lines = dict(_lines(node))
        values = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_yaml_mistake(path, error)]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: is not YAML: {str(error).splitlines()[0]}"]) from None
    finally:
        loader.dispose()
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: is a {type(values).__name__}; write settings, one `key: value` a line"])
    if mistakes:
        raise ConfigError(mistakes)
    return ConfigFile(path, digest_of(content), values, lines)


def digest_of(content: bytes) -> bytes:
    """What tells one content of a file from another."""
    return hashlib.blake2b(content, digest_size=16).digest()


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2's core schema, and no numbers with leading zeros."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute
        first: [(tag, regexp) for tag, regexp in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _tag, _regexp, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$", "-+."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_regexp), list(_first))


def _yaml_mistake(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
    return f"{place}: is not YAML: {error.problem or error.context or 'it ends too early'}"


def _check_ends(node: yaml.Node | None, above: tuple[yaml.Node, ...] = ()) -> None:
    if not isinstance(node, yaml.CollectionNode):
        return
    if any(node is each for each in above):
        raise yaml.YAMLError("an anchor stands inside itself")
    pairs = isinstance(node, yaml.MappingNode)
    for child in [child for pair in node.value for child in pair] if pairs else node.value:
        _check_ends(child, (*above, node))


def _lines(node: yaml.Node | None, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Every path below `node` with its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*path, position), value.start_mark.line + 1
            yield from _lines(value, (*path, position))


def _double_keys(node: yaml.Node | None, path: KeyPath = ()) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                yield line, f"{shown((*path, name))}: stands in line {seen[name]} too; keep one"
            seen.setdefault(name, line)
            yield from _double_keys(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield from _double_keys(value, (*path, position))
