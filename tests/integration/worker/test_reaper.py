"""The reaper on a real disk, in real workers: what is merged, when, and what is left alone.

The cases of the original's reaper_test.go are here: a zombie of many records, one that is open still, other instances
and the own one, races over the removal, and a merge after which the records replay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from requeue_worker import faults
from requeue_worker.app import Worker
from requeue_worker.errors import CommitError, DataDirLocked
from requeue_worker.hooks import Hooks
from requeue_worker.metrics import Metrics
from requeue_worker.reaper.liveness import Liveness
from requeue_worker.settings import Settings
from requeue_worker.storage.keys import META_FORMAT
from requeue_worker.storage.rocksdb import MESSAGES, Engine
from requeue_worker.storage.store import Store

from tests.integration.worker.support import Handler, StartWorker, check_data
from tests.servers import NatsServer, WorkerFactory, free_port, until
from tests.zombies import LONG_AGO, Contents, Zombie, contents, marks_in, registry_of

YEAR_2030_NS = 1_893_456_000_000_000_000


class Heir:
    """A worker that reaps and has no NATS, so that what is merged stays as it is."""

    def __init__(self, data_dir: Path, instance_id: str = "heir", **settings: Any) -> None:
        self.reaped: list[str] = []
        reaper = {"interval": "50ms", **settings.pop("reaper", {})}
        nats = {"servers": [f"nats://127.0.0.1:{free_port()}"]}
        self.settings = Settings(
            **{"data_dir": data_dir, "instance_id": instance_id, "nats": nats, "reaper": reaper, **settings}
        )
        self.path = data_dir / instance_id
        self.worker = Worker(self.settings, Hooks(reaped=lambda _, name: self.reaped.append(name)))

    async def until_reaped(self, *names: str) -> None:
        await until(lambda: set(names) <= set(self.reaped), 60)

    def metric(self, name: str) -> dict[str, float]:
        """Samples of a metric, by their labels' values."""
        metrics = Metrics(self.worker.counts, self.worker.reporter.snapshot, lambda: False)
        return {
            " ".join(sample.labels.values()): sample.value
            for family in metrics.registry().collect()
            for sample in family.samples
            if sample.name == name
        }


@asynccontextmanager
async def running(heir: Heir) -> AsyncIterator[Heir]:
    """The worker, started; when it has stopped, its counters, checkpoints and ids agree with its data."""
    await heir.worker.start()
    try:
        yield heir
    finally:
        await heir.worker.stop()
    check_data(heir.path)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    path.mkdir()
    return path


def files_of(path: Path) -> dict[str, bytes]:
    """Names and contents; rocksdict writes its own small file anew, with the same content, even when it only reads."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.is_file()}


# -- what is merged ----------------------------------------------------------------------------------------------


async def test_everything_of_a_zombie_is_here_as_it_was_there(data_dir: Path) -> None:
    zombie = Zombie(data_dir, "gone")
    zombie.fill(2500, 30, client_ids=True)
    zombie.fill(10, queue="paused", paused_until_ns=YEAR_2030_NS)
    zombie.fill(5, priority=0).fill(7, 3, queue="orders", priority=9, due_ns=YEAR_2030_NS, unpublished=True)
    before = zombie.contents
    assert (len(before.messages), len(before.dead), len(before.ids)) == (2522, 33, 2500)
    async with running(Heir(data_dir)) as heir:
        await heir.until_reaped("gone")
        assert not zombie.path.exists()
        assert heir.metric("requeue_reaper_directories_total") == {"": 1}
        assert heir.metric("requeue_reaper_messages_total") == {"": 2522}
        assert heir.metric("requeue_reaper_dead_letters_total") == {"": 33}
    assert contents(heir.path) == before
    assert marks_in(heir.path) == []
    assert [name for name in os.listdir(data_dir) if "~" not in name] == ["heir"]  # noqa: PTH208


async def test_what_was_here_stays_beside_what_comes(data_dir: Path) -> None:
    zombie = Zombie(data_dir, "gone").fill(300, 5, client_ids=True).fill(2, queue="theirs")
    here = Zombie(data_dir, "heir").fill(200, 4, client_ids=True).fill(3, 1, queue="ours")
    before = zombie.contents | here.contents
    async with running(Heir(data_dir)) as heir:
        await heir.until_reaped("gone")
    assert contents(heir.path) == before


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
async def test_a_zombie_of_many_records_is_merged_in_little_memory(
    data_dir: Path, worker_factory: WorkerFactory, nats_server: NatsServer, count: int
) -> None:
    psutil = pytest.importorskip("psutil")
    Zombie(data_dir, "gone").fill(count, count // 100, due_ns=YEAR_2030_NS, size=200)
    worker = worker_factory(nats_server, "--instance-id", "heir", data_dir=data_dir)
    peak = 0

    def merged() -> bool:
        nonlocal peak
        peak = max(peak, psutil.Process(worker.pid).memory_info().rss)
        return not (data_dir / "gone").exists() and "merged a directory" in worker.log

    await until(merged, 240)
    assert peak < 200 << 20
    worker.stop()
    check_data(data_dir / "heir")
    engine = Engine(data_dir / "heir", read_only=True)
    assert sum(1 for _ in engine.keys(MESSAGES, b"", b"\xff" * 200)) == count
    engine.close()


async def test_merged_records_replay(start: StartWorker, nc: Client, tmp_path: Path) -> None:
    zombie = Zombie(tmp_path / "data", "gone").fill(400, queue="late").fill(100, priority=1)
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.respond(b""))
    worker = await start(reaper={"interval": "50ms"})
    await until(lambda: len(jobs.received) == 500)
    await worker.until_empty()
    await worker.until_empty("late")
    ids = {msg.headers["Requeue-Id"] for msg in jobs.received if msg.headers}
    assert len(ids) == 500
    await until(lambda: not zombie.path.exists())


async def test_messages_come_in_and_go_out_while_a_zombie_is_merged(
    start: StartWorker, nc: Client, tmp_path: Path
) -> None:
    Zombie(tmp_path / "data", "gone").fill(20_000, due_ns=YEAR_2030_NS)
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.respond(b""))
    worker = await start(reaper={"interval": "50ms"})
    sent = 0
    while worker.worker.counts.reaped_directories == 0:
        await worker.publish("jobs.live", b"%d" % sent)
        sent += 1
    await until(lambda: len(jobs.received) == sent)
    await until(lambda: worker.queue().pending == 20_000)
    assert sorted(map(int, jobs.payloads)) == list(range(sent))


async def test_a_merge_is_not_refused_by_max_queues_or_by_the_limits_of_a_queue(data_dir: Path) -> None:
    zombie = Zombie(data_dir, "gone")
    for number in range(5):
        zombie.fill(20, queue=f"queue-{number}")
    before = zombie.contents
    async with running(Heir(data_dir, max_queues=2, defaults={"max_messages": 1})) as heir:
        await heir.until_reaped("gone")
    assert contents(heir.path) == before


async def test_refused_messages_of_two_instances_share_one_bound(data_dir: Path) -> None:
    Zombie(data_dir, "gone").fill(0, 8, queue="$invalid")
    newest = Zombie(data_dir, "heir").fill(0, 8, queue="$invalid")
    kept = newest.contents.dead.keys()
    async with running(Heir(data_dir, invalid_kept=10)) as heir:
        await heir.until_reaped("gone")
    dead = contents(heir.path).dead
    assert len(dead) == 10
    assert kept <= dead.keys()


async def test_dead_letters_beyond_their_retention_go_here_too(data_dir: Path) -> None:
    Zombie(data_dir, "gone").fill(0, 8)
    async with running(Heir(data_dir, defaults={"dead_letter_retention": "1ns"})) as heir:
        await heir.until_reaped("gone")
        assert heir.worker.counts.reaped_dead_letters == 8


# -- when: orphans and others ------------------------------------------------------------------------------------


async def test_a_zombie_that_is_open_still_is_not_touched(
    data_dir: Path, worker_factory: WorkerFactory, nats_server: NatsServer
) -> None:
    Zombie(data_dir, "open").fill(20, due_ns=YEAR_2030_NS)
    neighbour = worker_factory(nats_server, "--instance-id", "open", data_dir=data_dir)
    os.kill(neighbour.pid, signal.SIGSTOP)
    os.utime(data_dir / "open/heartbeat", LONG_AGO)
    files = files_of(data_dir / "open")
    Zombie(data_dir, "gone").fill(10)
    async with running(Heir(data_dir)) as heir:
        await heir.until_reaped("gone")
        await asyncio.sleep(0.3)
        assert heir.reaped == ["gone"]
        assert heir.worker.reaper.set_aside == {}
        assert files_of(data_dir / "open") == files
        os.kill(neighbour.pid, signal.SIGCONT)
        neighbour.kill()
        os.utime(data_dir / "open/heartbeat", LONG_AGO)
        await heir.until_reaped("open")
    assert len(contents(heir.path).messages) == 30


async def test_a_restarting_neighbour_keeps_its_own(data_dir: Path) -> None:
    restarting = Zombie(data_dir, "restarting").fill(5)
    os.utime(restarting.path / "heartbeat")
    Zombie(data_dir, "gone").fill(5)
    async with running(Heir(data_dir, reaper={"reap_after": "3s"})) as heir:
        await heir.until_reaped("gone")
        assert heir.reaped == ["gone"]
        assert len(restarting.contents.messages) == 5
        await heir.until_reaped("restarting")


async def test_an_instance_outside_the_live_set_is_merged_at_once_and_one_inside_it_waits(
    data_dir: Path,
) -> None:
    for name in ("w-0", "w-1", "w-2"):
        Zombie(data_dir, name).fill(5)
        os.utime(data_dir / name / "heartbeat")
    async with running(Heir(data_dir, "w-0", reaper={"reap_after": "1h", "live": ["w-0", "w-1"]})) as heir:
        await heir.until_reaped("w-2")
        await asyncio.sleep(0.2)
        assert heir.reaped == ["w-2"]
    assert len(contents(data_dir / "w-1").messages) == 5


async def test_a_reaper_that_is_off_merges_nothing(data_dir: Path) -> None:
    zombie = Zombie(data_dir, "gone").fill(5)
    async with running(Heir(data_dir, reaper={"enabled": False})) as heir:
        await asyncio.sleep(0.2)
        assert heir.reaped == []
    assert len(zombie.contents.messages) == 5


def test_own_directory_hidden_ones_and_foreign_names_are_no_neighbours(data_dir: Path) -> None:
    for name in ("own", "other", ".reaped-x", "lost+found"):
        (data_dir / name).mkdir()
    assert [found.path.name for found in Liveness(data_dir / "own", (), 1).look()] == ["other"]


def test_a_heartbeat_from_the_future_counts_from_when_it_was_first_seen(data_dir: Path) -> None:
    now_s = [100.0]
    for name in ("own", "other"):
        (data_dir / name).mkdir()
    beat = data_dir / "other/heartbeat"
    beat.touch()
    os.utime(beat, (4_000_000_000, 4_000_000_000))
    liveness = Liveness(data_dir / "own", (), 60 * 10**9, lambda: now_s[0])
    assert [found.orphan_in_s for found in liveness.look()] == [60]
    now_s[0] += 59
    assert [found.orphan_in_s for found in liveness.look()] == [1]
    os.utime(beat, (4_000_000_001, 4_000_000_001))
    assert [found.orphan_in_s for found in liveness.look()] == [60]
    now_s[0] += 60
    assert [found.orphan_in_s for found in liveness.look()] == [0]


async def test_a_second_instance_of_the_same_id_is_refused_and_nothing_is_merged(data_dir: Path) -> None:
    async with running(Heir(data_dir)):
        second = Heir(data_dir)
        with pytest.raises(DataDirLocked):
            await second.worker.start()
        await second.worker.stop()


# -- owners and reapers at the same time -------------------------------------------------------------------------


@contextlib.contextmanager
def at(place: str, act: Callable[[], object], visit: int = 1) -> Any:
    """Do something when a fault point is reached for the nth time."""
    visits = 0

    def hook(name: str) -> None:
        nonlocal visits
        visits += name == place
        if name == place and visits == visit:
            act()

    faults.install(hook)
    try:
        yield
    finally:
        faults.install(None)


async def test_what_is_left_of_a_merge_is_measured_while_it_goes_on(data_dir: Path) -> None:
    Zombie(data_dir, "gone").fill(2500, 30)
    heir = Heir(data_dir)
    left: list[float] = []

    def look() -> None:
        left.append(heir.metric("requeue_reaper_remaining_records")[""])

    with at_every("merge: page trimmed", look):
        async with running(heir):
            await heir.until_reaped("gone")
            assert heir.metric("requeue_reaper_remaining_records") == {"": 0}
    assert left[0] == 2530
    assert left == sorted(left, reverse=True)
    assert len(left) > 2


@contextlib.contextmanager
def at_every(place: str, act: Callable[[], object]) -> Any:
    """Do something whenever a fault point is reached."""
    faults.install(lambda name: act() if name == place else None)
    try:
        yield
    finally:
        faults.install(None)


async def test_an_owner_that_starts_during_its_own_merge_waits_and_starts_anew(data_dir: Path) -> None:
    zombie = Zombie(data_dir, "gone").fill(5000)
    before = zombie.contents
    owner = Heir(data_dir, "gone", reaper={"enabled": False})
    started: list[asyncio.Task[None]] = []

    def start_owner() -> None:
        started.append(asyncio.get_running_loop().create_task(owner.worker.start()))

    with at("merge: page durable", start_owner):
        async with running(Heir(data_dir)) as heir:
            await heir.until_reaped("gone")
            await asyncio.wait_for(started[0], 20)
            await owner.worker.stop()
    assert contents(heir.path) == before
    assert contents(data_dir / "gone") == Contents()


async def stop_half_way(heir: Heir, pages: int = 2) -> None:
    """Run a reaper that stops in the middle of a merge."""
    stops: list[asyncio.Task[None]] = []

    def stop() -> None:
        stops.append(asyncio.get_running_loop().create_task(heir.worker.stop()))

    with at("merge: page durable", stop, pages):
        await heir.worker.start()
        await until(lambda: stops)
        await stops[0]
    check_data(heir.path)


async def test_a_stop_in_the_middle_of_a_merge_is_resumed_by_the_next_start(data_dir: Path) -> None:
    zombie = Zombie(data_dir, "gone").fill(5000, 1500, client_ids=True, unpublished=True)
    before = zombie.contents
    await stop_half_way(Heir(data_dir))
    check_data(zombie.path)
    assert zombie.contents | contents(data_dir / "heir") == before
    assert zombie.contents.messages
    async with running(Heir(data_dir)) as heir:
        await heir.until_reaped("gone")
    assert contents(heir.path) == before
    assert marks_in(heir.path) == []


async def test_an_owner_takes_back_what_is_left_of_a_merge_that_broke_off(data_dir: Path) -> None:
    zombie = Zombie(data_dir, "gone").fill(5000, 10, client_ids=True)
    before = zombie.contents
    await stop_half_way(Heir(data_dir))
    async with running(Heir(data_dir, "gone", reaper={"enabled": False})):
        pass
    assert zombie.contents | contents(data_dir / "heir") == before
    # It goes on with new messages below the mark, and is merged once more, by whoever has that mark.
    zombie.fill(100, due_ns=1_600_000_000_000_000_000)
    before = zombie.contents | contents(data_dir / "heir")
    async with running(Heir(data_dir)) as heir:
        await heir.until_reaped("gone")
    assert contents(heir.path) == before


async def test_a_claimant_that_is_itself_gone_is_merged_and_so_is_what_it_had_claimed(data_dir: Path) -> None:
    before = Zombie(data_dir, "a-source").fill(5000, 10, client_ids=True).contents
    await stop_half_way(Heir(data_dir, "claimant"))
    os.utime(data_dir / "claimant/heartbeat", LONG_AGO)
    async with running(Heir(data_dir, "third")) as third:
        await third.until_reaped("a-source", "claimant")
    assert contents(third.path) == before


async def test_a_claimant_that_was_merged_first_leaves_its_marks(data_dir: Path) -> None:
    before = Zombie(data_dir, "z-source").fill(5000, 10, client_ids=True).contents
    await stop_half_way(Heir(data_dir, "claimant"))
    os.utime(data_dir / "claimant/heartbeat", LONG_AGO)
    os.utime(data_dir / "z-source/heartbeat")
    async with running(Heir(data_dir, "third", reaper={"reap_after": "30s"})) as third:
        await third.until_reaped("claimant")
    os.utime(data_dir / "z-source/heartbeat", LONG_AGO)
    async with running(Heir(data_dir, "fourth", reaper={"reap_after": "30s"})) as fourth:
        await fourth.until_reaped("z-source")
    assert contents(third.path) | contents(fourth.path) == before


async def test_several_reapers_share_many_zombies(data_dir: Path) -> None:
    before = Contents()
    names = [f"gone-{number}" for number in range(8)]
    for name in names:
        before |= Zombie(data_dir, name).fill(1500, 3, client_ids=True).contents
    heirs = [Heir(data_dir, f"heir-{number}") for number in range(3)]
    await asyncio.gather(*(heir.worker.start() for heir in heirs))
    await until(lambda: sorted(name for heir in heirs for name in heir.reaped) == names, 60)
    for heir in heirs:
        await heir.worker.stop()
        check_data(heir.path)
    assert contents(heirs[0].path) | contents(heirs[1].path) | contents(heirs[2].path) == before


async def test_a_directory_that_vanishes_is_nobodys_trouble(data_dir: Path) -> None:
    for number in range(3):
        Zombie(data_dir, f"gone-{number}").fill(10)
    with at("merge: locked", lambda: shutil.rmtree(data_dir / "gone-1")):
        async with running(Heir(data_dir)) as heir:
            await heir.until_reaped("gone-0", "gone-2")
            assert heir.worker.reaper.set_aside == {}


async def test_a_directory_that_was_moved_aside_before_a_crash_is_removed(data_dir: Path) -> None:
    zombie = Zombie(data_dir, "gone").fill(10)
    zombie.path.rename(data_dir / f".reaped-gone-{'ab' * 16}")
    (data_dir / ".reaped-by-hand").mkdir()
    async with running(Heir(data_dir)) as heir:
        await until(lambda: [entry.name for entry in data_dir.glob(".reaped-*")] == [".reaped-by-hand"])
        await heir.until_reaped("gone")


async def test_an_owner_whose_directory_was_taken_over_writes_nothing_more(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await worker.publish("jobs.a", delay_ns=10**15)
    [line] = [worker.path / "tenure"]
    line.write_text(f"{int(line.read_text().split()[0]) + 1} merge other 0123\n")
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    await nc.publish("requeue.publish", b"", reply=inbox, headers={"Requeue-Subject": "jobs.b"})
    with pytest.raises(CommitError, match=r"taken over by another process: .*other"):
        await asyncio.wait_for(worker.worker.closed(), 20)
    answer = await answers.next_msg(20)
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "500"
    assert len(contents(worker.path).messages) == 1


# -- what cannot be merged ---------------------------------------------------------------------------------------


def flip_a_bit(path: Path, suffix: str) -> None:
    file = max(path.glob(f"*{suffix}"), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def newer_format(path: Path) -> None:
    engine = Engine(path)
    batch = engine.batch()
    batch.put_meta(META_FORMAT, b"\x63")
    engine.write(batch)
    del batch
    engine.close()


def newer_record(path: Path) -> None:
    engine = Engine(path)
    batch = engine.batch()
    key, value = next(iter(engine.few(MESSAGES, b"", b"\xff" * 200)))
    batch.put(key, b"\x63" + value[1:])
    engine.write(batch)
    del batch
    engine.close()


def lost_record(path: Path) -> None:
    engine = Engine(path)
    batch = engine.batch()
    batch.delete(engine.few(MESSAGES, b"", b"\xff" * 200)[7][0])
    engine.write(batch)
    del batch
    engine.close()


def damaged_log(path: Path) -> None:
    """A log as a crash leaves it, with one bit flipped in the middle."""
    store = Store.open(path.parent, path.name, registry_of(Settings(data_dir=path.parent)))
    for number in range(50):
        batch = store.batch()
        batch.put_meta(b"x%d" % number, bytes(1000))
        store._engine.write(batch)
        del batch
    copy = path.with_name(".copy")
    shutil.copytree(path, copy)
    store.close()
    shutil.rmtree(path)
    copy.rename(path)
    flip_a_bit(path, ".log")


def nothing_in_it(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a directory")


def a_link(path: Path) -> None:
    path.rename(path.with_name(".elsewhere"))
    path.symlink_to(".elsewhere")


def something_else(path: Path) -> None:
    for name in ("CURRENT", "tenure", "heartbeat"):
        (path / name).unlink()


def no_tables(path: Path) -> None:
    for file in path.glob("*.sst"):
        file.unlink()


BAD: dict[Callable[[Path], None], tuple[str, str]] = {
    newer_format: ("newer-format", "data format 99"),
    newer_record: ("newer-format", "record version 99"),
    lost_record: ("damaged", "1 more messages"),
    damaged_log: ("damaged", "orruption"),
    no_tables: ("damaged", "No such file"),
    nothing_in_it: ("empty", "it is empty"),
    something_else: ("empty", "holds no database"),
    a_file: ("not-a-directory", "it is a file"),
    a_link: ("not-a-directory", "symbolic link"),
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
async def test_a_bad_directory_is_set_aside_with_its_reason_and_the_others_go_on(
    data_dir: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    kind, text = BAD[spoil]
    bad = Zombie(data_dir, "bad").fill(10)
    other = Zombie(data_dir, "gone").fill(10)
    spoil(bad.path)
    if bad.path.is_dir() and (bad.path / "heartbeat").exists():
        bad.still()
    files, before = files_of(bad.path), other.contents
    untouched = spoil not in (newer_record, lost_record)
    async with running(Heir(data_dir, reaper={"reap_after": "300ms"})) as heir:
        await heir.until_reaped("gone")
        await until(lambda: heir.worker.reaper.set_aside)
        await asyncio.sleep(0.2)
        assert text in heir.worker.reaper.set_aside["bad"]
        assert heir.metric("requeue_reaper_set_aside_info") == {f"bad {kind}": 1}
        [line] = [record for record in caplog.records if "set aside" in record.message]
        assert (line.instance, line.reason) == ("bad", kind)  # type: ignore[attr-defined]
        if untouched:
            assert files_of(bad.path) == files
    got = contents(heir.path)
    assert before.messages.items() <= got.messages.items()
    if untouched:
        assert got == before


async def test_what_stands_before_a_damaged_block_is_merged_and_the_rest_stays(data_dir: Path) -> None:
    bad = Zombie(data_dir, "bad").fill(20_000, size=200)
    before = bad.contents
    flip_a_bit(bad.path, ".sst")
    async with running(Heir(data_dir)) as heir:
        await until(lambda: heir.worker.reaper.set_aside)
        assert heir.metric("requeue_reaper_set_aside_info") == {"bad damaged": 1}
        assert heir.reaped == []
    merged = contents(heir.path).messages
    assert 0 < len(merged) < 20_000
    assert merged.items() <= before.messages.items()
    assert (bad.path / "CURRENT").exists()


async def test_a_directory_that_was_mended_is_merged(data_dir: Path) -> None:
    bad = Zombie(data_dir, "bad").fill(10)
    before = bad.contents
    (bad.path / "CURRENT").rename(data_dir / ".current")
    async with running(Heir(data_dir)) as heir:
        await until(lambda: heir.worker.reaper.set_aside)
        (data_dir / ".current").rename(bad.path / "CURRENT")
        await heir.until_reaped("bad")
        assert heir.metric("requeue_reaper_set_aside_info") == {}
    assert contents(heir.path) == before


def test_the_prepare_process_answers_for_a_directory_in_use(data_dir: Path) -> None:
    zombie = Zombie(data_dir, "gone").fill(1)
    engine = Engine(zombie.path)
    command = [sys.executable, "-m", "requeue_worker.reaper.prepare", str(zombie.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    engine.close()
    assert done.stdout == '{"locked": true}'
