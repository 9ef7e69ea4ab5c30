"""`python -m requeue_worker.reaper.prepare DIRECTORY`: look into an orphan, and bring its log to its tables.

A process of its own, since opening a database with a long log takes a second or more and rocksdict holds the GIL
all that time, and since a database that is damaged enough may take down who opens it. The reaper holds the tenure
meanwhile. Prints one JSON object: `{}`, or `kind` and `text` of what is wrong, or `locked`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from requeue_worker.errors import DataDamaged, DataDirLocked, DataFormatTooNew, WorkerError
from requeue_worker.storage.pages import BEYOND, queues_of
from requeue_worker.storage.rocksdb import META, Engine
from requeue_worker.storage.store import read_format
from requeue_worker.storage.unborn import UNBORN, is_unborn


class SetAside(WorkerError):
    """A directory that cannot be merged. `kind` is a word for the metric, the text says what is wrong with it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def set_aside(error: Exception) -> SetAside:
    """The reason in an exception, with the word for the metric."""
    if isinstance(error, SetAside):
        return error
    text = str(error) if isinstance(error, WorkerError) else repr(error)
    if isinstance(error, DataFormatTooNew):
        return SetAside("newer-format", text)
    if isinstance(error, DataDamaged) or "orruption" in text:
        return SetAside("damaged", text)
    return SetAside("unreadable", text)


def prepare(path: Path) -> None:
    """Look into the directory from a process of its own. Blocks. Raises SetAside, or DataDirLocked."""
    command = [sys.executable, "-P", "-m", __name__, str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        said = json.loads(done.stdout)
    except ValueError:
        ended = f"opening it ended a process with {done.returncode}: {done.stderr[-300:].decode(errors='replace')}"
        raise SetAside("damaged" if done.returncode < 0 else "unreadable", ended) from None
    if said.get("locked"):
        raise DataDirLocked(f"{path} is open in another process")
    if said:
        raise SetAside(said["kind"], said["text"])


def _look_into(path: Path) -> None:
    if is_unborn(path):
        raise SetAside("empty", UNBORN)
    engine = Engine(path, read_only=True)
    try:
        if read_format(engine, path) is None:
            raise SetAside("unreadable", "its database is none of ours: it has no format")
        queues_of(engine)
        for key in engine.keys(META, b"", BEYOND):
            del key  # every block of `meta` can be read
    finally:
        engine.close()
    Engine(path, source=True).close()


def _main() -> dict[str, object]:
    try:
        _look_into(Path(sys.argv[1]))
    except DataDirLocked:
        return {"locked": True}
    except Exception as error:
        reason = set_aside(error)
        return {"kind": reason.kind, "text": str(reason)}
    return {}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_main()))
