"""The worker: composition root and lifecycle. Everything it wires has its own module; nothing else is decided here.

    Broker ─intake→ Ingest ─→ Committer ─→ Store          start: store, then NATS, then the subscriptions, then replay
      │                          ▲                          stop:  intake, what came in, what is in flight, NATS, store
      └─replies→ Replayer ──────┘ ◀── Scheduler ◀─ Store

Embedded use: ``async with Worker(settings, hooks) as worker: await worker.closed()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType

from requeue_protocol.errors import RefusedError
from requeue_worker.answers import Answers
from requeue_worker.bridge.bridge import Bridge, subjects_of
from requeue_worker.broker.nats import Broker
from requeue_worker.broker.parser import Raw
from requeue_worker.broker.permissions import read_violation
from requeue_worker.counts import Counts
from requeue_worker.deadletters import DeadLetters
from requeue_worker.dedupe import Dedupe
from requeue_worker.drain.receiver import Receiver
from requeue_worker.drain.volume import ensure_identity
from requeue_worker.errors import CommitError
from requeue_worker.headroom import Headroom
from requeue_worker.hooks import Hooks
from requeue_worker.inflight import Delivery
from requeue_worker.ingest import Ingest
from requeue_worker.micro.api import AdminApi
from requeue_worker.micro.service import Service
from requeue_worker.reaper.reaper import Reaper, ReaperStatus
from requeue_worker.reclaimer import Reclaimer
from requeue_worker.record import MAX_TIME_NS
from requeue_worker.registry import QueueRegistry
from requeue_worker.replayer import Replayer
from requeue_worker.reporter import Reporter
from requeue_worker.retirement import Retirement
from requeue_worker.scheduler import Scheduler
from requeue_worker.settings import Settings, policy_for
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.store import Store
from requeue_worker.storage.transaction import Accepted, client_id_of
from requeue_worker.supervisor import Supervisor
from requeue_worker.web.fleet import Fleet

log = logging.getLogger(__name__)


def _identify(data_dir: Path) -> None:
    """Without an identity the volume can't be proved to be drained; a worker goes on all the same."""
    try:
        ensure_identity(data_dir)
    except OSError as error:
        log.warning("the volume has no identity", extra={"directory": str(data_dir), "error": str(error)})


class Worker:
    """One worker on one instance directory. Start it once."""

    def __init__(
        self, settings: Settings, hooks: Hooks | None = None, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.settings = settings
        self.counts = Counts()
        self._hooks = hooks or Hooks()
        self._wall_clock = clock
        # what keys and records can say
        self._clock: Callable[[], int] = lambda: min(max(clock(), 0), MAX_TIME_NS)
        self._closed = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._registry = QueueRegistry(
            lambda queue: policy_for(settings, queue),
            settings.subject,
            settings.max_queues,
            self.counts,
            _names(settings),
        )
        self._supervisor = Supervisor(self._fatal)

    # -- lifecycle -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open the store and begin to connect; returns before NATS is there (`hooks.ready` says when).

        Raises DataDirLocked, DataDirUnreadable or DataFormatTooNew.
        """
        settings = self.settings
        self._store = await asyncio.to_thread(
            Store.open, settings.data_dir, settings.instance_id, self._registry
        )
        await asyncio.to_thread(_identify, settings.data_dir)
        self._wire(settings)
        await self._headroom.look_now()
        await self._dead_letters.load()
        self._supervisor.start("connect", self._connect())
        self._supervisor.start("disk", self._headroom.watch_forever())
        self._supervisor.start("stats", self._reporter.report_forever())
        self._supervisor.start("dead letter publisher", self._dead_letters.publish_forever())
        self._supervisor.start("dead letter retention", self._dead_letters.retain_forever())
        self._supervisor.start("retirement", self._retirement.retire_forever())
        if settings.reaper.enabled:
            self._supervisor.start("reaper", self._reaper.reap_forever())

    def _wire(self, settings: Settings) -> None:
        self._broker = broker = Broker(settings.nats, self)
        self._committer = committer = Committer(
            self._store,
            self.counts,
            self._clock,
            on_durable=self._on_durable,
            on_earlier=lambda lanes: self._scheduler.lanes_earlier(lanes),
            room=lambda: self._scheduler.read_ahead.room,
            on_retained=lambda messages: self._scheduler.retained(messages),
            on_failed=self._on_failed,
        )
        self._dead_letters = DeadLetters(
            self._store, committer, self._registry, broker, self._clock, settings.invalid_kept
        )
        self._replayer = Replayer(
            committer,
            self._dead_letters,
            clock=self._clock,
            connection=lambda: broker.connection,
            max_payload=lambda: broker.max_payload,
            denied=broker.denied,
            confirm=broker.confirm,
            freed=lambda queues: self._scheduler.freed(queues),
            reply_seconds=self.counts.reply_seconds,
            reconnect_grace_ns=settings.reconnect_grace_ns,
        )
        self._scheduler = Scheduler(
            self._registry,
            self._replayer,
            self.counts,
            clock=self._clock,
            read=lambda requests: asyncio.ensure_future(self._store.read_due(requests)),
            send=broker.send,
            may_send=lambda: broker.can_replay,
            when_flushed=broker.when_flushed,
            failed=self._fatal,
            unsent_bytes=lambda: broker.unsent_bytes,
            max_in_flight=settings.max_in_flight_total,
            max_in_flight_bytes=settings.max_in_flight_bytes,
        )
        self._ingest = Ingest(
            self._registry,
            committer,
            self.counts,
            send=broker.send,
            max_payload=lambda: broker.max_payload,
            clock=self._clock,
            keep_invalid=self._keep_invalid,
            dedupe=lambda messages: self._dedupe.admit(messages),
            buffer_bytes=settings.intake_buffer_bytes,
        )
        self._reclaimer = Reclaimer(
            self._store, committer, self._registry, self._replayer, self.counts, self._clock
        )
        self._headroom = Headroom(
            self._store.path,
            settings.disk_reserve,
            self.counts,
            waiting_bytes=lambda: committer.waiting_bytes,
            refuse=self._ingest.refuse_all,
            reclaim=self._reclaimer.reclaim,
            writable=lambda: self._store.writable,
            background_errors=self._store.background_errors,
        )
        self._store.look, self._store.looked = self._headroom.look, self._headroom.note
        self._dedupe = Dedupe(
            self._store,
            is_pending=self._is_pending,
            departures=committer.departures,
            accept=self._ingest.on_fresh,
            duplicate=self._ingest.on_duplicates,
            failed=self._ingest.on_look_up_failed,
        )
        self._bridge = self._make_bridge() if settings.intake and settings.bridge.consumers else None
        self._answers = Answers(settings.subject, self._ingest.refuse)
        self._retirement = Retirement(
            self._registry,
            committer,
            self._clock,
            held=self._dedupe.holds,
            forget=self._scheduler.forget,
        )
        self._api = AdminApi(
            settings,
            self._store,
            committer,
            self._registry,
            self._dead_letters,
            self.counts,
            self._clock,
            self._scheduler,
            ready=self.ready,
            max_payload=lambda: broker.max_payload,
            has_room=lambda: not self._headroom.full,
        )
        self._reaper = Reaper(
            settings,
            self._store,
            committer,
            self._registry,
            self._dead_letters,
            self.counts,
            reaped=self._hooks.reaped,
        )
        self._receiver = Receiver(
            settings,
            self._store,
            committer,
            self._registry,
            self._dead_letters,
            self.counts,
            self._clock,
            has_room=lambda: not self._headroom.full,
        )
        self._reporter = Reporter(
            self._registry,
            broker,
            settings.instance_id,
            settings.stats_interval_ns,
            self._wall_clock,
            clock_stepped=self._scheduler.look_again,
        )

    def _make_bridge(self) -> Bridge:
        broker, said = self._broker, self.settings.bridge
        return Bridge(
            said,
            self._store,
            self._committer,
            self._ingest,
            self._dead_letters,
            self.counts,
            self._clock,
            messages=broker.messages_of_streams(),
            source=broker.heard(subjects_of(said), self.settings.queue_group)
            if said.advisory_stream is None
            else broker.captured(said.advisory_stream, said.durable, subjects_of(said)),
        )

    async def _connect(self) -> None:
        await self._broker.connect()
        self._replayer.inbox = self._answers.inbox = self._broker.inbox_prefix
        for subject, answer in (*self._api.service.subjects(), *self._receiver.endpoints.items()):
            await self._broker.respond(subject, answer)
        await self._broker.subscribe_replies(self._replayer.on_replies)
        if self.settings.intake:
            await self._broker.subscribe_intake(
                self.settings.subject,
                self.settings.queue_group,
                lambda batch: self._ingest.on_messages(self._answers.check(batch)),
            )
        if self._bridge is not None:
            self._supervisor.start("bridge", self._bridge.run_forever())
        await self._broker.keep_subscribed()

    async def stop(self) -> None:
        """Stop gracefully, within `shutdown_grace`; a second call waits for the first."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._shut_down())
        await asyncio.shield(self._stopping)

    async def _shut_down(self) -> None:
        log.info("stopping")
        if not hasattr(self, "_broker"):
            self._closed.set()  # never started: the store could not be opened
            return
        try:
            self._scheduler.stop()
            await self._reaper.stop()
            await self._receiver.stop()
            await self._api.stop()
            if self._bridge is not None:
                await self._bridge.stop()
            await self._broker.stop_intake()
            self._ingest.drain()
            if self._committer.failed is None:
                await self._finish_work()
        except CommitError:
            log.exception("what was under way could not be written")
        finally:
            self._scheduler.close()
            await self._supervisor.stop()
            await self._broker.close()
            with contextlib.suppress(CommitError):
                await self._committer.idle()  # replies that came until now
            await asyncio.to_thread(self._store.close)
            log.info("stopped", extra={"in_flight": len(self._replayer.in_flight)})
            self._closed.set()
            self._hooks.closed()

    async def _finish_work(self) -> None:
        """First what came in, then what is in flight; what has no reply stays pending on disk."""
        await self._dedupe.idle()
        await self._committer.idle()
        if self._broker.connected:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._replayer.wait_idle(), self.settings.shutdown_grace_ns / 1e9)
        await self._committer.idle()
        self._committer.checkpoint(queue for queue in self._registry if queue.lanes)
        await self._committer.idle()

    async def closed(self) -> None:
        """Return when the worker has ended; raises what ended it, if it was not `stop`."""
        await self._closed.wait()
        if self._error is not None:
            raise self._error

    def _fatal(self, error: BaseException) -> None:
        if self._error is None and self._stopping is None:
            self._error = error
            log.critical("the worker ends", extra={"error": str(error)})
            self._stopping = asyncio.get_running_loop().create_task(self._shut_down())

    def use(self, settings: Settings) -> None:
        """Take new queue policies into use (`defaults` and `queues`); the rest needs a restart."""
        self._registry.use_policies(lambda queue: policy_for(settings, queue), _names(settings))
        self._dead_letters.forget_retention()
        self._scheduler.look_again()

    async def checkpoint(self, path: Path) -> None:
        """Make a copy of the instance directory at `path`, which must not exist; the work goes on. Raises OSError."""
        await self._store.checkpoint(path)

    # -- health ----------------------------------------------------------------------------------------------

    def live(self) -> tuple[bool, str]:
        """Whether a restart would not help."""
        if self._error is not None:
            return False, f"ending: {self._error}"
        return True, "alive"

    def ready(self) -> tuple[bool, str]:
        """Whether messages are taken now, and if not, why."""
        if self._stopping is not None:
            return False, "stopping"
        if not hasattr(self, "_broker"):
            return False, "not started"
        ready, why = self._broker.ready()
        if ready and self._headroom.full:
            # A restart would not help, and an update must not get stuck: what is pending goes out.
            why += "; the disk is full: new messages are refused, what is pending goes out"
        return ready, why

    @property
    def nats_connected(self) -> bool:
        """Whether the connection stands now."""
        return hasattr(self, "_broker") and self._broker.connected

    @property
    def service(self) -> Service:
        """The admin API of this instance. After the start."""
        return self._api.service

    def overview(self) -> AsyncIterator[bytes]:
        """The instance, its queues and what happened to them, as JSON lines. After the start."""
        return self._api.overview.lines()

    def fleet(self) -> Fleet:
        """The admin API of this and all other instances, for one who asks from within. After the start."""
        broker = self._broker
        return Fleet(self.settings.instance_id, self._api.service, broker.asking, lambda: broker.connected)

    @property
    def reaper(self) -> ReaperStatus:
        """Which directory is being merged, and which can't be."""
        return self._reaper.status

    @property
    def reporter(self) -> Reporter:
        """Snapshots of the queues, for metrics."""
        return self._reporter

    # -- what the parts tell each other ----------------------------------------------------------------------

    def connected(self, reconnected: bool) -> None:
        """Broker: the connection stands, and replies come in."""
        self._replayer.connected()
        self._dead_letters.wake()
        if reconnected:
            self._hooks.reconnected()
            self._scheduler.look_again()
        else:
            self._scheduler.start()

    def granted(self) -> None:
        """Broker: what was denied may be allowed now."""
        self._scheduler.look_again()
        self._dead_letters.wake()

    def taking(self) -> None:
        """Broker: the intake stands."""
        log.info("ready", extra={"subject": self.settings.subject, "instance": self.settings.instance_id})
        self._hooks.ready()

    def disconnected(self) -> None:
        """Broker: the connection is gone."""
        self.counts.nats_disconnects += 1
        self._hooks.disconnected()

    def connection_error(self, error: Exception) -> None:
        """Broker: something went wrong that it goes on after."""
        violation = read_violation(str(error))
        if violation is not None:
            self.counts.nats_denied["subscribe" if violation.is_subscription else "publish"] += 1
        self._hooks.connection_error(error)

    def _on_durable(self, messages: list[Accepted]) -> None:
        self._ingest.on_durable(messages)
        for client_id in filter(None, map(client_id_of, messages)):
            self._dedupe.durable(client_id)

    def _on_failed(self, error: CommitError, messages: list[Accepted]) -> None:
        self._ingest.drain()  # what still comes would wait for an answer that nobody gives
        self._ingest.on_failed(messages)
        self._dedupe.close()
        self._hooks.write_error(error)
        self._fatal(error)

    def _keep_invalid(self, raw: Raw, error: RefusedError, answer: Callable[[], None]) -> None:
        self._dead_letters.keep_invalid(raw, error, answer)

    def _is_pending(self, queue: str, priority: int, key: bytes) -> bool:
        """Whether a message found by its client id is pending and not in flight."""
        known = self._registry.by_name.get(queue)
        return known is not None and not isinstance(known.lane(priority).unsettled.get(key), Delivery)


def _names(settings: Settings) -> list[str]:
    return [queue.name for queue in settings.queues]
