"""Asking the workers, at real HTTP endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from requeue_operator import collector as collector_module
from requeue_operator.children import Manifest
from requeue_operator.collector import Collector, Pod
from requeue_operator.heard import Heard
from requeue_operator.kube import KubeError
from requeue_operator.workers import Workers

from tests.servers import until
from tests.unit.operator.endpoint import Endpoint

_KEY = ("shop", "orders")


def _queue(replicas: int, uid: str = "1", backlog: Manifest | None = None) -> Manifest:
    status = {} if backlog is None else {"backlog": backlog}
    return {"metadata": {"uid": uid}, "spec": {"replicas": replicas}, "status": status}


class Scene:
    """A collector, what it wrote, and how often it wanted a reconcile."""

    def __init__(self, workers: Workers) -> None:
        self.written: list[Manifest] = []
        self.failures = 0
        self.pokes = 0
        self.collector = Collector(workers, self._write, self._poke)

    async def _write(self, _: Manifest, backlog: Manifest) -> None:
        if self.failures:
            self.failures -= 1
            raise KubeError(0, "nobody there")
        self.written.append(backlog)

    def _poke(self, *_: str) -> None:
        self.pokes += 1

    def start(self, *endpoints: Endpoint, backlog: Manifest | None = None) -> None:
        for ordinal, each in enumerate(endpoints):
            self.collector.see_pod(*_KEY, f"orders-{ordinal}", Pod(ordinal, each.address, True))
        self.collector.see_queue(*_KEY, _queue(len(endpoints), backlog=backlog))

    def heard(self) -> Heard | None:
        return self.collector.heard(*_KEY)

    async def until_asked(self, endpoint: Endpoint, times: int = 3) -> None:
        before = endpoint.asked
        await until(lambda: endpoint.asked >= before + times, timeout_s=60)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(collector_module, "_EVERY_S", 0.02)
    monkeypatch.setattr(collector_module, "_SETTLING_S", 0.0)
    async with Workers() as workers:
        made = Scene(workers)
        yield made
        await made.collector.close()


async def test_a_backlog_is_written_when_it_is_another_one(scene: Scene) -> None:
    async with Endpoint(mail=3) as first, Endpoint(mail=4, jobs=1) as second:
        scene.start(first, second)
        await until(lambda: scene.written, timeout_s=60)
        await scene.until_asked(first)
        assert [(each["pending"], each["workers"]) for each in scene.written] == [(8, 2)]
        assert scene.heard() == Heard(connected=2)
        first.pending["mail"] = 5
        await until(lambda: len(scene.written) > 1, timeout_s=60)
        await scene.until_asked(first)
        assert [each["pending"] for each in scene.written] == [8, 10]
        assert scene.pokes == 1


async def test_a_fleet_is_empty_when_each_worker_says_so_and_takes_nothing_in(scene: Scene) -> None:
    async with Endpoint(mail=0) as first, Endpoint(mail=0) as second:
        first.takes_in = False
        scene.start(first, second)
        await until(lambda: scene.heard() == Heard(connected=2), timeout_s=60)
        second.takes_in, second.pending["mail"] = False, 1
        await scene.until_asked(second)
        assert scene.heard() == Heard(connected=2)
        second.pending["mail"], second.dead = 0, 1
        await scene.until_asked(second)
        assert scene.heard() == Heard(connected=2)
        second.dead = 0
        await until(lambda: scene.heard() == Heard(connected=2, is_empty=True), timeout_s=60)
        scene.collector.see_pod(*_KEY, "orders-1", None)
        await until(lambda: scene.heard() == Heard(connected=1), timeout_s=60)


async def test_what_stands_in_the_status_already_is_not_written_again(scene: Scene) -> None:
    async with Endpoint(mail=3) as worker:
        queues = [{"name": "mail", "pending": 3, "dead": 0}]
        scene.start(worker, backlog={"workers": 1, "pending": 3, "dead": 0, "queues": queues})
        await scene.until_asked(worker)
        assert scene.written == []


async def test_a_worker_that_does_not_answer_counts_with_what_it_told_last(scene: Scene) -> None:
    async with Endpoint(mail=3) as first, Endpoint(mail=4) as second:
        scene.start(first, second)
        await until(lambda: scene.written, timeout_s=60)
        await second.close()
        await until(lambda: scene.heard() == Heard(1, {}, ("orders-1",)), timeout_s=60)
        first.pending["mail"] = 10
        await until(lambda: len(scene.written) > 1, timeout_s=60)
        assert scene.written[-1]["pending"] == 14


async def test_a_worker_that_was_scaled_away_counts_no_more(scene: Scene) -> None:
    async with Endpoint(mail=3) as first, Endpoint(mail=4) as second:
        scene.start(first, second)
        await until(lambda: scene.written, timeout_s=60)
        scene.collector.see_queue(*_KEY, _queue(1))
        await until(lambda: scene.written[-1]["pending"] == 3, timeout_s=60)


async def test_at_zero_nobody_is_asked_and_the_backlog_stays(scene: Scene) -> None:
    async with Endpoint(mail=3) as worker:
        scene.start(worker)
        await until(lambda: scene.written, timeout_s=60)
        scene.collector.see_queue(*_KEY, _queue(0))
        await until(lambda: scene.heard() == Heard(), timeout_s=60)
        asked, worker.pending = worker.asked, {}
        scene.collector.see_queue("shop", "other", _queue(1))
        async with Endpoint() as other:
            scene.collector.see_pod("shop", "other", "other-0", Pod(0, other.address, True))
            await scene.until_asked(other)
        assert worker.asked == asked
        assert [each["pending"] for each in scene.written if each["queues"]] == [3]


async def test_a_disconnected_worker_says_why(scene: Scene) -> None:
    async with Endpoint() as worker:
        worker.is_connected = False
        scene.start(worker)
        why = {"orders-0": "not connected to NATS: Authorization Violation"}
        await until(lambda: scene.heard() == Heard(0, why), timeout_s=60)


async def test_backlogs_are_no_more_frequent_than_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "_EVERY_S", 3600.0)
    async with Endpoint(mail=1) as worker:
        scene.start(worker)
        await until(lambda: scene.written, timeout_s=60)
        for number in range(2, 5):
            worker.pending["mail"] = number
            asked = worker.asked
            scene.collector.see_pod(*_KEY, "orders-0", Pod(0, worker.address, bool(number % 2)))
            await until(lambda asked=asked: worker.asked > asked, timeout_s=60)
        assert [each["pending"] for each in scene.written] == [1]


async def test_a_write_that_failed_is_made_again(scene: Scene) -> None:
    scene.failures = 2
    async with Endpoint(mail=1) as worker:
        scene.start(worker)
        await until(lambda: scene.written, timeout_s=60)
        assert scene.failures == 0


async def test_a_fleet_of_the_same_name_made_anew_begins_with_nothing(scene: Scene) -> None:
    async with Endpoint(mail=3) as worker:
        scene.start(worker)
        await until(lambda: scene.heard() is not None, timeout_s=60)
        scene.collector.see_queue(*_KEY, None)
        assert scene.heard() is None
        scene.collector.see_queue(*_KEY, _queue(1, uid="2"))
        assert scene.heard() is None


async def test_what_answers_and_is_no_worker_is_silent(scene: Scene) -> None:
    async with Endpoint() as worker:
        worker.pending = {'a"} nonsense': 1}
        scene.start(worker)
        await until(lambda: scene.heard() == Heard(0, {}, ("orders-0",)), timeout_s=60)
