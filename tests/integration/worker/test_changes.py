"""Changes by the admin API, asked as any NATS client asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from requeue_client import ReadOnly, RequeueClient
from requeue_protocol.changes import UNTIL_RESUMED

from tests.integration.worker.support import HOUR, Handler, StartWorker, ask
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
