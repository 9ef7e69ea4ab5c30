"""Dead letters: what they keep, how long they stay, and their way to `dead_letter_subject`, at least once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from requeue_protocol.durations import ns_to_rfc3339
from requeue_protocol.envelope import build_envelope
from requeue_worker import deadletters
from requeue_worker.record import HISTORY_KEPT
from requeue_worker.storage.rocksdb import META

from tests.integration.worker.support import (
    HOUR,
    INTAKE,
    MS,
    Handler,
    LiveWorker,
    StartWorker,
    headers_of,
)
from tests.servers import NatsServer, NatsServerFactory, until

DAY = 24 * HOUR
PUBLISHED = {"dead_letter_subject": "dead.letters", "min_backoff": "5ms"}


def marks(worker: LiveWorker) -> int:
    """How many dead letters are still to be published, by what is on disk."""
    return len(list(worker._engine.items(META, deadletters.MARK, deadletters.MARK + b"\xff")))


# -- what they keep ------------------------------------------------------------------------------------------


async def test_a_dead_letter_keeps_the_message_as_it_came_and_the_history_of_its_attempts(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    headers = {"Requeue-Retries": "3", "Requeue-TTL": "5h", "Trace": "t-1", "Nats-Msg-Id": "mine"}
    began_ns = worker.clock()
    await worker.publish_plain("jobs.a", b"\x00payload", headers)
    pending = worker.pending()[0]

    for number in range(3):
        await nc.publish((await jobs.next()).reply, b"-NAK reason %d" % number)
    letter = await worker.one_dead()

    assert letter.record.payload == b"\x00payload"
    assert (letter.record.subject, letter.record.headers) == (b"jobs.a", pending.record.headers)
    assert (letter.id, letter.record.enqueued_ns) == (pending.id, pending.record.enqueued_ns)
    assert letter.record.deadline_ns == pending.record.deadline_ns
    assert letter.extras.reason == "exhausted"
    assert [(attempt.number, attempt.error) for attempt in letter.extras.history] == [
        (1, "reason 0"),
        (2, "reason 1"),
        (3, "reason 2"),
    ]
    times_ns = [attempt.at_ns for attempt in letter.extras.history]
    assert [began_ns, *times_ns, letter.time_ns] == sorted([began_ns, *times_ns, letter.time_ns])
    assert letter.extras.died_ns == letter.time_ns


async def test_the_newest_attempts_of_a_long_history_are_kept(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"min_backoff": 0})
    number = HISTORY_KEPT + 5
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.nak())

    await worker.publish("jobs.a", retries=number)
    letter = await worker.one_dead()

    assert letter.record.attempts == number
    assert [attempt.number for attempt in letter.extras.history] == list(range(6, number + 1))


async def test_a_message_that_no_longer_fits_the_server_becomes_a_dead_letter_and_holds_nothing_up(
    start: StartWorker, nats_server_factory: NatsServerFactory
) -> None:
    wide = nats_server_factory(config="max_payload: 200000\n")
    narrow = nats_server_factory(config="max_payload: 20000\n")
    first = await start(nats={"servers": [wide.url]})
    first.nc = await nats.connect(wide.url)
    await first.publish("jobs.bare", b"x" * 100_000, delay_ns=200 * MS)
    await first.publish_plain("jobs.plain", b"x" * 100_000, {"Requeue-Delay": "200ms"})
    await first.publish("jobs.small", b"x", delay_ns=200 * MS)
    await first.stop()
    await first.nc.close()

    nc = await nats.connect(narrow.url)
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    second = await start(nats={"servers": [narrow.url]})
    await second.until_empty()

    assert [msg.subject for msg in jobs.received] == ["jobs.small"]
    assert {letter.extras.reason for letter in second.dead()} == {"too-large"}
    assert {letter.record.subject for letter in second.dead()} == {b"jobs.bare", b"jobs.plain"}
    await nc.close()


async def test_dead_letters_stay_over_a_restart(start: StartWorker) -> None:
    first = await start()
    await first.publish("jobs.nobody", b"kept")
    before = await first.one_dead()
    await first.stop()

    second = await start()

    assert second.dead() == [before]
    assert (second.queue().dead, second.queue().dead_bytes) == (1, before.record.size)


# -- retention -----------------------------------------------------------------------------------------------


@pytest.fixture
def _quick_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "RETENTION_INTERVAL_S", 0.02)


@pytest.mark.usefixtures("_quick_retention")
async def test_a_dead_letter_is_kept_14_days_from_its_death(start: StartWorker) -> None:
    worker = await start()
    await worker.publish("jobs.nobody", b"old")
    await worker.one_dead()

    await worker.forward(14 * DAY - HOUR)
    await worker.publish("jobs.nobody", b"new")
    await until(lambda: worker.queue().dead == 2)
    await worker.idle()
    await asyncio.sleep(0.1)  # several rounds, so that one too many would show
    kept = [letter.record.payload for letter in worker.dead()]
    await worker.forward(2 * HOUR)
    await until(lambda: worker.queue().dead == 1)
    await worker.idle()
    await worker.idle()

    assert kept == [b"old", b"new"]
    assert [letter.record.payload for letter in worker.dead()] == [b"new"]


@pytest.mark.usefixtures("_quick_retention")
async def test_each_queue_has_its_own_retention_and_many_go_in_pages(start: StartWorker, nc: Client) -> None:
    number = 520
    worker = await start(queues=[{"name": "brief", "dead_letter_retention": "1h"}])
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.term())
    for _ in range(number):
        await nc.publish(INTAKE, build_envelope(subject="jobs.a", payload=b"", queue="brief"))
    await worker.publish("jobs.a", queue="long")
    await until(lambda: worker.queue("brief").dead == number and worker.queue("long").dead == 1)
    await worker.idle()

    await worker.forward(2 * HOUR)
    await until(lambda: worker.queue("brief").dead == 0)
    await worker.idle()
    await worker.idle()

    assert (worker.dead("brief"), len(worker.dead("long"))) == ([], 1)
    assert len(jobs.received) == number + 1


@pytest.mark.usefixtures("_quick_retention")
async def test_refused_messages_are_bounded_by_their_number_and_not_by_age(start: StartWorker) -> None:
    worker = await start()
    await worker.ask(b"malformed")

    await worker.forward(100 * DAY)
    await worker.publish("jobs.nobody")
    await worker.one_dead()
    await worker.forward(15 * DAY)
    await until(lambda: worker.queue().dead == 0)
    await worker.idle()
    await worker.idle()

    assert len(worker.invalid()) == 1


# -- dead_letter_subject -------------------------------------------------------------------------------------


async def test_a_dead_letter_is_published_with_what_is_known_of_it(start: StartWorker, nc: Client) -> None:
    worker = await start(queues=[{"name": "q", **PUBLISHED}])
    dead = await Handler.listen(nc, "dead.>")
    jobs = await Handler.listen(nc, "jobs.>")
    headers = {"Requeue-Queue": "q", "Requeue-Retries": "2", "Requeue-TTL": "9h", "Trace": "t"}
    await worker.publish_plain("jobs.a", b"payload", headers)

    for error in (b"first", b"second"):
        last = await jobs.next()
        await nc.publish(last.reply, b"-NAK " + error)
    msg = await dead.next()
    letter = await worker.one_dead("q")
    said = headers_of(msg)

    assert (msg.subject, msg.data, msg.reply) == ("dead.letters", b"payload", "")
    assert (said["Requeue-Dead-Reason"], said["Requeue-Subject"]) == ("exhausted", "jobs.a")
    assert said["Requeue-Died-At"] == ns_to_rfc3339(letter.time_ns)
    assert (said["Requeue-Attempt"], said["Requeue-Max-Attempts"]) == ("2", "2")
    assert (said["Requeue-Last-Error"], said["Requeue-Queue"], said["Trace"]) == ("second", "q", "t")
    for name in ("Requeue-Id", "Requeue-Enqueued-At", "Requeue-Deadline", "Nats-Msg-Id"):
        assert said[name] == headers_of(last)[name]


@pytest.mark.parametrize("death", ["exhausted", "expired", "terminated"])
async def test_dead_letters_of_every_reason_are_published_once_and_stay(
    start: StartWorker, nc: Client, death: str
) -> None:
    worker = await start(defaults=PUBLISHED)
    dead = await Handler.listen(nc, "dead.>")
    if death == "terminated":
        await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.term())

    if death == "expired":
        await worker.publish("jobs.a", b"p", delay_ns=HOUR, ttl_ns=5 * MS)
    else:
        await worker.publish("jobs.a", b"p")
    msg = await dead.next()
    await until(lambda: marks(worker) == 0)

    assert headers_of(msg)["Requeue-Dead-Reason"] == death
    assert len(dead.received) == 1
    assert (await worker.one_dead()).extras.reason == death


async def test_where_no_subject_is_named_nothing_is_published(start: StartWorker, nc: Client) -> None:
    worker = await start(queues=[{"name": "told", **PUBLISHED}])
    dead = await Handler.listen(nc, "dead.>")

    await worker.publish("jobs.nobody", b"1", queue="silent")
    await worker.one_dead("silent")
    await worker.ask(b"malformed")
    await worker.publish("jobs.nobody", b"2", queue="told")
    await dead.next()

    assert dead.payloads == [b"2"]


async def test_a_crash_between_burial_and_publish_loses_no_dead_letter(
    start: StartWorker, nc: Client, tmp_path: Path
) -> None:
    first = await start(defaults=PUBLISHED)
    dead = await Handler.listen(nc, "dead.>")
    crashed = asyncio.Event()

    async def never(keys: list[bytes]) -> None:
        crashed.set()
        await asyncio.Event().wait()

    first.worker._dead_letters._publish = never  # type: ignore[method-assign]
    await first.publish("jobs.nobody", b"p")
    await crashed.wait()
    first.crash_image(tmp_path / "crashed")
    published_before = len(dead.received)

    second = await start(defaults=PUBLISHED, data_dir=tmp_path / "crashed")
    msg = await dead.next()
    await until(lambda: marks(second) == 0)

    assert published_before == 0
    assert (msg.data, headers_of(msg)["Requeue-Dead-Reason"]) == (b"p", "exhausted")
    assert len(second.dead()) == 1


async def test_a_published_dead_letter_is_not_published_again_after_a_restart(
    start: StartWorker, nc: Client
) -> None:
    first = await start(defaults=PUBLISHED)
    dead = await Handler.listen(nc, "dead.>")
    await first.publish("jobs.nobody", b"old")
    await dead.next()
    await until(lambda: marks(first) == 0)
    await first.stop()

    second = await start(defaults=PUBLISHED)
    await second.publish("jobs.nobody", b"new")
    await dead.next()

    assert dead.payloads == [b"old", b"new"]


async def server_with_stream(nats_server_factory: NatsServerFactory) -> tuple[NatsServer, Client]:
    """A server whose stream keeps what is published to `dead.>`, whoever listens; and a connection to it."""
    server = nats_server_factory(jetstream=True)
    nc = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
    await nc.jetstream().add_stream(name="DEAD", subjects=["dead.>"])
    return server, nc


async def test_what_died_while_nats_was_down_is_published_when_it_is_back(
    start: StartWorker, nats_server_factory: NatsServerFactory
) -> None:
    server, nc = await server_with_stream(nats_server_factory)
    worker = await start(nats={"servers": [server.url]}, defaults={**PUBLISHED, "ack_timeout": "100ms"})
    worker.nc = nc
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.a", b"p", ttl_ns=HOUR)
    await jobs.next()

    await asyncio.to_thread(server.stop)
    await worker.forward(2 * HOUR)
    await asyncio.to_thread(server.start)
    await worker.one_dead()
    await until(lambda: marks(worker) == 0)

    await until(lambda: nc.is_connected)
    assert (await nc.jetstream().get_msg("DEAD", 1)).data == b"p"
    await nc.close()


async def test_a_connection_lost_just_before_the_publish_does_not_count_as_published(
    start: StartWorker, nats_server_factory: NatsServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "RETRY_S", 0.1)
    server, nc = await server_with_stream(nats_server_factory)
    worker = await start(nats={"servers": [server.url]}, defaults=PUBLISHED)
    worker.nc = nc
    store, broker = worker.worker._store, worker.worker._broker
    get_dead = store.get_dead
    cut = asyncio.Event()

    async def cut_the_line(key: bytes) -> bytes | None:
        value = await get_dead(key)
        if not cut.is_set():
            await asyncio.to_thread(server.stop)
            await until(lambda: not broker.connected)
            cut.set()
        return value

    store.get_dead = cut_the_line  # type: ignore[method-assign]
    await worker.publish("jobs.nobody", b"p")
    await cut.wait()
    await asyncio.to_thread(server.start)
    await until(lambda: marks(worker) == 0)

    await until(lambda: nc.is_connected)
    assert (await nc.jetstream().get_msg("DEAD", 1)).data == b"p"
    await nc.close()


async def test_a_subject_that_the_worker_may_not_publish_to_keeps_its_dead_letters_marked(
    start: StartWorker, nats_server_factory: NatsServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "RETRY_S", 0.01)
    server = nats_server_factory(
        config="""authorization { users = [
            {user: worker, password: w, permissions: {publish: {deny: ["dead.>"]}}}
            {user: client, password: c}
        ] }"""
    )
    worker = await start(
        nats={"servers": [server.url], "user": "worker", "password": "w"}, defaults=PUBLISHED
    )
    worker.nc = await nats.connect(server.url, user="client", password="c")
    tries = 0
    publish = worker.worker._dead_letters._publish

    async def count(keys: list[bytes]) -> list[bytes]:
        nonlocal tries
        tries += 1
        return await publish(keys)

    worker.worker._dead_letters._publish = count  # type: ignore[method-assign]
    await worker.publish("jobs.nobody", b"p")
    await until(lambda: tries >= 15)

    assert marks(worker) == 1
    assert 'Permissions Violation for Publish to "dead.letters"' in worker.worker.ready()[1]
    await worker.nc.close()


async def test_a_dead_letter_too_large_to_publish_holds_nobody_up(
    start: StartWorker, nats_server_factory: NatsServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "RETRY_S", 0.05)
    wide = nats_server_factory(config="max_payload: 200000\n")
    narrow = nats_server_factory(config="max_payload: 20000\n")
    first = await start(nats={"servers": [wide.url]}, defaults=PUBLISHED)
    first.nc = await nats.connect(wide.url)
    await first.publish("jobs.large", b"x" * 100_000, delay_ns=100 * MS)
    await first.publish("jobs.small", b"small", delay_ns=100 * MS)
    await first.stop()
    await first.nc.close()

    nc = await nats.connect(narrow.url)
    dead = await Handler.listen(nc, "dead.>")
    second = await start(nats={"servers": [narrow.url], "reconnect_wait": "20ms"}, defaults=PUBLISHED)
    connection = second.worker._broker.connection
    await until(lambda: second.queue().dead == 2)
    await until(lambda: marks(second) == 0)

    assert dead.payloads == [b"small"]
    assert second.worker._broker.connection == connection
    await nc.close()
