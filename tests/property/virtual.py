"""A whole worker in virtual time: everything is real but NATS, the clock, and the threads that wait for the disk.

    with VirtualWorker(path, defaults={"max_in_flight": 2}) as worker:
        worker.publish(b"a", delay_ns=5 * S)
        worker.run_for(10 * S)                  # takes microseconds: the loop sleeps by moving its clock
        assert worker.sent[0].at_ns == START_NS + 5 * S

Reads and writes run on the loop's own thread; each takes virtual time, so that other things happen
meanwhile. So every run with the same inputs is the same run.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import pytest
from requeue_protocol.envelope import build_envelope
from requeue_worker import alarm, app, dispatch, replayer, scheduler
from requeue_worker.broker.parser import Consumer, Raw
from requeue_worker.registry import QueueRegistry
from requeue_worker.settings import Settings
from requeue_worker.storage import committer
from requeue_worker.storage.queues import QueueState
from requeue_worker.storage.store import Store

from tests.property.virtual_time import InlineStore, VirtualLoop, VirtualTime

MS = 1_000_000
S = 1_000_000_000
START_NS = 1_700_000_000 * S

T = TypeVar("T")


class Sent(NamedTuple):
    """A replay as it went out. `at_ns`: wall clock."""

    at_ns: int
    subject: str
    reply: bytes
    payload: bytes
    attempt: int
    queue: str


_HPUB = re.compile(rb"HPUB (\S+) (?:(\S+) )?(\d+) (\d+)\r\n|PUB (\S+) 0\r\n")
_ATTEMPT = re.compile(rb"Requeue-Attempt: (\d+)\r\n")
_QUEUE = re.compile(rb"Requeue-Queue: (\S+)\r\n")


class FakeBroker:
    """The worker's connection, with its other end in the test's hands."""

    def __init__(self, worker: VirtualWorker, listener: app.Worker) -> None:
        self._worker = worker
        self._listener = listener
        self.connected = False
        self.connection = 0
        self.inbox_prefix = b"_INBOX.test."
        self.max_payload = 1 << 20
        self.unsent_bytes = 0
        self.server = "test:4222"
        self.waits_for_flush: list[Callable[[], None]] = []
        self.intake: Consumer | None = None
        self.replies: Consumer | None = None
        self.endpoints: dict[str, Callable[[bytes], Awaitable[bytes | None]]] = {}

    async def connect(self) -> None:
        self.connected = True
        self.connection += 1

    async def subscribe_replies(self, replies: Consumer) -> None:
        self.replies = replies

    async def subscribe_intake(self, subject: str, group: str, intake: Consumer) -> None:
        self.intake = intake
        self._listener.connected(False)
        self._listener.taking()

    async def keep_subscribed(self) -> None:
        """They stand."""

    @property
    def can_replay(self) -> bool:
        return self.connected and self.replies is not None

    def ready(self) -> tuple[bool, str]:
        return self.connected, "ready" if self.connected else "not connected to NATS"

    def denied(self, subject: bytes) -> None:
        """Nothing is."""

    async def respond(self, subject: str, answer: Callable[[bytes], Awaitable[bytes | None]]) -> None:
        self.endpoints[subject] = answer

    async def stop_intake(self) -> None:
        self.intake = None

    def send(self, chunk: bytes, messages: int) -> None:
        self._worker.on_sent(chunk, messages)

    def when_flushed(self, callback: Callable[[], None]) -> None:
        self.waits_for_flush.append(callback)

    def confirm(self, callback: Callable[[], None]) -> None:
        """What was sent to the worker is there at once."""
        self._worker.loop.call_soon(callback)

    async def publish(self, subject: str, payload: bytes) -> None:
        """Stats: of no interest here."""

    async def flush(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        self.connected = False

    # -- the test's side -------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The connection breaks."""
        self.connected = False
        self.connection += 1
        self.unsent_bytes = 0
        self.waits_for_flush.clear()
        self._worker.call(self._listener.disconnected)

    def mend(self) -> None:
        """The connection stands again."""
        self.connected = True
        self.connection += 1
        self._worker.call(lambda: self._listener.connected(True))

    def drained(self) -> None:
        """The socket has taken everything."""
        self.unsent_bytes = 0
        waiting, self.waits_for_flush = self.waits_for_flush, []
        for callback in waiting:
            self._worker.call(callback)


class VirtualWorker:
    """A worker in virtual time. Use it as a context manager; it is connected when the block begins."""

    def __init__(self, path: Path, *, defaults: Mapping[str, object] | None = None, **settings: Any) -> None:
        self.loop = VirtualLoop()
        self.step_ns = self.starts = 0
        self.sent: list[Sent] = []
        self.acked: list[str] = []
        #: reply subjects of those that were told to be duplicates
        self.duplicates: list[str] = []
        #: decides what is replied to a replay at once: None for nothing
        self.answer: Callable[[Sent], bytes | None] = lambda _: None
        said = {"data_dir": path, "instance_id": "virtual", "stats_interval": "1h", **settings}
        self.settings = Settings(**said, defaults={"jitter": 0, **(defaults or {})})
        self._patches = pytest.MonkeyPatch()
        self.store: InlineStore
        self.broker: FakeBroker
        self.worker: app.Worker

    def clock(self) -> int:
        """Wall clock, Unix ns. `step_ns` is what it was stepped by."""
        return START_NS + self.loop.now_ns + self.step_ns

    def __enter__(self) -> Self:
        fake_time = VirtualTime(self.loop)
        for module in (scheduler, dispatch, replayer, committer):
            self._patches.setattr(module, "time", fake_time)
        self._patches.setattr(alarm, "open_timer", lambda: None)  # the kernel's time is not this one
        self._patches.setattr(app, "Broker", lambda _, listener: FakeBroker(self, listener))
        self._patches.setattr(app, "Store", _Opener)
        try:
            self._start()
        except BaseException:
            self._patches.undo()
            raise
        return self

    def _start(self) -> None:
        self.worker = app.Worker(self.settings, clock=self.clock)
        self.loop.run_until_complete(self.worker.start())
        self.starts += 1
        self.worker._committer._ids.epoch = self.starts.to_bytes(8, "big")  # the order of ids is no chance
        self.store = self.worker._store  # type: ignore[assignment]
        self.broker = self.worker._broker  # type: ignore[assignment]
        self.run_for(0)

    def restart(self) -> None:
        """Stop the worker in good order, as far as that is possible, and start it on the same directory."""
        self.loop.run_until_complete(self.worker.stop())
        self._start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.broker.connected = False  # nothing to wait for
            self.loop.run_until_complete(self.worker.stop())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        finally:
            self._patches.undo()
            self.loop.close()

    # -- driving ---------------------------------------------------------------------------------------------

    def run_for(self, ns: int) -> None:
        """Let virtual time pass, and everything happen that is due until then."""
        self.run_until(self.loop.now_ns + ns)

    def run_until(self, now_ns: int) -> None:
        """As `run_for`, up to this time of the loop."""

        async def sleep() -> None:
            while self.loop.now_ns < now_ns:  # noqa: ASYNC110 - rounding may end a sleep early
                await asyncio.sleep((now_ns - self.loop.now_ns) / 1e9)
            for _ in range(60):  # what is ready now, and what that makes ready
                await asyncio.sleep(0)

        self.loop.run_until_complete(sleep())

    def publish(
        self,
        payload: bytes = b"",
        *,
        subject: str = "jobs.a",
        headers: Mapping[str, str] | None = None,
        ack: str = "",
        **envelope: Any,
    ) -> None:
        """An envelope comes in; `ack` is the reply subject."""
        block = None
        if headers:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            block = f"NATS/1.0\r\n{lines}\r\n".encode()
        self._take_in(
            [
                (
                    b"requeue.x",
                    ack.encode(),
                    block,
                    build_envelope(subject=subject, payload=payload, **envelope),
                )
            ]
        )

    def take_in(self, envelopes: Iterable[bytes]) -> None:
        """All of these come in with one read of the socket."""
        self._take_in([(b"requeue.x", b"", None, envelope) for envelope in envelopes])

    def _take_in(self, messages: list[Raw]) -> None:
        assert self.broker.intake is not None
        self._call(lambda: self.broker.intake(messages))  # type: ignore[misc]

    def reply(self, sent: Sent, payload: bytes = b"", headers: bytes | None = None) -> None:
        """A handler answers a replay."""
        assert self.broker.replies is not None
        self._call(lambda: self.broker.replies([(sent.reply, b"", headers, payload)]))  # type: ignore[misc]

    def _call(self, function: Callable[[], None]) -> None:
        async def run() -> None:
            function()

        self.loop.run_until_complete(run())

    def call(self, function: Callable[[], T]) -> T:
        """Call on the loop."""

        async def run() -> T:
            return function()

        return self.loop.run_until_complete(run())

    def on_sent(self, chunk: bytes, messages: int) -> None:
        """The worker has sent protocol bytes."""
        position = count = 0
        while position < len(chunk):
            found = _HPUB.match(chunk, position)
            assert found is not None, chunk[position : position + 80]
            count += 1
            if found[5] is not None:
                self.acked.append(found[5].decode())
                position = found.end() + 2
                continue
            body, end = found.end() + int(found[3]), found.end() + int(found[4])
            block = chunk[found.end() : body]
            attempt, queue = _ATTEMPT.search(block), _QUEUE.search(block)
            if found[2] is not None and attempt is not None and queue is not None:
                assert self.broker.connected, "a replay goes out while disconnected"
                sent = Sent(
                    self.clock(),
                    found[1].decode(),
                    found[2],
                    chunk[body:end],
                    int(attempt[1]),
                    queue[1].decode(),
                )
                self.sent.append(sent)
                answer = self.answer(sent)
                if answer is not None:
                    self.loop.call_soon(self._answer, sent, answer)
            if b"Requeue-Duplicate" in block:
                self.duplicates.append(found[1].decode())
            position = end + 2
        assert count == messages, "the count handed over with a chunk is that of its operations"

    def _answer(self, sent: Sent, payload: bytes) -> None:
        if self.broker.replies is not None:
            self.broker.replies([(sent.reply, b"", None, payload)])

    # -- looking ---------------------------------------------------------------------------------------------

    def queue(self, name: str = "default") -> QueueState:
        return self.worker._registry.get(name)

    @property
    def scheduler(self) -> scheduler.Scheduler:
        return self.worker._scheduler

    @property
    def payloads(self) -> list[bytes]:
        """Payloads of the replays so far, in order."""
        return [sent.payload for sent in self.sent]


class _Opener:
    """Stands for `Store` in app: opens an InlineStore that does not sync, since nothing crashes in virtual time."""

    @staticmethod
    def open(data_dir: Path, instance_id: str, registry: QueueRegistry) -> Store:
        store = InlineStore.open(data_dir, instance_id, registry)
        store._engine.write = partial(store._engine.write, sync=False)  # type: ignore[method-assign]
        return store
