"""`requeue-worker drain` on real disks, to real workers over a real nats-server: what goes where, and what remains."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from requeue_worker import faults
from requeue_worker.drain.drain import Drain, Options
from requeue_worker.drain.link import Link
from requeue_worker.drain.messages import Code, Request, Verb, pack_page
from requeue_worker.drain.proof import MAX_BYTES, Proof, Remains
from requeue_worker.drain.volume import IDENTITY, ensure_identity, read_identity
from requeue_worker.settings import Settings
from requeue_worker.storage.claims import META_MERGED, META_UID, claim_of
from requeue_worker.storage.keys import META_FORMAT
from requeue_worker.storage.pages import START, pages
from requeue_worker.storage.rocksdb import META, Engine
from requeue_worker.verify import verify

from tests.integration.worker.support import Clock, Handler, LiveWorker, S, StartWorker
from tests.servers import NatsServer, NatsServerFactory, WorkerFactory, until
from tests.zombies import Contents, Zombie, contents, marks_in

DUE_NS = 1_893_456_000_000_000_000  #: 2030: nothing is replayed meanwhile
PATIENCE_S = 20.0


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An orphaned volume, without instances yet."""
    path = tmp_path / "volume"
    ensure_identity(path)
    return path


def orphan(volume: Path, name: str = "gone", messages: int = 2500, dead: int = 1100) -> Zombie:
    """Pages of messages and dead letters, in several queues and priorities."""
    zombie = Zombie(volume, name).fill(messages, dead, due_ns=DUE_NS, client_ids=True)
    zombie.fill(300, 30, queue="orders", priority=2, due_ns=DUE_NS)
    return zombie.fill(1, queue="paused", due_ns=DUE_NS, paused_until_ns=2 * 10**18)


def drain_of(volume: Path, server: NatsServer, fleet: str = "default", **options: Any) -> Drain:
    """A drain in this process."""
    settings = Settings(
        data_dir=volume, fleet=fleet, nats={"servers": [server.url], "reconnect_wait": "50ms"}
    )
    return Drain(settings, Options(**{"timeout_s": PATIENCE_S, **options}))


async def drain(volume: Path, server: NatsServer, fleet: str = "default", **options: Any) -> Proof:
    """Run one to its end."""
    return await drain_of(volume, server, fleet, **options).run()


def reasons(proof: Proof) -> dict[str, str]:
    return {remains.instance: remains.reason for remains in proof.remains}


def sound(*paths: Path) -> bool:
    """Whether `verify` finds nothing wrong. The directories are closed."""
    return all(verify(path).ok for path in paths)


@contextmanager
def at(place: str, act: Callable[[], object], visit: int = 1) -> Iterator[None]:
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


class _Crash(BaseException):
    """Ends a drain in this process as a kill would: nothing of it is written any more."""


def crash() -> None:
    raise _Crash


async def crashed(volume: Path, server: NatsServer, place: str, visit: int = 1) -> None:
    """A drain that ends at this place."""
    with at(place, crash, visit), pytest.raises(_Crash):
        await drain(volume, server)


# -- everything ------------------------------------------------------------------------------------------------------


async def test_everything_of_a_volume_is_with_the_survivor_as_it_was(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    before = orphan(volume, "gone-a").contents | orphan(volume, "gone-b", 50, 5).contents
    worker = await start()
    proof = await drain(volume, nats_server, nonce="n-1")
    total = len(before.messages) + len(before.dead)
    assert (proof.handed_over, proof.remaining, proof.exit_code) == (total, 0, 0)
    assert (proof.nonce, proof.volume, proof.target) == ("n-1", read_identity(volume), "tested")
    counts = worker.worker.counts
    assert counts.handover_messages + counts.handover_dead_letters == total
    assert (counts.handover_batches, counts.handover_duplicates) == (7, 0)
    await worker.stop()
    assert contents(worker.path) == before
    assert marks_in(worker.path) == []
    for name in ("gone-a", "gone-b"):
        assert contents(volume / name) == Contents()
    assert sound(worker.path, volume / "gone-a", volume / "gone-b")


async def test_a_handover_under_way_is_measured(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    orphan(volume, "gone", 50, 5)
    worker = await start()
    counts = worker.worker.counts
    seen: list[int] = []
    with at("handover: page durable", lambda: seen.append(counts.handovers_open)):
        await drain(volume, nats_server)
    assert (seen, counts.handovers_open) == ([1], 0)


async def test_dead_letters_that_were_not_published_are_published_by_the_survivor(
    start: StartWorker, nats_server: NatsServer, nc: Client, volume: Path
) -> None:
    Zombie(volume, "gone").fill(0, 30, unpublished=True).fill(0, 5, queue="published")
    dead = await Handler.listen(nc, "dead.letters")
    await start(defaults={"dead_letter_subject": "dead.letters"})
    assert (await drain(volume, nats_server)).handed_over == 35
    await until(lambda: len(dead.received) == 30)


async def test_a_drained_volume_is_drained_also_without_a_survivor(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    orphan(volume)
    worker = await start()
    await drain(volume, nats_server)
    await worker.stop()
    again = await drain(volume, nats_server)
    assert (again.handed_over, again.remaining, again.exit_code) == (0, 0, 0)


async def test_a_worker_that_takes_nothing_in_delivers_all_and_leaves_an_empty_volume(
    start: StartWorker, nats_server: NatsServer, nc: Client, tmp_path: Path
) -> None:
    worker = await start()
    for number in range(5):
        await worker.publish("job", b"%d" % number, delay_ns=3600 * S)
    await worker.stop()

    handler = await Handler.listen(nc, "job", lambda msg: msg.respond(b""))
    worker = await start(intake=False)
    with pytest.raises(NoRespondersError):
        await nc.request("requeue.x", b"", timeout=10)
    await worker.forward(3600 * S)
    for _ in range(5):
        await handler.next()
    await until(lambda: worker.queue().pending == 0)
    await worker.stop()
    proof = await drain(tmp_path / "data", nats_server)
    assert (proof.handed_over, proof.remaining, proof.exit_code) == (0, 0, 0)


async def test_limits_of_queues_do_not_apply(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    before = orphan(volume).contents
    worker = await start(max_queues=1, defaults={"max_messages": 1})
    assert (await drain(volume, nats_server)).remaining == 0
    await worker.stop()
    assert contents(worker.path) == before


async def test_records_beyond_max_payload_go_in_parts(
    start: StartWorker, nats_server_factory: NatsServerFactory, volume: Path, nc: Client
) -> None:
    server = nats_server_factory(config="max_payload: 5000")
    zombie = Zombie(volume, "gone").fill(3, due_ns=DUE_NS, size=100_000).fill(1500, 300, due_ns=DUE_NS)
    before = zombie.contents
    worker = await start(nats={"servers": [server.url]})
    assert (await drain(volume, server)).remaining == 0
    await worker.stop()
    assert contents(worker.path) == before


async def test_the_owner_that_comes_back_to_an_emptied_directory_works_and_is_drained_again(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    orphan(volume)
    worker = await start()
    first = await drain(volume, nats_server)
    Zombie(volume, "gone").fill(20, due_ns=DUE_NS - S)
    second = await drain(volume, nats_server)
    assert (first.remaining, second.remaining, second.handed_over) == (0, 0, 20)
    assert worker.queue().pending == 2520


async def test_a_directory_that_was_let_go_has_a_uid_of_which_there_is_no_mark(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    """Else a mark that stayed behind would one day be taken for one of what the owner has taken in since."""
    orphan(volume)
    worker = await start()
    engine = worker.worker._store._engine
    marks: list[bytes] = []
    with at("drain: ended", lambda: marks.extend(engine.keys(META, META_MERGED, META_MERGED + b"\xff"))):
        await drain(volume, nats_server)
    source = Engine(volume / "gone", read_only=True)
    assert len(marks) == 1
    assert marks != [META_MERGED + (source.get(META, META_UID) or b"")]
    source.close()


# -- who ---------------------------------------------------------------------------------------------------------------


async def test_two_fleets_on_one_nats_never_mix(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    before = orphan(volume).contents
    await start(fleet="other")
    proof = await drain(volume, nats_server, fleet="ours", timeout_s=0.0)
    assert (proof.exit_code, reasons(proof)) == (5, {"gone": "no-survivor"})
    assert contents(volume / "gone") == before
    assert (await drain(volume, nats_server, fleet="other")).exit_code == 0


async def test_a_worker_of_the_same_instance_is_no_survivor(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    orphan(volume, "tested")
    worker = await start()
    proof = await drain(volume, nats_server, timeout_s=0.0)
    assert (proof.exit_code, reasons(proof)) == (5, {"tested": "no-survivor"})
    assert worker.worker.counts.handover_batches == 0


async def test_without_nats_nobody_answers(nats_server: NatsServer, volume: Path) -> None:
    orphan(volume)
    await asyncio.to_thread(nats_server.stop)
    proof = await drain(volume, nats_server, timeout_s=0.0)
    assert (proof.exit_code, reasons(proof)) == (5, {"gone": "no-survivor"})


async def test_the_worker_with_the_smallest_backlog_gets_everything(
    start: StartWorker, nats_server: NatsServer, volume: Path, tmp_path: Path
) -> None:
    Zombie(tmp_path / "busy-data", "busy").fill(10, due_ns=DUE_NS)
    await start(data_dir=tmp_path / "busy-data", instance_id="busy")
    await start(data_dir=tmp_path / "idle-data", instance_id="idle")
    orphan(volume, "gone-a")
    orphan(volume, "gone-b")
    proof = await drain(volume, nats_server)
    assert (proof.remaining, proof.target) == (0, "idle")


async def test_a_full_disk_refuses_until_there_is_room(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    orphan(volume)
    worker = await start()
    headroom = worker.worker._headroom
    look, headroom.look = headroom.look, lambda: look()._replace(free_bytes=0, ballast_bytes=0)  # type: ignore[method-assign]
    await until(lambda: headroom.full)
    proof = await drain(volume, nats_server, timeout_s=0.0)
    assert (proof.exit_code, reasons(proof)) == (4, {"gone": "target-full"})
    headroom.look = look  # type: ignore[method-assign]
    assert (await drain(volume, nats_server)).exit_code == 0


async def test_a_disk_that_fills_in_the_middle_stops_it_without_a_loss(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    before = orphan(volume).contents
    worker = await start()
    receiver = worker.worker._receiver
    has_room = receiver._has_room
    with at("handover: page durable", lambda: setattr(receiver, "_has_room", lambda: False), 2):
        proof = await drain(volume, nats_server, timeout_s=0.0)
    assert (proof.exit_code, proof.handed_over) == (4, 2048)
    receiver._has_room = has_room
    assert (await drain(volume, nats_server)).exit_code == 0
    await worker.stop()
    assert contents(worker.path) == before


async def test_a_target_that_closes_hands_the_rest_to_another(
    start: StartWorker, nats_server: NatsServer, volume: Path, tmp_path: Path
) -> None:
    before = orphan(volume, messages=9000).contents
    one = await start(data_dir=tmp_path / "one", instance_id="one")
    two = await start(data_dir=tmp_path / "two", instance_id="two")
    stops: list[asyncio.Task[None]] = []

    def close_one() -> None:
        stops.append(asyncio.get_running_loop().create_task(one.worker.stop()))

    with at("handover: page durable", close_one, 2):
        proof = await drain(volume, nats_server)
    assert (proof.remaining, proof.target, proof.possible_duplicates) == (0, "two", 0)
    await two.stop()
    got, other = contents(one.path), contents(two.path)
    assert got.messages
    assert other.messages
    got.pauses = other.pauses = before.pauses
    assert got | other == before


# -- a target that is gone ----------------------------------------------------------------------------------------------


async def test_a_page_whose_ack_was_lost_is_not_there_twice(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    before = orphan(volume).contents
    worker = await start()
    await crashed(volume, nats_server, "drain: page acknowledged", 2)
    assert worker.worker.counts.handover_messages > 0
    proof = await drain(volume, nats_server)
    assert (proof.remaining, proof.duplicates, proof.possible_duplicates) == (0, 0, 0)
    assert worker.worker.counts.handover_messages == len(before.messages)
    await worker.stop()
    assert contents(worker.path) == before


async def test_pages_out_of_order_twice_or_of_another_session_change_nothing(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    orphan(volume)
    worker = await start()
    engine = Engine(volume / "gone", read_only=True)
    first, second = list(pages(engine))[:2]
    engine.close()
    link = Link(drain_of(volume, nats_server)._link._broker._settings, "default")
    link.start()
    source, uid = os.urandom(16), worker.worker._store.uid

    async def send(verb: Verb, session: bytes = b"session1", **said: Any) -> int:
        return (await link.answer("tested", Request(verb, source, uid, session, "gone", **said))).code

    def body(page: Any) -> bytes:
        return pack_page([record for group in page.groups for record in group.records], [])

    try:
        await link.ask_all(Request(Verb.WHO, source))
        one = {"after": START, "mark": first.mark, "body": body(first)}
        two = {"after": first.mark, "mark": second.mark, "body": body(second)}
        assert await send(Verb.PAGE, **one) == Code.BEGIN_AGAIN
        assert await send(Verb.BEGIN, body=b'{"paused": {}, "marks": {}}') == 0
        assert await send(Verb.PAGE, **two) == Code.BEGIN_AGAIN
        assert await send(Verb.PAGE, **one) == 0
        assert await send(Verb.PAGE, **one) == 0
        assert await send(Verb.PAGE, b"session2", **two) == Code.BEGIN_AGAIN
        assert await send(Verb.PAGE, **{**two, "body": b"\0\0"}) == Code.MALFORMED
        assert await send(Verb.BEGIN, body=b"[]") == Code.MALFORMED
        assert await send(Verb.END) == 0
        assert await send(Verb.PAGE, **two) == Code.BEGIN_AGAIN
        assert (await link.answer("tested", Request(Verb.END, source, os.urandom(16)))).code == Code.ANOTHER
    finally:
        await link.close()
    counts = worker.worker.counts
    assert (counts.handover_messages, counts.handover_batches, counts.handover_duplicates) == (1024, 1, 1024)
    assert sum(queue.pending for queue in worker.worker._registry) == 1024


async def abandoned(start: StartWorker, server: NatsServer, volume: Path, tmp_path: Path) -> LiveWorker:
    """A target that has a page which the source has too, and is down."""
    target = await start(data_dir=tmp_path / "target-data", instance_id="target")
    await crashed(volume, server, "drain: page acknowledged", 2)
    target.worker._receiver._sessions.clear()  # a stop would wait for the drain's next word, and it is dead
    await target.stop()
    return target


async def test_nobody_else_gets_what_a_silent_target_may_have(
    start: StartWorker, nats_server: NatsServer, volume: Path, tmp_path: Path
) -> None:
    before = orphan(volume).contents
    target = await abandoned(start, nats_server, volume, tmp_path)
    other = await start()
    proof = await drain(volume, nats_server, timeout_s=0.0)
    assert (proof.exit_code, reasons(proof)) == (4, {"gone": "target-silent"})
    assert "target does not answer" in proof.remains[0].text
    assert other.worker.counts.handover_batches == 0

    back = await start(data_dir=tmp_path / "target-data", instance_id="target")
    proof = await drain(volume, nats_server)
    assert (proof.exit_code, proof.target, proof.possible_duplicates) == (0, "target", 0)
    await back.stop()
    assert contents(target.path) == before


async def test_who_drained_the_target_knows_how_far_it_came(
    start: StartWorker, nats_server: NatsServer, volume: Path, tmp_path: Path
) -> None:
    before = orphan(volume).contents
    target = await abandoned(start, nats_server, volume, tmp_path)
    other = await start()
    assert (await drain(tmp_path / "target-data", nats_server)).exit_code == 0
    proof = await drain(volume, nats_server)
    assert (proof.exit_code, proof.target, proof.possible_duplicates) == (0, "tested", 0)
    await other.stop()
    assert contents(other.path) == before
    assert contents(target.path) == Contents()


@pytest.mark.parametrize("place", ["drain: chosen", "drain: begun"])
@pytest.mark.parametrize("drained", [True, False])
async def test_a_target_that_was_sent_nothing_and_is_gone_for_good_is_replaced(
    start: StartWorker, nats_server: NatsServer, volume: Path, tmp_path: Path, place: str, drained: bool
) -> None:
    before = orphan(volume).contents
    target = await start(data_dir=tmp_path / "target-data", instance_id="target")
    await crashed(volume, nats_server, place)
    target.worker._receiver._sessions.clear()  # a stop would wait for the drain's next word, and it is dead
    await target.stop()
    other = await start()
    if drained:
        assert (await drain(tmp_path / "target-data", nats_server)).exit_code == 0
    proof = await drain(volume, nats_server, timeout_s=0.0)
    assert (proof.exit_code, proof.target, proof.possible_duplicates) == (0, "tested", 0)
    await other.stop()
    assert contents(other.path) == before
    assert contents(target.path).messages == {}


async def test_a_target_that_may_have_been_sent_a_page_is_waited_for(
    start: StartWorker, nats_server: NatsServer, volume: Path, tmp_path: Path
) -> None:
    orphan(volume)
    target = await start(data_dir=tmp_path / "target-data", instance_id="target")
    await crashed(volume, nats_server, "drain: sending noted")
    target.worker._receiver._sessions.clear()
    await target.stop()
    await start()
    proof = await drain(volume, nats_server, timeout_s=0.0)
    assert (proof.exit_code, reasons(proof)) == (4, {"gone": "target-silent"})


async def test_a_target_that_lost_its_disk_is_replaced(
    start: StartWorker, nats_server: NatsServer, volume: Path, tmp_path: Path
) -> None:
    orphan(volume)
    target = await abandoned(start, nats_server, volume, tmp_path)
    left = contents(volume / "gone")
    shutil.rmtree(target.path)
    new = await start(data_dir=tmp_path / "target-data", instance_id="target")
    proof = await drain(volume, nats_server)
    assert proof.exit_code == 0
    assert 0 < proof.possible_duplicates <= 4096
    await new.stop()
    assert contents(new.path) == left


async def test_a_target_that_was_given_up_and_comes_back_brings_duplicates_that_are_refused(
    start: StartWorker, nats_server: NatsServer, volume: Path, tmp_path: Path
) -> None:
    before = orphan(volume).contents
    await abandoned(start, nats_server, volume, tmp_path)
    other = await start()
    proof = await drain(volume, nats_server, new_target=True)
    assert (proof.exit_code, proof.target) == (0, "tested")
    assert proof.possible_duplicates > 0
    proof = await drain(tmp_path / "target-data", nats_server)
    assert (proof.exit_code, proof.duplicates) == (0, other.worker.counts.handover_duplicates)
    assert 0 < proof.duplicates <= 4096
    await other.stop()
    assert contents(other.path) == before
    assert sound(other.path)


async def test_a_merge_that_broke_off_on_the_volume_is_finished_first(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    from tests.integration.worker.test_reaper import Heir, stop_half_way

    before = orphan(volume).contents
    await stop_half_way(Heir(volume, "claimant"), 2)
    worker = await start()
    assert (await drain(volume, nats_server)).remaining == 0
    await worker.stop()
    assert contents(worker.path) == before


async def test_the_connection_breaks_in_the_middle(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    before = orphan(volume).contents
    worker = await start()
    breaks: list[asyncio.Task[Any]] = []

    def restart() -> None:
        breaks.append(asyncio.get_running_loop().create_task(asyncio.to_thread(nats_server.restart)))

    with at("handover: page durable", restart, 2):
        proof = await drain(volume, nats_server)
    await breaks[0]
    assert (proof.exit_code, proof.possible_duplicates) == (0, 0)
    await worker.stop()
    assert contents(worker.path) == before


# -- what remains -------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_handed_over_remains_with_its_reason_while_the_others_go_on(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    orphan(volume, "good")
    await start(data_dir=volume, instance_id="open", fleet="other", reaper={"enabled": False})
    newer = Zombie(volume, "newer").fill(3, due_ns=DUE_NS)
    engine = Engine(newer.path)
    batch = engine.batch()
    batch.put_meta(META_FORMAT, b"\x63")
    engine.write(batch)
    del batch
    engine.close()
    broken = Zombie(volume, "broken").fill(3, due_ns=DUE_NS)
    (broken.path / "CURRENT").unlink()
    (volume / "a-file").write_text("not ours")
    (volume / "lost+found").mkdir()
    (volume / "nothing").mkdir()
    shutil.copytree(broken.path, volume / ".put-aside")
    worker = await start()
    proof = await drain(volume, nats_server)
    expected = {"open": "in-use", "newer": "newer-format", "broken": "empty", "a-file": "not-a-directory"}
    assert reasons(proof) == {**expected, ".put-aside": "set-aside"}
    assert (proof.exit_code, proof.remaining, proof.handed_over) == (4, 5, 3931)
    assert worker.queue().pending == 2500


async def test_damage_in_the_middle_remains_and_what_could_be_read_is_handed_over(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    zombie = Zombie(volume, "gone").fill(1024, due_ns=DUE_NS).fill(10, queue="last-one", due_ns=DUE_NS)
    engine = Engine(zombie.path)
    batch = engine.batch()
    batch.put(b"\x08last-one\x04" + b"\x7f" * 24, b"\x01 too short")
    engine.write(batch)
    del batch
    engine.close()
    worker = await start()
    proof = await drain(volume, nats_server, timeout_s=0.0)
    assert (proof.exit_code, reasons(proof)) == (4, {"gone": "damaged"})
    assert worker.queue().pending == 1024 == proof.handed_over
    engine = Engine(zombie.path, read_only=True)
    assert claim_of(engine) is None
    engine.close()


async def test_a_volume_without_identity_remains(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    orphan(volume)
    (volume / IDENTITY).unlink()
    await start()
    proof = await drain(volume, nats_server)
    assert (proof.handed_over, proof.remaining, proof.exit_code) == (3931, 1, 4)
    assert (proof.volume, reasons(proof)) == (None, {"": "no-identity"})


async def test_a_dry_run_changes_nothing_and_says_what_is_there(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    before = orphan(volume).contents
    worker = await start()
    proof = await drain(volume, nats_server, dry_run=True)
    assert (proof.handed_over, proof.remaining, proof.exit_code) == (0, 3931, 4)
    assert (proof.target, reasons(proof)) == ("tested", {"gone": "dry-run"})
    assert worker.worker.counts.handover_batches == 0
    assert contents(volume / "gone") == before


def test_a_proof_with_many_reasons_fits_into_a_termination_message() -> None:
    proof = Proof("v", None, "default", False)
    proof.remains = [Remains(f"w-{number}", "damaged", "x" * 1000, None) for number in range(100)]
    said = json.loads(proof.encode())
    assert len(proof.encode()) <= MAX_BYTES
    assert (said["remaining"], len(said["reasons"]) + said["more_reasons"]) == (100, 100)


# -- clocks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead_s", "warns"), [(5, True), (-5, True), (0, False)])
async def test_clocks_that_differ_by_more_than_a_second_are_told_on_both_sides(
    start: StartWorker,
    nats_server: NatsServer,
    volume: Path,
    caplog: pytest.LogCaptureFixture,
    ahead_s: int,
    warns: bool,
) -> None:
    Zombie(volume, "gone").fill(1, due_ns=DUE_NS)
    clock = Clock()
    clock.offset_ns = ahead_s * S
    await start(clock=clock)
    await drain(volume, nats_server)
    told = [vars(record)["ahead_s"] for record in caplog.records if "clocks differ" in record.getMessage()]
    assert len(told) == 2 * warns
    assert all(abs(said - ahead_s) < 2 for said in told)


# -- the command ----------------------------------------------------------------------------------------------------


def command(volume: Path, server: NatsServer, *more: str) -> subprocess.Popen[str]:
    arguments = ["drain", "--data-dir", str(volume), "--server", server.url, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "requeue_worker.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def finished(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, what it printed, and its log."""
    out, err = await asyncio.to_thread(process.communicate)
    return process.returncode, json.loads(out) if out else {}, err


async def test_the_command_prints_the_proof_and_writes_it(
    start: StartWorker, nats_server: NatsServer, volume: Path, tmp_path: Path
) -> None:
    orphan(volume)
    await start()
    file = tmp_path / "proof.json"
    file.write_text("an earlier one")
    code, proof, log = await finished(
        command(volume, nats_server, "--nonce", "7c1e", "--proof-file", str(file))
    )
    assert (code, proof["handed_over"], proof["remaining"]) == (0, 3931, 0), log
    assert (proof["nonce"], proof["volume"], proof["target"]) == ("7c1e", read_identity(volume), "tested")
    assert json.loads(file.read_text()) == proof
    assert list(tmp_path.glob(".*")) == []  # noqa: ASYNC240 - a look
    assert "the drain has ended" in log


async def test_mistakes_and_missing_directories_have_the_exit_codes_of_run(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    assert (await finished(command(tmp_path / "none", nats_server)))[0] == 3
    assert (await finished(command(tmp_path, nats_server, "--timeout", "soon")))[0] == 2


async def test_sigterm_stops_it_with_nothing_in_doubt_and_it_goes_on_where_it_was(
    start: StartWorker, nats_server: NatsServer, volume: Path
) -> None:
    before = Zombie(volume, "gone").fill(20_000, due_ns=DUE_NS).contents
    worker = await start()
    process = command(volume, nats_server)
    with at("handover: page durable", lambda: process.send_signal(signal.SIGTERM), 3):
        code, proof, log = await finished(process)
    assert (code, proof["reasons"][0]["reason"]) == (4, "stopped"), log
    assert proof["handed_over"] + proof["remaining"] == 20_000
    assert 0 < proof["handed_over"] == worker.queue().pending
    engine = Engine(volume / "gone", read_only=True)
    assert claim_of(engine) is None
    engine.close()
    rest = await drain(volume, nats_server)
    assert (rest.handed_over, rest.exit_code) == (proof["remaining"], 0)
    await worker.stop()
    assert contents(worker.path) == before


async def test_run_gives_a_data_directory_an_identity_once(start: StartWorker, tmp_path: Path) -> None:
    worker = await start()
    identity = read_identity(tmp_path / "data")
    assert identity
    await worker.stop()
    await start()
    assert read_identity(tmp_path / "data") == identity


@pytest.mark.parametrize("count", [40_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
async def test_many_records_are_handed_over_in_little_memory(
    nats_server: NatsServer, worker_factory: WorkerFactory, volume: Path, tmp_path: Path, count: int
) -> None:
    psutil = pytest.importorskip("psutil")
    Zombie(volume, "gone").fill(count, count // 100, due_ns=DUE_NS, size=256)
    worker = worker_factory(nats_server, "--instance-id", "heir", data_dir=tmp_path / "heir-data")
    process = command(volume, nats_server)
    done = asyncio.create_task(finished(process))
    peak = 0
    while not done.done():
        for pid in (process.pid, worker.pid):
            try:
                peak = max(peak, psutil.Process(pid).memory_info().rss)
            except psutil.Error:
                continue
        await asyncio.sleep(0.05)
    code, proof, log = await done
    assert (code, proof["handed_over"]) == (0, count + count // 100), log
    assert peak < 200 << 20
    worker.stop()
    assert sound(tmp_path / "heir-data/heir", volume / "gone")
    print(f"{proof['handed_over'] / proof['seconds']:,.0f} messages/s, {peak >> 20} MiB")
