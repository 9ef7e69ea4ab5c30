"""A fleet whose members are killed at any moment: neighbours on a shared directory, and one with a volume of its own.

Who comes after a kill is drawn: the same instance again; a new one, so that the neighbours merge what the old one left;
or, for the one with its own volume, a drain that hands the volume's messages to the others, and is killed as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import time
from pathlib import Path

from requeue_client.local import find_executable
from requeue_worker.errors import DataDirLocked
from requeue_worker.verify import Report, verify

from tests.servers import NatsServer, WorkerFactory, WorkerProcess, until

# The ack timeout is long: a handler that a loaded machine delays must not look like one that did not answer.
POLICY = """
defaults: {ack_timeout: 1m, min_backoff: 50ms, max_backoff: 200ms}
reaper: {reap_after: 1s, interval: 100ms}
reconnect_grace: 100ms
"""
DRAINED, REMAINING, NOBODY = 0, 4, 5  #: exit codes of `requeue-worker drain`


class Fleet:
    """Three workers in one queue group."""

    def __init__(
        self, server: NatsServer, worker_factory: WorkerFactory, root: Path, rng: random.Random
    ) -> None:
        self._server = server
        self._make = worker_factory
        self._root = root
        self._rng = rng
        self._numbers = itertools.count(1)
        self._config = root / "fleet.yaml"
        self._config.write_text(POLICY)
        self._shared = root / "shared"
        self._drains: set[asyncio.Task[None]] = set()
        self.faults_s: list[float] = []
        self.drained = 0
        #: killed before they were ready: their databases may be half made, and are set aside by the reaper
        self._unborn: set[str] = set()
        self.members = [self._neighbour(), self._neighbour(), self._alone()]

    # -- members ---------------------------------------------------------------------------------------------

    def _neighbour(self) -> WorkerProcess:
        return self._member(f"n{next(self._numbers)}", self._shared)

    def _alone(self) -> WorkerProcess:
        number = next(self._numbers)
        return self._member(f"v{number}", self._root / f"volume-{number}")

    def _member(self, name: str, data_dir: Path) -> WorkerProcess:
        arguments = ("--instance-id", name, "--config", str(self._config))
        worker = self._make(self._server, *arguments, data_dir=data_dir, start=False)
        worker.name = name
        return worker

    def spawn(self) -> None:
        """Start all, without waiting."""
        for member in self.members:
            member.spawn()

    async def kill_one(self) -> None:
        """Kill a member, check what it leaves, and let somebody follow."""
        place = self._rng.randrange(len(self.members))
        dead = self.members[place]
        dead.kill()
        self.faults_s.append(time.time())
        was_ready, alone = "ready" in dead.log, dead.data_dir != self._shared
        if was_ready:
            await asyncio.to_thread(_check, dead.data_dir / dead.name)
        else:
            self._unborn.add(dead.name)
        # A volume without an identity holds nothing yet, and no drain says so of a volume that it cannot name.
        comes_back = self._rng.random() < 0.5 or (alone and not was_ready)
        if not comes_back:
            self.members[place] = self._alone() if alone else self._neighbour()
            if alone:
                self._drain(dead.data_dir)
        self.members[place].spawn()

    def _drain(self, volume: Path) -> None:
        task = asyncio.create_task(self._drain_until_empty(volume))
        self._drains.add(task)

    async def _drain_until_empty(self, volume: Path) -> None:
        log = self._root / f"{volume.name}-drain.log"
        binary = str(find_executable("requeue-worker", ""))
        command = [
            binary,
            "drain",
            "--data-dir",
            str(volume),
            "--server",
            self._server.url,
            "--timeout",
            "5s",
        ]
        for attempt in itertools.count():
            extra = ["--new-target"] if attempt and self._target_is_gone(log) else []
            with log.open("ab") as out:
                process = await asyncio.create_subprocess_exec(*command, *extra, stdout=out, stderr=out)
            if attempt < 3 and self._rng.random() < 0.7:
                await asyncio.sleep(self._rng.uniform(0.2, 1.5))
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                self.faults_s.append(time.time())
            code = await process.wait()
            if code == DRAINED:
                break
            assert code in (REMAINING, NOBODY) or code < 0, log.read_text()
        self.drained += 1
        for directory in await asyncio.to_thread(_directories, volume):
            report = await asyncio.to_thread(verify, directory)
            assert report.ok, report.findings
            assert not report.records["messages"], "a drained volume holds nothing"

    def _target_is_gone(self, log: Path) -> bool:
        """Whether the last run waits for a target that never comes back, since its volume was drained before."""
        silent = re.findall(r"(\S+) does not answer", log.read_text())
        return bool(silent) and silent[-1].rpartition('"')[2] not in {member.name for member in self.members}

    # -- the end ---------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Every drain has come to its end, and every directory that was left behind is merged."""
        for drain in list(self._drains):
            await drain
        stay = {member.name for member in self.members} | self._unborn
        await until(lambda: {path.name for path in _directories(self._shared)} <= stay, timeout_s=120)

    def stop(self) -> list[Report]:
        """Stop all in good order, and verify what they leave."""
        for member in self.members:
            # Who follows the last kill may be starting: before its handlers stand, a signal is no good order.
            member.until_ready()
            assert member.stop() == 0, member.log[-4000:]
        # Of neighbours, whoever stops last may have merged those who stopped before.
        data_dirs = {member.data_dir for member in self.members}
        return [verify(directory) for data_dir in data_dirs for directory in _directories(data_dir)]


def _directories(data_dir: Path) -> list[Path]:
    return sorted(path for path in data_dir.iterdir() if path.is_dir())


def _check(path: Path) -> None:
    """Verify, unless a neighbour merges it already or it was never made."""
    try:
        report = verify(path)
    except (DataDirLocked, FileNotFoundError):
        return
    assert report.ok, report.findings
