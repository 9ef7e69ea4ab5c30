"""A drain that is killed at every place where it can be, on either side: the result is the same as without the crash.

Drain and worker are real processes, killed by SIGKILL when they reach the place. Then the drain is run again, or the
worker started again. Nothing is lost, nothing is there twice, and `verify` finds both sides sound.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from requeue_worker.drain.volume import ensure_identity
from requeue_worker.faults import FAULT_POINTS
from requeue_worker.verify import verify

from tests.faults.test_reaper_crashes import _SCRIPT
from tests.servers import NatsServer
from tests.zombies import Contents, Zombie, contents

DUE_NS = 1_893_456_000_000_000_000  #: 2030: nothing is replayed meanwhile
#: in the order in which one drain reaches them; each crash leaves the next one something to do
CHAIN = (
    ("drain: opened", 1),
    ("drain: chosen", 1),
    ("drain: begun", 1),
    ("drain: sending noted", 1),
    ("drain: page read", 1),
    ("drain: page sent", 1),
    ("drain: page acknowledged", 1),
    ("drain: caught up", 1),
    ("drain: page trimmed", 2),
    ("drain: page acknowledged", 2),
    ("drain: ended", 1),
)
AT_THE_END = ("drain: let go", "drain: mark forgotten", "drain: proof half written", "drain: proof written")
BY_THE_WORKER = ("handover: begun", "handover: page received", "handover: page durable")


class Scene:
    """An orphaned volume, a surviving worker's data, and processes on both."""

    def __init__(self, directory: Path, server: NatsServer) -> None:
        self.server = server
        self.volume, self.data_dir = directory / "volume", directory / "data"
        self.proof_file = directory / "proof"
        self._log = directory / "log"
        ensure_identity(self.volume)

    def orphan(self, messages: int = 2500, dead: int = 1100) -> Contents:
        """Pages of messages and of dead letters, in several queues."""
        made = Zombie(self.volume, "gone").fill(messages, dead, due_ns=DUE_NS, client_ids=True)
        made.fill(600, 300, queue="orders", priority=2, due_ns=DUE_NS)
        return made.fill(1, queue="paused", due_ns=DUE_NS, paused_until_ns=2 * 10**18).contents

    def worker(self, place: str = "", visit: int = 1) -> subprocess.Popen[str]:
        """Start the survivor; returns when it takes messages."""
        process = self._start("run", place, visit, "--data-dir", str(self.data_dir), "--instance-id", "heir")
        assert process.stdout is not None
        assert "ready" in process.stdout.readline(), self.log
        return process

    def drain(self, place: str = "", visit: int = 1) -> subprocess.Popen[str]:
        """Start a drain."""
        more = ("--data-dir", str(self.volume), "--proof-file", str(self.proof_file), "--nonce", "n")
        return self._start("drain", place, visit, *more)

    def drained(self, place: str = "", visit: int = 1) -> tuple[int, dict[str, Any]]:
        """Run a drain to its end. Returns exit code and proof."""
        process = self.drain(place, visit)
        try:
            out, _ = process.communicate(timeout=120)
        finally:
            process.kill()
        return process.returncode, json.loads(out) if out else {}

    def _start(self, command: str, place: str, visit: int, *more: str) -> subprocess.Popen[str]:
        arguments = [place, str(visit), "requeue-worker", command, "--server", self.server.url, *more]
        return subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, *arguments],
            env={**os.environ, "REQUEUE_NATS_RECONNECT_WAIT": "50ms"},
            stdout=subprocess.PIPE,
            stderr=self._log.open("ab"),
            text=True,
        )

    @property
    def log(self) -> str:
        """What all processes wrote."""
        return self._log.read_text()

    def check(self, before: Contents) -> None:
        """Everything is with the survivor, once, and nothing is on the volume. Both are closed."""
        heir, source = self.data_dir / "heir", self.volume / "gone"
        assert contents(heir) == before
        assert contents(source) == Contents()
        for path in (heir, source):
            assert verify(path).findings == []


@contextmanager
def stopped_at_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """Stop a worker when the block ends."""
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def scene(tmp_path: Path, nats_server: NatsServer) -> Scene:
    return Scene(tmp_path, nats_server)


def test_a_drain_is_killed_at_every_step_one_after_the_other(scene: Scene) -> None:
    before = scene.orphan(35_000)
    with stopped_at_the_end(scene.worker()):
        for place, visit in CHAIN:
            code, _ = scene.drained(place, visit)
            assert code == -signal.SIGKILL, f"{place}: {scene.log}"
        code, proof = scene.drained()
        assert (code, proof["remaining"], proof["possible_duplicates"]) == (0, 0, 0), scene.log
    scene.check(before)


@pytest.mark.parametrize(
    "place", [AT_THE_END[0], *(pytest.param(place, marks=pytest.mark.slow) for place in AT_THE_END[1:])]
)
def test_a_drain_is_killed_when_nothing_is_left(scene: Scene, place: str) -> None:
    before = scene.orphan(1100, 10)
    with stopped_at_the_end(scene.worker()):
        assert scene.drained(place)[0] == -signal.SIGKILL, scene.log
        written = scene.proof_file.exists()
        code, proof = scene.drained()
        assert (code, proof["remaining"]) == (0, 0), scene.log
    assert written is (place == "drain: proof written")
    assert json.loads(scene.proof_file.read_text()) == proof
    scene.check(before)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "visit"), [*CHAIN, ("drain: page sent", 4), ("drain: page trimmed", 4)])
def test_a_drain_is_killed_and_run_again(scene: Scene, place: str, visit: int) -> None:
    before = scene.orphan()
    with stopped_at_the_end(scene.worker()):
        assert scene.drained(place, visit)[0] == -signal.SIGKILL, scene.log
        code, proof = scene.drained()
        assert (code, proof["remaining"], proof["possible_duplicates"]) == (0, 0, 0), scene.log
    scene.check(before)


def test_a_worker_is_killed_at_every_step_of_one_drain(scene: Scene) -> None:
    before = scene.orphan()
    worker = scene.worker(BY_THE_WORKER[0])
    drain = scene.drain()
    for place in (*BY_THE_WORKER[1:], "handover: mark dropped"):
        assert worker.wait(60) == -signal.SIGKILL, scene.log
        worker = scene.worker(place)
    out, _ = drain.communicate(timeout=120)
    assert (drain.returncode, json.loads(out)["possible_duplicates"]) == (0, 0), scene.log
    assert worker.wait(60) == -signal.SIGKILL
    scene.check(before)


@pytest.mark.slow
@pytest.mark.parametrize("visit", [1, 2, 4])
@pytest.mark.parametrize("place", BY_THE_WORKER[1:])
def test_both_are_killed_at_a_time(scene: Scene, place: str, visit: int) -> None:
    """The worker at the place; the drain, which then waits for an answer, as it waits; then both come back."""
    before = scene.orphan()
    worker, drain = scene.worker(place, visit), scene.drain()
    assert worker.wait(60) == -signal.SIGKILL, scene.log
    drain.kill()
    drain.wait()
    with stopped_at_the_end(scene.worker()):
        code, proof = scene.drained()
        assert (code, proof["possible_duplicates"]) == (0, 0), scene.log
    scene.check(before)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
async def test_kills_at_any_moment_change_nothing(scene: Scene, seed: int) -> None:
    chance = random.Random(seed)
    before = scene.orphan(60_000, 5_000)
    worker = scene.worker()
    for _ in range(12):
        drain = scene.drain()
        await asyncio.sleep(chance.uniform(0.9, 2.2))
        killed = chance.sample((drain, worker), chance.randint(1, 2))
        for process in killed:
            process.kill()
        drain.kill()
        await asyncio.to_thread(drain.wait)
        if worker in killed or chance.random() < 0.3:
            worker.kill()
            await asyncio.to_thread(worker.wait)
            worker = await asyncio.to_thread(scene.worker)
    with stopped_at_the_end(worker):
        code, proof = await asyncio.to_thread(scene.drained)
        assert (code, proof["possible_duplicates"]) == (0, 0), scene.log
    scene.check(before)


def test_every_fault_point_is_visited() -> None:
    visited = {place for place, _ in CHAIN} | {*AT_THE_END, *BY_THE_WORKER, "handover: mark dropped"}
    assert visited == {place for place in FAULT_POINTS if place.startswith(("drain: ", "handover: "))}
