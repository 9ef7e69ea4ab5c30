"""Who is reconciled when."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable

import pytest
from requeue_operator import fleet as fleet_module
from requeue_operator.fleet import Fleet, Key

from tests.servers import until


class Runs:
    """Takes note of each run; each waits to be let go. What a run raises or returns is set by key."""

    def __init__(self) -> None:
        self.begun: list[Key] = []
        self.answers: dict[Key, Callable[[], Awaitable[float | None]]] = {}
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, namespace: str, name: str) -> float | None:
        self.begun.append((namespace, name))
        await self.go.wait()
        answer = self.answers.get((namespace, name))
        return await answer() if answer is not None else math.inf

    async def until(self, count: int) -> None:
        await until(lambda: len(self.begun) >= count, timeout_s=60)


async def test_pokes_during_a_run_make_one_more_and_not_many() -> None:
    runs = Runs()
    fleet = Fleet(runs)
    runs.go.clear()
    fleet.poke("shop", "orders")
    await runs.until(1)
    for _ in range(10):
        fleet.poke("shop", "orders")
    runs.go.set()
    await runs.until(2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert runs.begun == [("shop", "orders")] * 2
    await fleet.close()


async def test_a_failure_is_tried_again_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_LONGEST_WAIT_S", 0.01)
    runs = Runs()

    async def fail() -> float | None:
        raise RuntimeError("no answer")

    runs.answers["shop", "bad"] = fail
    fleet = Fleet(runs)
    fleet.poke("shop", "bad")
    await runs.until(3)
    fleet.poke("shop", "good")
    await until(lambda: ("shop", "good") in runs.begun, timeout_s=60)
    assert runs.begun.count(("shop", "bad")) >= 3
    await fleet.close()


async def test_what_is_gone_is_forgotten_and_what_comes_back_is_taken_up() -> None:
    runs = Runs()

    async def gone() -> float | None:
        return None

    runs.answers["shop", "orders"] = gone
    fleet = Fleet(runs)
    fleet.poke("shop", "orders")
    await runs.until(1)
    await until(lambda: fleet.known == 0, timeout_s=60)
    fleet.poke("shop", "orders")
    await runs.until(2)
    await fleet.close()


async def test_what_wants_to_be_looked_at_again_is_without_a_poke() -> None:
    runs = Runs()

    async def soon() -> float | None:
        return 0.01

    runs.answers["shop", "orders"] = soon
    fleet = Fleet(runs)
    fleet.poke("shop", "orders")
    await runs.until(3)
    await fleet.close()


async def test_a_reconcile_that_takes_too_long_is_a_failure_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_module, "_LONGEST_RUN_S", 0.01)
    monkeypatch.setattr(fleet_module, "_LONGEST_WAIT_S", 0.01)
    runs, ended = Runs(), list[bool]()
    runs.go.clear()
    fleet = Fleet(runs, lambda _, failed: ended.append(failed))
    fleet.poke("shop", "orders")
    await runs.until(2)
    monkeypatch.setattr(fleet_module, "_LONGEST_RUN_S", 300.0)
    runs.go.set()
    await until(lambda: False in ended, timeout_s=60)
    assert ended[0] is True
    await fleet.close()


async def test_a_reconcile_that_does_not_even_end_then_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_LONGEST_RUN_S", 0.01)
    held = asyncio.Event()

    async def hang(_namespace: str, _name: str) -> float | None:
        while not held.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await held.wait()
        return None

    fleet = Fleet(hang)
    assert fleet.stuck() is None
    fleet.poke("shop", "orders")
    await until(lambda: fleet.stuck() is not None, timeout_s=60)
    assert "shop/orders does not end" in (fleet.stuck() or "")
    held.set()
    await until(lambda: fleet.stuck() is None, timeout_s=60)
    await fleet.close()


async def test_a_thousand_are_reconciled_a_few_at_a_time() -> None:
    running, most = 0, 0
    done: set[Key] = set()

    async def run(namespace: str, name: str) -> float | None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.add((namespace, name))
        return math.inf

    fleet = Fleet(run)
    for number in range(1000):
        fleet.poke("shop", f"queue-{number}")
    await until(lambda: len(done) == 1000, timeout_s=60)
    assert most == 8
    await fleet.close()
