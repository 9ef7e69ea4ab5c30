"""Nothing is forgotten, early, sent twice or in flight twice, whatever happens around a worker and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from requeue_worker.app import Worker
from requeue_worker.inflight import Delivery, InFlight
from requeue_worker.replayer import Replayer
from requeue_worker.scheduler import Scheduler
from requeue_worker.storage.queues import NEVER, Lane, QueueState
from requeue_worker.wakeups import WakeUps

from tests.property.liveness import QUEUES, LivenessMachine, S
from tests.property.virtual import FakeBroker


def run(examples: int, steps: int, *, shrink: bool = True) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        LivenessMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=list(Phase) if shrink else [Phase.generate],
            report_multiple_bugs=shrink,
            suppress_health_check=list(HealthCheck),
            # A planted bug is to be found each time, not almost each time.
            derandomize=not shrink,
        ),
    )


def test_nothing_is_forgotten_whatever_happens() -> None:
    run(examples=35, steps=40)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_is_forgotten_whatever_happens_for_long() -> None:
    run(examples=1000, steps=80)


# ---- bugs planted on purpose: a property that finds none of them says nothing

Plant = Callable[[pytest.MonkeyPatch], None]


def _reconnect_wakes_nobody(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(Worker, "connected", lambda worker, _: worker._replayer.connected())


def _cursor_is_not_lowered(plant: pytest.MonkeyPatch) -> None:
    note = Lane.note_durable_insert

    def leave(lane: Lane, key: bytes) -> bool:
        cursor = lane.cursor
        earlier = note(lane, key)
        lane.cursor = cursor
        return earlier

    plant.setattr(Lane, "note_durable_insert", leave)


def _what_arrives_during_a_read_is_forgotten(plant: pytest.MonkeyPatch) -> None:
    note = Lane.note_durable_insert
    plant.setattr(Lane, "note_durable_insert", lambda lane, key: not lane.reading and note(lane, key))


def _a_freed_slot_wakes_nobody(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(Scheduler, "freed", lambda *_: None)


def _a_timeout_leaves_its_slot_taken(plant: pytest.MonkeyPatch) -> None:
    end = Replayer._end

    def leak(replayer: Replayer, delivery: Delivery, *rest: Any) -> None:
        delivery.lane.queue.in_flight += 1
        end(replayer, delivery, *rest)

    plant.setattr(Replayer, "_end", leak)


def _no_token_or_pause_wakes_a_queue(plant: pytest.MonkeyPatch) -> None:
    wake = WakeUps.wake

    def lose(wakes: WakeUps[Any], owner: Any, at_ns: int) -> None:
        if not isinstance(owner, QueueState):
            wake(wakes, owner, at_ns)

    plant.setattr(WakeUps, "wake", lose)


def _a_drained_socket_wakes_nobody(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(FakeBroker, "when_flushed", lambda *_: None)


def _a_commit_wakes_nobody(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(Scheduler, "lanes_earlier", lambda *_: None)


def _what_is_retained_wakes_nobody(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(Scheduler, "retained", lambda scheduler, messages: scheduler.read_ahead.retain(messages))


def _what_is_retained_is_not_claimed(plant: pytest.MonkeyPatch) -> None:
    retain = Lane.retain

    def forget(lane: Lane, key: bytes) -> bool:
        retained = retain(lane, key)
        if retained:
            del lane.unsettled[key]
        return retained

    plant.setattr(Lane, "retain", forget)


def _timeouts_are_not_waited_for(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(InFlight, "next_wake_ns", lambda _: None)


def _a_read_brings_back_what_is_in_flight(plant: pytest.MonkeyPatch) -> None:
    note = Lane.note_read

    def forget(lane: Lane, *read: Any) -> list[tuple[bytes, bytes]]:
        lane.unsettled.clear()
        return note(lane, *read)

    plant.setattr(Lane, "note_read", forget)


def _a_queue_is_not_due_after_a_restart(plant: pytest.MonkeyPatch) -> None:
    load = QueueState.load

    def sleep(queue: QueueState, stored: bytes) -> None:
        load(queue, stored)
        for lane in queue.lanes.values():
            lane.head_due_ns = NEVER

    plant.setattr(QueueState, "load", sleep)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant",
    [
        _reconnect_wakes_nobody,
        _cursor_is_not_lowered,
        _what_arrives_during_a_read_is_forgotten,
        _a_freed_slot_wakes_nobody,
        _a_timeout_leaves_its_slot_taken,
        _no_token_or_pause_wakes_a_queue,
        _a_drained_socket_wakes_nobody,
        _a_commit_wakes_nobody,
        _what_is_retained_wakes_nobody,
        _what_is_retained_is_not_claimed,
        _timeouts_are_not_waited_for,
        _a_read_brings_back_what_is_in_flight,
        _a_queue_is_not_due_after_a_restart,
    ],
)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup)):
        run(examples=1000, steps=40, shrink=False)  # ends with the first that finds it


def test_what_was_in_flight_when_the_clock_went_back_goes_out_again_before_it_is_due_by_it() -> None:
    machine = LivenessMachine()
    machine.begin(answers=[b"", None], tiny=False)  # the last is given first
    machine.publish(number=1, queue=QUEUES[0], priority=4, delay_ns=2 * S, ttl_ns=0, client_id="")
    machine.pass_time(3 * S)
    ((payload, sent),) = machine.last.items()
    machine.step_clock(hours=-1)
    machine.cut()
    machine.mend()
    machine.pass_time(60 * S)

    again = machine.last[payload]
    machine.teardown()
    assert payload in machine.settled
    assert (sent.attempt, again.attempt) == (1, 1)
    assert again.at_ns < sent.at_ns - 3000 * S
