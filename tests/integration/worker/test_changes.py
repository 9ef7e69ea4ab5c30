"""Changes by the admin API, asked as any NATS client asks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import ReadOnly, RequeueClient
from requeue_protocol.changes import UNTIL_RESUMED
from requeue_protocol.envelope import build_envelope

from tests.integration.worker.support import HOUR, INTAKE, Handler, LiveWorker, StartWorker, ask
from tests.servers import until

LOOKS = {"instances", "queues", "stats", "list", "count", "get", "jobs", "dead-export", "dead-known"}


# -- admin.read_only ---------------------------------------------------------------------------------------------


async def test_a_read_only_api_refuses_every_change_and_answers_questions(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(admin={"read_only": True})
    await worker.publish_plain("jobs.a", b"", {"Nats-Msg-Id": "x", "Requeue-Delay": "1h"})
    before = worker.pending()
    info = json.loads((await ask(nc, "$SRV.INFO.requeue.tested", b"")).data)
    refused = set()
    for endpoint in info["endpoints"]:
        answer = await ask(nc, endpoint["subject"], b"nonsense")
        if json.loads(answer.data).get("code") == 405:
            assert answer.headers is not None
            assert answer.headers["Nats-Service-Error-Code"] == "405"
            assert "admin.read_only" in answer.headers["Nats-Service-Error"]
            refused.add(endpoint["name"])
    names = {endpoint["name"] for endpoint in info["endpoints"]}
    assert refused == names - LOOKS - {f"{name}-one" for name in LOOKS}
    assert worker.pending() == before


async def test_a_client_is_told_by_type_that_the_api_is_read_only_and_not_to_ask_again(
    start: StartWorker, nc: Client
) -> None:
    await start(admin={"read_only": True})
    client = RequeueClient(nc)
    for changed in (client.cancel("x"), client.reschedule("x", delay="1h")):
        with pytest.raises(ReadOnly, match="worker tested: nothing was changed") as told:
            await changed
        assert "ask again" not in str(told.value)


async def test_an_error_of_cancel_and_reschedule_is_counted_and_has_the_headers_of_any_service(
    start: StartWorker, nc: Client
) -> None:
    await start()
    for name in ("cancel", "reschedule"):
        answer = await ask(nc, f"_requeue.admin.{name}", b'{"id": ""}')
        assert answer.headers is not None
        assert answer.headers["Nats-Service-Error-Code"] == "400"
        assert answer.headers["Nats-Service-Error"] == json.loads(answer.data)["error"]
    stats = json.loads((await ask(nc, "$SRV.STATS.requeue.tested", b"")).data)
    errors = {each["name"]: each["num_errors"] for each in stats["endpoints"]}
    assert (errors["cancel"], errors["reschedule"]) == (1, 1)


# -- pause and resume --------------------------------------------------------------------------------------------


async def answer_of(nc: Client, endpoint: str, **request: Any) -> dict[str, Any]:
    answer = await ask(nc, f"_requeue.admin.{endpoint}.tested", json.dumps(request).encode())
    assert not answer.headers, answer.headers
    return dict(json.loads(answer.data))


async def test_a_paused_queue_takes_messages_and_sends_none_until_it_is_resumed(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    paused = await answer_of(nc, "pause", queue="mail")
    assert (paused["known"], paused["paused_until_ns"]) == (False, UNTIL_RESUMED)
    await worker.publish("jobs.held", b"held", queue="mail")
    await worker.publish("jobs.other", b"other", queue="other")
    assert (await jobs.next()).data == b"other"
    await worker.forward(200 * 365 * 24 * HOUR)
    await worker.publish("jobs.other", b"again", queue="other")
    assert (await jobs.next()).data == b"again"
    assert worker.queue("mail").counts.replays == 0
    resumed = await answer_of(nc, "resume", queue="mail")
    assert (resumed["was_paused"], resumed["paused_until_ns"], resumed["pending"]) == (True, None, 1)
    assert (await jobs.next()).data == b"held"


async def test_a_pause_stops_what_is_read_ahead_and_leaves_what_is_in_flight(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(queues=[{"name": "mail", "max_in_flight": 1}])
    jobs = await Handler.listen(nc, "jobs.>")
    for number in range(3):
        await worker.publish("jobs.a", b"%d" % number, queue="mail")
    first = await jobs.next()
    await until(lambda: len(worker.queue("mail").lane().ready) == 2)
    await answer_of(nc, "pause", queue="mail")
    await first.ack()
    await until(lambda: worker.queue("mail").pending == 2)
    assert worker.queue("mail").counts.replays == 1
    await answer_of(nc, "resume", queue="mail")
    assert (await jobs.next()).data == b"1"


async def test_a_timed_pause_ends_by_itself(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    paused = await answer_of(nc, "pause", queue="mail", for_ns=HOUR)
    assert HOUR - 60 * 10**9 < paused["paused_until_ns"] - worker.clock() <= HOUR
    await worker.publish("jobs.a", queue="mail")
    await until(lambda: worker.queue("mail").lane().ready)
    assert worker.queue("mail").counts.replays == 0
    await worker.forward(HOUR)
    await jobs.next()


async def test_a_pause_survives_a_crash_and_a_restart(start: StartWorker, nc: Client, tmp_path: Path) -> None:
    worker = await start()
    await answer_of(nc, "pause", queue="mail")
    await worker.publish("jobs.a", queue="mail")
    worker.crash_image(tmp_path / "crashed")
    await worker.stop()
    for data_dir in (worker.path.parent, tmp_path / "crashed"):
        again = await start(data_dir=data_dir)
        [queue] = (await answer_of(nc, "queues", queue="mail"))["queues"]
        assert (queue["pending"], queue["paused_until_ns"]) == (1, UNTIL_RESUMED)
        await again.stop()


async def test_a_later_pause_replaces_an_earlier_one_and_a_resumed_queue_may_leave(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await answer_of(nc, "pause", queue="mail", for_ns=HOUR)
    assert (await answer_of(nc, "pause", queue="mail"))["paused_until_ns"] == UNTIL_RESUMED
    shorter = await answer_of(nc, "pause", queue="mail", for_ns=10**9)
    assert shorter["paused_until_ns"] < worker.clock() + HOUR
    await worker.worker._retirement.retire(at_once=True)
    assert "mail" in worker.worker._registry.by_name
    assert (await answer_of(nc, "resume", queue="mail"))["known"]
    await worker.worker._retirement.retire(at_once=True)
    assert "mail" not in worker.worker._registry.by_name
    gone = await answer_of(nc, "resume", queue="mail")
    assert (gone["known"], gone["was_paused"]) == (False, False)
    assert "mail" not in worker.worker._registry.by_name


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        ({}, 400, "queue"),
        ({"queue": "a b"}, 400, "queue"),
        ({"queue": "$invalid"}, 400, "queue"),
        ({"queue": "mail", "for_ns": 0}, 400, "for_ns"),
        ({"queue": "mail", "for_ns": 2**63}, 400, "for_ns"),
        ({"queue": "mail", "for_ns": 1, "until_ns": 2**62}, 400, "or neither"),
        ({"queue": "mail", "until_ns": 1}, 400, "has passed"),
        ({"queue": "second"}, 429, "max_queues"),
    ],
)
async def test_a_pause_that_makes_no_sense_is_refused_and_says_why(
    start: StartWorker, nc: Client, request_: dict[str, Any], code: int, says: str
) -> None:
    worker = await start(max_queues=1)
    await worker.publish("jobs.later", queue="mail", delay_ns=HOUR)
    answer = json.loads((await ask(nc, "_requeue.admin.pause", json.dumps(request_).encode())).data)
    assert (answer["code"], says in answer["error"]) == (code, True)
    assert not any(queue.paused_until_ns for queue in worker.worker._registry)
    assert worker.write_errors == []


# -- purge and move ----------------------------------------------------------------------------------------------


async def all_steps(nc: Client, endpoint: str, *, dry_run: bool = False, **request: Any) -> tuple[int, int]:
    """Ask until the end. Returns how many were changed, and how many were in flight."""
    changed = in_flight = 0
    after: str | None = ""
    while after is not None:
        answer = await answer_of(nc, endpoint, dry_run=dry_run, **request, after=after)
        changed += answer["changed"]
        in_flight += answer["in_flight"]
        after = answer["next"]
    return changed, in_flight


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("requeue_worker.micro.changing.STEP_MESSAGES", 7)
    monkeypatch.setattr("requeue_worker.micro.scans.SCAN_RECORDS", 20)
    monkeypatch.setattr(
        "requeue_worker.micro.scans.FEW", 1
    )  # else a step is smaller than what comes meanwhile


async def fill(worker: LiveWorker, number: int = 30) -> None:
    """So many in `mail`, of which every third is for orders, with all priorities and different due times."""
    for n in range(number):
        headers = {
            "Requeue-Delay": f"{1 + n % 5}h",
            "Requeue-Queue": "mail",
            "Requeue-Priority": str(n % 10),
            "Nats-Msg-Id": f"m{n}",
        }
        await worker.publish_plain("jobs.order" if n % 3 == 0 else "jobs.mail", b"%d" % n, headers)


async def test_a_purge_removes_what_the_filter_means_and_nothing_else(
    start: StartWorker, nc: Client, small_steps: None
) -> None:
    worker = await start()
    await fill(worker)
    await worker.publish("jobs.order", queue="other", delay_ns=HOUR)
    before = worker.pending("mail")
    for subject, changed in (("nobody.here", 0), ("jobs.order", 10)):
        counted = await all_steps(nc, "purge", queue="mail", subject=subject, dry_run=True)
        assert counted == (changed, 0)
    assert worker.pending("mail") == before
    assert await all_steps(nc, "purge", queue="mail", subject="jobs.order") == (10, 0)
    assert {stored.record.subject for stored in worker.pending("mail")} == {b"jobs.mail"}
    assert (worker.queue("mail").pending, len(worker.pending("other"))) == (20, 1)
    assert await all_steps(nc, "purge", queue="mail") == (20, 0)
    assert worker.dead("mail") == worker.pending("mail") == []
    await worker.publish_plain("jobs.mail", b"", {"Nats-Msg-Id": "m1", "Requeue-Delay": "1h"})
    assert len(worker.pending()) == 1, "a purged id is free again"


async def test_messages_are_purged_by_any_number_of_ids_of_both_kinds(
    start: StartWorker, nc: Client, small_steps: None
) -> None:
    worker = await start()
    await fill(worker)
    own = [stored.id for stored in worker.pending("mail") if int(stored.record.payload) >= 25]
    ids = [f"m{n}" for n in range(10)] + own
    assert await all_steps(nc, "purge", ids=ids, dry_run=True) == (15, 0)
    assert await all_steps(nc, "purge", ids=ids, subject="jobs.order") == (5, 0)
    assert await all_steps(nc, "purge", ids=ids, queue="other") == (0, 0)
    assert await all_steps(nc, "purge", ids=ids) == (10, 0)
    assert {int(stored.record.payload) for stored in worker.pending("mail")} == {*range(10, 25)}


async def test_what_is_published_while_a_purge_is_under_way_stays(
    start: StartWorker, nc: Client, small_steps: None
) -> None:
    worker = await start()
    await fill(worker)
    after: str | None = ""
    number = 100
    while after is not None:
        after = (await answer_of(nc, "purge", dry_run=False, queue="mail", after=after))["next"]
        headers = {"Requeue-Queue": "mail", "Requeue-Delay": "100h", "Requeue-Priority": "9"}
        await worker.publish_plain("jobs.mail", b"%d" % number, headers)
        number += 1
    assert {int(stored.record.payload) for stored in worker.pending("mail")} == {*range(100, number)}
    assert number > 103


async def test_what_a_handler_has_is_counted_and_stays_and_what_waits_for_a_slot_goes(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(queues=[{"name": "mail", "max_in_flight": 2}])
    jobs = await Handler.listen(nc, "jobs.>")
    for number in range(10):
        await worker.publish("jobs.a", b"%d" % number, queue="mail", retries=5)
    held = [await jobs.next(), await jobs.next()]
    await until(lambda: len(worker.queue("mail").lane().ready) == 8)
    assert await all_steps(nc, "purge", queue="mail", dry_run=True) == (8, 2)
    assert await all_steps(nc, "purge", queue="mail") == (8, 2)
    await held[0].nak()
    await held[1].ack()
    assert (await jobs.next()).data == held[0].data
    await until(lambda: worker.queue("mail").pending == 1)
    await jobs.received[-1].ack()
    await worker.until_empty("mail")
    assert len(jobs.received) == 3


async def test_messages_are_run_now(start: StartWorker, nc: Client, small_steps: None) -> None:
    worker = await start()
    await fill(worker)
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    assert await all_steps(nc, "move", queue="mail", delay_ns=0, ids=["m3", "m4"]) == (2, 0)
    assert {(await jobs.next()).data for _ in range(2)} == {b"3", b"4"}
    assert await all_steps(nc, "move", queue="mail", delay_ns=0) == (28, 0)
    await worker.until_empty("mail")
    assert sorted(int(data) for data in jobs.payloads) == [*range(30)]


async def test_a_move_sets_each_messages_time_once_and_never_beyond_its_deadline(
    start: StartWorker, nc: Client, small_steps: None
) -> None:
    worker = await start()
    await fill(worker)
    await worker.publish("jobs.a", b"100", queue="mail", delay_ns=HOUR, ttl_ns=2 * HOUR)
    deadline_ns = next(each for each in worker.pending("mail") if each.record.deadline_ns).record.deadline_ns
    at_ns = worker.clock() + 3 * HOUR
    assert await all_steps(nc, "move", queue="mail", at_ns=at_ns, dry_run=True) == (31, 0)
    assert await all_steps(nc, "move", queue="mail", at_ns=at_ns) == (31, 0)
    assert {stored.time_ns for stored in worker.pending("mail")} == {at_ns, deadline_ns}
    assert await all_steps(nc, "move", queue="mail", at_ns=at_ns) == (0, 0)
    before_ns = worker.clock()
    assert await all_steps(nc, "move", queue="mail", delay_ns=HOUR) == (31, 0)
    [moved_ns] = {stored.time_ns for stored in worker.pending("mail")}
    assert before_ns + HOUR <= moved_ns <= worker.clock() + HOUR


async def test_a_purge_of_a_paused_queue_empties_what_was_read_ahead(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await answer_of(nc, "pause", queue="mail")
    for number in range(50):
        await worker.publish("jobs.a", b"%d" % number, queue="mail")
    await until(lambda: len(worker.queue("mail").lane().ready) == 50)
    assert await all_steps(nc, "purge", queue="mail", enqueued_after_ns=1) == (50, 0)
    assert len(worker.queue("mail").lane().ready) == worker.queue("mail").pending == 0


async def test_purges_that_race_with_delivery_leave_each_message_either_delivered_or_purged(
    start: StartWorker, nc: Client, small_steps: None
) -> None:
    worker = await start(queues=[{"name": "mail", "max_in_flight": 1}])
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    number = 400
    await answer_of(nc, "pause", queue="mail")
    for n in range(number):
        await worker.publish("jobs.a", b"%d" % n, queue="mail")
    await answer_of(nc, "resume", queue="mail")
    await jobs.next()
    purges = [asyncio.create_task(all_steps(nc, "purge", queue="mail")) for _ in range(3)]
    purged = sum([changed for changed, _ in await asyncio.gather(*purges)])
    await worker.until_empty("mail")
    assert purged > 0
    assert len(set(jobs.payloads)) == len(jobs.payloads)
    assert len(jobs.payloads) + purged == number


async def test_intake_goes_on_while_thousands_are_purged(start: StartWorker, nc: Client) -> None:
    """In steps, each of which holds the loop for less than the bound of ADR 28; what comes meanwhile is acknowledged."""
    worker = await start()
    envelope = build_envelope(subject="jobs.a", payload=b"x" * 100, queue="mail", delay_ns=HOUR)
    inbox, acks = nc.new_inbox(), asyncio.Semaphore(0)

    async def on_ack(msg: Msg) -> None:
        acks.release()

    await nc.subscribe(inbox, cb=on_ack)
    for _ in range(3_000):
        await nc.publish(INTAKE, envelope, reply=inbox)
    for _ in range(3_000):
        await asyncio.wait_for(acks.acquire(), 60)
    purge = asyncio.create_task(all_steps(nc, "purge", queue="mail"))
    taken = 0
    while not purge.done():
        await worker.publish("jobs.later", delay_ns=HOUR)
        taken += 1
    assert await purge == (3_000, 0)
    assert taken > 1
    assert len(worker.pending()) == taken


@pytest.mark.parametrize(
    ("endpoint", "request_", "says"),
    [
        ("purge", {}, "dry_run"),
        ("purge", {"queue": "mail"}, "dry_run"),
        ("purge", {"dry_run": False}, "say which messages"),
        ("purge", {"dry_run": False, "ids": []}, "say which messages"),
        ("purge", {"dry_run": False, "ids": ["x"] * 101}, "ids"),
        ("purge", {"dry_run": False, "queue": "mail", "after": "x"}, "no cursor"),
        ("purge", {"dry_run": False, "queue": "mail", "after": "k:1:1:abc"}, "no cursor"),
        ("purge", {"dry_run": False, "queue": "mail", "subject": "a..b"}, "subject"),
        ("move", {"dry_run": False, "queue": "mail"}, "either delay_ns or at_ns"),
        ("move", {"dry_run": False, "queue": "mail", "delay_ns": 1, "at_ns": 1}, "either delay_ns or at_ns"),
        ("move", {"dry_run": False, "queue": "mail", "delay_ns": -1}, "delay_ns"),
    ],
)
async def test_a_change_that_makes_no_sense_changes_nothing_and_says_why(
    start: StartWorker, nc: Client, endpoint: str, request_: dict[str, Any], says: str
) -> None:
    worker = await start()
    await worker.publish("jobs.a", queue="mail", delay_ns=HOUR)
    before = worker.pending("mail")
    answer = json.loads((await ask(nc, f"_requeue.admin.{endpoint}", json.dumps(request_).encode())).data)
    assert (answer["code"], says in answer["error"]) == (400, True)
    assert worker.pending("mail") == before


async def test_what_was_removed_and_moved_on_request_is_counted(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await fill(worker, 12)
    client = RequeueClient(nc)
    await client.cancel("m0")
    await client.reschedule("m1", delay="9h")
    await all_steps(nc, "move", ids=["m1", "m2"], delay_ns=8 * HOUR)
    await all_steps(nc, "purge", ids=["m3", "m4", "m0"], dry_run=True)
    await all_steps(nc, "purge", ids=["m3", "m4", "m0"])
    assert (worker.worker.counts.purged, worker.worker.counts.moved) == (3, 3)
