"""Dead letters deleted, exported and imported: what comes back is what was there, once, and nothing else goes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from requeue_protocol.dead_letters import pack, unpack
from requeue_worker.storage.rocksdb import DEAD, MESSAGES
from requeue_worker.verify import verify

from tests.integration.worker.support import HOUR, Handler, LiveWorker, StartWorker, headers_of
from tests.integration.worker.test_micro import ask, asked
from tests.integration.worker.test_redrive import kill, redrive
from tests.servers import NatsServerFactory, until

DAY = 24 * HOUR


async def exported(nc: Client, **request: Any) -> list[dict[str, Any]]:
    """All pages of an export, small and large."""
    letters: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        msg = await asked(nc, "dead-export", json.dumps({**request, "after": after}).encode())
        assert not msg.headers, msg.headers
        page = json.loads(unpack(msg.data, 1 << 24))
        assert len(page["keys"]) == len(page["letters"])
        letters, after = letters + page["letters"], page["next"]
    return letters


async def imported(nc: Client, letters: list[Mapping[str, Any]]) -> dict[str, Any]:
    return await ask(nc, "dead-import", letters=letters)


async def deleted(nc: Client, **request: Any) -> int:
    """Over all pages."""
    number, after = 0, ""
    request.setdefault("died_before_ns", 2**62)
    while after is not None:
        page = await ask(nc, "dead-delete", **request, after=after)
        number, after = number + page["deleted"], page["next"]
    return number


def facts(worker: LiveWorker, queue: str = "default") -> list[tuple[Any, ...]]:
    """All about a queue's dead letters but the form of their bytes."""
    return [
        (
            *(stored.id, stored.time_ns, stored.record.subject, stored.record.payload, stored.extras),
            *(stored.record.attempts, stored.record.retries, stored.record.delay_ns, stored.record.backoff),
            *(stored.record.enqueued_ns, stored.record.deadline_ns, stored.record.client_id),
        )
        for stored in worker.dead(queue)
    ]


# -- delete --------------------------------------------------------------------------------------------------------


async def test_what_the_filter_means_is_deleted_page_by_page_and_nothing_else(
    start: StartWorker, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requeue_worker.micro.dead.PAGE_LETTERS", 7)
    worker = await start()
    await kill(worker, 20, queue="mail", subject="mail.out")
    await kill(worker, 3, queue="orders", subject="orders.new")
    await kill(worker, 3, queue="mail", subject="mail.in")
    assert await deleted(nc, queue="mail", subject="mail.out") == 20
    assert [stored.record.subject for stored in worker.dead("mail")] == [b"mail.in"] * 3
    until_ns = worker.dead("mail")[1].time_ns
    assert await deleted(nc, queue="mail", died_before_ns=until_ns) == 1
    assert await deleted(nc) == 5
    assert worker.dead("orders") == []


async def test_refused_messages_are_deleted_too_and_the_newest_are_kept_as_before(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(invalid_kept=5)
    for number in range(5):
        await worker.ask(b"no envelope %d" % number)
    await until(lambda: len(worker.invalid()) == 5)
    first = worker.invalid()[0]
    answer = await ask(nc, "dead-delete", queue="$invalid", died_before_ns=first.time_ns + 1)
    assert answer["deleted"] == 1
    for number in range(5, 8):
        await worker.ask(b"no envelope %d" % number)
    await worker.idle()
    assert [stored.record.payload[-1:] for stored in worker.invalid()] == [b"3", b"4", b"5", b"6", b"7"]


async def test_the_same_letter_deleted_by_many_at_once_goes_once(start: StartWorker, nc: Client) -> None:
    """Deletions, redrives, and refused messages that push out others, all at the same letters."""
    worker = await start(invalid_kept=10)
    for number in range(10):
        await worker.ask(b"no envelope %d" % number)
    await kill(worker, 200)
    await Handler.listen(nc, "nobody.here", answer=lambda msg: msg.ack())
    keys = json.loads((await asked(nc, "dead-export", b"{}")).data)["keys"]
    answers = await asyncio.gather(
        *(ask(nc, "dead-delete", keys=keys) for _ in range(3)),
        *(ask(nc, "dead-delete", died_before_ns=2**62) for _ in range(3)),
        *(worker.ask(b"another %d" % number) for number in range(10)),
        redrive(nc),
    )
    taken = sum(answer["deleted"] for answer in answers[:6])
    await worker.until_empty()
    left = len(worker.dead()) + len(worker.invalid())
    assert taken + answers[-1]["redriven"] + left >= 210
    assert worker.dead() == []  # counters and data are compared at the end of each test


async def test_an_empty_request_deletes_nothing(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await kill(worker, 1)
    for payload in (b"", b"{}", b'{"after": ""}'):
        answer = await asked(nc, "dead-delete", payload)
        assert headers_of(answer)["Nats-Service-Error-Code"] == "400"
        assert "say which dead letters" in headers_of(answer)["Nats-Service-Error"]
    assert len(worker.dead()) == 1


# -- export and import ---------------------------------------------------------------------------------------------


async def some_of_each_kind(worker: LiveWorker) -> None:
    plain = {"Requeue-Retries": "1", "Requeue-TTL": "5h", "Requeue-Priority": "2", "Nats-Msg-Id": "mine"}
    lists = {"Requeue-Retries": "2", "Requeue-Backoff": "1ms,2ms", "Requeue-Ack-Timeout": "3s"}
    await worker.publish_plain("jobs.plain", b"\x00\xff", {**plain, "Trace": "ü"})
    await worker.publish_plain("jobs.list", b"list", lists)
    await worker.publish("jobs.envelope", b"e" * 300, retries=2, ttl_ns=5 * HOUR)
    await worker.publish("jobs.mixed", b"", retries=1, headers={"Requeue-Priority": "7", "Trace": "t"})
    await worker.ask(b"no envelope", {"Requeue-Nonsense": "x"})
    await until(lambda: len(worker.dead()) == 4 and worker.invalid())
    await worker.idle()


async def test_what_was_exported_and_deleted_is_the_same_after_an_import_and_its_redrive(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await some_of_each_kind(worker)
    before, refused = facts(worker), worker.invalid()
    letters = await exported(nc)
    assert len(letters) == 5
    assert await deleted(nc) == 5
    assert (worker.dead(), worker.invalid()) == ([], [])

    answer = await imported(nc, letters)
    assert (answer["imported"], answer["known"], answer["refused"]) == (5, 0, [])
    assert facts(worker) == before
    assert [stored.record.wire for stored in worker.invalid()] == [stored.record.wire for stored in refused]
    counts = worker.worker.counts
    assert (counts.dead_letters_deleted, counts.dead_letters_imported, counts.redriven) == (5, 5, 0)
    for again, letter in zip(await exported(nc), letters, strict=True):
        assert {**again, "headers": None} == {
            **letter,
            "headers": None,
        }  # an envelope says more in its headers now

    jobs = await Handler.listen(nc, "jobs.>")
    assert (await redrive(nc))["redriven"] == 4
    delivered = {(msg := await jobs.next()).subject: msg for _ in range(4)}
    assert {subject: msg.data for subject, msg in delivered.items()} == {
        "jobs.plain": b"\x00\xff",
        "jobs.list": b"list",
        "jobs.envelope": b"e" * 300,
        "jobs.mixed": b"",
    }
    assert headers_of(delivered["jobs.plain"])["Nats-Msg-Id"] == "mine"
    assert headers_of(delivered["jobs.mixed"])["Trace"] == "t"
    pending = {stored.record.subject: stored for stored in worker.pending()}
    assert {subject: stored.priority for subject, stored in pending.items()} == {
        b"jobs.plain": 2,
        b"jobs.list": 4,
        b"jobs.envelope": 4,
        b"jobs.mixed": 7,
    }
    assert counts.redriven == 4
    for subject in (b"jobs.plain", b"jobs.envelope"):
        assert pending[subject].record.deadline_ns - pending[subject].time_ns == 5 * HOUR


async def test_an_import_is_idempotent_also_within_itself_and_beside_what_never_left(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await kill(worker, 3)
    letters = await exported(nc)
    before = worker.dead()
    assert (await imported(nc, letters))["known"] == 3
    await deleted(nc, id=letters[0]["id"])
    answer = await imported(nc, [*letters, *letters])
    assert (answer["imported"], answer["known"]) == (1, 5)
    answers = await asyncio.gather(*(imported(nc, letters) for _ in range(5)))
    assert {answer["imported"] for answer in answers} == {0}
    assert [stored.id for stored in worker.dead()] == [stored.id for stored in before]
    keys = json.loads((await asked(nc, "dead-export", b"{}")).data)["keys"]
    assert (await ask(nc, "dead-known", keys=[*keys, "00" * 30]))["keys"] == sorted(keys)


async def test_what_is_pending_again_is_known_by_its_publishers_id_and_once_it_is_settled_it_is_new(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    for name in ("a", "b"):
        await worker.publish("jobs.a", retries=1, headers={"Nats-Msg-Id": name})
    await until(lambda: len(worker.dead()) == 2)
    letters = await exported(nc)
    keys = json.loads((await asked(nc, "dead-export", b"{}")).data)["keys"]
    await ask(nc, "pause", queue="default")
    await redrive(nc)
    assert len(worker.pending()) == 2
    answer = await imported(nc, letters)
    assert (answer["imported"], answer["known"], worker.dead()) == (0, 2, [])
    assert (await ask(nc, "dead-known", keys=keys, ids=["a"]))["keys"] == [
        key for key, letter in zip(keys, letters, strict=True) if "Nats-Msg-Id: a" in letter["headers"]
    ]
    await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())
    await ask(nc, "resume", queue="default")
    await worker.until_empty()
    assert (await imported(nc, letters))["imported"] == 2


async def test_a_letter_is_imported_by_another_worker_whatever_its_queue_was_there(
    start: StartWorker, nc: Client, tmp_path: Path
) -> None:
    worker = await start()
    await kill(worker, 2, queue="mail")
    letters = await exported(nc)
    other = await start(instance_id="other", data_dir=tmp_path / "other", intake=False)
    answer = await ask(nc, "dead-import", "other", letters=letters)
    assert answer["imported"] == 2
    await other.idle()
    assert [stored.id for stored in other.dead("mail")] == [letter["id"] for letter in letters]


async def test_what_may_not_stand_here_is_refused_with_its_reason_and_the_others_are_imported(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(queues=[{"name": "mail", "deny_subjects": ["secret.>"]}])
    await kill(worker, 3, queue="mail")
    letters = await exported(nc)
    await deleted(nc)
    letters[0]["subject"] = "secret.a"
    letters[1]["died_ns"] -= 15 * DAY
    answer = await imported(nc, letters)
    assert answer["imported"] == 1
    [denied, old] = answer["refused"]
    assert (denied["index"], old["index"]) == (0, 1)
    assert "secret.> is denied" in denied["error"]
    assert "keeps dead letters for 336h0m0s" in old["error"]
    assert [stored.id for stored in worker.dead("mail")] == [letters[2]["id"]]


async def test_a_line_may_be_edited_its_payload_and_its_subject(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await worker.publish_plain("jobs.old", b"wrong", {"Requeue-Retries": "1", "Trace": "t"})
    await worker.one_dead()
    [letter] = await exported(nc)
    await deleted(nc)
    edited = {**letter, "subject": "jobs.new", "payload": base64.b64encode(b"right").decode()}
    assert (await imported(nc, [edited]))["imported"] == 1
    jobs = await Handler.listen(nc, "jobs.new")
    await redrive(nc)
    msg = await jobs.next()
    assert (msg.data, headers_of(msg)["Trace"]) == (b"right", "t")


async def test_pages_hold_each_letter_once_where_they_are_large_and_compressed_where_one_fits_no_message(
    start: StartWorker, nats_server_factory: NatsServerFactory
) -> None:
    server = nats_server_factory(config="max_payload: 65536")
    nc = await nats.connect(server.url)
    worker = await start(nats={"servers": [server.url]})
    worker.nc = nc
    payloads = [os.urandom(size) for size in (10, 20_000, 20_000, 60_000, 20_000, 10)]
    for payload in payloads:
        await worker.publish("nobody.here", payload, retries=1)
    await until(lambda: len(worker.dead()) == len(payloads))
    before = facts(worker)
    letters = await exported(nc)
    assert [base64.b64decode(letter["payload"]) for letter in letters] == payloads
    await deleted(nc)
    for letter in letters:
        request = pack(json.dumps({"letters": [letter]}).encode(), nc.max_payload)
        assert json.loads((await asked(nc, "dead-import", request)).data)["imported"] == 1
    assert facts(worker) == before
    await nc.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"id": "xyz"}, "letters.0.id"),
        ({"payload": "!"}, "letters.0.payload"),
        ({"subject": "a b"}, "whitespace"),
        ({"queue": "a b"}, "queue name"),
        ({"headers": "no header"}, "a line is Name: value"),
        ({"format": 2}, "letters.0.format"),
        ({"deadline_ns": 1}, "before enqueued_ns"),
        ({"retires": 1}, "letters.0.retires"),
        ({"reason": "a\r\nInjected: b"}, "letters.0.reason"),
        ({"backoff": "list"}, "backoff_list_ns"),
        ({"attempts": 2**32}, "letters.0.attempts"),
    ],
)
async def test_a_line_that_is_no_dead_letter_is_refused_before_anything_is_written(
    start: StartWorker, nc: Client, change: dict[str, Any], text: str
) -> None:
    worker = await start()
    await kill(worker, 1)
    [letter] = await exported(nc)
    await deleted(nc)
    answer = await asked(nc, "dead-import", json.dumps({"letters": [{**letter, **change}]}).encode())
    assert headers_of(answer)["Nats-Service-Error-Code"] == "400"
    assert text in json.loads(answer.data)["error"]
    assert worker.dead() == []


@pytest.mark.parametrize("payload", [b"nonsense", pack(b" " * (1 << 24), 0), b"[" * 10_000])
async def test_an_import_of_noise_is_refused(start: StartWorker, nc: Client, payload: bytes) -> None:
    await start()
    answer = await asked(nc, "dead-import", payload)
    assert headers_of(answer)["Nats-Service-Error-Code"] == "400"


async def test_an_error_in_a_history_cannot_add_a_header(start: StartWorker, nc: Client) -> None:
    worker = await start()
    await kill(worker, 1)
    [letter] = await exported(nc)
    await deleted(nc)
    letter["history"][0]["error"] = "a\r\nInjected: b"
    await imported(nc, [letter])
    jobs = await Handler.listen(nc, "nobody.here")
    await redrive(nc)
    headers = headers_of(await jobs.next())
    assert (headers["Requeue-Last-Error"], "Injected" in headers) == ("a  Injected: b", False)


async def test_verify_finds_nothing_wrong_with_what_was_imported_and_redriven_to_another_subject(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    await some_of_each_kind(worker)
    letters = await exported(nc)
    await deleted(nc)
    await imported(nc, letters)
    await Handler.listen(nc, "jobs.other")
    assert (await redrive(nc, subject="jobs.*", reason="exhausted", to_subject="jobs.other"))["redriven"] == 4
    await worker.stop()
    report = verify(worker.path)
    assert report.ok, report
    assert (report.records[MESSAGES], report.records[DEAD]) == (4, 1)


async def test_as_many_keys_as_are_allowed_are_taken_of_the_longest_queue(
    start: StartWorker, nc: Client
) -> None:
    worker = await start()
    queue = "q" * 128
    await worker.publish("nobody.here", queue=queue, retries=1)
    await until(lambda: worker.dead(queue))
    [there] = (await ask(nc, "list", state="dead"))["messages"]
    keys = [there["key"]] + [f"{there['key'][:-32]}{number:032x}" for number in range(511)]
    assert (await ask(nc, "dead-known", keys=keys))["keys"] == [there["key"]]
    assert (await ask(nc, "dead-delete", keys=keys))["deleted"] == 1
    refused = await asked(nc, "dead-known", json.dumps({"keys": [*keys, "00"]}).encode())
    assert headers_of(refused)["Nats-Service-Error-Code"] == "400"
