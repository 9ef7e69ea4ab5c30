"""The admin API as a NATS micro service, asked as any NATS client asks: discovery, endpoints, pages, mistakes."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.integration.worker.support import HOUR, Handler, StartWorker, refusal_of
from tests.servers import NatsServerFactory, until


async def ask(nc: Client, endpoint: str, instance: str | None = "tested", **request: Any) -> dict[str, Any]:
    """One instance's answer."""
    answer = await asked(nc, endpoint, json.dumps(request).encode(), instance)
    assert not answer.headers, answer.headers
    return dict(json.loads(answer.data))


async def asked(nc: Client, endpoint: str, payload: bytes, instance: str | None = "tested") -> Msg:
    subject = f"_requeue.admin.{endpoint}" + (f".{instance}" if instance else "")
    return await nc.request(subject, payload, timeout=20)


async def everybody(nc: Client, subject: str, most: int) -> list[dict[str, Any]]:
    """So many answers of whoever answers."""
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    await nc.publish(subject, b"", reply=inbox)
    found = [json.loads((await answers.next_msg(20)).data) for _ in range(most)]
    await answers.unsubscribe()
    return found


async def all_pages(nc: Client, endpoint: str, key: str, **request: Any) -> list[list[dict[str, Any]]]:
    pages: list[list[dict[str, Any]]] = []
    after = ""
    while after is not None:
        answer = await ask(nc, endpoint, **request, after=after)
        pages.append(answer[key])
        after = answer["next"]
    return pages


# -- discovery -----------------------------------------------------------------------------------------------------


async def test_every_instance_is_discovered_by_service_name_and_by_id(
    start: StartWorker, nc: Client, tmp_path: Path
) -> None:
    await start()
    await start(instance_id="second.one", data_dir=tmp_path / "other")
    for subject in ("$SRV.PING", "$SRV.PING.requeue"):
        pings = await everybody(nc, subject, 2)
        assert {ping["id"] for ping in pings} == {"tested", "second%2Eone"}
        assert {(ping["type"], ping["name"]) for ping in pings} == {
            ("io.nats.micro.v1.ping_response", "requeue")
        }
    [ping] = await everybody(nc, "$SRV.PING.requeue.second%2Eone", 1)
    assert ping["metadata"] == {"instance": "second.one", "fleet": "default"}


async def test_info_describes_each_endpoint_and_its_subject_answers_what_its_schema_says(
    start: StartWorker, nc: Client
) -> None:
    await start()
    [info] = await everybody(nc, "$SRV.INFO.requeue.tested", 1)
    assert info["type"] == "io.nats.micro.v1.info_response"
    by_name = {endpoint["name"]: endpoint for endpoint in info["endpoints"]}
    assert {name for name in by_name if not name.endswith("-one")} == {
        *("instances", "queues", "stats", "list", "count", "get", "cancel", "reschedule"),
        *(
            "pause",
            "resume",
            "purge",
            "move",
            "redrive",
            "jobs",
            "cancel-job",
            "dead-delete",
            "dead-export",
            "dead-known",
            "dead-import",
        ),
    }
    for name, endpoint in by_name.items():
        schemas = {key: json.loads(schema) for key, schema in endpoint["metadata"].items()}
        assert set(schemas) == {"request_schema", "response_schema"}
        if not schemas["request_schema"].get("required") and not name.startswith("dead-delete"):
            answer = json.loads((await nc.request(endpoint["subject"], b"", timeout=20)).data)
            assert set(answer) == set(schemas["response_schema"]["required"]), name


async def test_stats_count_requests_and_errors_of_each_endpoint(start: StartWorker, nc: Client) -> None:
    await start()
    await ask(nc, "queues")
    await asked(nc, "queues", b"nonsense")
    [stats] = await everybody(nc, "$SRV.STATS.requeue.tested", 1)
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    [endpoint] = [each for each in stats["endpoints"] if each["name"] == "queues-one"]
    assert (endpoint["num_requests"], endpoint["num_errors"]) == (2, 1)
    assert endpoint["last_error"].startswith("400:")
    assert endpoint["processing_time"] // 2 == endpoint["average_processing_time"]


# -- instances, queues, stats --------------------------------------------------------------------------------------


async def test_instances_tell_what_they_hold(start: StartWorker, nc: Client, tmp_path: Path) -> None:
    worker = await start()
    await start(instance_id="second", data_dir=tmp_path / "other", intake=False)
    await worker.publish("jobs.a", delay_ns=3600 * 10**9)
    answers = {each["instance"]: each for each in await everybody(nc, "_requeue.admin.instances", 2)}
    assert (answers["tested"]["pending"], answers["second"]["pending"]) == (1, 0)
    assert (answers["tested"]["ready"], answers["tested"]["state"]) == (True, "ready")


async def test_queues_come_in_pages_that_hold_each_of_them_once(start: StartWorker, nc: Client) -> None:
    worker = await start()
    names = [f"queue-{number:02}" for number in range(25)]
    for name in names:
        await worker.publish("jobs.a", b"12345", queue=name, delay_ns=3600 * 10**9)
    pages = await all_pages(nc, "queues", "queues", limit=10)
    assert [len(page) for page in pages] == [10, 10, 5]
    entries = [entry for page in pages for entry in page]
    assert [entry["name"] for entry in entries] == names
    assert {(entry["pending"], entry["in_flight"], entry["dead"]) for entry in entries} == {(1, 0, 0)}
    assert all(entry["next_due_ns"] > worker.clock() for entry in entries)
    assert (await ask(nc, "queues", queue="queue-07"))["queues"] == [entries[7]]
    assert (await ask(nc, "queues", queue="nothing"))["queues"] == []


async def test_an_overview_has_each_queue_of_every_page_once(start: StartWorker) -> None:
    worker = await start()
    names = [f"queue-{number:05}" for number in range(2100)]
    for name in names:
        worker.queue(name)
    lines = [json.loads(line) async for line in worker.worker.overview()]
    assert [line["endpoint"] for line in lines] == ["instances", *["queues"] * 3, *["stats"] * 3]
    for endpoint in ("queues", "stats"):
        pages = [line["answer"]["queues"] for line in lines if line["endpoint"] == endpoint]
        assert [entry["name"] for page in pages for entry in page] == names


async def test_a_page_ends_where_the_servers_max_payload_ends_it(
    start: StartWorker, nats_server_factory: NatsServerFactory
) -> None:
    server = nats_server_factory(config="max_payload: 8192")
    nc = await nats.connect(server.url)
    worker = await start(nats={"servers": [server.url]})
    worker.nc = nc
    names = [f"{number:0100}" for number in range(40)]
    for name in names:
        await worker.publish("jobs.a", queue=name, delay_ns=3600 * 10**9)
    pages = await all_pages(nc, "queues", "queues")
    assert len(pages) > 1
    assert [entry["name"] for page in pages for entry in page] == names
    await nc.close()


async def test_stats_tell_what_happened_to_messages(start: StartWorker, nc: Client) -> None:
    worker = await start(defaults={"retries": 1})
    await worker.publish("nobody.here", queue="lost", retries=1)
    await until(lambda: worker.queue("lost").dead)
    await worker.idle()
    answer = await ask(nc, "stats", queue="lost")
    [queue] = answer["queues"]
    assert (queue["replays"], queue["settled"], queue["dead"]) == (1, 0, {"exhausted": 1})
    assert (queue["accepted"], answer["intake_messages"]) == (1, 1)


async def test_new_messages_are_counted_for_their_queue_however_they_come_and_no_other_thing(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(queues=[{"name": "mail", "max_messages": 3}])
    for _ in range(2):  # the second one is a duplicate
        await worker.publish("jobs.a", queue="mail", delay_ns=HOUR, headers={"Nats-Msg-Id": "one"})
    await worker.publish("jobs.a", queue="mail", delay_ns=HOUR)
    await worker.publish("nobody.here", queue="lost", retries=1)
    await worker.publish_plain("jobs.a", headers={"Requeue-Queue": "mail", "Requeue-Delay": "1h"})
    full = await worker.ask(b"", {"Requeue-Subject": "jobs.a", "Requeue-Queue": "mail"})
    assert refusal_of(full)[0] == 429
    await until(lambda: worker.queue("lost").dead)
    await worker.idle()
    await ask(nc, "redrive", queue="lost", to_subject="jobs.nobody")
    await until(lambda: worker.worker.counts.redriven == 1)
    queues = {entry["name"]: entry["accepted"] for entry in (await ask(nc, "stats"))["queues"]}
    assert queues == {"mail": 3, "lost": 1}


# -- list and get --------------------------------------------------------------------------------------------------


async def test_each_message_is_listed_in_the_state_that_it_is_in(start: StartWorker, nc: Client) -> None:
    worker = await start(queues=[{"name": "mail", "retries": 1}])
    jobs = await Handler.listen(nc, "jobs.>")
    await worker.publish("jobs.now", b"now", queue="mail", retries=1)
    held = await jobs.next()
    await worker.publish("nobody.here", b"gone", queue="mail", retries=1)
    await worker.publish("jobs.later", b"later", queue="mail", delay_ns=3600 * 10**9)
    await until(lambda: worker.queue("mail").dead)
    await worker.idle()
    await worker.publish("other.queue", queue="other", delay_ns=3600 * 10**9)
    listed = {
        state: (await ask(nc, "list", state=state, queue="mail", payload_bytes=3))["messages"]
        for state in ("pending", "in-flight", "dead")
    }
    assert {state: [entry["subject"] for entry in entries] for state, entries in listed.items()} == {
        "pending": ["jobs.later"],
        "in-flight": ["jobs.now"],
        "dead": ["nobody.here"],
    }
    [pending], [dead] = listed["pending"], listed["dead"]
    assert (base64.b64decode(pending["payload"]), pending["payload_size"]) == (b"lat", 5)
    assert (dead["reason"], dead["last_error"], dead["due_ns"]) == ("exhausted", "no responders", None)
    assert held.headers is not None
    assert listed["in-flight"][0]["id"] == held.headers["Requeue-Id"]
    assert {entry["state"] for entries in listed.values() for entry in entries} == set(listed)
    await held.ack()


async def test_filters_leave_what_does_not_match(start: StartWorker, nc: Client) -> None:
    worker = await start()
    for subject in ("orders.new", "orders.old.one", "mail.out"):
        await worker.publish_plain(subject, headers={"Requeue-Delay": "1h", "Nats-Msg-Id": subject})
    [middle] = [stored for stored in worker.pending() if stored.record.subject == b"orders.old.one"]
    at_ns = middle.record.enqueued_ns

    async def subjects(**request: Any) -> list[str]:
        return sorted(entry["subject"] for entry in (await ask(nc, "list", **request))["messages"])

    assert await subjects(subject="orders.*") == ["orders.new"]
    assert await subjects(subject="orders.>") == ["orders.new", "orders.old.one"]
    assert await subjects(id="mail.out") == ["mail.out"]
    assert await subjects(id=middle.id) == ["orders.old.one"]
    assert await subjects(enqueued_before_ns=at_ns) == ["orders.new"]
    assert await subjects(enqueued_after_ns=at_ns) == ["mail.out"]
    assert await subjects(reason="exhausted") == []
    assert await subjects(queue="nothing") == []


async def test_counts_of_pages_add_up_to_what_the_filter_means(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.micro.scans.SCAN_RECORDS", 20)
    worker = await start()
    for number in range(30):
        subject = "orders.new" if number % 3 else "mail.out"
        await worker.publish_plain(subject, b"12345", {"Requeue-Delay": "1h"})
    sizes = [stored.record.size for stored in worker.pending() if stored.record.subject == b"orders.new"]
    counted: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        counted.append(await ask(nc, "count", subject="orders.*", after=after))
        after = counted[-1]["next"]
    assert len(counted) > 1
    assert sum(page["messages"] for page in counted) == len(sizes) == 20
    assert sum(page["bytes"] for page in counted) == sum(sizes)
    assert (await ask(nc, "count", state="dead"))["messages"] == 0
    assert (await ask(nc, "count", state="in-flight"))["messages"] == 0


async def test_pages_of_a_list_hold_each_message_once_though_others_are_settled_meanwhile(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "now.>", answer=lambda msg: msg.ack())
    subjects = [f"later.{number}" for number in range(45)]
    for number, subject in enumerate(subjects):
        await worker.publish(subject, queue=f"q{number % 3}", delay_ns=3600 * 10**9)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        answer = await ask(nc, "list", limit=10, after=after)
        seen += [entry["subject"] for entry in answer["messages"]]
        after = answer["next"]
        await worker.publish("now.a", queue="q0")
        await jobs.next()
    assert sorted(seen) == sorted(subjects)


async def test_a_page_ends_after_a_bounded_look_and_the_next_one_goes_on(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.micro.scans.SCAN_RECORDS", 30)
    worker = await start()
    for number in range(50):
        await worker.publish("wanted.yes" if number == 49 else "other.no", delay_ns=(3600 + number) * 10**9)
    pages = await all_pages(nc, "list", "messages", subject="wanted.*")
    assert len(pages) > 1
    assert [len(page) for page in pages] == [*[0] * (len(pages) - 1), 1]


@pytest.mark.parametrize("state", ["pending", "in-flight", "dead"])
async def test_a_message_is_found_by_both_its_ids_whatever_its_state(
    start: StartWorker, nc: Client, state: str
) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")
    subject = "nobody.here" if state == "dead" else "jobs.a"
    delay = {"Requeue-Delay": "1h"} if state == "pending" else {}
    headers = {"Nats-Msg-Id": "mine", "Trace": "t1", "Requeue-Retries": "1", **delay}
    await worker.publish_plain(subject, b"payload", headers)
    if state == "dead":
        await until(lambda: worker.queue().dead)
        await worker.idle()
    held = await jobs.next() if state == "in-flight" else None
    [entry] = (await ask(nc, "list", state=state))["messages"]
    for wanted in ("mine", entry["id"]):
        pages = await all_pages(nc, "get", "messages", id=wanted)
        found = {each["id"]: each for page in pages for each in page}
        assert list(found) == [entry["id"]]
        detail = found[entry["id"]]
        assert (detail["state"], detail["client_id"], base64.b64decode(detail["payload"])) == (
            *(state, "mine"),
            b"payload",
        )
        assert "Trace: t1" in detail["headers"]
        assert [attempt["error"] for attempt in detail["history"]] == ["no responders"] * (state == "dead")
    if held is not None:
        await held.ack()


async def test_a_message_that_is_larger_than_an_answer_may_be_is_shown_in_part(
    start: StartWorker, nats_server_factory: NatsServerFactory
) -> None:
    server = nats_server_factory(config="max_payload: 65536")
    nc = await nats.connect(server.url)
    worker = await start(nats={"servers": [server.url]})
    worker.nc = nc
    await worker.publish_plain("jobs.a", b"x" * 60_000, {"Requeue-Delay": "1h", "Nats-Msg-Id": "large"})
    [detail] = (await ask(nc, "get", id="large"))["messages"]
    assert detail["payload_size"] == 60_000
    assert 10_000 < len(base64.b64decode(detail["payload"])) < 60_000
    await nc.close()


async def test_browsing_without_end_stops_no_message(start: StartWorker, nc: Client) -> None:
    """Many at once look at all there is, while messages come and go."""
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    for number in range(200):
        await worker.publish("later.a", delay_ns=(3600 + number) * 10**9)
    looks = [asyncio.create_task(all_pages(nc, "list", "messages", limit=5)) for _ in range(10)]
    for _ in range(50):
        await worker.publish("jobs.a")
        await jobs.next()
    for pages in await asyncio.gather(*looks):
        assert sum(len(page) for page in pages) >= 200


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "payload", "text"),
    [
        ("queues", b"nonsense", "Invalid JSON"),
        ("queues", b'{"limit": 0}', "limit"),
        ("queues", b'{"limits": 5}', "limits"),
        ("list", b'{"state": "settled"}', "state"),
        ("list", b'{"after": "xyz"}', "no cursor"),
        ("list", b'{"subject": "a..b"}', "not a subject pattern"),
        ("get", b"{}", "id"),
        ("get", b'{"id": "x", "after": "q:00"}', "no cursor"),
        ("get", b'{"id": "' + b"x" * 20_000 + b'"}', "16384 are enough"),
        ("list", b"[" * 10_000, "request"),
    ],
)
async def test_a_request_that_makes_no_sense_is_answered_with_what_is_wrong_and_with_a_code(
    start: StartWorker, nc: Client, endpoint: str, payload: bytes, text: str
) -> None:
    await start()
    answer = await asked(nc, endpoint, payload)
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "400"
    assert text in answer.headers["Nats-Service-Error"]
    body = json.loads(answer.data)
    assert (body["instance"], body["code"]) == ("tested", 400)
    assert text in body["error"]
