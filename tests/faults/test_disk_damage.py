"""Flipped bits in the files of a database: noticed wherever they are, named by `verify`; the rest comes out by `salvage`."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from nats.aio.client import Client
from requeue_worker.cli import main
from requeue_worker.errors import DataDamaged, DataDirUnreadable
from requeue_worker.salvage import Salvaged, salvage
from requeue_worker.storage.damage import Gap, readable
from requeue_worker.storage.keys import id_of
from requeue_worker.storage.rocksdb import DEAD, IDS, MESSAGES, META, Engine
from requeue_worker.verify import verify

from tests.faults.test_disk_log import Log
from tests.integration.worker.support import Handler, StartWorker, check_data
from tests.servers import NatsServer, WorkerFactory, until
from tests.zombies import Contents, Zombie, contents

INSTANCE = "tested"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with tables of many blocks: three queues, client ids, dead letters."""
    zombie = Zombie(tmp_path_factory.mktemp("sound"), INSTANCE)
    zombie.fill(messages=800, queue="alpha", size=300, client_ids=True)
    zombie.fill(messages=400, queue="beta", priority=2, size=300)
    zombie.fill(messages=200, queue="gamma", size=300, paused_until_ns=2**62)
    zombie.fill(dead=300, queue="alpha", unpublished=True)
    return zombie.path


@pytest.fixture(scope="module")
def whole(sound: Path) -> Contents:
    return contents(sound)


def damaged_copy(sound: Path, to: Path, file: str, place: float, bit: int = 0) -> Path:
    """A copy in which one bit of this file is another."""
    copy = to / sound.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sound, copy)
    raw = bytearray((copy / file).read_bytes())
    raw[min(int(len(raw) * place), len(raw) - 1)] ^= 1 << bit
    (copy / file).write_bytes(raw)
    return copy


def files(path: Path, *patterns: str) -> list[str]:
    return sorted(file.name for pattern in patterns for file in path.glob(pattern) if file.stat().st_size)


def read_by_a_worker(path: Path) -> set[bytes]:
    """Keys that a scan finds, as the worker's reads do. Raises DataDirUnreadable or DataDamaged."""
    engine = Engine(path, read_only=True)
    try:
        families = (
            (family, list(engine.keys(family, b"", b"\xff" * 99))) for family in (MESSAGES, DEAD, IDS, META)
        )
        return {family.encode() + key for family, keys in families for key in keys}
    finally:
        engine.close()


def salvaged(path: Path, to: Path) -> tuple[Salvaged, Contents]:
    """What came out, checked to be sound."""
    shutil.rmtree(to, ignore_errors=True)
    [result] = salvage(path.parent, to)
    check_data(result.path)
    assert verify(result.path).ok
    return result, contents(result.path)


def check_salvage(path: Path, to: Path, whole: Contents) -> Salvaged:
    result, found = salvaged(path, to)
    assert found.messages.items() <= whole.messages.items(), "as they were, and no others"
    assert found.dead.items() <= whole.dead.items()
    kept = {id_of(key) for key in found.messages}
    assert found.ids == {entry: key for entry, key in whole.ids.items() if id_of(key) in kept}
    lost = len(whole.messages) + len(whole.dead) - len(found.messages) - len(found.dead)
    assert not lost or not result.complete, "what is missing is told"
    if lost and result.missing:
        assert result.missing.total() == lost
    return result


@pytest.mark.parametrize(
    "places", [14, pytest.param(120, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_flipped_bit_in_a_table_is_noticed_named_and_costs_no_more_than_its_block(
    sound: Path, whole: Contents, tmp_path: Path, places: int
) -> None:
    every_key = read_by_a_worker(sound)
    largest = max(files(sound, "*.sst"), key=lambda name: (sound / name).stat().st_size)
    chosen = [(largest, number / places) for number in range(places)]
    chosen += [(name, 0.4) for name in files(sound, "*.sst") if name != largest]
    noticed = 0
    for file, place in chosen:
        path = damaged_copy(sound, tmp_path / "data", file, place)
        report = verify(path)
        try:
            assert read_by_a_worker(path) == every_key, (file, place)
        except (DataDamaged, DataDirUnreadable) as error:
            noticed += 1
            assert not report.ok, (file, place)
            assert "requeue-worker salvage" in str(error)
            assert file in " ".join(finding.what for finding in report.findings)
        result = check_salvage(path, tmp_path / "out", whole)
        # A block has 50 of these. What a table needs to be opened at all is another thing: then all of it is gone.
        if result.gaps and not result.notes:
            assert result.missing.total() < 120, (file, place)
    assert noticed > len(chosen) // 2


def test_a_table_that_the_database_blames_its_manifest_for_is_named(sound: Path, tmp_path: Path) -> None:
    table = max(files(sound, "*.sst"), key=lambda name: (sound / name).stat().st_size)
    # The names of a table's properties are in order, which RocksDB looks at before the checksum, and names no file.
    raw = (sound / table).read_bytes()
    properties = raw.index(b"rocksdb.block.based.table")
    blamed = 0
    for place in range(properties, properties + 800, 9):
        path = damaged_copy(sound, tmp_path / "data", table, (place + 0.5) / len(raw))
        with pytest.raises(DataDirUnreadable, match=table) as refused:
            Engine(path, read_only=True)
        assert "`requeue-worker salvage`" in str(refused.value)
        blamed += f"Rather: {table} can't be opened" in str(refused.value)
    assert blamed


@pytest.mark.parametrize(
    "pattern", ["MANIFEST-*", "CURRENT", "OPTIONS-*", "IDENTITY", "LOG", "rocksdict-config.json"]
)
def test_a_flipped_bit_in_any_other_file_is_refused_or_harmless_and_all_comes_out(
    sound: Path, whole: Contents, tmp_path: Path, pattern: str
) -> None:
    every_key = read_by_a_worker(sound)
    for file in files(sound, pattern)[-1:]:
        for place in (0.0, 0.2, 0.45, 0.7, 0.9999):
            path = damaged_copy(sound, tmp_path / "data", file, place, bit=2)
            try:
                assert read_by_a_worker(path) == every_key, (file, place)
            except DataDirUnreadable as error:
                assert str(path) in str(error)
                assert not verify(path).ok
            check_salvage(path, tmp_path / "out", whole)


@pytest.mark.parametrize("pattern", ["MANIFEST-*", "CURRENT"])
def test_a_file_that_is_missing_altogether_is_refused_and_all_comes_out(
    sound: Path, whole: Contents, tmp_path: Path, pattern: str
) -> None:
    path = tmp_path / "data" / INSTANCE
    shutil.copytree(sound, path)
    for file in files(path, pattern):
        (path / file).unlink()
    assert not verify(path).ok
    result, found = salvaged(path, tmp_path / "out")
    assert found.messages == whole.messages
    assert found.dead == whole.dead
    assert result.notes


def test_several_damaged_blocks_are_told_one_by_one_and_what_lies_between_comes_out(
    sound: Path, whole: Contents, tmp_path: Path
) -> None:
    largest = max(files(sound, "*.sst"), key=lambda name: (sound / name).stat().st_size)
    path = damaged_copy(sound, tmp_path / "data", largest, 0.1)
    raw = bytearray((path / largest).read_bytes())
    raw[len(raw) // 2] ^= 4
    (path / largest).write_bytes(raw)
    engine = Engine(path, read_only=True)
    gaps = [item for item in readable(engine, MESSAGES) if isinstance(item, Gap)]
    engine.close()
    assert len(gaps) == 2
    assert gaps[0].end is not None
    assert gaps[0].start < gaps[0].end < gaps[1].start
    result = check_salvage(path, tmp_path / "out", whole)
    assert 0 < result.missing.total() < 240


def test_a_damaged_log_costs_its_damaged_batch_alone(tmp_path: Path) -> None:
    log = Log(tmp_path)
    raw = bytearray(log.raw)
    raw[(log.ends[1] + log.ends[2]) // 2] ^= 1
    log.file.write_bytes(raw)
    result, found = salvaged(log.path, tmp_path / "out")
    assert len(found.messages) >= 2 * 2, "what stands before it at least"
    assert "The latest changes may be missing" in result.notes[0]


def test_the_command_tells_what_is_missing_and_changes_nothing(sound: Path, tmp_path: Path) -> None:
    def run(*args: object) -> Result:
        return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)

    all_of_it = run("salvage", "--data-dir", sound.parent, "--to", tmp_path / "all")
    assert all_of_it.exit_code == 0
    assert (
        all_of_it.stdout
        == f"{INSTANCE}: all salvaged: 1,400 pending and 300 dead to {tmp_path / 'all' / INSTANCE}\n"
    )

    largest = max(files(sound, "*.sst"), key=lambda name: (sound / name).stat().st_size)
    path = damaged_copy(sound, tmp_path / "data", largest, 0.3)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    some = run("salvage", "--data-dir", path.parent, "--to", tmp_path / "some")
    assert some.exit_code == 6
    assert f"{INSTANCE}: NOT ALL salvaged" in some.stdout
    assert "unreadable from" in some.stdout
    assert " missing, by its counters" in some.stdout
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    said = json.loads(run("salvage", "--data-dir", path.parent, "--to", tmp_path / "json", "--json").stdout)
    assert said["complete"] is False
    assert said["instances"][0]["gaps"][0]["family"] == MESSAGES

    again = run("salvage", "--data-dir", path.parent, "--to", tmp_path / "some")
    assert again.exit_code == 3
    assert "exists already, and nothing is ever replaced" in again.stderr


async def test_a_worker_that_meets_damage_ends_and_what_was_salvaged_replays(
    sound: Path,
    start: StartWorker,
    nats_server: NatsServer,
    worker_factory: WorkerFactory,
    nc: Client,
    tmp_path: Path,
) -> None:
    largest = max(files(sound, "*.sst"), key=lambda name: (sound / name).stat().st_size)
    path = damaged_copy(sound, tmp_path / "data", largest, 0.3)
    worker = worker_factory(nats_server, "--instance-id", INSTANCE, data_dir=path.parent, start=False)
    worker.spawn()
    assert await asyncio.to_thread(worker.wait) == 1
    ended = worker.log.partition("the worker ends")[2]
    assert largest in ended
    assert "requeue-worker salvage" in ended

    result, found = salvaged(path, tmp_path / "out")
    assert 0 < result.missing.total() < 120
    jobs = await Handler.listen(nc, "jobs.>", lambda msg: nc.publish(msg.reply, b""))
    again = await start(data_dir=tmp_path / "out")
    await until(lambda: not again.queue("alpha").pending and not again.queue("beta").pending, 60)
    assert len(jobs.received) == len(found.messages) - again.queue("gamma").pending
