"""A drain: every instance directory of a volume, one after the other, to one surviving worker of the fleet.

What is in the way of one directory does not stop the others; it is told in the proof. What can't be understood counts as
remaining, since the volume may be deleted on the word of the proof.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from requeue_protocol.errors import MalformedMessage
from requeue_protocol.subjects import check_queue_name
from requeue_worker.drain.directory import HOLDER, Directory
from requeue_worker.drain.handover import Blocked, Handover, Tally
from requeue_worker.drain.link import Link
from requeue_worker.drain.messages import NOBODY, Request, Verb
from requeue_worker.drain.proof import Proof, Remains
from requeue_worker.drain.volume import read_identity
from requeue_worker.errors import DataDirLocked, DataDirUnreadable
from requeue_worker.faults import fault_point
from requeue_worker.reaper.prepare import SetAside, set_aside
from requeue_worker.reaper.source import ASIDE
from requeue_worker.settings import Settings
from requeue_worker.storage.directory import data_files, held
from requeue_worker.storage.pages import queues_of
from requeue_worker.storage.rocksdb import Engine
from requeue_worker.storage.store import read_format
from requeue_worker.storage.unborn import is_unborn

log = logging.getLogger(__name__)

TELL_EVERY_S: Final = 2.0
#: reasons that another directory of the same volume would meet too
_SHARED: Final = frozenset({"no-survivor", "target-silent", "target-full", "target-busy"})

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What a drain is told beside where its volume and NATS are."""

    nonce: str | None = None
    dry_run: bool = False
    new_target: bool = False
    timeout_s: float = 60.0


class Drain:
    """One run over one volume."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self._data_dir = settings.data_dir
        self._options = options
        self._fleet = settings.fleet
        self._link = Link(settings.nats, settings.fleet)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="requeue-drain")
        self._tally = Tally()
        self._patience_s = options.timeout_s
        self._started_s = self._told_s = time.monotonic()
        self.stopping = asyncio.Event()

    async def run(self) -> Proof:
        """Hand over what can be. Raises DataDirUnreadable when there is no such data directory."""
        proof = await self._call(self._begin)
        self._link.start()
        try:
            for path in await self._call(self._entries):
                remains = await self._drain(path)
                if remains is not None:
                    proof.remains.append(remains)
                    log.error("something remains", extra=remains._asdict())
            if self._options.dry_run and proof.remains:
                await self._look_for_a_target()
        finally:
            await self._link.close()
            await asyncio.to_thread(self._thread.shutdown)
        tally = self._tally
        proof.handed_over, proof.duplicates = tally.handed_over, tally.duplicates
        proof.possible_duplicates, proof.target = tally.possible_duplicates, tally.target
        proof.nobody = not tally.answered
        proof.seconds = time.monotonic() - self._started_s
        log.info("the drain has ended", extra={"messages": tally.handed_over, "remaining": proof.remaining})
        return proof

    def _begin(self) -> Proof:
        try:
            volume = read_identity(self._data_dir)
        except OSError as error:
            raise DataDirUnreadable(f"{self._data_dir} can't be read: {error.strerror}") from error
        proof = Proof(volume, self._options.nonce, self._fleet, self._options.dry_run)
        if volume is None:
            text = "the volume has no identity: no worker of this release has run on it"
            proof.remains.append(Remains("", "no-identity", text, None))
        return proof

    def _entries(self) -> list[Path]:
        try:
            return [path for path in sorted(self._data_dir.iterdir()) if _may_hold_data(path)]
        except OSError as error:
            raise DataDirUnreadable(f"{self._data_dir} can't be read: {error.strerror}") from error

    async def _drain(self, path: Path) -> Remains | None:
        """What remains of this one. What is wrong with it is no reason to stop."""
        if path.name.startswith("."):
            return Remains(path.name, "set-aside", "a directory that was set aside, with data in it", None)
        if self._options.dry_run or self.stopping.is_set():
            return await self._call(lambda: self._look(path))
        try:
            directory = await self._call(lambda: Directory.open(path, HOLDER))
        except FileNotFoundError:
            return None
        except DataDirLocked as error:
            return Remains(path.name, "in-use", str(error), None)
        except Exception as error:
            return _wrong(path, error)
        try:
            fault_point("drain: opened")
            log.info("draining a directory", extra={"instance": path.name})
            await self._hand_over(directory)
        except Blocked as error:
            if error.kind in _SHARED:
                self._patience_s = 0.0
            return Remains(path.name, error.kind, str(error), await self._call(lambda: _left(directory)))
        except Exception as error:
            reason = set_aside(error)
            return Remains(path.name, reason.kind, str(reason), await self._call(lambda: _left(directory)))
        finally:
            await self._call(directory.close)
        return None

    async def _hand_over(self, directory: Directory) -> None:
        handover = Handover(
            directory,
            self._link,
            self._call,
            self._tally,
            self.stopping,
            excluded=frozenset(path.name for path in await self._call(self._entries)),
            new_target=self._options.new_target,
            told=lambda: self._tell(directory),
        )
        await handover.run(self._patience_s)

    def _tell(self, directory: Directory) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            messages, took_s = self._tally.handed_over, now_s - self._started_s
            extra = {"messages": messages, "per_s": round(messages / took_s), "target": self._tally.target}
            log.info("handing over", extra={"instance": directory.path.name, **extra})

    def _look(self, path: Path) -> Remains | None:
        """How much is there, without a change to anything. Blocks."""
        why = "stopped" if self.stopping.is_set() else "dry-run"
        if not path.is_dir() or path.is_symlink():
            return _wrong(path, SetAside("not-a-directory", "it is no directory, and an instance has one"))
        try:
            if not data_files(path):
                return None
            with held(path):
                if is_unborn(path):
                    return None
                engine = Engine(path, read_only=True)
                try:
                    read_format(engine, path)
                    messages = sum(pending + dead for pending, dead, _ in queues_of(engine).values())
                finally:
                    engine.close()
        except DataDirLocked as error:
            return Remains(path.name, "in-use", str(error), None)
        except Exception as error:
            return _wrong(path, error)
        return Remains(path.name, why, "it was not handed over", messages) if messages else None

    async def _look_for_a_target(self) -> None:
        """Who would be chosen."""
        until_s = time.monotonic() + self._options.timeout_s
        own = {path.name for path in await self._call(self._entries)}
        while True:
            everybody = await self._link.ask_all(Request(Verb.WHO, NOBODY))
            others = [found.answer for found in everybody if found.answer.instance not in own]
            self._tally.answered = bool(others)
            if others or time.monotonic() >= until_s or self.stopping.is_set():
                roomy = [answer for answer in others if answer.room]
                best = min(roomy, key=lambda answer: (answer.pending, answer.instance), default=None)
                self._tally.target = "" if best is None else best.instance
                return
            await asyncio.sleep(0.1)

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _may_hold_data(path: Path) -> bool:
    """Whether it is an instance's, or was set aside; not the volume's identity, sockets and unfinished copies.

    Names without a meaning here (`lost+found`) hold nothing of ours, and `.reaped-` what a neighbour has.
    """
    name = path.name
    if name.startswith("."):
        return "~" not in name and not name.startswith(ASIDE) and path.is_dir() and bool(data_files(path))
    try:
        check_queue_name(name)
    except MalformedMessage:
        return False
    return True


def _wrong(path: Path, error: Exception) -> Remains | None:
    """A directory that can't be opened. One without a database, or with one that was never finished, holds nothing."""
    reason = set_aside(error)
    try:
        if reason.kind == "empty" and (not data_files(path) or is_unborn(path)):
            return None
    except OSError:
        pass
    return Remains(path.name, reason.kind, str(reason), None)


def _left(directory: Directory) -> int | None:
    try:
        return directory.left()
    except Exception:
        return None
