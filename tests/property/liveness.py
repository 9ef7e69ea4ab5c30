"""A whole worker in virtual time under random events: what `test_liveness` runs.

Whenever the worker has come to rest, every message that is due is in flight, or its queue is blocked by something that
can be named. In the end every message has come to exactly one end. Limits are tiny, so that each is reached.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from requeue_worker.admin import CANCEL, RESCHEDULE
from requeue_worker.broker.nats import Answer
from requeue_worker.changes import Remove
from requeue_worker.inflight import Delivery
from requeue_worker.record import decode
from requeue_worker.storage.keys import parse_message_key, time_of
from requeue_worker.storage.queues import QueueState
from requeue_worker.storage.rocksdb import DEAD, MESSAGES

from tests.property import limits
from tests.property.rig import Stored
from tests.property.virtual import MS, S, Sent, VirtualWorker

QUEUES = ("default", "slow", "metered", "strict", "long")
TOTAL_IN_FLIGHT = 12
RATE = 5
RETRIES = 4
POLICIES: list[dict[str, Any]] = [
    {"name": "slow", "max_in_flight": 1, "ack_timeout": "3s"},
    {"name": "metered", "max_rate": RATE},
    {"name": "strict", "on_expire": "drop", "on_exhausted": "drop", "weight": 1},
    {"name": "long", "ack_timeout": "100s", "max_in_flight": 9},
]
ANSWERS = (b"", b"", b"", b"-NAK", b'-NAK {"delay": 50000000}', b"+TERM", b"+WPI", None)
PAUSE_NS = st.sampled_from([0, MS, 30 * MS, S, 20 * S, 100 * S])


class LivenessMachine(RuleBasedStateMachine):
    """Random events around one worker."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.TemporaryDirectory(prefix="requeue-liveness-", ignore_cleanup_errors=True)
        self.patches = pytest.MonkeyPatch()
        self.removed: list[bytes] = []
        self._note_removals()
        self.worker = VirtualWorker(
            Path(self.root.name),
            defaults={"min_backoff": "20ms", "max_backoff": "2s", "ack_timeout": "10s"},
            queues=POLICIES,
            max_in_flight_total=TOTAL_IN_FLIGHT,
            reconnect_grace="0s",
            shutdown_grace="1s",
        )
        self.worker.answer = self._answer
        self.published: dict[bytes, int] = {}
        self.begun = self.rescheduled = self.healing = False
        self.answers: list[bytes | None] = []
        self.last: dict[bytes, Sent] = {}
        self.settled: set[bytes] = set()
        self.cancelled = 0
        self.asking: list[Any] = []
        self.highest_step_ns = 0
        self.tokens, self.tokens_at_ns = 1.0, 0

    def _note_removals(self) -> None:
        apply = Remove.apply

        def noted(change: Remove, transaction: Any) -> None:
            self.removed.append(change.record.payload)
            apply(change, transaction)

        self.patches.setattr(Remove, "apply", noted)

    def teardown(self) -> None:
        try:
            if self.begun:
                self.come_to_rest()
                self._everything_ends()
        finally:
            if self.begun:
                self.worker.__exit__(None, None, None)
            self.patches.undo()
            self.root.cleanup()

    # -- the handler -----------------------------------------------------------------------------------------

    def _answer(self, sent: Sent) -> bytes | None:
        before = self.last.get(sent.payload)
        assert before is None or self._delivery(before) is None, "in flight twice"
        self.last[sent.payload] = sent
        assert sent.payload not in self.settled, "sent again after it was settled"
        delivery = self._delivery(sent)
        assert delivery is not None
        self._check_sent(sent, delivery, first=before is None)
        answer = b"" if self.healing else (self.answers.pop() if self.answers else b"")
        if answer == b"":
            self.settled.add(sent.payload)
        return answer

    def _check_sent(self, sent: Sent, delivery: Delivery, *, first: bool) -> None:
        record, queue = decode(delivery.value), delivery.lane.queue
        assert sent.at_ns >= time_of(delivery.key), "early"
        # A message that was due, and in flight when its connection broke, may go out again before that instant once more:
        # the clock may have been set back meanwhile, and what is held is attempt 1 still.
        if first and not self.rescheduled:
            assert sent.at_ns >= record.enqueued_ns + self.published[sent.payload], "early"
        assert not record.deadline_ns or sent.at_ns < record.deadline_ns, "dispatched after its deadline"
        assert sent.attempt <= RETRIES
        assert queue.paused_until_ns <= sent.at_ns, "sent in a pause"
        assert queue.in_flight <= queue.policy.max_in_flight
        total = len(self.worker.worker._replayer.in_flight)
        assert total <= TOTAL_IN_FLIGHT + limits.FAIR_SLOTS * (len(QUEUES) - 1)
        for lane in queue.lanes.values():
            if lane.priority < delivery.lane.priority and lane.ready:
                assert time_of(lane.ready[0][0]) > sent.at_ns, "sent before a higher priority"
        if queue.name == "metered":
            self.tokens -= 1
            assert self._tokens() > -0.01, "faster than its rate"

    def _delivery(self, sent: Sent) -> Delivery | None:
        return self.worker.worker._replayer.in_flight.get(sent.reply.rpartition(b".")[2])

    def _tokens(self) -> float:
        """An upper bound of the tokens that the metered queue has now."""
        now_ns = self.worker.loop.now_ns
        self.tokens = min(1.0, self.tokens + (now_ns - self.tokens_at_ns) * RATE / 1e9)
        self.tokens_at_ns = now_ns
        return self.tokens

    # -- events ----------------------------------------------------------------------------------------------

    @initialize(answers=st.lists(st.sampled_from(ANSWERS), max_size=20), tiny=st.booleans())
    def begin(self, answers: list[bytes | None], tiny: bool) -> None:
        self.answers = answers
        limits.patch(self.patches, tiny)
        self.worker.__enter__()
        self.begun = True

    @rule(
        number=st.integers(1, 20),
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from([0, 4, 9]),
        delay_ns=st.sampled_from([0, 0, 0, 5 * MS, 150 * MS, 2 * S]),
        ttl_ns=st.sampled_from([0, 0, 40 * MS, 5 * S]),
        client_id=st.sampled_from(["", "", "x"]),
    )
    def publish(
        self, number: int, queue: str, priority: int, delay_ns: int, ttl_ns: int, client_id: str
    ) -> None:
        for _ in range(number):
            name = f"{len(self.published):05}"
            headers = {"Requeue-Priority": str(priority)}
            if client_id:
                headers["Nats-Msg-Id"] = f"{client_id}{len(self.published) % 7}"
            self.published[name.encode()] = delay_ns
            message: dict[str, Any] = {"queue": queue, "delay_ns": delay_ns, "ttl_ns": ttl_ns}
            self.worker.publish(name.encode(), retries=RETRIES, headers=headers, ack=name, **message)

    @rule(answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=10))
    def plan_answers(self, answers: list[bytes | None]) -> None:
        self.answers += answers

    @rule(pick=st.integers(0, 1000), answer=st.sampled_from([b"", b"-NAK", b"+WPI"]))
    def answer_late(self, pick: int, answer: bytes) -> None:
        """To anything ever sent: in flight, timed out or answered already."""
        if not self.last:
            return
        sent = self.last[sorted(self.last)[pick % len(self.last)]]

        def reply() -> None:
            if answer == b"" and self._delivery(sent) is not None:
                self.settled.add(sent.payload)
            self.worker.worker._replayer.on_replies([(sent.reply, b"", None, answer)])

        self.worker.call(reply)

    @rule(ns=PAUSE_NS)
    def pass_time(self, ns: int) -> None:
        self.worker.run_for(ns)

    @precondition(lambda self: self.worker.broker.connected)
    @rule()
    def cut(self) -> None:
        self.worker.broker.cut()

    @precondition(lambda self: not self.worker.broker.connected)
    @rule()
    def mend(self) -> None:
        self.worker.broker.mend()

    @rule(full=st.booleans())
    def socket(self, full: bool) -> None:
        if full:
            self.worker.broker.unsent_bytes = limits.UNSENT_BYTES
        else:
            self.worker.broker.drained()

    @rule(queue=st.sampled_from(QUEUES), ns=st.sampled_from([0, S, 50 * S]))
    def pause(self, queue: str, ns: int) -> None:
        self.worker.queue(queue).paused_until_ns = self.worker.clock() + ns if ns else 0
        self.worker.call(self.worker.scheduler.look_again)

    @rule(limit=st.sampled_from([1, 2, 4096]), rate=st.sampled_from([None, None, 0.5, 1000]))
    def new_policy(self, limit: int, rate: float | None) -> None:
        update = {"max_in_flight": limit, "max_rate": rate}
        defaults = self.worker.settings.defaults.model_copy(update=update)
        changed = self.worker.settings.model_copy(update={"defaults": defaults})
        self.worker.call(lambda: self.worker.worker.use(changed))

    @rule(read_ns=st.sampled_from([0, MS, 20 * MS]), write_ns=st.sampled_from([0, MS, 20 * MS]))
    def disk(self, read_ns: int, write_ns: int) -> None:
        self.worker.store.read_ns, self.worker.store.write_ns = read_ns, write_ns

    @rule(number=st.integers(0, 6), delay_ns=st.sampled_from([None, 0, 300 * MS]))
    def ask_admin(self, number: int, delay_ns: int | None) -> None:
        """Cancel or reschedule by client id, beside whatever else goes on."""
        request: dict[str, Any] = {"id": f"x{number}"}
        if delay_ns is not None:
            request["delay_ns"] = delay_ns
        endpoint = self.worker.broker.endpoints[CANCEL if delay_ns is None else RESCHEDULE]
        self.asking.append(self.worker.loop.create_task(endpoint(json.dumps(request).encode())))  # type: ignore[arg-type]
        self.rescheduled |= delay_ns is not None  # it may now be due earlier than it was published for

    @rule(hours=st.sampled_from([-1, 1]))
    def step_clock(self, hours: int) -> None:
        self.worker.step_ns += hours * 3600 * S
        self.highest_step_ns = max(self.highest_step_ns, self.worker.step_ns)
        self._tokens()
        self.tokens = 1.0  # a step forward fills the bucket
        self.worker.call(self.worker.scheduler.look_again)

    @rule()
    def restart(self) -> None:
        self._await_admin()
        self.tokens = 1.0
        # The next inbox is another one, while the numbers in it begin anew.
        self.last = {payload: sent._replace(reply=b"") for payload, sent in self.last.items()}
        self.worker.restart()

    def _await_admin(self) -> None:
        self.worker.run_for(S)
        for task in self.asking:
            answer = task.result()
            self.cancelled += 0 if isinstance(answer, Answer) else json.loads(answer).get("cancelled", 0)
        self.asking.clear()

    # -- what holds at rest ----------------------------------------------------------------------------------

    @rule()
    def come_to_rest(self) -> None:
        worker, began_ns = self.worker, self.worker.clock()
        pending = sum(queue.pending for queue in worker.worker._registry)
        worker.run_for(150 * MS + (8 + pending) * (worker.store.read_ns + worker.store.write_ns + MS))
        if not worker.broker.connected or worker.broker.unsent_bytes >= limits.UNSENT_BYTES:
            return
        for key, value in worker.store._engine.items(MESSAGES, b"", b"\xff"):
            name, priority, due_ns, _ = parse_message_key(key)
            queue = worker.queue(name)
            lane = queue.lane(priority)
            if due_ns > began_ns or isinstance(lane.unsettled.get(key), Delivery):
                continue
            assert self._blocked_by(queue), "due, not in flight, and nothing blocks its queue"
            deadline_ns = decode(value).deadline_ns
            if deadline_ns and deadline_ns <= began_ns:
                # It may stay behind others that wait, and are no further than the read ahead goes.
                assert lane.ready, "expired, and nothing is before it"
                assert (key, value) not in lane.ready, "expired, read, and still there"

    def _blocked_by(self, queue: QueueState) -> str | None:
        policy, now_ns = queue.policy, self.worker.clock()
        if queue.paused_until_ns > now_ns:
            return "paused"
        if queue.in_flight >= policy.max_in_flight:
            return "slots"
        total = len(self.worker.worker._replayer.in_flight)
        if total >= TOTAL_IN_FLIGHT and queue.in_flight >= limits.FAIR_SLOTS:
            return "total slots"
        if policy.max_rate is not None:
            earned = max(now_ns - 2 * MS - queue.tokens_at_ns, 0) * policy.max_rate / 1e9
            return "tokens" if queue.tokens + earned < 1 else None
        return None

    @precondition(lambda self: self.begun)
    @invariant()
    def memory_says_what_is_there(self) -> None:
        worker = self.worker.worker
        assert worker._error is None
        in_flight = 0
        for queue in worker._registry:
            deliveries = {
                delivery
                for lane in queue.lanes.values()
                for delivery in lane.unsettled.values()
                if isinstance(delivery, Delivery) and worker._replayer._is_in_flight(delivery)
            }
            assert queue.in_flight == len(deliveries)
            in_flight += queue.in_flight
        assert in_flight == len(worker._replayer.in_flight)
        limits.check_memory(worker)

    # -- the end ---------------------------------------------------------------------------------------------

    def _everything_ends(self) -> None:
        """With every block removed and all clocks past, each message has ended, and once."""
        worker = self.worker
        self._await_admin()
        self.healing = True
        if not worker.broker.connected:
            worker.broker.mend()
        worker.broker.drained()
        for queue in worker.worker._registry:
            queue.paused_until_ns = 0
        worker.step_ns = self.highest_step_ns + 3600 * S
        self.tokens = 1.0
        worker.call(worker.scheduler.look_again)
        worker.run_for(3600 * S)
        ticks = worker.scheduler.ticks
        worker.run_for(600 * S)
        assert worker.scheduler.ticks - ticks <= 3, "ticks although nothing changes"
        assert Stored(worker.store._engine).pending == {}
        dead = [decode(value).payload for _, value in worker.store._engine.items(DEAD, b"", b"\xff")]
        duplicates = [name.encode() for name in worker.duplicates]
        ends = sorted([*self.settled, *dead, *self.removed, *duplicates])
        assert ends == sorted(self.published), "each message has one end"
        dropped = [payload for payload in self.removed if self._queue_of(payload) in (None, "strict")]
        assert len(self.removed) - len(dropped) <= self.cancelled

    def _queue_of(self, payload: bytes) -> str | None:
        sent = self.last.get(payload)
        return sent.queue if sent is not None else None
