"""The real store, committer and lane take the model's steps: after each of them both are in the same state."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from requeue_worker.changes import Rekey, Requeue
from requeue_worker.inflight import Delivery
from requeue_worker.record import decode
from requeue_worker.storage.keys import TIME, parse_message_key
from requeue_worker.storage.queues import NEVER
from requeue_worker.storage.store import ReadRequest, ReadResult

from tests.model.commit import CommitModel, Lane, Size
from tests.model.explorer import Step
from tests.property.rig import START_NS, Rig, S, new_message

SIZE = Size(messages=3, times=2, crashes=0, retries=3, rekeys=2)


class Pair:
    """The model and the real thing, side by side."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.model = CommitModel(SIZE)
        self.at = self.model.initial()
        self.lane = rig.queue().lane()
        self.in_flight: dict[int, Delivery] = {}
        self.request: ReadRequest | None = None
        self.result: ReadResult | None = None
        self.numbers: dict[bytes, int] = {}

    def choices(self) -> list[Step[Lane]]:
        """A commit that ends begins the next one at once when something waits: so it has to be here."""
        steps = [step for step in self.model.steps(self.at) if step.state != self.at]
        if self.rig.store.sealed and self.at.batch is None:
            return [step for step in steps if step.name == "seal"]
        return steps

    def take(self, step: Step[Lane]) -> None:
        """One step on both sides."""
        verb, *words = step.name.split()
        getattr(self, f"do_{verb}")(words, step.state)
        self.at = step.state
        self.compare(step.name)

    def do_seal(self, words: list[str], _: Lane) -> None:
        self.rig.retain_until_ns = 0
        if self.rig.store.sealed:
            return
        for word in words:
            if word.startswith("retain@"):
                self.rig.retain_until_ns = START_NS + int(word.removeprefix("retain@")) * S
            elif word != "checkpoints":
                number, time = word[1:].split("@")
                message = new_message(self.lane, b"%04d" % int(number), at_ns=START_NS + int(time) * S)
                self.lane.queue.waiting += 1
                self.lane.queue.waiting_bytes += message.size
                self.rig.committer._new.append(message)
                self.rig.committer.waiting_bytes += message.size
        self.rig.mono_ns += 10**9 if "checkpoints" in words else 1
        if words == ["checkpoints"]:
            self.rig.call(lambda: self.rig.committer.checkpoint([self.lane.queue]))
            self.rig.spin()
        else:
            self.rig.seal()
        assert self.rig.store.sealed

    def do_land(self, _: list[str], __: Lane) -> None:
        self.rig.land()

    def do_finish(self, _: list[str], __: Lane) -> None:
        self.rig.mono_ns += 1
        self.rig.retain_until_ns = 0  # of a batch that is made at once
        self.rig.finish()

    def do_ask(self, words: list[str], _: Lane) -> None:
        until_ns = START_NS + int(words[0][1:]) * S
        self.request = ReadRequest(self.lane, self.lane.cursor, until_ns, int(words[2]))
        self.lane.reading = True

    def do_look(self, _: list[str], __: Lane) -> None:
        assert self.request is not None
        self.result = self.rig.store._read_lane(self.request)

    def do_deliver(self, _: list[str], __: Lane) -> None:
        assert self.result is not None
        self.lane.note_read(*self.result[1:])

    def do_dispatch(self, words: list[str], _: Lane) -> None:
        key, value = self.lane.ready.popleft()
        record = decode(value)
        delivery = Delivery(self.lane, key, value, record.size, None, 1)
        self.lane.unsettled[key] = delivery
        assert self.in_flight.setdefault(int(words[0][1:]), delivery) is delivery

    def do_settle(self, words: list[str], _: Lane) -> None:
        self.rig.committer._settled.append(self.in_flight.pop(int(words[0][1:])))

    def do_retry(self, words: list[str], _: Lane) -> None:
        number, time = map(int, words[0][1:].split("@"))
        delivery = self.in_flight.pop(number)
        record = decode(delivery.value)
        self.rig.committer._changes.append(
            Requeue(self.lane, delivery.key, record, START_NS + time * S, None)
        )

    def do_rekey(self, words: list[str], _: Lane) -> None:
        number, time = map(int, words[0][1:].split("@"))
        delivery = self.in_flight[number]
        asked = Rekey(delivery, START_NS + time * S, lambda one: one in self.in_flight.values())
        self.rig.committer._changes.append(asked)

    # -- the same state ----------------------------------------------------------------------------------------

    def compare(self, name: str) -> None:
        """What is on disk, in memory and acknowledged."""
        lane, at, stored = self.lane, self.at, self.rig.stored
        for key, value in stored.pending.items():
            self.numbers[key[-16:]] = int(decode(value).payload)
        assert {self.key(key) for key in stored.pending} == at.pending, name
        assert {int(message.tail[-4:]) for message in self.rig.acked} == at.acked, name
        if self.rig.store.sealed and at.batch is None:
            return  # the next batch is made already: compared when the model has made it, too
        assert {self.key(key) for key in lane.unsettled} == at.unsettled, name
        assert {self.key(key) for key, _ in lane.ready} == at.ready, name
        assert self.position(lane.checkpoint) == at.top, name
        assert self.position(lane.cursor) == at.cursor, name
        if at.read is None:
            head = None if lane.head_due_ns == NEVER else (lane.head_due_ns - START_NS) // S
            assert head == at.head, name

    def key(self, key: bytes) -> int:
        return self.model.key((parse_message_key(key)[2] - START_NS) // S, self.number(key[-16:]))

    def number(self, message_id: bytes) -> int:
        """Of a message. One in a batch that is sealed was never seen on disk: the ids count up with the messages."""
        return self.numbers.get(message_id, int.from_bytes(message_id[8:], "big") - 1)

    def position(self, raw: bytes) -> int:
        """Twice the number of the first key at or beyond it, one less when it lies just behind a key."""
        size = len(self.lane.prefix) + TIME.size + 16
        if raw[len(self.lane.prefix) :].startswith(b"\xff"):
            return 2 * SIZE.times * SIZE.messages
        number = self.number(raw[size - 16 : size])
        time_ns = int.from_bytes(raw[size - 24 : size - 16], "big")
        return 2 * self.model.key((time_ns - START_NS) // S, number) + (len(raw) > size)


def walk_together(seed: int, tmp_path: Path) -> None:
    rig, luck = Rig(tmp_path / "data"), random.Random(seed)
    pair = Pair(rig)
    try:
        for _ in range(60):
            choices = pair.choices()
            if not choices:
                break
            pair.take(luck.choice(choices))
    finally:
        rig.dispose()


@pytest.mark.parametrize("seed", range(12))
def test_the_store_takes_the_steps_of_the_model(seed: int, tmp_path: Path) -> None:
    walk_together(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_store_takes_many_more_steps_of_the_model(tmp_path: Path) -> None:
    for seed in range(1000):
        walk_together(seed, tmp_path / str(seed))
