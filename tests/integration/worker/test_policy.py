"""Queue policy and what a message says itself: attempts, backoff, ack timeout, limits, subjects, precedence."""

from __future__ import annotations

from typing import Any

import pytest
from nats.aio.client import Client
from requeue_protocol.envelope import Backoff, build_envelope
from requeue_protocol.headers import build_headers
from requeue_protocol.policy import NamedQueuePolicy, QueuePolicy

from tests.integration.worker.support import (
    HOUR,
    INTAKE,
    Handler,
    LiveWorker,
    S,
    StartWorker,
    ask_later,
    attempt_of,
    headers_of,
    is_ack,
    refusal_of,
)
from tests.servers import until

UNLIMITED = 2**64 - 1


# -- retries -------------------------------------------------------------------------------------------------


async def test_an_envelope_with_0_retries_is_dispatched_once(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")

    await worker.publish("jobs.a", retries=0)
    msg = await jobs.next()
    await msg.nak()

    letter = await worker.one_dead()
    assert headers_of(msg)["Requeue-Max-Attempts"] == "1"
    assert (letter.extras.reason, letter.record.attempts) == ("exhausted", 1)
    assert len(jobs.received) == 1


async def test_retries_are_dispatches_in_all(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.nak())

    await worker.publish("jobs.a", retries=3)
    letter = await worker.one_dead()

    assert [attempt_of(msg) for msg in jobs.received] == [1, 2, 3]
    assert [attempt.number for attempt in letter.extras.history] == [1, 2, 3]


async def test_a_plain_message_without_retries_takes_those_of_its_queue_20_by_default(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(queues=[{"name": "few", "retries": 2}])
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.ack())

    await worker.publish_plain("jobs.default")
    await worker.publish_plain("jobs.few", headers={"Requeue-Queue": "few"})
    await worker.publish_plain("jobs.own", headers={"Requeue-Queue": "few", "Requeue-Retries": "7"})
    said = {
        msg.subject: headers_of(msg)["Requeue-Max-Attempts"] for msg in [await jobs.next() for _ in range(3)]
    }

    assert said == {"jobs.default": "20", "jobs.few": "2", "jobs.own": "7"}


@pytest.mark.parametrize("intake", ["envelope", "header", "policy"])
async def test_unlimited_retries_go_on_for_ever(start: StartWorker, nc: Client, intake: str) -> None:
    unlimited = {"retries": "unlimited"} if intake == "policy" else {}
    worker = await start(defaults={"min_backoff": 0, **unlimited})
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.nak())

    if intake == "envelope":
        await worker.publish("jobs.a", retries=UNLIMITED)
    else:
        await worker.publish_plain(
            "jobs.a", headers={"Requeue-Retries": "unlimited"} if intake == "header" else {}
        )
    await worker.until_failed(times=40)

    assert headers_of(jobs.received[0])["Requeue-Max-Attempts"] == "unlimited"
    assert attempt_of(jobs.received[39]) == 40
    assert worker.queue().dead == 0


async def test_an_exhausted_message_is_dropped_where_the_queue_says_so(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(queues=[{"name": "brief", "on_exhausted": "drop"}])
    jobs = await Handler.listen(nc, "jobs.>", answer=lambda msg: msg.nak())

    await worker.publish("jobs.a", queue="brief", retries=2)
    await until(lambda: len(jobs.received) == 2)
    await worker.until_empty("brief")

    assert (worker.dead("brief"), worker.queue("brief").dead) == ([], 0)
    assert worker.queue("brief").counts.dropped == {"exhausted": 1}


# -- backoff -------------------------------------------------------------------------------------------------


async def waits_after_failures(worker: LiveWorker, jobs: Handler, number: int) -> list[int]:
    """Fail so often, and return the waits that were written to disk, in ns; the clock is put forward by each."""
    waits = []
    for failures in range(1, number + 1):
        msg = await jobs.next()
        assert attempt_of(msg) == failures
        await msg.nak()
        await worker.until_failed(failures)
        stored = await worker.one_pending()
        waits.append(stored.time_ns - stored.extras.history[-1].at_ns)
        await worker.forward(waits[-1])
    return waits


@pytest.mark.parametrize(
    ("policy", "headers", "expected_s"),
    [
        pytest.param({"backoff": "fixed"}, {}, [60, 60, 60], id="fixed: min_backoff without a delay"),
        pytest.param({"backoff": "fixed"}, {"Requeue-Delay": "7s"}, [7, 7, 7], id="fixed: the delay"),
        pytest.param({}, {}, [60, 120, 240, 480, 500, 500], id="exponential, the default, up to max_backoff"),
        pytest.param({}, {"Requeue-Delay": "5s"}, [5, 10, 20, 40], id="exponential: the delay is its base"),
        pytest.param({"delay": "9s"}, {}, [9, 18, 36], id="exponential: the queue's delay is its base"),
        pytest.param({"backoff": "linear"}, {}, [60, 120, 180, 240, 300], id="linear"),
        pytest.param(
            {"backoff": "linear"}, {"Requeue-Delay": "200s"}, [200, 400, 500], id="linear up to max"
        ),
        pytest.param(
            {"backoff": ["1s", "5s", "1h"]}, {}, [1, 5, 3600, 3600, 3600], id="list, its last repeats"
        ),
        pytest.param({}, {"Requeue-Backoff": "2s,3s"}, [2, 3, 3], id="a message's own list"),
        pytest.param(
            {"backoff": ["1s"]}, {"Requeue-Backoff": "linear"}, [60, 120], id="own shape over a list"
        ),
        pytest.param({"backoff": "linear"}, {"Requeue-Backoff": "fixed"}, [60, 60], id="own fixed"),
        pytest.param(
            {"backoff": "linear"}, {"Requeue-Backoff": "exponential"}, [60, 120, 240], id="own exponential"
        ),
        pytest.param({}, {"Requeue-Min-Backoff": "1s"}, [1, 2, 4, 8], id="own min_backoff"),
        pytest.param({}, {"Requeue-Max-Backoff": "150s"}, [60, 120, 150, 150], id="own max_backoff"),
        pytest.param({"jitter": 1, "backoff": "linear"}, {}, [60, 120], id="no jitter on linear"),
        pytest.param({"jitter": 1, "backoff": ["3s"]}, {}, [3, 3], id="no jitter on a list"),
        pytest.param({"jitter": 1, "backoff": "fixed"}, {}, [60, 60], id="no jitter on fixed"),
    ],
)
async def test_backoff(
    start: StartWorker, nc: Client, policy: dict[str, Any], headers: dict[str, str], expected_s: list[int]
) -> None:
    worker = await start(defaults={"min_backoff": "60s", "max_backoff": "500s", **policy})
    jobs = await Handler.listen(nc, "jobs.>")

    await worker.publish_plain("jobs.a", headers=headers)
    await worker.forward(HOUR)

    assert await waits_after_failures(worker, jobs, len(expected_s)) == [wait * S for wait in expected_s]


@pytest.mark.parametrize(
    ("backoff", "delay_s", "headers", "expected_s"),
    [
        pytest.param(Backoff.UNDEFINED, 3, {}, [3, 3, 3], id="undefined is fixed"),
        pytest.param(Backoff.UNDEFINED, 0, {}, [60, 60], id="undefined without delay: the floor"),
        pytest.param(Backoff.FIXED, 3, {}, [3, 3, 3], id="fixed"),
        pytest.param(Backoff.EXPONENTIAL, 3, {}, [3, 6, 12, 24], id="exponential"),
        pytest.param(Backoff.EXPONENTIAL, 0, {}, [60, 120, 240], id="exponential without delay: the floor"),
        pytest.param(Backoff.UNDEFINED, 3, {"Requeue-Backoff": "linear"}, [3, 6, 9], id="linear by header"),
        pytest.param(Backoff.FIXED, 3, {"Requeue-Backoff": "1s,2s"}, [1, 2, 2], id="list by header"),
        pytest.param(
            Backoff.EXPONENTIAL,
            0,
            {"Requeue-Min-Backoff": "2s", "Requeue-Max-Backoff": "5s"},
            [2, 4, 5],
            id="bounds by header",
        ),
    ],
)
async def test_backoff_of_an_envelope(
    start: StartWorker,
    nc: Client,
    backoff: Backoff,
    delay_s: int,
    headers: dict[str, str],
    expected_s: list[int],
) -> None:
    worker = await start(defaults={"min_backoff": "60s", "max_backoff": "500s", "delay": "1s"})
    jobs = await Handler.listen(nc, "jobs.>")

    await worker.publish("jobs.a", retries=50, delay_ns=delay_s * S, backoff=backoff, headers=headers or None)
    await worker.forward(delay_s * S)

    assert await waits_after_failures(worker, jobs, len(expected_s)) == [wait * S for wait in expected_s]


async def test_jitter_multiplies_exponential_backoff_by_1_to_1_plus_jitter(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"min_backoff": "10s", "max_backoff": "10s", "jitter": 0.5})
    jobs = await Handler.listen(nc, "jobs.>")

    await worker.publish_plain("jobs.a")
    waits = await waits_after_failures(worker, jobs, 12)

    assert all(10 * S <= wait < 15 * S for wait in waits)
    assert len(set(waits)) > 1


# -- ack timeout ---------------------------------------------------------------------------------------------


async def test_a_message_may_ask_for_another_ack_timeout_than_its_queue_has(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(defaults={"ack_timeout": "150ms"})
    jobs = await Handler.listen(nc, "jobs.>")

    await worker.publish_plain("jobs.patient", headers={"Requeue-Ack-Timeout": "12h"})
    await worker.publish("jobs.enveloped", retries=9, headers={"Requeue-Ack-Timeout": "12h"})
    await worker.publish("jobs.usual", retries=9)
    await until(lambda: sum(msg.subject == "jobs.usual" for msg in jobs.received) == 3)

    assert sorted({msg.subject for msg in jobs.received if attempt_of(msg) > 1}) == ["jobs.usual"]
    assert len(jobs.received) == 5


async def test_a_message_may_ask_for_a_shorter_ack_timeout(start: StartWorker, nc: Client) -> None:
    worker = await start()
    jobs = await Handler.listen(nc, "jobs.>")

    await worker.publish_plain("jobs.hasty", headers={"Requeue-Ack-Timeout": "100ms"})

    assert [attempt_of(await jobs.next()) for _ in range(2)] == [1, 2]


# -- limits --------------------------------------------------------------------------------------------------


async def test_beyond_max_messages_a_queue_refuses_with_429_until_one_is_settled(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(queues=[{"name": "small", "max_messages": 2}])
    jobs = await Handler.listen(nc, "jobs.>")
    plain = {"Requeue-Subject": "jobs.a", "Requeue-Queue": "small"}

    answers = [await worker.ask(b"%d" % number, plain) for number in range(3)]
    await worker.publish("jobs.other", queue="other")
    await (await jobs.next()).ack()
    await until(lambda: worker.queue("small").pending == 1)
    after = await worker.ask(b"later", plain)

    assert [is_ack(answer) for answer in answers] == [True, True, False]
    assert refusal_of(answers[2]) == (429, "queue 'small' holds its max_messages of 2: send again later")
    assert is_ack(after)
    assert worker.worker.counts.refused[429] == 1


async def test_what_arrives_at_once_never_exceeds_max_messages(start: StartWorker, nc: Client) -> None:
    worker = await start(queues=[{"name": "small", "max_messages": 5, "delay": "1h"}])
    plain = {"Requeue-Subject": "jobs.a", "Requeue-Queue": "small"}

    waiting = [await ask_later(nc, INTAKE, b"", plain) for _ in range(25)]
    answers = [await asked.answer() for asked in waiting]

    assert sum(map(is_ack, answers)) == 5
    assert len(worker.pending("small")) == 5


async def test_beyond_max_bytes_of_wire_bytes_a_queue_refuses_with_429(
    start: StartWorker, nc: Client
) -> None:
    headers = {"Requeue-Subject": "jobs.a", "Requeue-Delay": "1h"}
    size = len(build_headers(headers.items())) + 100
    worker = await start(defaults={"max_bytes": 3 * size})

    answers = [await worker.ask(b"x" * 100, headers) for _ in range(4)]
    smaller = await worker.ask(b"", headers)

    assert [is_ack(answer) for answer in answers] == [True, True, True, False]
    assert {refusal_of(answer)[0] for answer in (answers[3], smaller)} == {429}
    assert "max_bytes" in refusal_of(smaller)[1]
    assert worker.queue().bytes == 3 * size


async def test_limits_count_what_an_earlier_run_left(start: StartWorker, nc: Client) -> None:
    limits = {"max_messages": 1}
    first = await start(defaults=limits)
    await first.publish("jobs.a", delay_ns=HOUR)
    await first.stop()

    second = await start(defaults=limits)

    assert not is_ack(await second.ask(b"", {"Requeue-Subject": "jobs.b"}))


async def test_beyond_max_queues_a_new_queue_name_is_refused_with_429(start: StartWorker) -> None:
    worker = await start(max_queues=2)
    await worker.publish("jobs.a", queue="one", delay_ns=HOUR)
    await worker.publish("jobs.a", queue="two", delay_ns=HOUR)

    answer = await worker.ask(b"", {"Requeue-Subject": "jobs.a", "Requeue-Queue": "three"})
    known = await worker.publish("jobs.a", queue="two", delay_ns=HOUR)

    assert refusal_of(answer)[0] == 429
    assert is_ack(known)


# -- subjects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        "$JS.API.STREAM.DELETE.ORDERS",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.abc.1",
        "requeue.again",
        "_requeue",
        "_requeue._stats",
        "_requeue.admin.cancel",
        "orders.secret.a",
    ],
)
async def test_subjects_that_no_client_may_reach_are_refused_with_403(
    start: StartWorker, subject: str
) -> None:
    worker = await start(defaults={"deny_subjects": ["orders.secret.>"]})

    by_envelope = await worker.ask(build_envelope(subject=subject, payload=b""))
    by_header = await worker.ask(b"", {"Requeue-Subject": subject})

    assert [refusal_of(answer)[0] for answer in (by_envelope, by_header)] == [403, 403]
    assert worker.queue().pending == 0


async def test_an_allow_list_admits_what_it_names_and_deny_goes_first(start: StartWorker) -> None:
    worker = await start(
        queues=[
            {"name": "q", "allow_subjects": ["orders.>", "$KV.cache.*"], "deny_subjects": ["orders.secret"]}
        ]
    )
    said = {}
    for subject in ("orders.a", "orders.secret", "mail.a", "$KV.cache.a", "$KV.other.a"):
        answer = await worker.ask(
            b"", {"Requeue-Subject": subject, "Requeue-Queue": "q", "Requeue-Delay": "1h"}
        )
        said[subject] = is_ack(answer)
    elsewhere = await worker.publish("mail.a", delay_ns=HOUR)

    assert said == {
        "orders.a": True,
        "orders.secret": False,
        "mail.a": False,
        "$KV.cache.a": True,
        "$KV.other.a": False,
    }
    assert is_ack(elsewhere)


@pytest.mark.parametrize("subject", ["orders.*", "orders.>", ">", "a..b", ".a", "a.", "a b"])
async def test_wildcards_and_what_is_no_subject_are_refused_with_400(
    start: StartWorker, subject: str
) -> None:
    worker = await start()

    answer = await worker.ask(b"", {"Requeue-Subject": subject})

    assert refusal_of(answer)[0] == 400


# -- precedence ----------------------------------------------------------------------------------------------


async def test_a_queue_goes_before_the_defaults_and_a_message_before_its_queue(start: StartWorker) -> None:
    worker = await start(
        defaults={"delay": "1h", "ttl": "10h", "retries": 3},
        queues=[{"name": "q", "delay": "2h", "ttl": "20h"}],
    )
    own = {"Requeue-Delay": "3h", "Requeue-TTL": "30h", "Requeue-Priority": "2"}

    await worker.publish_plain("jobs.a", headers={"Requeue-Queue": "default"})
    await worker.publish_plain("jobs.a", headers={"Requeue-Queue": "q"})
    await worker.publish_plain("jobs.a", headers={"Requeue-Queue": "q", **own})
    [of_default] = worker.pending()
    own_stored, of_queue = worker.pending("q")

    def hours(stored: Any) -> tuple[float, float]:
        record = stored.record
        return (stored.time_ns - record.enqueued_ns) / HOUR, (record.deadline_ns - record.enqueued_ns) / HOUR

    assert [hours(stored) for stored in (of_default, of_queue, own_stored)] == [(1, 10), (2, 20), (3, 30)]
    assert [of_default.priority, of_queue.priority, own_stored.priority] == [4, 4, 2]


async def test_retries_ttl_and_delay_of_an_envelope_count_as_set_with_0_too(start: StartWorker) -> None:
    worker = await start(defaults={"delay": "1h", "ttl": "10h", "retries": 9, "min_backoff": "1h"})

    await worker.publish("jobs.nobody")
    headers = {"Requeue-Delay": "1h", "Requeue-TTL": "1h", "Requeue-Retries": "9"}
    await worker.publish("jobs.nobody", headers=headers)
    await until(lambda: worker.queue().dead == 2)
    await worker.idle()

    assert [(letter.record.attempts, letter.record.deadline_ns) for letter in worker.dead()] == [
        (1, 0),
        (1, 0),
    ]


async def test_an_envelope_may_carry_the_policy_headers_that_it_can_not_express(start: StartWorker) -> None:
    worker = await start()
    text = "2030-01-31T18:30:00.000000001Z"

    await worker.publish("jobs.a", delay_ns=HOUR, headers={"Requeue-Priority": "0"})
    await worker.publish("jobs.a", headers={"Requeue-At": text, "Requeue-Priority": "9"})

    first, last = worker.pending()
    assert [first.priority, last.priority] == [0, 9]
    assert last.time_ns == 1_896_114_600_000_000_001


async def test_a_new_policy_holds_for_what_is_pending(start: StartWorker, nc: Client) -> None:
    worker = await start(queues=[{"name": "q", "max_in_flight": 1}])
    jobs = await Handler.listen(nc, "jobs.>")
    for _ in range(4):
        await worker.publish_plain("jobs.a", headers={"Requeue-Queue": "q"})
    first = await jobs.next()
    settings = worker.worker.settings

    queue = NamedQueuePolicy.model_validate({"name": "q", "max_in_flight": 3, "retries": 5})
    worker.worker.use(settings.model_copy(update={"queues": (queue,)}))
    rest = [await jobs.next() for _ in range(2)]

    assert headers_of(first)["Requeue-Max-Attempts"] == "20"
    assert [headers_of(msg)["Requeue-Max-Attempts"] for msg in rest] == ["5", "5"]
    assert worker.queue("q").in_flight == 3


def test_every_policy_name_is_tested_in_this_directory() -> None:
    """A reminder for whoever adds one: name it here, and say in which file it is tested."""
    tested = {
        "test_policy": "retries backoff backoff_list_ns min_backoff_ns max_backoff_ns jitter ack_timeout_ns "
        "max_messages max_bytes on_exhausted allow_subjects deny_subjects",
        "test_schedule": "delay_ns ttl_ns on_expire max_in_flight max_rate weight",
        "test_deadletters": "dead_letter_retention_ns dead_letter_subject",
        "test_replies": "count_no_responders ack_mode",
    }
    assert {name for names in tested.values() for name in names.split()} == set(QueuePolicy.model_fields)
