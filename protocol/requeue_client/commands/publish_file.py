"""`requeue publish --file`: a message a line, and a note beside the file of those that are on disk already.

The note, FILE.acked, has a line `NUMBER HASH` for each acknowledged line. It is written after the acknowledgement: what
was on its way when the process was killed goes out again, under the same Nats-Msg-Id, and the worker that holds it drops
the copy.
"""

from __future__ import annotations

import hashlib
import json
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from requeue_protocol.admin import mistakes_of
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from requeue_client.client import RequeueClient
from requeue_client.errors import RequeueError
from requeue_client.exits import USAGE, exit_code
from requeue_client.message import Message, encode


class Line(BaseModel):
    """One message: `payload` is text, `payload_base64` is bytes; the rest as the options of `requeue publish`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str | None = None
    payload: str | None = None
    payload_base64: str | None = None
    delay: str | None = None
    at: str | None = None
    ttl: str | None = None
    retries: int | str | None = None
    backoff: str | None = None
    min_backoff: str | None = None
    max_backoff: str | None = None
    ack_timeout: str | None = None
    queue: str | None = None
    priority: int | None = None
    msg_id: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)

    def message(self, subject: str | None, own_id: str) -> Message:
        """The message. Raises ValueError."""
        said = self.model_dump(exclude={"subject", "payload", "payload_base64"}, exclude_none=True)
        to = self.subject or subject
        if to is None:
            raise ValueError('no subject; write "subject": ... or give SUBJECT for all lines')
        if self.payload is not None and self.payload_base64 is not None:
            raise ValueError("both payload and payload_base64; leave one of them out")
        raw = (self.payload or "").encode()
        if self.payload_base64 is not None:
            raw = b64decode(self.payload_base64, validate=True)
        message = Message(to, raw, **{"msg_id": own_id, **said})
        encode(message)
        return message


class Note:
    """Which lines are on disk at a worker; beside the file, or nowhere for standard input."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: set[tuple[int, str]] = set()
        self._file: IO[bytes] | None = None
        if path is not None:
            if path.exists():
                for line in path.read_text().splitlines(keepends=True):
                    number, _, digest = line.partition(" ")
                    if line.endswith("\n") and number.isdecimal():
                        self._known.add((int(number), digest.strip()))
            self._file = path.open("ab", buffering=0)
            self._file.write(b"\n")  # behind a line that a kill cut short

    def has(self, number: int, digest: str) -> bool:
        """Whether this line, as it is now, was acknowledged."""
        return (number, digest) in self._known

    def add(self, number: int, digest: str) -> None:
        """It is on disk."""
        if self._file is not None:
            self._file.write(b"%d %s\n" % (number, digest.encode()))

    def close(self, *, done: bool) -> None:
        """Done: nothing is left to resume."""
        if self._file is not None and self._path is not None:
            self._file.close()
            if done:
                self._path.unlink()


async def publish_file(
    client: RequeueClient, file: Path | None, subject: str | None, *, timeout_s: float
) -> int:
    """Publish what is not on disk yet; a line that is wrong or refused is told, and the others go on.

    Gives the exit code.
    """
    note = Note(None if file is None else file.with_name(file.name + ".acked"))
    task = _Task(note, subject, "-" if file is None else file.name)
    lines = sys.stdin.buffer if file is None else file.open("rb")
    bar = Progress(
        TextColumn("published"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True,
    )  # fmt: skip
    with lines, bar:
        total = None if file is None else sum(1 for _ in file.open("rb"))
        shown = bar.add_task("", total=total)
        async for outcome in client.publish_many(task.messages(lines), timeout=f"{timeout_s:.3f}s"):
            number, digest = task.sent.pop(outcome.index)
            if outcome.error is None:
                note.add(number, digest)
                task.published += 1
                task.duplicates += outcome.ack is not None and outcome.ack.duplicate
            else:
                task.fail(number, str(outcome.error), exit_code(outcome.error))
            bar.update(shown, completed=task.read - len(task.sent))
    note.close(done=task.code == 0)
    before = f", {task.before} were before" if task.before else ""
    wrong = f", {task.failed} failed" if task.failed else ""
    same = f"{task.duplicates} of them were pending already under the same id"
    twice = f", {same}" if task.duplicates else ""
    click.echo(f"on disk: {task.published} messages{twice}{before}{wrong}")
    return task.code


class _Task:
    """What has been read of the file, and what became of it."""

    def __init__(self, note: Note, subject: str | None, name: str) -> None:
        self._note = note
        self._name = name.encode()
        self._subject = subject
        self.sent: dict[int, tuple[int, str]] = {}
        self.read = self.published = self.duplicates = self.before = self.failed = self.code = 0

    def messages(self, lines: IO[bytes]) -> Iterator[Message]:
        """Those that are to be published."""
        index = 0
        for number, raw in enumerate(lines, 1):
            self.read = number
            text = raw.strip()
            digest = hashlib.blake2b(self._name + b"\0" + text, digest_size=12).hexdigest()
            if not text:
                continue
            if self._note.has(number, digest):
                self.before += 1
                continue
            try:
                line = Line.model_validate(json.loads(text))
                message = line.message(self._subject, f"{number}-{digest}")
            except ValidationError as wrong:
                self.fail(number, mistakes_of(wrong), USAGE)
            except (ValueError, RequeueError) as wrong:
                self.fail(number, str(wrong), USAGE)
            else:
                self.sent[index] = (number, digest)
                index += 1
                yield message

    def fail(self, number: int, why: str, code: int) -> None:
        """Tell it; the exit code is that of the first."""
        self.failed += 1
        self.code = self.code or code
        click.echo(f"requeue: line {number}: {why}", err=True)
