"""The log after a crash or on a bad disk: a torn tail costs what was never acknowledged, any damage stops the start."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from requeue_worker.cli import main
from requeue_worker.errors import DataDirUnreadable
from requeue_worker.salvage import salvage
from requeue_worker.settings import Settings
from requeue_worker.storage.keys import DEFAULT_PRIORITY, TIME_ID, lane_prefix
from requeue_worker.storage.rocksdb import MESSAGES, Engine
from requeue_worker.storage.store import Store
from requeue_worker.storage.transaction import Transaction
from requeue_worker.storage.wal import damaged_at

from tests.integration.worker.support import check_data
from tests.servers import free_port
from tests.zombies import registry_of, stored

INSTANCE = "w0"
BATCHES = 6
EACH = 2  # messages of a batch


class Log:
    """A crashed directory with one log, and where each of its batches ends."""

    def __init__(self, data_dir: Path) -> None:
        settings = Settings(data_dir=data_dir / "live", instance_id=INSTANCE)
        registry = registry_of(settings)
        store = Store.open(settings.data_dir, INSTANCE, registry)
        self.path = data_dir / INSTANCE
        queue = registry.adopt("q")
        [log] = store.path.glob("*.log")
        self.begin = log.stat().st_size
        self.ends: list[int] = []
        for number in range(BATCHES):
            transaction = Transaction(store.batch(), 0)
            prefix = lane_prefix("q", DEFAULT_PRIORITY)
            keys = [
                prefix + TIME_ID.pack(10**18 + number, b"epoch678", number * EACH + place)
                for place in range(EACH)
            ]
            records = [(key, stored("jobs.a", b"%d" % number)) for key in keys]
            transaction.adopt(queue.lane(), records, EACH * (len(records[0][1]) - HEAD_LEN))
            transaction.seal(False)
            store._engine.write(transaction.batch)
            transaction.settle_in_memory()
            self.ends.append(log.stat().st_size)
            del transaction
        shutil.copytree(store.path, self.path)
        store.close()
        self.file = self.path / log.name
        self.raw = self.file.read_bytes()

    def batches_within(self, size: int) -> int:
        return sum(end <= size for end in self.ends)

    def batches_found(self) -> int:
        """As a start would find them, without changing anything."""
        engine = Engine(self.path, read_only=True)
        try:
            found = len(list(engine.keys(MESSAGES, b"", b"\xff")))
        finally:
            engine.close()
        assert found % EACH == 0, "half a batch"
        return found // EACH


HEAD_LEN = len(stored("jobs.a", b"")) - len(b"NATS/1.0\r\nRequeue-Subject: jobs.a\r\n\r\n")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    yield Log(tmp_path)


def test_a_log_cut_off_at_any_byte_keeps_exactly_the_whole_batches(log: Log) -> None:
    for size in range(log.ends[-3], len(log.raw) + 1):
        log.file.write_bytes(log.raw[:size])
        assert log.batches_found() == log.batches_within(size), size


def test_a_worker_starts_on_a_torn_log_and_its_counters_agree(log: Log, tmp_path: Path) -> None:
    span = log.ends[-1] - log.ends[-3]
    for number, size in enumerate(range(log.ends[-3], len(log.raw) + 1, span // 12)):
        copy = tmp_path / f"copy-{number}" / INSTANCE
        shutil.copytree(log.path, copy)
        (copy / log.file.name).write_bytes(log.raw[:size])
        registry = registry_of(Settings(data_dir=copy.parent))
        Store.open(copy.parent, INSTANCE, registry).close()
        assert registry.adopt("q").pending == EACH * log.batches_within(size)
        check_data(copy)


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_flipped_bit_anywhere_in_the_log_stops_the_start_and_nothing_is_dropped_in_silence(
    log: Log, step: int
) -> None:
    # Lengths and types first: there RocksDB itself would take what follows for a torn tail, or never return.
    lengths = [place + offset for place in (log.begin, *log.ends[:-1]) for offset in (4, 5, 6)]
    places = [(place, bit) for place in lengths for bit in range(8)]
    places += [(place, place % 8) for place in range(0, len(log.raw), step)]
    for place, bit in places:
        damaged = bytearray(log.raw)
        damaged[place] ^= 1 << bit
        log.file.write_bytes(damaged)
        with pytest.raises(DataDirUnreadable):
            log.batches_found()
            pytest.fail(f"bit {bit} of byte {place} was not noticed")


def test_a_damaged_log_is_named_together_with_what_to_do(log: Log) -> None:
    damaged = bytearray(log.raw)
    damaged[log.ends[0] + 5] ^= 0x40
    log.file.write_bytes(damaged)
    arguments = ["run", "--server", f"nats://127.0.0.1:{free_port()}", "--data-dir", str(log.path.parent)]
    result = CliRunner().invoke(main, [*arguments, "--instance-id", INSTANCE])
    assert result.exit_code == 3
    assert f"{log.file} is damaged at byte {log.ends[0]}" in result.stderr
    assert "requeue-worker salvage" in result.stderr
    assert log.file.read_bytes() == damaged, "nothing was changed"


@pytest.mark.parametrize("kind", [5, 6, 8, 11])
@pytest.mark.parametrize("bytes_too", [False, True])
def test_a_record_with_a_damaged_type_is_salvaged_unless_its_bytes_are_damaged_too(
    log: Log, tmp_path: Path, kind: int, bytes_too: bool
) -> None:
    damaged = bytearray(log.raw)
    damaged[log.ends[2] + 6] = kind
    damaged[log.ends[2] + 20] ^= bytes_too
    log.file.write_bytes(damaged)
    [result] = salvage(log.path.parent, tmp_path / "out", [INSTANCE])
    assert result.messages == EACH * (3 if bytes_too else BATCHES)
    assert f"{log.file} is damaged at byte {log.ends[2]}" in result.notes[0]
    assert log.file.read_bytes() == damaged, "nothing was changed"
    check_data(result.path)


def test_a_damaged_type_is_found_in_whatever_block_it_is(tmp_path: Path) -> None:
    log = tmp_path / "000004.log"
    block = struct.pack("<IHB", 0, 32 * 1024 - 7, 2) + bytes(32 * 1024 - 7)
    damaged = struct.pack("<IHB", 0, 3, 3) + b"abc" + struct.pack("<IHB", 0, 3, 5)
    log.write_bytes(block + damaged.ljust(len(block), b"x") + block)
    assert damaged_at(log) == len(block) + 10
    log.write_bytes(block * 3)
    assert damaged_at(log) is None


def test_a_log_that_ends_with_a_whole_record_or_zeros_is_sound(tmp_path: Path) -> None:
    log = tmp_path / "000004.log"
    for raw in (b"", b"\x00" * 100, struct.pack("<IHB", 0, 3, 1) + b"abc", b"\x01" * 6):
        log.write_bytes(raw)
        assert damaged_at(log) is None
