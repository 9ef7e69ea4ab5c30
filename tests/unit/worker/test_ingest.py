"""What the intake keeps with an envelope's frame holds as long as the queue that it names, and its policy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from requeue_protocol.envelope import build_envelope
from requeue_protocol.errors import RefusedError
from requeue_protocol.policy import QueuePolicy
from requeue_worker.broker.parser import Raw
from requeue_worker.changes import Remove
from requeue_worker.ingest import Ingest
from requeue_worker.record import decode
from requeue_worker.retirement import Retirement
from requeue_worker.storage.keys import queue_of

from tests.property.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "data")
    yield rig
    rig.dispose()


@pytest.fixture
def refused() -> list[RefusedError]:
    return []


@pytest.fixture
def ingest(rig: Rig, refused: list[RefusedError]) -> Ingest:
    return Ingest(
        rig.registry,
        rig.committer,
        rig.counts,
        send=lambda _chunk, _messages: None,
        max_payload=lambda: 1 << 20,
        clock=lambda: rig.now_ns,
        keep_invalid=lambda _raw, error, _answer: refused.append(error),
        dedupe=lambda _messages: None,
        buffer_bytes=1 << 20,
    )


def take_in(rig: Rig, ingest: Ingest, payload: bytes, *, queue: str = "q", subject: str = "a") -> None:
    """One message, which is on disk afterwards unless it was refused."""
    raw: Raw = (
        b"requeue.x",
        b"_INBOX.1",
        None,
        build_envelope(subject=subject, payload=payload, queue=queue),
    )
    rig.call(lambda: ingest.on_messages([raw]))
    rig.commit_all()


def remove_all(rig: Rig, name: str) -> None:
    lane = rig.queue(name).lane()
    pending = {key: value for key, value in rig.stored.pending.items() if queue_of(key) == name}
    for key, value in pending.items():
        lane.unsettled[key] = None
        rig.call(partial(rig.committer.submit, Remove(lane, key, decode(value))))
    rig.commit_all()


def retire(rig: Rig) -> None:
    retirement = Retirement(
        rig.registry, rig.committer, lambda: rig.now_ns, held=lambda _: False, forget=lambda _: None
    )
    task = rig.loop.create_task(retirement.retire(at_once=True))
    rig.spin()
    rig.commit_all()
    rig.loop.run_until_complete(asyncio.wait_for(task, 30))


def test_a_message_for_a_queue_that_left_makes_it_anew(rig: Rig, ingest: Ingest) -> None:
    take_in(rig, ingest, b"one")
    before = rig.queue("q")
    remove_all(rig, "q")
    retire(rig)
    assert "q" not in rig.registry.by_name
    take_in(rig, ingest, b"two")

    assert rig.registry.by_name["q"] is not before
    assert rig.queue("q").pending == 1
    assert rig.payloads(rig.stored.pending.values()) == [b"two"]


def test_a_subject_that_a_new_policy_denies_is_refused_although_it_went_before(
    rig: Rig, ingest: Ingest, refused: list[RefusedError]
) -> None:
    take_in(rig, ingest, b"one")
    denied = QueuePolicy.model_validate({"deny_subjects": ["a"]})
    rig.registry.use_policies(lambda _: denied)
    take_in(rig, ingest, b"two")

    assert [error.code for error in refused] == [403]
    assert rig.payloads(rig.stored.pending.values()) == [b"one"]


def test_a_queue_is_full_by_a_new_policy_at_once(rig: Rig, ingest: Ingest) -> None:
    take_in(rig, ingest, b"one")
    limited = QueuePolicy.model_validate({"max_messages": 1})
    rig.registry.use_policies(lambda _: limited)
    take_in(rig, ingest, b"two")

    assert rig.counts.refused[429] == 1
    assert rig.payloads(rig.stored.pending.values()) == [b"one"]


def test_queues_in_turns_get_each_their_own(rig: Rig, ingest: Ingest) -> None:
    for number in range(6):
        take_in(rig, ingest, b"%d" % number, queue=f"q{number % 2}")
    remove_all(rig, "q0")

    assert (rig.queue("q0").pending, rig.queue("q1").pending) == (0, 3)
    assert sorted(rig.payloads(rig.stored.pending.values())) == [b"1", b"3", b"5"]
