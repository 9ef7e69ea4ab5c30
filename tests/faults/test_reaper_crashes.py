"""A merge that is killed at every place where it can be: the result is the same as without the crash.

The worker is a real process, killed by SIGKILL when it reaches the place. Then either it starts again, or a third
worker finds both directories, or the owner of the merged one comes back. Each time nothing is lost, nothing is there
twice, and counters, checkpoints and ids agree with the data.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from requeue_worker.faults import FAULT_POINTS

from tests.integration.worker.support import check_data
from tests.integration.worker.test_reaper import Heir, running, stop_half_way
from tests.servers import free_port, until
from tests.zombies import LONG_AGO, Contents, Zombie, contents, marks_in

_SCRIPT = """
import os, signal, sys
place, visit, *sys.argv = sys.argv[1:]
from requeue_worker import faults
from requeue_worker.cli import main
visits = 0
def die(name):
    global visits
    visits += name == place
    if name == place and visits == int(visit):
        os.kill(os.getpid(), signal.SIGKILL)
faults.install(die)
main()
"""
PLACES = [(place, 1) for place in FAULT_POINTS if place.startswith("merge: ")]
#: the second page, a page of dead letters, and the last one
PLACES += [(f"merge: page {done}", visit) for done in ("read", "durable", "trimmed") for visit in (2, 4, 5)]
#: where the outcome depends on who comes next; the other places take longer than they tell (`make soak`)
TELLING = {("merge: claimed", 1), ("merge: page durable", 2), ("merge: closed", 1), ("merge: moved aside", 1)}
BY_OTHERS = [each if each in TELLING else pytest.param(*each, marks=pytest.mark.slow) for each in PLACES]
TAKEOVERS = [(place, 1) for place in FAULT_POINTS if place.startswith("takeover: ")]


def start(data_dir: Path, instance_id: str, place: str = "", visit: int = 1) -> subprocess.Popen[bytes]:
    arguments = ["run", "--server", f"nats://127.0.0.1:{free_port()}", "--data-dir", str(data_dir)]
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            _SCRIPT,
            place,
            str(visit),
            "requeue-worker",
            *arguments,
            "--instance-id",
            instance_id,
        ],
        env={**os.environ, "REQUEUE_REAPER_INTERVAL": "50ms"},
        stdout=subprocess.DEVNULL,
        stderr=(data_dir.parent / "log").open("ab"),
    )


async def crash(data_dir: Path, instance_id: str, place: str, visit: int = 1) -> None:
    """Run a worker until it reaches the place and is killed there."""
    process = start(data_dir, instance_id, place, visit)
    try:
        code = await asyncio.to_thread(process.wait, 60)
    finally:
        process.kill()
    assert code == -signal.SIGKILL, (data_dir.parent / "log").read_text()
    still(data_dir)


def still(data_dir: Path) -> None:
    """All heartbeats were long ago."""
    for heartbeat in data_dir.glob("*/heartbeat"):
        os.utime(heartbeat, LONG_AGO)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    path.mkdir()
    return path


def zombie(data_dir: Path, name: str = "gone") -> Contents:
    """Three pages of messages and two of dead letters, in several queues."""
    made = Zombie(data_dir, name).fill(1900, 1100, client_ids=True, unpublished=True)
    made.fill(600, 300, queue="orders", priority=2).fill(1, queue="paused", paused_until_ns=2 * 10**18)
    return made.contents


async def until_merged(heir: Heir) -> None:
    """Only the heir's directory is left, and the marks are dropped where that is possible."""
    async with running(heir):
        await until(lambda: _directories(heir.settings.data_dir) == [heir.path.name], 60)


def _directories(data_dir: Path) -> list[str]:
    return [
        entry.name
        for entry in data_dir.iterdir()
        if entry.name.startswith(".reaped-") or entry.name[0] != "."
    ]


@pytest.mark.parametrize(("place", "visit"), PLACES)
async def test_a_merge_is_killed_and_the_worker_starts_again(data_dir: Path, place: str, visit: int) -> None:
    before = zombie(data_dir)
    await crash(data_dir, "heir", place, visit)
    heir = Heir(data_dir)
    await until_merged(heir)
    assert contents(heir.path) == before
    assert marks_in(heir.path) == []
    assert heir.reaped == (["gone"] if place != "merge: removed" else [])


@pytest.mark.parametrize(("place", "visit"), BY_OTHERS)
async def test_a_merge_is_killed_and_a_third_worker_finds_both_directories(
    data_dir: Path, place: str, visit: int
) -> None:
    before = zombie(data_dir) | Zombie(data_dir, "heir").fill(50, 5, queue="ours", client_ids=True).contents
    await crash(data_dir, "heir", place, visit)
    third = Heir(data_dir, "third")
    await until_merged(third)
    assert contents(third.path) == before


@pytest.mark.parametrize(("place", "visit"), BY_OTHERS)
async def test_a_merge_is_killed_and_the_owner_comes_back(data_dir: Path, place: str, visit: int) -> None:
    before = zombie(data_dir)
    await crash(data_dir, "heir", place, visit)
    async with running(Heir(data_dir, "gone", reaper={"enabled": False})):
        pass
    got, back = contents(data_dir / "heir"), contents(data_dir / "gone")
    # A pause belongs to a queue: both have it.
    got.pauses = back.pauses = before.pauses
    assert got | back == before
    check_data(data_dir / "gone")


@pytest.mark.parametrize(("place", "visit"), TAKEOVERS)
@pytest.mark.parametrize(
    "taker",
    ["heir", pytest.param("gone", marks=pytest.mark.slow), pytest.param("claimant", marks=pytest.mark.slow)],
)
async def test_taking_over_a_broken_off_merge_is_killed_too(
    data_dir: Path, place: str, visit: int, taker: str
) -> None:
    """By a neighbour, by the owner, and by the one that had begun, all after a page that only the claimant knows of."""
    before = zombie(data_dir)
    await crash(data_dir, "claimant", "merge: page durable", 2)
    await crash(data_dir, taker, place, visit)
    last = Heir(data_dir, "last")
    await until_merged(last)
    assert contents(last.path) == before


async def test_a_takeover_of_a_takeover(data_dir: Path) -> None:
    before = zombie(data_dir)
    for number, name in enumerate(("zz-one", "zz-two", "zz-three"), start=1):
        await crash(data_dir, name, "merge: page durable", 1 + number % 2)
    last = Heir(data_dir, "last")
    await until_merged(last)
    assert contents(last.path) == before


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_kills_at_any_moment_change_nothing(data_dir: Path, seed: int) -> None:
    chance = random.Random(seed)
    before = Contents()
    for name in ("gone-a", "gone-b"):
        before |= Zombie(data_dir, name).fill(6000, 500, client_ids=True).contents
    for _ in range(8):
        process = start(data_dir, chance.choice(("heir-1", "heir-2")))
        await asyncio.sleep(chance.uniform(0.5, 1.6))
        process.kill()
        await asyncio.to_thread(process.wait)
        still(data_dir)
    last = Heir(data_dir, "last")
    await until_merged(last)
    assert contents(last.path) == before


async def test_a_stopped_merge_and_a_killed_one_are_taken_over_alike(data_dir: Path) -> None:
    before = zombie(data_dir)
    await stop_half_way(Heir(data_dir, "claimant"), 3)
    await crash(data_dir, "claimant", "merge: page trimmed", 1)
    last = Heir(data_dir, "last")
    await until_merged(last)
    assert contents(last.path) == before


def test_every_fault_point_is_visited() -> None:
    merges = {place for place in FAULT_POINTS if place.startswith(("merge: ", "takeover: "))}
    assert {place for place, _ in PLACES + TAKEOVERS} == merges
