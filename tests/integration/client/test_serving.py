"""Handlers of the client library and a real worker: how a handler ends is what becomes of the message."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from requeue_client import (
    Delivery,
    Handler,
    Reject,
    Reply,
    RequeueClient,
    Requeued,
    Retry,
    SyncClient,
    handler,
)

from tests.servers import NatsServer, WorkerFactory, WorkerProcess, settle, until

WAIT_S = 30
CONFIG = """
defaults:
  retries: 3
  backoff: fixed
  delay: 10ms
  ack_timeout: 400ms
  dead_letter_subject: dead.letters
"""


@pytest.fixture
def worker(nats_server: NatsServer, worker_factory: WorkerFactory, tmp_path: Path) -> WorkerProcess:
    config = tmp_path / "worker.yaml"
    config.write_text(CONFIG)
    return worker_factory(nats_server, "--config", str(config))


@pytest.fixture
async def client(worker: WorkerProcess, nc: Client) -> AsyncIterator[RequeueClient]:
    async with RequeueClient(nc) as client:
        yield client


class Log:
    """What a handler saw; the first runs end as told, the others return."""

    def __init__(self, *ends: BaseException | bytes) -> None:
        self.ends = list(ends)
        self.seen: asyncio.Queue[Delivery] = asyncio.Queue()

    async def __call__(self, delivery: Delivery) -> bytes | None:
        self.seen.put_nowait(delivery)
        end = self.ends.pop(0) if self.ends else None
        if isinstance(end, BaseException):
            raise end
        return end

    async def next(self) -> Delivery:
        return await asyncio.wait_for(self.seen.get(), WAIT_S)


async def dead_letters(nc: Client) -> asyncio.Queue[Delivery]:
    log: asyncio.Queue[Delivery] = asyncio.Queue()

    async def take(msg: object) -> None:
        from requeue_client.delivery import read_delivery

        log.put_nowait(read_delivery(msg))  # type: ignore[arg-type]

    await nc.subscribe("dead.letters", cb=take)
    await settle(nc)
    return log


async def test_a_handler_that_returns_settles_and_sees_all_about_its_attempt(client: RequeueClient) -> None:
    log = Log()
    dead = await dead_letters(client.nc)
    async with await client.serve(handler("orders.*")(log)):
        ack = await client.publish(
            "orders.created", "Grüße".encode(), queue="orders", ttl="1h", headers={"Trace": "7"}
        )
        first = await log.next()
        # what comes after it shows that it was settled: nothing of it is left
        await client.publish("orders.last", queue="orders")
        assert (await log.next()).subject == "orders.last"
    assert (first.subject, first.text, first.queue) == ("orders.created", "Grüße", "orders")
    assert (first.attempt, first.max_attempts, first.is_replay, first.is_last) == (1, 3, True, False)
    assert (first.headers["Trace"], first.headers["Nats-Msg-Id"]) == ("7", ack.msg_id)
    assert first.enqueued_at is not None
    assert first.deadline is not None
    assert (first.deadline - first.enqueued_at).total_seconds() == 3600
    assert (len(first.id), first.last_error) == (32, "")
    assert dead.empty()


async def test_a_handler_that_raises_sees_the_message_again_with_what_it_raised(
    client: RequeueClient,
) -> None:
    log = Log(KeyError("customer"), Retry("locked", delay="20ms"))
    async with await client.serve(handler("orders.created")(log)):
        await client.publish("orders.created", b"x")
        seen = [await log.next() for _ in range(3)]
    assert [each.attempt for each in seen] == [1, 2, 3]
    assert [each.last_error for each in seen] == ["", "KeyError: 'customer'", "locked"]
    assert [each.is_last for each in seen] == [False, False, True]
    assert len({each.id for each in seen}) == 1


async def test_the_delay_of_a_retry_counts_instead_of_the_backoff(client: RequeueClient) -> None:
    log = Log(Retry(delay="700ms"))
    loop = asyncio.get_running_loop()
    async with await client.serve(handler("orders.created")(log)):
        await client.publish("orders.created", b"x")
        await log.next()
        failed_s = loop.time()
        assert (await log.next()).attempt == 2
        assert loop.time() - failed_s >= 0.6  # never early; the backoff would have been 10 ms


async def test_a_rejected_message_is_a_dead_letter_with_its_reason(client: RequeueClient) -> None:
    log = Log(Reject("no such customer"))
    dead = await dead_letters(client.nc)
    async with await client.serve(handler("orders.created")(log)):
        await client.publish("orders.created", b"x")
        letter = await asyncio.wait_for(dead.get(), WAIT_S)
    assert (letter.headers["Requeue-Dead-Reason"], letter.last_error) == ("terminated", "no such customer")
    assert (letter.payload, log.seen.qsize()) == (b"x", 1)


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "thread"])
async def test_a_handler_that_runs_for_longer_than_the_ack_timeout_is_called_once(
    client: RequeueClient, blocking: bool
) -> None:
    runs: list[int] = []
    go_on = threading.Event()
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def slow(delivery: Delivery) -> None:
        runs.append(delivery.attempt)
        await asyncio.to_thread(go_on.wait, WAIT_S)
        done.set()

    def slow_in_a_thread(delivery: Delivery) -> None:
        runs.append(delivery.attempt)
        go_on.wait(WAIT_S)
        loop.call_soon_threadsafe(done.set)

    log = Log()
    made = handler("orders.slow", ack_timeout="400ms")
    async with await client.serve(
        made(slow_in_a_thread) if blocking else made(slow), handler("orders.other")(log)
    ):
        await client.publish("orders.slow", retries=20)
        await until(lambda: runs)
        await client.publish("orders.other", delay="1500ms")  # due after three ack timeouts
        await log.next()
        go_on.set()
        await asyncio.wait_for(done.wait(), WAIT_S)
    assert runs == [1]


async def test_without_beats_a_slow_message_is_sent_again(client: RequeueClient) -> None:
    runs: list[int] = []
    again = asyncio.Event()

    async def slow(delivery: Delivery) -> None:
        runs.append(delivery.attempt)
        if delivery.attempt == 2:
            again.set()
        await again.wait()

    async with await client.serve(handler("orders.slow", ack_timeout=None)(slow)):
        await client.publish("orders.slow")
        await asyncio.wait_for(again.wait(), WAIT_S)
    assert runs == [1, 2]


async def test_a_handler_over_its_timeout_is_cancelled_and_the_attempt_has_failed(
    client: RequeueClient,
) -> None:
    seen: asyncio.Queue[Delivery] = asyncio.Queue()

    async def stuck(delivery: Delivery) -> None:
        seen.put_nowait(delivery)
        if delivery.attempt == 1:
            await asyncio.Event().wait()

    async with await client.serve(handler("orders.stuck", timeout="50ms", ack_timeout="400ms")(stuck)):
        await client.publish("orders.stuck")
        await asyncio.wait_for(seen.get(), WAIT_S)
        second = await asyncio.wait_for(seen.get(), WAIT_S)
    assert second.last_error == "TimeoutError: not done within 0.05 s"


async def test_no_more_run_at_a_time_than_said_and_those_that_wait_spend_no_attempt(
    client: RequeueClient,
) -> None:
    running, most, handled = 0, 0, []

    async def work(delivery: Delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.15)
        running -= 1
        handled.append(delivery)

    async with await client.serve(handler("jobs.*", concurrency=2, ack_timeout="400ms")(work)):
        for number in range(12):  # 0.9 s in all, more than two ack timeouts
            await client.publish(f"jobs.{number}")
        await until(lambda: len(handled) >= 12)
    assert most == 2
    assert sorted(each.subject for each in handled) == sorted(f"jobs.{number}" for number in range(12))
    assert {each.attempt for each in handled} == {1}


async def test_processes_of_one_queue_group_share_and_those_without_one_get_all(
    client: RequeueClient, nats_server: NatsServer
) -> None:
    shared: list[str] = []
    every: list[str] = []

    async def take(delivery: Delivery) -> None:
        shared.append(delivery.subject)

    async def watch(delivery: Delivery) -> None:
        every.append(delivery.subject)

    async with await RequeueClient.connect(nats_server.url) as other:
        for each in (client, other):
            await each.serve(handler("a.*", queue_group="one")(take), handler("a.*", queue_group=None)(watch))
        for number in range(10):
            await client.publish(f"a.{number}")
        await until(lambda: len(shared) >= 10 and len(every) >= 20)
    assert sorted(shared) == [f"a.{number}" for number in range(10)]
    assert sorted(every) == sorted([f"a.{number}" for number in range(10)] * 2)


async def test_one_who_asks_directly_gets_what_the_handler_returned(client: RequeueClient) -> None:
    log = Log(b"receipt 7", Retry("busy"))
    async with await client.serve(handler("billing.charge")(log)):
        answer = await client.request_or_requeue("billing.charge", b"17 EUR")
        assert isinstance(answer, Reply)
        assert answer.payload == b"receipt 7"
        direct = await log.next()
        assert (direct.is_replay, direct.attempt, direct.max_attempts, direct.id) == (False, 0, None, "")
        queued = await client.request_or_requeue("billing.charge", b"18 EUR")
        assert isinstance(queued, Requeued)
        assert queued.reason == "nak"
        assert (await log.next()).attempt == 0
        assert (await log.next()).attempt == 1


async def test_bytes_that_say_failed_are_no_result(client: RequeueClient) -> None:
    log = Log(b"-NAK")
    async with await client.serve(handler("a.b")(log)):
        await client.publish("a.b")
        await log.next()
        assert "raise Retry or Reject" in (await log.next()).last_error


async def test_stop_finishes_what_runs_and_takes_nothing_new(client: RequeueClient) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()
    finished: list[int] = []

    async def work(delivery: Delivery) -> None:
        started.set()
        await go_on.wait()
        finished.append(delivery.attempt)

    serving = await client.serve(handler("a.b", ack_timeout="400ms")(work))
    await client.publish("a.b", queue="q")
    await asyncio.wait_for(started.wait(), WAIT_S)
    stopping = asyncio.ensure_future(serving.stop())
    await settle(client.nc)
    assert not stopping.done()
    go_on.set()
    await asyncio.wait_for(stopping, WAIT_S)
    assert (finished, serving.open_messages) == ([1], 0)
    await asyncio.wait_for(serving.wait(), WAIT_S)
    log = Log()
    async with await client.serve(handler("a.b")(log)):
        await client.publish("a.b", queue="q")
        assert (await log.next()).attempt == 1  # the first one was settled: this is the second message
        assert log.seen.empty()


async def test_what_is_open_after_the_grace_goes_to_another_process_at_once(client: RequeueClient) -> None:
    started = asyncio.Event()

    async def stuck(_: Delivery) -> None:
        started.set()
        await asyncio.Event().wait()

    serving = await client.serve(handler("a.b")(stuck))
    await client.publish("a.b", ack_timeout="1h")
    await asyncio.wait_for(started.wait(), WAIT_S)
    await serving.stop("50ms")
    log = Log()
    async with await client.serve(handler("a.b")(log)):
        again = await log.next()
    assert (again.attempt, again.last_error) == (2, "the handler was stopped")


def test_a_program_without_an_event_loop_publishes_and_handles(
    worker: WorkerProcess, nats_server: NatsServer
) -> None:
    seen: list[Delivery] = []
    handled = threading.Event()

    @handler("orders.created")
    def charge(order: Delivery) -> None:
        seen.append(order)
        if order.attempt == 1:
            raise OSError("bank is closed")
        handled.set()

    assert isinstance(charge, Handler)
    with SyncClient.connect(nats_server.url) as requeue:
        requeue.serve(charge)
        requeue.publish("orders.created", b"x", msg_id="order-7")
        assert handled.wait(WAIT_S)
        requeue.publish("orders.later", delay="1h", msg_id="order-8")
        assert requeue.reschedule("order-8", delay="2h").changed == 1
        assert requeue.cancel("order-8").changed == 1
    assert [each.attempt for each in seen] == [1, 2]
    assert seen[1].last_error == "OSError: bank is closed"
    requeue.close()
    with pytest.raises(RuntimeError, match="closed"):
        requeue.publish("orders.created")


PROGRAM = """
from requeue_client import Delivery, handler, run

@handler("orders.created")
def charge(order: Delivery) -> None:
    print("charged", order.text, order.attempt, flush=True)

run(charge, servers="{url}")
print("finished", flush=True)
"""


async def test_run_is_the_whole_main_and_ends_at_sigterm(
    client: RequeueClient, nats_server: NatsServer
) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM.format(url=nats_server.url), stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        await client.publish("orders.created", b"17 EUR", retries="unlimited")
        line = await asyncio.wait_for(child.stdout.readline(), WAIT_S)
        assert line.startswith(b"charged 17 EUR ")
        child.send_signal(signal.SIGTERM)
        assert (await asyncio.wait_for(child.stdout.read(), WAIT_S)).strip() == b"finished"
        assert await asyncio.wait_for(child.wait(), WAIT_S) == 0
    finally:
        if child.returncode is None:
            child.kill()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"subject": "a b"}, "orders.created"),
        ({"subject": "a", "concurrency": 0}, "1 or more"),
        ({"subject": "a", "ack_timeout": 15}, "15s"),
    ],
)
def test_a_wrong_argument_is_told_with_what_would_be_right(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        handler(**arguments)  # type: ignore[arg-type]
