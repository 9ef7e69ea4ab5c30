"""The permissions of docs/operations.md: enough for everything, and each one needed and missed aloud."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_client import RequeueClient, Requeued
from requeue_client.requests import Reply
from requeue_protocol.envelope import build_envelope
from requeue_protocol.stats import read_stats
from requeue_protocol.subjects import STATS
from requeue_worker import deadletters
from requeue_worker.drain.drain import Drain, Options
from requeue_worker.drain.volume import ensure_identity
from requeue_worker.settings import Settings

from tests.integration.worker.secured import reload
from tests.integration.worker.support import (
    DEFAULTS,
    INTAKE,
    WAIT_S,
    Clock,
    Handler,
    LiveWorker,
    ask,
    attempt_of,
    headers_of,
)
from tests.servers import NatsServer, NatsServerFactory, settle, until
from tests.zombies import Zombie

DOC = Path(__file__).parents[3] / "docs/operations.md"
ROLES = ("worker", "client", "handler", "admin", "drain")


def documented() -> str:
    """The server's configuration as the document has it, with passwords."""
    [block] = re.findall(r"```conf\n(authorization .*?)```", DOC.read_text(), re.DOTALL)
    return "".join(f"{role.upper()}_PASSWORD: {role}-secret\n" for role in ROLES) + block


CONFIG = documented()
WORKER = CONFIG[CONFIG.index("user: worker") : CONFIG.index("user: drain")]


def lines_of_worker(kind: str) -> list[str]:
    """The lines that allow the worker something."""
    [block] = re.findall(rf"{kind}: {{\n *allow: \[\n(.*?)\n *\]", WORKER, re.DOTALL)
    return [line for line in block.splitlines() if line.strip()]


def without(line: str) -> str:
    """The configuration with one line less for the worker."""
    assert WORKER.count(line) == 1, line
    return CONFIG.replace(WORKER, WORKER.replace(line, ""))


@dataclass
class Cast:
    """One connection for each role but the worker's, and what the server held against them."""

    clients: dict[str, Client]
    errors: list[str] = field(default_factory=list)

    @property
    def requeue(self) -> RequeueClient:
        return RequeueClient(self.clients["client"])

    def __getitem__(self, role: str) -> Client:
        return self.clients[role]


@pytest.fixture
async def cast() -> AsyncIterator[Callable[[NatsServer], Awaitable[Cast]]]:
    """Connect as every role: `await cast(server)`."""
    async with AsyncExitStack() as stack:

        async def connect(server: NatsServer) -> Cast:
            made = Cast({})

            async def on_error(error: Exception) -> None:
                made.errors.append(str(error))

            for role in ROLES[1:]:
                made.clients[role] = await nats.connect(
                    server.url, user=role, password=f"{role}-secret", error_cb=on_error
                )
                stack.push_async_callback(made.clients[role].close)
            return made

        yield connect


Start = Callable[[NatsServer], Awaitable[LiveWorker]]


@pytest.fixture
async def begin(
    tmp_path: Path, nats_server_factory: NatsServerFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Start the worker in its role, without waiting until it is ready; stopped before the servers."""
    monkeypatch.setattr(deadletters, "RETRY_S", 0.05)
    workers: list[LiveWorker] = []

    async def start(server: NatsServer) -> LiveWorker:
        settings = Settings(
            data_dir=tmp_path / "data",
            instance_id="tested",
            nats={
                "servers": [server.url], "user": "worker", "password": "worker-secret", "reconnect_wait": "20ms",
            },
            reconnect_grace=0,
            shutdown_grace=0,
            stats_interval="50ms",
            defaults={**DEFAULTS, "dead_letter_subject": "dead.letters", "ack_timeout": "300ms"},
        )  # fmt: skip
        live = LiveWorker(settings, Client(), Clock())
        workers.append(live)
        await live.worker.start()
        return live

    yield start
    for live in workers:
        await live.stop()


def ready(worker: LiveWorker) -> tuple[bool, str]:
    return worker.worker.ready()


async def until_ready(worker: LiveWorker) -> None:
    await until(lambda: ready(worker)[0])


async def until_told(worker: LiveWorker, *words: str) -> None:
    """Wait until the readiness says so."""
    await until(lambda: all(word in ready(worker)[1] for word in words))


# -- enough --------------------------------------------------------------------------------------------------


async def test_the_documented_permissions_are_enough_for_everything(
    nats_server_factory: NatsServerFactory,
    cast: Callable[[NatsServer], Awaitable[Cast]],
    begin: Start,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    server = nats_server_factory(config=CONFIG)
    roles, worker = await cast(server), await begin(server)
    await until_ready(worker)
    dead = await Handler.listen(roles["admin"], "dead.>")
    stats = await Handler.listen(roles["admin"], STATS)

    await intake(roles)
    await settlement(roles, worker)
    await both_ways(roles)
    await administration(roles)
    await handover(server, worker, tmp_path / "volume")
    assert headers_of(await dead.next())["Requeue-Dead-Reason"] == "terminated"
    assert read_stats((await stats.next()).data).instance_id == "tested"

    for nc in roles.clients.values():
        await settle(nc)
    assert roles.errors == []
    assert ready(worker) == (True, "ready")
    assert "Violation" not in server.log
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def intake(roles: Cast) -> None:
    """Acks, duplicates, refusals of both sorts."""
    requeue = roles.requeue
    assert not (await requeue.publish("orders.later", b"1", delay="1h", msg_id="later")).duplicate
    assert (await requeue.publish("orders.later", b"1", delay="1h", msg_id="later")).duplicate
    outcomes = [outcome async for outcome in requeue.publish_many([])]
    assert outcomes == []
    refused = await ask(roles["client"], INTAKE, b"garbage")
    assert refused.data.startswith(b"-ERR 400")


async def settlement(roles: Cast, worker: LiveWorker) -> None:
    """Every verb of a handler, several replies to one message among them."""
    requeue = roles.requeue

    async def answer(msg: Msg) -> None:
        verb = msg.subject.rpartition(".")[2]
        if verb == "nak" and attempt_of(msg) == 1:
            await msg.nak(delay=0.01)
        elif verb == "term":
            await msg.term()
        elif verb == "work":
            for _ in range(5):
                await msg.in_progress()
            await msg.ack()
        else:
            await msg.respond(b"done")

    await Handler.listen(roles["handler"], "orders.now.>", answer)
    for verb in ("ack", "nak", "term", "work"):
        await requeue.publish(f"orders.now.{verb}", retries=3)
    await until(lambda: worker.queue().counts.settled == 3 and worker.queue().dead == 1)


async def both_ways(roles: Cast) -> None:
    """A request that is answered, and one that nobody answers."""
    requeue = roles.requeue
    answered = await requeue.request_or_requeue("orders.now.ask", b"?")
    assert isinstance(answered, Reply)
    requeued = await requeue.request_or_requeue("orders.nobody", b"?", delay="1h")
    assert isinstance(requeued, Requeued)


async def administration(roles: Cast) -> None:
    admin = RequeueClient(roles["admin"])
    assert (await admin.reschedule("later", delay="2h")).changed == 1
    assert (await admin.cancel("later")).changed == 1
    assert b"ping_response" in (await roles["admin"].request("$SRV.PING.requeue", b"", timeout=WAIT_S)).data


async def handover(server: NatsServer, worker: LiveWorker, volume: Path) -> None:
    """A drain in its own role."""
    Zombie(volume, "gone").fill(1500, 10, queue="paused", paused_until_ns=2 * 10**18)
    ensure_identity(volume)
    login = {"servers": [server.url], "user": "drain", "password": "drain-secret"}
    proof = await Drain(Settings(data_dir=volume, nats=login), Options(timeout_s=WAIT_S)).run()
    assert (proof.handed_over, proof.remaining, proof.target) == (1510, 0, "tested")
    assert worker.queue("paused").pending == 1500


# -- and each one needed -------------------------------------------------------------------------------------

SUBSCRIPTIONS = {
    "requeue.> requeue-workers": (False, 'Subscription to "requeue.>" using queue "requeue-workers"'),
    "_INBOX.>": (False, 'Subscription to "_INBOX.'),
    "_requeue.admin.>": (True, 'Subscription to "_requeue.admin.'),
    "$SRV.>": (True, 'Subscription to "$SRV.'),
    "_requeue.handover.default.>": (True, 'Subscription to "_requeue.handover.default.'),
}
PUBLISHES = {
    "orders.>": 'Publish to "orders.new"',
    "dead.>": 'Publish to "dead.letters"',
    "_requeue._stats": 'Publish to "_requeue._stats"',
}


def test_every_line_of_the_worker_is_tried_without() -> None:
    quoted = [re.findall('"(.*?)"', line)[0] for line in lines_of_worker("subscribe")]
    assert quoted == list(SUBSCRIPTIONS)
    assert [re.findall('"(.*?)"', line)[0] for line in lines_of_worker("publish")] == list(PUBLISHES)


@pytest.mark.parametrize("line", lines_of_worker("subscribe"), ids=lambda line: line.split(chr(34))[1])
async def test_a_subscription_that_is_not_allowed_is_told_and_asked_for_until_it_is(
    line: str,
    nats_server_factory: NatsServerFactory,
    cast: Callable[[NatsServer], Awaitable[Cast]],
    begin: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    [entry] = re.findall('"(.*?)"', line)
    works, text = SUBSCRIPTIONS[entry]
    server = nats_server_factory(config=without(line))
    worker = await begin(server)

    await until_told(worker, text)
    assert ready(worker)[0] is works
    assert worker._ready.is_set() is works
    assert denials(caplog, text) == 1

    reload(server, CONFIG)
    await until(lambda: ready(worker) == (True, "ready"))
    roles = await cast(server)
    await settlement(roles, worker)
    await roles.requeue.publish("orders.later", delay="1h", msg_id="later")
    await administration(roles)


@pytest.mark.parametrize("line", lines_of_worker("subscribe"), ids=lambda line: line.split(chr(34))[1])
async def test_a_subscription_that_is_taken_away_is_told_and_asked_for_until_it_is_allowed_again(
    line: str, nats_server_factory: NatsServerFactory, begin: Start
) -> None:
    [entry] = re.findall('"(.*?)"', line)
    works, text = SUBSCRIPTIONS[entry]
    server = nats_server_factory(config=CONFIG)
    worker = await begin(server)
    await until_ready(worker)

    reload(server, without(line))
    await until_told(worker, text)
    assert ready(worker)[0] is works
    reload(server, CONFIG)
    await until(lambda: ready(worker) == (True, "ready"))


async def test_a_denial_is_still_told_after_a_reconnect(
    nats_server_factory: NatsServerFactory, begin: Start
) -> None:
    [line] = [line for line in lines_of_worker("subscribe") if "requeue.>" in line]
    server = nats_server_factory(config=without(line))
    worker = await begin(server)
    await until_told(worker, "requeue-workers")
    await asyncio.to_thread(server.restart)
    await until(lambda: worker.worker.nats_connected)
    await until_told(worker, "requeue-workers")
    assert not ready(worker)[0]


async def test_nothing_is_replayed_while_replies_could_not_come_in(
    nats_server_factory: NatsServerFactory, cast: Callable[[NatsServer], Awaitable[Cast]], begin: Start
) -> None:
    [line] = [line for line in lines_of_worker("subscribe") if "_INBOX" in line]
    server = nats_server_factory(config=without(line))
    roles, worker = await cast(server), await begin(server)
    jobs = await Handler.listen(roles["handler"], "orders.>", answer=lambda msg: msg.ack())
    await until_told(worker, "_INBOX")
    await roles.requeue.publish("orders.new", retries=1)
    await worker.idle()
    assert (jobs.received, worker.queue().counts.replays) == ([], 0)

    reload(server, CONFIG)
    assert attempt_of(await jobs.next()) == 1
    await worker.until_empty()
    assert worker.queue().counts.settled == 1


@pytest.mark.parametrize("line", lines_of_worker("publish"), ids=lambda line: line.split(chr(34))[1])
async def test_a_publish_that_is_not_allowed_is_told_and_made_good_when_it_is(
    line: str,
    nats_server_factory: NatsServerFactory,
    cast: Callable[[NatsServer], Awaitable[Cast]],
    begin: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    [entry] = re.findall('"(.*?)"', line)
    server = nats_server_factory(config=without(line))
    roles, worker = await cast(server), await begin(server)
    await until_ready(worker)
    dead, stats = await Handler.listen(roles["admin"], "dead.>"), await Handler.listen(roles["admin"], STATS)
    await roles.requeue.publish("orders.new", retries=1)

    await until_told(worker, "ready, but not all is allowed: ", PUBLISHES[entry])
    assert ready(worker)[0]
    assert denials(caplog, PUBLISHES[entry]) == 1

    if entry == "orders.>":
        [error] = (await worker.one_dead()).errors
        assert error == "NATS does not allow this worker to publish to orders.new"
    reload(server, CONFIG)
    await (stats if entry == "_requeue._stats" else dead).next()


async def test_denials_break_no_connection_and_spend_the_attempts_of_the_policy(
    nats_server_factory: NatsServerFactory, cast: Callable[[NatsServer], Awaitable[Cast]], begin: Start
) -> None:
    """Acks, replays, dead letters and stats are denied, all at once and many times."""
    nothing = re.sub(r"publish: {\n *allow: \[.*?\]\n *}", 'publish: { deny: ">" }', WORKER, flags=re.DOTALL)
    server = nats_server_factory(config=CONFIG.replace(WORKER, re.sub(".*allow_responses.*", "", nothing)))
    roles, worker = await cast(server), await begin(server)
    await until_ready(worker)
    broker = worker.worker._broker
    connection = broker.connection

    envelope = build_envelope(subject="orders.new", payload=b"", retries=2, queue="denied")
    for _ in range(50):
        await roles["client"].publish(INTAKE, envelope, reply=roles["client"].new_inbox())
    await until(lambda: worker.queue("denied").dead == 50)
    await worker.idle()
    await until_told(worker, "ready, but not all is allowed: ")
    for dead in worker.dead("denied"):
        assert dead.errors == ["NATS does not allow this worker to publish to orders.new"] * 2
    assert broker.denied_publishes >= 50 + 2 * 50
    assert worker.worker.counts.nats_denied["publish"] == broker.denied_publishes
    assert broker.connection == connection
    assert "disconnected" not in server.log.lower()


async def test_without_allow_responses_acks_are_missed_aloud(
    nats_server_factory: NatsServerFactory,
    cast: Callable[[NatsServer], Awaitable[Cast]],
    begin: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    [line] = [line for line in WORKER.splitlines() if "allow_responses" in line]
    server = nats_server_factory(config=without(line))
    roles, worker = await cast(server), await begin(server)
    await until_ready(worker)
    client = roles["client"]

    for _ in range(3):
        with pytest.raises(nats.errors.TimeoutError):
            await client.request(INTAKE, b"garbage", timeout=0.1)

    await until_told(worker, "ready, but not all is allowed: ", 'Publish to "_INBOX.')
    assert denials(caplog, 'Publish to "_INBOX.') == 1
    reload(server, CONFIG)
    async with asyncio.timeout(WAIT_S):
        while not await answered(client):
            pass


async def answered(client: Client) -> bool:
    try:
        return bool((await client.request(INTAKE, b"garbage", timeout=0.1)).data)
    except nats.errors.TimeoutError:
        return False


async def test_a_handler_that_may_answer_once_cannot_say_that_it_works_and_then_ack(
    nats_server_factory: NatsServerFactory, cast: Callable[[NatsServer], Awaitable[Cast]], begin: Start
) -> None:
    once = CONFIG.replace("{ max: -1, ", "{ max: 1, ")
    assert once != CONFIG
    server = nats_server_factory(config=once)
    roles, worker = await cast(server), await begin(server)
    await until_ready(worker)
    jobs = await Handler.listen(roles["handler"], "orders.>")
    await roles.requeue.publish("orders.new", retries=2)

    first = await jobs.next()
    await first.in_progress()
    await first.ack()
    again = await jobs.next()
    await again.ack()

    assert headers_of(again)["Requeue-Last-Error"] == "no reply within the ack timeout"
    assert any("violation for publish" in error for error in roles.errors)
    await worker.until_empty()


def denials(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """How often the log tells of it."""
    told = [vars(record) for record in caplog.records if record.getMessage() == "NATS denies a permission"]
    return len([fields for fields in told if text in str(fields["error"])])
