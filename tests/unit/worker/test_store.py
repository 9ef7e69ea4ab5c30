"""The store: what it opens and refuses to open, what its reads find, and what a damaged directory leads to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requeue_worker.errors import DataDirLocked, DataDirUnreadable, DataFormatTooNew
from requeue_worker.storage import store as stores
from requeue_worker.storage.keys import META_FORMAT, TIME_ID, ids_prefix, meta_queue_key
from requeue_worker.storage.queues import Lane
from requeue_worker.storage.rocksdb import DEAD, IDS, MESSAGES, META, Engine
from requeue_worker.storage.store import ReadRequest, ReadResult, Store

from tests.property.rig import INSTANCE, Rig, make_registry, new_message

checked = settings(deadline=None, max_examples=60)

FAMILIES = (MESSAGES, DEAD, META, IDS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path, "one", make_registry())
    yield opened
    opened.close()


def lane_of(name: str = "default", priority: int = 4) -> Lane:
    return make_registry().get(name).lane(priority)


def put(store: Store, *items: tuple[Lane, int, bytes]) -> list[bytes]:
    """Store values at these times of these lanes; their keys."""
    batch = store.batch()
    keys = [
        lane.prefix + TIME_ID.pack(time_ns, bytes(8), number)
        for number, (lane, time_ns, _) in enumerate(items)
    ]
    for key, (_, _, value) in zip(keys, items, strict=True):
        batch.put(key, value)
    store._engine.write(batch)
    return keys


def read(
    store: Store, lane: Lane, until_ns: int, limit: int = 1000, cursor: bytes | None = None
) -> ReadResult:
    return store._read_lane(ReadRequest(lane, lane.prefix if cursor is None else cursor, until_ns, limit))


# ---- reads


@checked
@given(
    times=st.lists(st.integers(0, 200), max_size=120, unique=True),
    until_ns=st.integers(0, 200),
    limit=st.integers(1, 130),
    cursor_ns=st.integers(0, 100),
    read_bytes=st.sampled_from([1, 500, 1 << 20]),
)
def test_a_read_finds_what_is_due_from_the_cursor_up_to_its_limits(
    tmp_path_factory: pytest.TempPathFactory,
    times: list[int],
    until_ns: int,
    limit: int,
    cursor_ns: int,
    read_bytes: int,
) -> None:
    store = Store.open(tmp_path_factory.mktemp("store"), "one", make_registry())
    lane = lane_of()
    keys = put(store, *[(lane, time_ns, bytes(20)) for time_ns in times])
    cursor = lane.prefix + TIME_ID.pack(cursor_ns, bytes(8), 0)
    patch = pytest.MonkeyPatch()
    patch.setattr(stores, "READ_BYTES", read_bytes)
    try:
        found = read(store, lane, until_ns, limit, cursor)
    finally:
        patch.undo()
        store.close()
    wanted = sorted(key for key in keys if key >= cursor)
    due = [key for key in wanted if key < lane.prefix + TIME_ID.pack(until_ns + 1, bytes(8), 0)]
    got = [key for key, _ in found.records]
    assert got == due[: len(got)], "in order, without a gap"
    assert len(got) <= limit
    if found.more:
        assert got, "a read that stops has found something"
        assert len(got) == limit or 20 * len(got) >= read_bytes
    else:
        assert got == due
        assert found.next_key == next((key for key in wanted if key not in due), None)


def test_a_read_stays_in_its_lane(store: Store) -> None:
    mine, others = (
        lane_of("b", 4),
        [lane_of("b", 3), lane_of("b", 5), lane_of("a"), lane_of("bb"), lane_of("c")],
    )
    keys = put(store, (mine, 5, b"mine"), *[(lane, 1, b"other") for lane in others])
    found = read(store, mine, 10)
    assert found.records == [(keys[0], b"mine")]
    assert (found.next_key, found.more) == (None, False)


def test_a_read_of_large_messages_stops_after_some_megabytes(store: Store) -> None:
    lane = lane_of()
    put(store, *[(lane, time_ns, bytes(1_000_000)) for time_ns in range(20)])
    found = read(store, lane, 100)
    assert found.more
    assert stores.READ_BYTES <= sum(len(value) for _, value in found.records) < stores.READ_BYTES + 2_000_000


@pytest.mark.parametrize(("messages", "held"), [(3, 1 << 20), (1000, 150)])
async def test_a_hop_over_many_lanes_ends_where_it_has_brought_enough(
    store: Store, monkeypatch: pytest.MonkeyPatch, messages: int, held: int
) -> None:
    monkeypatch.setattr(stores, "HOP_MESSAGES", messages)
    monkeypatch.setattr(stores, "HOP_BYTES", held)
    lanes = [lane_of(name) for name in "abcd"]
    put(store, *[(lane, time_ns, bytes(50)) for lane in lanes for time_ns in (1, 2)])
    results = await store.read_due([ReadRequest(lane, lane.prefix, 10, 1000) for lane in lanes])
    assert [(result.lane, len(result.records)) for result in results] == [(lane, 2) for lane in lanes[:2]]


async def test_a_hop_reads_one_lane_at_least_and_passes_empty_ones(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "HOP_MESSAGES", 1)
    empty, full, other = lane_of("a"), lane_of("b"), lane_of("c")
    put(store, *[(lane, time_ns, b"v") for lane in (full, other) for time_ns in (1, 2)])
    results = await store.read_due(
        [ReadRequest(lane, lane.prefix, 10, 1000) for lane in (empty, full, other)]
    )
    assert [(result.lane, len(result.records)) for result in results] == [(empty, 0), (full, 2)]


async def test_ids_lead_to_the_keys_of_their_messages(store: Store) -> None:
    [first, second, third] = put(store, *[(lane_of(), time_ns, b"v") for time_ns in (1, 2, 3)])
    batch = store.batch()
    for client_id, key in ((b"x", first), (b"x", second), (b"xy", third)):
        batch.put_id(ids_prefix(client_id) + key[-16:], key)
    store._engine.write(batch)
    assert await store.keys_of_ids([b"x", b"xy", b"nobody"]) == [[first, second], [third], []]
    assert await store.get_messages([first, b"no key", third]) == [b"v", None, b"v"]


# ---- opening


def test_a_new_directory_is_made_and_says_its_format(tmp_path: Path) -> None:
    Store.open(tmp_path / "deep" / "er", "one", make_registry()).close()
    engine = Engine(tmp_path / "deep" / "er" / "one")
    assert engine.get(META, META_FORMAT) == bytes((stores.STORE_FORMAT,))
    engine.close()


def test_queues_come_back_as_they_were(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "data")
    lane = rig.queue("a.b").lane(7)
    rig.call(lambda: rig.committer.accept([new_message(lane, b"payload")]))
    rig.commit_all()
    rig.close()
    registry = make_registry()
    store = Store.open(tmp_path / "data", INSTANCE, registry)
    [queue] = list(registry)
    assert (queue.name, queue.pending, queue.bytes, list(queue.lanes)) == ("a.b", 1, 7, [7])
    store.close()
    rig.open()
    rig.dispose()


def test_a_directory_in_use_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataDirLocked):
        Store.open(tmp_path, "one", make_registry())


def test_a_closed_store_can_be_opened_again(tmp_path: Path) -> None:
    for _ in range(3):
        Store.open(tmp_path, "one", make_registry()).close()


def contents(path: Path) -> dict[str, dict[bytes, bytes]]:
    engine = Engine(path)
    try:
        return {family: dict(engine.items(family, b"", b"\xff" * 9)) for family in FAMILIES}
    finally:
        engine.close()


def test_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Store.open(tmp_path, "one", make_registry()).close()
    engine = Engine(tmp_path / "one")
    batch = engine.batch()
    batch.put_meta(META_FORMAT, bytes((stores.STORE_FORMAT + 1,)))
    batch.put_meta(meta_queue_key("default"), b"\x09what a later release writes here")
    batch.put(b"\x07default\x04" + bytes(24), b"\x09and its records")
    engine.write(batch)
    del batch
    engine.close()
    before = contents(tmp_path / "one")

    with pytest.raises(DataFormatTooNew, match="data format 2, this release knows up to 1"):
        Store.open(tmp_path, "one", make_registry())
    assert contents(tmp_path / "one") == before


def test_a_queue_state_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Store.open(tmp_path, "one", make_registry()).close()
    engine = Engine(tmp_path / "one")
    batch = engine.batch()
    batch.put_meta(meta_queue_key("default"), b"\x09" + bytes(60))
    engine.write(batch)
    del batch
    engine.close()
    before = contents(tmp_path / "one")
    with pytest.raises(DataDirUnreadable, match="queue state version 9"):
        Store.open(tmp_path, "one", make_registry())
    assert contents(tmp_path / "one") == before


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("a file")
    with pytest.raises(DataDirUnreadable):
        Store.open(tmp_path, "one", make_registry())
    assert (tmp_path / "one").read_text() == "a file"


def test_a_refused_directory_is_not_left_locked(tmp_path: Path) -> None:
    Store.open(tmp_path, "one", make_registry()).close()
    current = (tmp_path / "one" / "CURRENT").read_bytes()
    (tmp_path / "one" / "CURRENT").write_bytes(b"MANIFEST-999999\n")
    with pytest.raises(DataDirUnreadable):
        Store.open(tmp_path, "one", make_registry())
    (tmp_path / "one" / "CURRENT").write_bytes(current)
    Store.open(tmp_path, "one", make_registry()).close()


# ---- damage


def crashed(tmp_path: Path, messages: int) -> tuple[Path, Path]:
    """A directory as a crash leaves it: everything in the write-ahead log. The directory, and that log."""
    rig = Rig(tmp_path / "data")
    for number in range(messages):
        message = new_message(rig.queue().lane(), b"%04d" % number * 50)
        rig.call(lambda message=message: rig.committer.accept([message]))  # type: ignore[misc]
        rig.commit_all()
    image = tmp_path / "image" / INSTANCE
    shutil.copytree(rig.data_dir / INSTANCE, image)
    rig.dispose()
    log = max(image.glob("*.log"), key=lambda file: file.stat().st_size)
    return image.parent, log


def pending_in(data_dir: Path) -> int:
    registry = make_registry()
    store = Store.open(data_dir, INSTANCE, registry)
    found = len(list(store._engine.items(MESSAGES, b"", b"\xff")))
    assert found == sum(queue.pending for queue in registry), "counters agree with the data"
    store.close()
    return found


def test_a_log_that_was_torn_by_a_crash_loses_its_last_batch_alone(tmp_path: Path) -> None:
    data_dir, log = crashed(tmp_path, 20)
    log.write_bytes(log.read_bytes()[:-30])
    assert pending_in(data_dir) == 19


@pytest.mark.parametrize("place", [0.1, 0.5, 0.8])
def test_a_damaged_log_is_refused_and_no_acknowledged_message_dropped_behind_it(
    tmp_path: Path, place: float
) -> None:
    data_dir, log = crashed(tmp_path, 20)
    raw = bytearray(log.read_bytes())
    raw[int(len(raw) * place)] ^= 0x40
    log.write_bytes(raw)
    with pytest.raises(DataDirUnreadable):
        pending_in(data_dir)
    raw[int(len(raw) * place)] ^= 0x40
    log.write_bytes(raw)
    assert pending_in(data_dir) == 20, "nothing was changed: repaired, it opens"
