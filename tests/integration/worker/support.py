"""A worker in the test's own event loop, on a real nats-server and a real disk, with eyes on what it stores.

    async def test_something(start: StartWorker, nc: Client) -> None:
        worker = await start(queues=[{"name": "mail", "retries": 2}])
        jobs = await Handler.listen(nc, "jobs.>")
        await worker.publish("jobs.a", b"payload", queue="mail")
        await (await jobs.next()).nak()

Times are checked on stored keys and histories, never on a stopwatch. `Clock` puts the worker's wall clock forward.
The fixture `start` (conftest.py) checks after each test that counters, checkpoints and ids agree with the data.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nats.aio.client import Client
from nats.aio.msg import Msg
from requeue_protocol.envelope import build_envelope
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.policy import QueuePolicy
from requeue_protocol.subjects import SubjectRules, check_queue_name
from requeue_worker.app import Worker
from requeue_worker.broker.client import BulkClient
from requeue_worker.broker.parser import Raw
from requeue_worker.counts import QueueCounts
from requeue_worker.hooks import Hooks
from requeue_worker.inflight import Delivery
from requeue_worker.record import Extras, Record, decode
from requeue_worker.settings import Settings
from requeue_worker.storage.keys import META_QUEUE, id_of, ids_prefix, parse_message_key, time_of
from requeue_worker.storage.queues import INVALID_QUEUE, QueueState
from requeue_worker.storage.rocksdb import DEAD, IDS, MESSAGES, META, Batch, Engine

from tests.servers import NatsServer, settle, until

MS = 1_000_000
S = 1_000_000_000
HOUR = 3600 * S
INTAKE = "requeue.publish"
INSTANCE = "tested"
WAIT_S = 20.0

#: no jitter and short backoff; the ack timeout is one that a slow machine does not reach by chance
DEFAULTS: Mapping[str, object] = {"ack_timeout": "10s", "min_backoff": "20ms", "jitter": 0}


class Clock:
    """The wall clock of a worker, which a test can put forward or back."""

    def __init__(self) -> None:
        self.offset_ns = 0

    def __call__(self) -> int:
        return time.time_ns() + self.offset_ns


class Stored(NamedTuple):
    """A message or dead letter as it lies on disk. `time_ns`: due, deadline or death, as the key has it."""

    queue: str
    priority: int
    time_ns: int
    id: str
    record: Record
    extras: Extras

    @property
    def errors(self) -> list[str]:
        return [attempt.error for attempt in self.extras.history]


class StartWorker(Protocol):
    """What the fixture `start` is: starts a worker with these settings and returns when it is ready."""

    async def __call__(self, **settings: Any) -> LiveWorker: ...


class LiveWorker:
    """A running worker, the clock that it goes by, and the client that publishes to it."""

    def __init__(self, settings: Settings, nc: Client, clock: Clock) -> None:
        self.nc = nc
        self.clock = clock
        self.path = settings.data_dir / settings.instance_id
        self.write_errors: list[Exception] = []
        self._ready = asyncio.Event()
        hooks = Hooks(ready=self._ready.set, write_error=self.write_errors.append)
        self.worker = Worker(settings, hooks, clock=clock)

    async def start(self) -> LiveWorker:
        await self.worker.start()
        await asyncio.wait_for(self._ready.wait(), WAIT_S)
        return self

    async def stop(self) -> None:
        """Stop, and check that neither memory nor disk holds what the other does not know of."""
        await self.worker.stop()
        if not self.write_errors:
            self._check_memory()
        check_data(self.path)

    async def forward(self, ns: int) -> None:
        """Put the clock forward and let the worker notice."""
        self.clock.offset_ns += ns
        self.worker.use(self.worker.settings)

    # -- publishing ------------------------------------------------------------------------------------------

    async def publish(
        self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None, **envelope: Any
    ) -> Msg:
        """Publish an envelope and return its ack."""
        answer = await self.ask(build_envelope(subject=subject, payload=payload, **envelope), headers)
        assert is_ack(answer), (answer.data, answer.headers)
        return answer

    async def publish_plain(
        self, subject: str, payload: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Msg:
        """Publish with headers alone and return the ack."""
        answer = await self.ask(payload, {"Requeue-Subject": subject, **(headers or {})})
        assert is_ack(answer), (answer.data, answer.headers)
        return answer

    async def ask(self, payload: bytes, headers: dict[str, str] | None = None) -> Msg:
        """Publish whatever it is and return the answer, whatever it is."""
        return await ask(self.nc, INTAKE, payload, headers)

    # -- looking ---------------------------------------------------------------------------------------------

    def queue(self, name: str = "default") -> QueueState:
        return self.worker._registry.get(name)

    def pending(self, queue: str = "default") -> list[Stored]:
        """What is pending on disk now, in order of priority and due time."""
        return [
            Stored(name, priority, due_ns, message_id.hex(), record, record.extras)
            for key, value in self._engine.items(MESSAGES, b"", b"\xff")
            for name, priority, due_ns, message_id in [parse_message_key(key)]
            for record in [decode(value)]
            if name == queue
        ]

    def dead(self, queue: str = "default") -> list[Stored]:
        """A queue's dead letters on disk now, the oldest first."""
        return [
            Stored(queue, -1, time_of(key), id_of(key).hex(), record, record.extras)
            for key, value in self._engine.items(DEAD, b"", b"\xff")
            for record in [decode(value)]
            if _queue_of_dead(key) == queue
        ]

    def invalid(self) -> list[Stored]:
        """Refused messages that were kept."""
        return self.dead(INVALID_QUEUE)

    async def one_pending(self, queue: str = "default") -> Stored:
        """The one message that is pending, once everything under way is on disk."""
        await self.idle()
        [stored] = self.pending(queue)
        return stored

    async def one_dead(self, queue: str = "default") -> Stored:
        """Wait for the one dead letter."""
        await until(lambda: self.dead(queue))
        [stored] = self.dead(queue)
        return stored

    async def idle(self) -> None:
        """Return when everything that the worker was told so far is on disk."""
        await self.worker._committer.idle()

    async def until_empty(self, queue: str = "default") -> None:
        """Wait until nothing of this queue is pending on disk."""
        await until(lambda: not self.pending(queue))
        await self.idle()

    async def until_failed(self, times: int = 1, queue: str = "default") -> None:
        """Wait until so many dispatches have failed and been written as retries."""
        await until(lambda: self.queue(queue).counts.retried >= times)
        await self.idle()

    async def until_sent(self, times: int, queue: str = "default") -> None:
        """Wait until so many dispatches have gone out."""
        await until(lambda: self.queue(queue).counts.replays >= times)

    @property
    def _engine(self) -> Engine:
        return self.worker._store._engine

    # -- faults ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def held_disk(self) -> AsyncIterator[asyncio.Event]:
        """Writes wait before they reach the disk until the block ends; the event says that one has begun to."""
        store = self.worker._store
        write, begun, released = store.write, asyncio.Event(), asyncio.Event()

        async def hold(batch: Batch) -> None:
            begun.set()
            await released.wait()
            await write(batch)

        store.write = hold  # type: ignore[method-assign]
        try:
            yield begun
        finally:
            store.write = write  # type: ignore[method-assign]
            released.set()

    def crash_image(self, data_dir: Path) -> None:
        """Copy the instance directory as it is now: what a crash at this moment would leave."""
        shutil.copytree(self.path, data_dir / self.path.name)

    def _check_memory(self) -> None:
        worker = self.worker
        in_flight: Counter[QueueState] = Counter()
        ready_bytes = in_flight_bytes = 0
        for queue in worker._registry:
            assert (queue.waiting, queue.waiting_bytes) == (0, 0), queue.name
            for lane in queue.lanes.values():
                ready_bytes += sum(len(value) for _, value in lane.ready)
                for delivery in lane.unsettled.values():
                    if isinstance(delivery, Delivery):
                        in_flight[queue] += 1
                        in_flight_bytes += len(delivery.value)
            assert queue.in_flight == in_flight[queue], queue.name
        assert worker._scheduler.read_ahead.ready_bytes == ready_bytes
        assert worker._replayer.in_flight.bytes == in_flight_bytes
        assert worker._committer.waiting_bytes == 0
        assert worker._ingest._looked_up_bytes == 0


def check_data(path: Path) -> None:
    """Counters, checkpoints and ids of a closed instance directory against a full scan of its data."""
    engine = Engine(path)
    try:
        known = {}
        for key, value in engine.items(META, META_QUEUE, META_QUEUE + b"\xff"):
            name = key[len(META_QUEUE) :].decode()
            known[name] = QueueState(
                name, QueuePolicy.model_validate({}), SubjectRules(intake="requeue.>"), QueueCounts()
            )
            known[name].load(value)
        pending: Counter[str] = Counter()
        pending_bytes: Counter[str] = Counter()
        ids = {}
        for key, value in engine.items(MESSAGES, b"", b"\xff"):
            queue, priority, _, message_id = parse_message_key(key)
            record = decode(value)
            pending[queue] += 1
            pending_bytes[queue] += record.size
            assert key >= known[queue].lanes[priority].checkpoint, f"{queue}: pending below the checkpoint"
            if record.client_id is not None:
                ids[ids_prefix(record.client_id) + message_id] = key
        dead: Counter[str] = Counter()
        dead_bytes: Counter[str] = Counter()
        for key, value in engine.items(DEAD, b"", b"\xff"):
            dead[_queue_of_dead(key)] += 1
            dead_bytes[_queue_of_dead(key)] += decode(value).size
        assert {*pending, *dead} <= {*known}
        for name, queue_state in known.items():
            counted = (queue_state.pending, queue_state.bytes, queue_state.dead, queue_state.dead_bytes)
            assert counted == (pending[name], pending_bytes[name], dead[name], dead_bytes[name]), name
        assert dict(engine.items(IDS, b"", b"\xff")) == ids
    finally:
        engine.close()


def _queue_of_dead(key: bytes) -> str:
    name = key[1 : 1 + key[0]].decode("ascii")
    if name != INVALID_QUEUE:
        try:
            check_queue_name(name)
        except MalformedMessage as wrong:
            raise AssertionError(str(wrong)) from None
    return name


class Handler:
    """A subscriber on original subjects. The test answers, or `answer` does."""

    def __init__(self, nc: Client, answer: Callable[[Msg], Awaitable[None]] | None) -> None:
        self.nc = nc
        self.received: list[Msg] = []
        self._answer = answer
        self._unseen: asyncio.Queue[Msg] = asyncio.Queue()

    @classmethod
    async def listen(
        cls, nc: Client, subject: str, answer: Callable[[Msg], Awaitable[None]] | None = None
    ) -> Handler:
        """Subscribe; on return the server knows."""
        handler = cls(nc, answer)
        await nc.subscribe(subject, cb=handler._on_message)
        await settle(nc)
        return handler

    async def _on_message(self, msg: Msg) -> None:
        self.received.append(msg)
        self._unseen.put_nowait(msg)
        if self._answer is not None:
            await self._answer(msg)

    async def next(self) -> Msg:
        """The next delivery."""
        return await asyncio.wait_for(self._unseen.get(), WAIT_S)

    @property
    def payloads(self) -> list[bytes]:
        return [msg.data for msg in self.received]


def attempt_of(msg: Msg) -> int:
    return int(headers_of(msg)["Requeue-Attempt"])


def headers_of(msg: Msg) -> dict[str, str]:
    assert msg.headers is not None
    return msg.headers


def is_ack(msg: Msg) -> bool:
    """Whether an answer says that the message is on disk."""
    return msg.data == b"" and (msg.headers is None or set(msg.headers) == {"Requeue-Duplicate"})


class Asked:
    """A request under way. Its answer comes as it is: nats-py's own turns a status into an exception."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

    @property
    def answered(self) -> bool:
        return self._answer.done()

    async def on_answer(self, msg: Msg) -> None:
        assert not self.answered, f"a second answer: {msg.data!r}"
        self._answer.set_result(msg)

    async def answer(self) -> Msg:
        return await asyncio.wait_for(asyncio.shield(self._answer), WAIT_S)


async def ask_later(nc: Client, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> Asked:
    """Send a request and do not wait for its answer."""
    asked = Asked()
    inbox = nc.new_inbox()
    await nc.subscribe(inbox, cb=asked.on_answer)
    await nc.publish(subject, payload, reply=inbox, headers=headers)
    return asked


async def ask(nc: Client, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> Msg:
    """Send a request and wait for its answer."""
    return await (await ask_later(nc, subject, payload, headers)).answer()


def refusal_of(msg: Msg) -> tuple[int, str]:
    """Code and text of a refusal, checked for what every refusal has."""
    headers = headers_of(msg)
    code, text = int(headers["Nats-Service-Error-Code"]), headers["Nats-Service-Error"]
    if 400 <= code < 429:
        assert msg.data == f"-ERR {code} {text}".encode()
        assert "Status" not in headers
    else:
        assert (msg.data, headers["Status"]) == (b"", "503")
        assert headers["Description"] == text
    return code, text


@asynccontextmanager
async def raw_client(server: NatsServer) -> AsyncIterator[BulkClient]:
    """A connection that shows header blocks as the bytes that they are, and sends them so."""
    client = BulkClient()
    await client.connect(server.url)
    try:
        yield client
    finally:
        await client.close()


async def raw_listen(client: BulkClient, subject: str) -> list[Raw]:
    """Everything that comes in on `subject`, as raw bytes."""
    received: list[Raw] = []
    await client.subscribe_hot(subject, received.extend)
    await client.flush()
    return received


def raw_message(subject: str, block: bytes, payload: bytes, reply: str = "") -> bytes:
    """A HPUB operation with a header block that stands as it is."""
    size = len(block)
    return f"HPUB {subject} {reply} {size} {size + len(payload)}\r\n".encode() + block + payload + b"\r\n"
