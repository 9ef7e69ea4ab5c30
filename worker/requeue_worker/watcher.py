"""Sees the configuration file change and yields settings with the new queue policies.

    disturbance in the directory → content differs? → load as at the start → policies differ? → yield

The directory is watched, not the file: editors replace files, and Kubernetes changes a ConfigMap by swapping
the symlink `..data` beside it. Only `defaults` and `queues` are taken over; of other changes the log says that
they need a restart. A content with mistakes, an empty file (an editor between truncate and write) and a file
that is gone are logged, and the settings in use stay. `service` applies what is yielded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

from pydantic import BaseModel
from requeue_worker.config_file import digest_of
from requeue_worker.setting_keys import key_of
from requeue_worker.setting_types import Section
from requeue_worker.settings import ConfigError, Origin, Settings, load
from watchfiles import awatch

log = logging.getLogger(__name__)

_STEP_MS = 250
"""How often watchfiles asks for events; a burst of them counts as one when it pauses this long."""
_LOOK_ANYWAY_MS = 30_000
"""Where no events come from (network file systems, a swapped parent directory), the file is read this often."""


async def watch_settings(settings: Settings) -> AsyncGenerator[Settings, None]:
    """Yield `settings` with new policies at each usable change. Ends at once when there is no file."""
    origin = settings.origin
    if origin is None or origin.config_file is None:
        return
    reloader = _Reloader(settings, origin, origin.config_file)
    async for _ in _disturbances(origin.config_file):
        changed = await asyncio.to_thread(reloader.look)
        if changed is not None:
            yield changed


async def _disturbances(file: Path) -> AsyncGenerator[None, None]:
    """Yield when `file` may have changed, and once as soon as no change can be missed any more."""
    while True:
        directories = _directories(file)
        events = awatch(
            *directories,
            watch_filter=None,
            recursive=False,
            step=_STEP_MS,
            rust_timeout=_LOOK_ANYWAY_MS,
            yield_on_timeout=True,
        )
        upcoming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(
            0
        )  # lets it run to its first wait: the watch stands, events are kept from here on
        try:
            yield
            while _directories(file) == directories:
                await upcoming
                upcoming = asyncio.ensure_future(anext(events))
                yield
        except OSError as error:  # a directory is gone: it may come back
            log.warning("cannot watch the configuration", extra={"file": file, "error": str(error)})
            await asyncio.sleep(_LOOK_ANYWAY_MS / 1000)
        finally:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
            await events.aclose()


def _directories(file: Path) -> frozenset[Path]:
    """The directory that `file` is named in, and the one that it is in after all symlinks."""
    return frozenset((file.absolute().parent, file.resolve().parent))


class _Reloader:
    """Turns a content of the file into settings to use, or into a log line."""

    def __init__(self, settings: Settings, origin: Origin, file: Path) -> None:
        self._settings = settings
        self._origin = origin
        self._file = file
        self._digest = origin.digest
        self._unreadable: int | None = None

    def look(self) -> Settings | None:
        """The settings with new policies, if the file has been changed to any. Blocks on the disk."""
        try:
            content = self._file.read_bytes()
        except OSError as error:
            self._complain_once(error)
            return None
        self._unreadable = None
        digest = digest_of(content)
        if digest == self._digest:
            return None
        self._digest = digest
        if not content.strip():
            self._refuse("is empty")
            return None
        return self._load(content)

    def _complain_once(self, error: OSError) -> None:
        if self._unreadable != error.errno:
            self._unreadable = error.errno
            self._refuse(f"cannot be read: {error.strerror}")

    def _refuse(self, *reasons: str) -> None:
        for reason in reasons:
            log.error("the changed configuration is not used", extra={"file": self._file, "error": reason})

    def _load(self, content: bytes) -> Settings | None:
        origin = self._origin
        try:
            loaded = load(
                self._file, origin.flags, environ=origin.environ, content=content, look_into_files=False
            )
        except ConfigError as error:
            self._refuse(*error.mistakes)
            return None
        for warning in loaded.warnings:
            log.warning("the configuration looks odd", extra={"file": self._file, "error": warning})
        self._tell_what_needs_a_restart(loaded.settings)
        return self._with_policies(loaded.settings)

    def _tell_what_needs_a_restart(self, new: Settings) -> None:
        keys = [key for key in _differing(self._settings, new) if key not in Settings.restart_free]
        if keys:
            log.warning("changed settings need a restart", extra={"file": self._file, "settings": keys})

    def _with_policies(self, new: Settings) -> Settings | None:
        policies = {name: getattr(new, name) for name in Settings.restart_free}
        if all(getattr(self._settings, name) == value for name, value in policies.items()):
            return None
        self._settings = self._settings.model_copy(update=policies)
        log.info("queue policies changed", extra={"file": self._file, "queues": len(new.queues)})
        return self._settings


def _differing(old: BaseModel, new: BaseModel, prefix: str = "") -> list[str]:
    """The keys whose values differ, sections entered. Names only: a value may be a secret."""
    keys: list[str] = []
    for name in type(old).model_fields:
        before, after, key = getattr(old, name), getattr(new, name), prefix + key_of(name)
        if isinstance(before, Section) and isinstance(after, Section):
            keys += _differing(before, after, f"{key}.")
        elif before != after:
            keys.append(key)
    return keys
