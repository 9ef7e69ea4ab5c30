"""Queues that come and go under any interleaving with commits and crashes: nothing acked is lost, every row agrees."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requeue_worker.changes import Remove
from requeue_worker.record import decode
from requeue_worker.retirement import Retirement
from requeue_worker.storage.keys import META_QUEUE, parse_message_key
from requeue_worker.storage.rocksdb import MESSAGES, META

from tests.property.rig import Rig, new_message

NAMES = ("a", "b", "c")
#: as often as they stand there: crashes are rare, so that lives are long enough for something to go wrong
_OTHERS = [
    "remove",
    "remove",
    "retire",
    "retire",
    "retire",
    "seal",
    "land",
    "finish",
    "commit",
    "commit",
    "commit",
    "crash",
]
STEPS = st.sampled_from([*(("accept", name) for name in NAMES), *((step, "") for step in _OTHERS)])


class Life:
    """A rig with retirement, and what a client and a handler know."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.number = 0
        self.removed: set[bytes] = set()
        self.acked: set[bytes] = set()
        self.begin()

    def begin(self) -> None:
        rig = self.rig
        self.retirement = Retirement(
            rig.registry,
            rig.committer,
            lambda: rig.now_ns,
            held=lambda _: False,
            forget=lambda _: None,
        )

    def accept(self, name: str) -> None:
        self.number += 1
        queue = self.rig.registry.get(name)
        counted = self.number % 2 == 0
        message = new_message(queue.lane(), b"%04d" % self.number)._replace(counted=counted)
        if counted:
            queue.waiting += 1
            queue.waiting_bytes += message.size
        self.rig.call(lambda: self.rig.committer.accept([message]))

    def remove(self) -> None:
        """What is pending and known to memory is cancelled."""
        for key, value in self.rig.store._engine.items(MESSAGES, b"", b"\xff"):
            name, priority, _, _ = parse_message_key(key)
            queue = self.rig.registry.by_name.get(name)
            assert queue is not None, "a queue that holds something is known"
            lane, record = queue.lane(priority), decode(value)
            if self.rig.store.landed or key in lane.unsettled:
                continue
            lane.unsettled[key] = None
            self.removed.add(record.payload)
            change = Remove(lane, key, record)
            self.rig.call(lambda change=change: self.rig.committer.submit(change))  # type: ignore[misc]

    def retire(self) -> None:
        """Begin to; the rows go with the next commit."""
        self.rig.loop.create_task(self.retirement.retire(at_once=True))
        self.rig.spin()

    def crash(self) -> None:
        self.note_acked()
        self.rig.crash()
        self.begin()

    def note_acked(self) -> None:
        self.acked |= {message.tail[-4:] for message in self.rig.acked}

    def take(self, step: str, name: str) -> None:
        if step == "accept":
            self.accept(name)
        elif step in ("remove", "retire", "crash"):
            getattr(self, step)()
        elif step == "seal":
            self.rig.seal()
        elif step == "commit":
            self.rig.commit_all()
        elif step == "land" and self.rig.store.sealed and not self.rig.store.landed:
            self.rig.land()
        elif step == "finish" and self.rig.store.landed:
            self.rig.finish()

    def check(self) -> None:
        self.note_acked()
        pending = {decode(value).payload for value in self.rig.stored.pending.values()}
        assert self.acked - self.removed <= pending


def go_through(steps: list[tuple[str, str]]) -> None:
    """Take these steps, then let everything end: nothing may be left."""
    with tempfile.TemporaryDirectory(prefix="requeue-retire-", ignore_cleanup_errors=True) as root:
        rig = Rig(Path(root) / "data")
        try:
            life = Life(rig)
            for step, name in steps:
                life.take(step, name)
                life.check()
            rig.commit_all()
            life.remove()
            rig.commit_all()
            life.retire()
            rig.commit_all()

            assert set(rig.registry.by_name) == set()
            assert list(rig.store._engine.items(META, META_QUEUE, META_QUEUE + b"\xff")) == []
        finally:
            rig.dispose()


@settings(max_examples=40)
@given(st.lists(STEPS, min_size=12, max_size=40))
def test_queues_that_come_and_go_lose_nothing_and_leave_no_row(steps: list[tuple[str, str]]) -> None:
    go_through(steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=1000)
@given(st.lists(STEPS, max_size=80))
def test_queues_that_come_and_go_a_thousand_times(steps: list[tuple[str, str]]) -> None:
    go_through(steps)
