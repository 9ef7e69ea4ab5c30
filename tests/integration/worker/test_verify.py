"""`requeue-worker verify`: silent about sound data, and exact about each kind of damage. Real databases, real commands."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from requeue_client.local import find_executable
from requeue_worker.changes import RemoveDead
from requeue_worker.cli import main
from requeue_worker.record import HEAD, decode
from requeue_worker.repeated import repeated_ids
from requeue_worker.storage.keys import META_FORMAT, META_MARK, dead_key, id_of, ids_prefix, meta_queue_key
from requeue_worker.storage.queues import QueueState
from requeue_worker.storage.rocksdb import DEAD, IDS, MESSAGES, META, Batch, Engine
from requeue_worker.storage.transaction import Transaction
from requeue_worker.verify import FINDINGS_KEPT, Report, verify

from tests.formats.sample import DEAD_LETTERS, NOW_NS, PENDING, message_key, stored, write_sample
from tests.servers import NatsServer, WorkerFactory

Edit = Callable[[Engine, Batch], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound instance directory with some of everything."""
    return write_sample(tmp_path / "data" / "tested")


def requeue_worker(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def edited(path: Path, edit: Edit) -> Report:
    """What `verify` finds after an edit that goes past the worker."""
    engine = Engine(path)
    batch = engine.batch()
    edit(engine, batch)
    engine.write(batch)
    engine.close()
    return verify(path)


def told(report: Report) -> list[tuple[str, str]]:
    return [(finding.check, finding.what) for finding in report.findings]


def first(engine: Engine, family: str) -> tuple[bytes, bytes]:
    return next(engine.items(family, b"", b"\xff" * 99))


# -- sound data --------------------------------------------------------------------------------------------------


def test_a_sound_directory_is_said_to_be_sound_and_counted(path: Path) -> None:
    result = requeue_worker("verify", "--data-dir", path.parent)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"tested: sound: {PENDING} pending and {DEAD_LETTERS} dead in 3 queues\n"


def test_json_says_the_same_for_every_directory(path: Path) -> None:
    write_sample(path.parent / "other")
    (path.parent / "lost+found").mkdir()
    (path.parent / "empty").mkdir()
    result = requeue_worker("verify", "--data-dir", path.parent, "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert said["ok"] is True
    assert [instance["instance"] for instance in said["instances"]] == ["other", "tested"]
    assert said["instances"][1]["records"]["messages"] == PENDING
    assert said["instances"][1]["findings"] == []

    alone = requeue_worker("verify", "--data-dir", path.parent, "--json", "--instance-id", "other")
    assert [instance["instance"] for instance in json.loads(alone.stdout)["instances"]] == ["other"]


def test_verify_changes_no_file(path: Path) -> None:
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    assert verify(path).ok
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_what_a_crash_left_is_read_from_its_log_and_sound(tmp_path: Path) -> None:
    assert verify(write_sample(tmp_path / "crashed", crash=True)).records[MESSAGES] == PENDING


# -- one finding for each thing that can be wrong ----------------------------------------------------------------


def test_a_record_of_an_unknown_version_is_found(path: Path) -> None:
    def edit(engine: Engine, batch: Batch) -> None:
        key, value = first(engine, MESSAGES)
        batch.put(key, b"\x09" + value[1:])

    assert ("record", "can't be decoded: record version 9; this release knows 1") in told(edited(path, edit))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda value: value[:20], "can't be decoded: unpack_from requires"),
        (lambda value: value[: HEAD.size + 3], "its extras and headers are longer than all of it"),
        (lambda value: value[:-1], "its subject or payload ends behind its end"),
        (lambda value: value[:1] + b"\xf0" + value[2:], "flags 240 or backoff"),
    ],
)
def test_a_value_that_does_not_agree_with_itself_is_found(
    path: Path, change: Callable[[bytes], bytes], what: str
) -> None:
    def edit(engine: Engine, batch: Batch) -> None:
        key, value = first(engine, MESSAGES)
        batch.put(key, change(value))

    report = edited(path, edit)
    assert report.findings[0].check == "record"
    assert what in report.findings[0].what


def test_a_key_behind_its_deadline_is_found(path: Path) -> None:
    def edit(engine: Engine, batch: Batch) -> None:
        late = message_key("mail", time_ns=9 * 10**18, number=900)
        batch.put(late, stored(b"x", deadline_ns=10**18))

    assert "is behind its deadline, 2001-09-09" in edited(path, edit).findings[0].what


def test_a_key_that_is_none_is_found(path: Path) -> None:
    report = edited(path, lambda _, batch: batch.put(b"\x04mail", b"x"))
    assert told(report)[0] == ("record", "a key of 5 bytes is none of this family (id: 046d61696c)")


def test_a_pending_message_below_its_checkpoint_is_found(path: Path) -> None:
    def edit(_: Engine, batch: Batch) -> None:
        batch.put(message_key("mail", time_ns=1, number=901), stored(b"x"))

    report = edited(path, edit)
    [finding] = [finding for finding in report.findings if finding.check == "checkpoint"]
    assert finding.where.startswith("queue mail, priority 4, 1970-01-01T00:00:00Z, id ")
    assert "lies below the checkpoint" in finding.what


def test_a_message_in_a_lane_that_is_not_known_is_found(path: Path) -> None:
    def edit(_: Engine, batch: Batch) -> None:
        batch.put(message_key("mail", priority=7, number=902), stored(b"x"))

    assert any("has no lane of priority 7" in what for _, what in told(edited(path, edit)))


@pytest.mark.parametrize(
    ("counter", "said"),
    [("pending", "pending"), ("bytes", "pending bytes"), ("dead", "dead"), ("dead_bytes", "dead bytes")],
)
def test_each_counter_that_does_not_agree_is_found(path: Path, counter: str, said: str) -> None:
    def edit(engine: Engine, batch: Batch) -> None:
        state = read_queue(engine, "mail")
        setattr(state, counter, getattr(state, counter) + 1)
        batch.put_meta(meta_queue_key("mail"), state.encode())

    report = edited(path, edit)
    [finding] = report.findings
    assert (finding.check, finding.where) == ("counters", "queue mail")
    assert finding.what.startswith(f"{said}: stored ")


def test_records_of_a_queue_without_counters_are_found(path: Path) -> None:
    report = edited(path, lambda _, batch: batch.delete_meta(meta_queue_key("mail")))
    assert ("counters", "has records and no counters") in told(report)


def test_a_queue_state_that_cannot_be_read_is_found(path: Path) -> None:
    report = edited(path, lambda _, batch: batch.put_meta(meta_queue_key("mail"), b"\x09" * 60))
    assert any(check == "queue state" and "version 9" in what for check, what in told(report))


def test_an_entry_without_its_message_is_found(path: Path) -> None:
    def edit(_: Engine, batch: Batch) -> None:
        key = message_key("mail", number=999)
        batch.put_id(ids_prefix(b"gone") + id_of(key), key)

    assert told(edited(path, edit)) == [("ids", "points to a message that is not there")]


def test_an_entry_for_another_client_id_is_found_from_both_sides(path: Path) -> None:
    def edit(engine: Engine, batch: Batch) -> None:
        entry, key = first(engine, IDS)
        batch.delete_id(entry)
        batch.put_id(ids_prefix(b"another") + id_of(key), key)

    assert told(edited(path, edit)) == [
        ("ids", "points to a message that does not carry that client id"),
        ("ids", "carries a client id that has no entry pointing to it"),
    ]


def test_a_message_without_its_entry_is_found(path: Path) -> None:
    report = edited(path, lambda engine, batch: batch.delete_id(first(engine, IDS)[0]))
    assert told(report) == [("ids", "carries a client id that has no entry pointing to it")]


def test_a_mark_without_its_dead_letter_is_found(path: Path) -> None:
    letter = dead_key("mail", 5, bytes(16))
    report = edited(path, lambda _, batch: batch.put_meta(META_MARK + letter, b""))
    assert told(report) == [("marks", "marks a dead letter that is not there")]


def test_retention_takes_the_mark_with_the_dead_letter(path: Path) -> None:
    """A letter that could not be published in all that time leaves nothing behind."""

    def edit(engine: Engine, batch: Batch) -> None:
        [mark] = engine.keys(META, META_MARK, META_MARK + b"\xff")
        letter = mark[len(META_MARK) :]
        transaction = Transaction(batch, NOW_NS)
        mail = read_queue(engine, "mail")
        RemoveDead(mail, [(letter, decode(engine.get(DEAD, letter) or b"").size)]).apply(transaction)
        transaction.seal(checkpoints_due=False)

    report = edited(path, edit)
    assert told(report) == []
    assert report.records[DEAD] == DEAD_LETTERS - 1


@pytest.mark.parametrize("family", [MESSAGES, DEAD])
def test_an_id_in_two_places_is_found_with_both(path: Path, family: str) -> None:
    def edit(engine: Engine, batch: Batch) -> None:
        key, _ = first(engine, MESSAGES)
        if family == MESSAGES:
            batch.put(message_key("mail", message_id=id_of(key), time_ns=2 * 10**18), stored(b"x"))
        else:
            batch.put_dead(dead_key("mail", 10**18, id_of(key)), first(engine, DEAD)[1])

    [what] = [what for check, what in told(edited(path, edit)) if check == "unique"]
    assert what.startswith("stands in several places: ")
    assert what.count(",") == 1


def test_data_without_a_format_version_is_found(path: Path) -> None:
    report = edited(path, lambda _, batch: batch.delete_meta(META_FORMAT))
    assert told(report) == [("format", "there is data, and no format version")]


def test_a_dead_letter_without_a_reason_is_found(path: Path) -> None:
    report = edited(path, lambda _, batch: batch.put_dead(dead_key("mail", 5, bytes(16)), stored(b"x")))
    assert ("record", "it has no reason") in told(report)


def test_a_flipped_bit_is_found_and_what_depends_on_the_rest_is_not_guessed(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "data" / "tested", copies=300)
    largest = max(path.glob("*.sst"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)

    report = verify(path)
    assert {check for check, _ in told(report)} == {"readable"}
    assert "checksum mismatch" in report.findings[0].what
    assert largest.name in report.findings[0].what


@pytest.mark.parametrize("gone", ["CURRENT", "*.sst", "MANIFEST-*"])
def test_a_missing_file_is_found(path: Path, gone: str) -> None:
    for file in path.glob(gone):
        file.unlink()
    result = requeue_worker("verify", "--data-dir", path.parent)
    assert result.exit_code == 6
    assert result.stdout.startswith("tested: NOT SOUND: 0 pending")
    assert f"  open: {path}: " in result.stdout


def test_findings_are_told_one_by_one_up_to_a_limit_and_counted_beyond(path: Path) -> None:
    def edit(_: Engine, batch: Batch) -> None:
        for number in range(FINDINGS_KEPT + 50):
            batch.put_id(ids_prefix(b"%d" % number) + bytes(16), message_key("mail", number=999))

    report = edited(path, edit)
    assert len(report.findings) == FINDINGS_KEPT
    result = requeue_worker("verify", "--data-dir", path.parent)
    assert result.exit_code == 6
    assert result.stdout.endswith("  and 50 more: 150 ids\n")
    said = json.loads(requeue_worker("verify", "--data-dir", path.parent, "--json").stdout)
    assert (said["ok"], said["instances"][0]["findings_by_check"]) == (False, {"ids": 150})


# -- what is refused ---------------------------------------------------------------------------------------------


def test_a_newer_format_is_refused_and_not_rewritten(path: Path) -> None:
    engine = Engine(path)
    batch = engine.batch()
    batch.put_meta(META_FORMAT, b"\x02")
    engine.write(batch)
    engine.close()
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    result = requeue_worker("verify", "--data-dir", path.parent)
    assert result.exit_code == 3
    assert f"requeue-worker: {path} has data format 2, this release knows up to 1" in result.stderr
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_an_unknown_instance_and_a_directory_without_any_are_told(path: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for args, sentence in (
        (("--data-dir", path.parent, "--instance-id", "nobody"), "has no directory of the instance nobody"),
        (("--data-dir", path.parent, "--instance-id", "../data/tested"), "is no instance id"),
        (("--data-dir", tmp_path / "nothing"), "holds no instance directory"),
        (("--data-dir", tmp_path / "nowhere"), "can't be read: No such file or directory"),
    ):
        result = requeue_worker("verify", *args)
        assert result.exit_code == 3, args
        assert sentence in result.stderr


def test_a_directory_that_a_worker_holds_is_refused_until_it_has_ended(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    worker = worker_factory(nats_server, "--instance-id", "tested")
    command = [find_executable("requeue-worker", ""), "verify", "--data-dir", worker.data_dir]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr == f"requeue-worker: {worker.data_dir / 'tested'} is open in another process\n"

    worker.stop()
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0


# -- long directories --------------------------------------------------------------------------------------------


def test_progress_counts_the_records_of_all_families(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "data" / "tested", copies=30)
    heard: list[int] = []
    report = verify(path, heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == report.records.total()


@pytest.mark.parametrize("max_bits", [1 << 28, 1 << 14])
def test_repeated_ids_are_found_among_many_in_any_number_of_parts(max_bits: int) -> None:
    ids = [os.urandom(16) for _ in range(5000)]
    twice, thrice = ids[17], ids[4000]
    keys = [b"key" + message_id for message_id in [*ids, twice, thrice, thrice]]
    found = dict(repeated_ids(lambda: keys, len(keys), max_bits))
    assert {message_id: len(places) for message_id, places in found.items()} == {twice: 2, thrice: 3}


def read_queue(engine: Engine, name: str) -> QueueState:
    from requeue_worker import soundness

    state = QueueState(name, soundness._POLICY, soundness._RULES, soundness._COUNTS)
    value = engine.get(META, meta_queue_key(name))
    assert value is not None
    state.load(value)
    return state
