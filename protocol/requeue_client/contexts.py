"""Contexts of the `nats` command: servers and logins under a name, in ~/.config/nats/context/NAME.json."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


class ContextError(ValueError):
    """A context that is not there, or can't be read. The text says what would be right."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a context says of the connection; None where it says nothing."""

    servers: tuple[str, ...] = ()
    user: str | None = None
    password: str | None = None
    token: str | None = None
    creds: Path | None = None
    nkey: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def directory() -> Path:
    """Where the `nats` command keeps them."""
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "nats" / "context"


def read_context(name: str) -> Context:
    """The context of this name. Raises ContextError."""
    folder = directory()
    file = folder / f"{name}.json"
    try:
        said = json.loads(file.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "none"
        raise ContextError(f"there is no context {name!r} in {folder}; there are: {known}") from None
    except (OSError, ValueError) as error:
        raise ContextError(f"context {name!r} can't be read: {file}: {error}") from None
    if not isinstance(said, dict):
        raise ContextError(f"context {name!r} can't be read: {file} holds no JSON object")
    text = {key: value for key, value in said.items() if isinstance(value, str) and value}
    user, password = text.get("user"), text.get("password")
    return Context(
        servers=tuple(url.strip() for url in text.get("url", "").split(",") if url.strip()),
        user=user if password else None,
        password=password,
        # as the nats command has it: a user without a password is a token
        token=text.get("token") or (user if user and not password else None),
        **{
            name: Path(text[name]).expanduser()
            for name in ("creds", "nkey", "ca", "cert", "key")
            if name in text
        },
    )
