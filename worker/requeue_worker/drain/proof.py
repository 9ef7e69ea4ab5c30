"""What a drain reports: the proof that nothing remains on a volume, or what remains and why."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from requeue_worker.drain.volume import sync_directory
from requeue_worker.faults import fault_point

EXIT_DONE: Final = 0
EXIT_REMAINS: Final = 4
EXIT_NOBODY: Final = 5
MAX_BYTES: Final = 4000  #: a container's termination message holds 4,096 bytes
_TEXT_CHARS: Final = 300


class Remains(NamedTuple):
    """Something that is still on the volume. `messages` None: it can't be told how many, which counts as one."""

    instance: str
    reason: str
    text: str
    messages: int | None


@dataclass
class Proof:
    """The outcome of a drain. Messages are pending ones and dead letters together."""

    volume: str | None
    nonce: str | None
    fleet: str
    dry_run: bool
    handed_over: int = 0
    duplicates: int = 0
    possible_duplicates: int = 0
    target: str = ""
    nobody: bool = False  #: no surviving worker answered
    seconds: float = 0.0
    remains: list[Remains] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        """0 when the volume holds nothing any more that would be lost with it."""
        return sum(1 if each.messages is None else max(each.messages, 1) for each in self.remains)

    @property
    def exit_code(self) -> int:
        """0 nothing remains, 4 something does, 5 since no surviving worker answered."""
        if not self.remaining:
            return EXIT_DONE
        return EXIT_NOBODY if self.nobody else EXIT_REMAINS

    def encode(self) -> str:
        """One line of JSON, of MAX_BYTES at most: of too many reasons the last are counted alone."""
        said = {
            "handed_over": self.handed_over,
            "remaining": self.remaining,
            "nonce": self.nonce,
            "volume": self.volume,
            "fleet": self.fleet,
            "target": self.target or None,
            "duplicates": self.duplicates,
            "possible_duplicates": self.possible_duplicates,
            "dry_run": self.dry_run,
            "seconds": round(self.seconds, 3),
        }
        reasons = [each._replace(text=each.text[:_TEXT_CHARS])._asdict() for each in self.remains]
        for told in range(len(reasons), -1, -1):
            untold = {"more_reasons": len(reasons) - told} if told < len(reasons) else {}
            text = json.dumps({**said, "reasons": reasons[:told], **untold})
            if len(text) <= MAX_BYTES:
                break
        return text

    def write(self, path: Path) -> None:
        """Write it to a file, whole or not at all; a file that can't be replaced (a mount of its own) is overwritten.

        Blocks. Raises OSError.
        """
        text = self.encode() + "\n"
        draft = path.with_name(f".{path.name}~")
        try:
            _write(draft, text)
            fault_point("drain: proof half written")
            draft.replace(path)
            sync_directory(path.parent)
        except OSError as error:
            draft.unlink(missing_ok=True)
            if error.errno == errno.ENOSPC or not path.is_file():
                raise
            _write(path, text)
        fault_point("drain: proof written")


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
