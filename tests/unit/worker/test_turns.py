"""Bulk changes give way to the intake by themselves, whatever their number and whatever a step takes."""

from __future__ import annotations

import asyncio

import pytest
from requeue_protocol.errors import Busy
from requeue_worker.micro.turns import BESIDE_INTAKE, MESSAGE_S, MOST_REST_S, REST, Turns

STEP_S = 0.01


def near(rest_s: float) -> object:
    """So long, and what the few messages add to it that come in a step of a busy `World`."""
    return pytest.approx(rest_s, abs=REST * 2 * MESSAGE_S)


class World:
    """A time that passes when somebody sleeps or works, and clients that publish meanwhile, or do not."""

    def __init__(self, *, busy: bool) -> None:
        self.busy = busy
        self.each_time = 1  # so many messages come while some time passes
        self.now_s = 100.0
        self.taken_in = int(busy)
        self.rested_s: list[float] = []
        self.turns = Turns(lambda: self.taken_in, clock_s=lambda: self.now_s, sleep=self._sleep)

    async def _sleep(self, wait_s: float) -> None:
        self.rested_s.append(wait_s)
        self.pass_by(wait_s)
        await asyncio.sleep(0)

    def pass_by(self, time_s: float) -> None:
        self.now_s += time_s
        self.taken_in += self.each_time * (self.busy and time_s > 0)

    async def step(self, took_s: float = STEP_S, limit: int = 1000) -> int:
        """What a step may take; some time passes in it."""
        async with self.turns.turn():
            most = self.turns.most(limit)
            self.pass_by(took_s)
            await asyncio.sleep(0)
            return most


async def test_a_step_in_which_messages_came_is_followed_by_a_rest_that_is_in_proportion() -> None:
    world = World(busy=True)
    for took_s in (0.01, 0.02, 0.01):
        await world.step(took_s)
    assert world.rested_s == [0, near(REST * 0.01), near(REST * 0.02)]


async def test_the_more_messages_came_in_a_step_the_longer_is_its_rest() -> None:
    world = World(busy=True)
    for world.each_time in (100, 1000, 1):
        await world.step()
    assert world.rested_s[1:] == [
        pytest.approx(REST * (STEP_S + 100 * MESSAGE_S)),
        pytest.approx(REST * (STEP_S + 1000 * MESSAGE_S)),
    ]


async def test_a_step_between_two_bursts_is_followed_by_a_rest_too() -> None:
    world = World(busy=True)
    await world.step()
    world.taken_in += 8192
    world.busy = False
    assert await world.step() == BESIDE_INTAKE
    await world.step()
    assert world.rested_s[-1] == pytest.approx(REST * STEP_S)


async def test_where_messages_have_come_since_the_step_before_the_next_is_a_small_one() -> None:
    world = World(busy=True)
    assert [await world.step() for _ in range(3)] == [BESIDE_INTAKE] * 3
    assert await world.step(limit=7) == 7


async def test_alone_a_change_goes_at_full_speed_and_again_when_the_messages_have_passed() -> None:
    world = World(busy=False)
    assert [await world.step(), await world.step()] == [1000, 1000]
    world.busy = True
    assert [await world.step(), await world.step()] == [1000, BESIDE_INTAKE]
    world.busy = False
    assert [await world.step() for _ in range(3)] == [BESIDE_INTAKE, 1000, 1000]
    assert [round(rested_s / STEP_S) for rested_s in world.rested_s] == [0, 0, 0, REST, REST, REST, 0]


async def test_many_changes_at_once_have_no_greater_share_than_one() -> None:
    world = World(busy=True)
    begun_s, steps = world.now_s, 40
    await asyncio.gather(*(world.step() for _ in range(steps)))
    assert steps * STEP_S / (world.now_s - begun_s) == pytest.approx(1 / (REST + 1), rel=0.1)


async def test_no_rest_is_so_long_that_a_change_would_stand_still() -> None:
    world = World(busy=True)
    await world.step(took_s=60)
    await world.step()
    assert world.rested_s[-1] == pytest.approx(MOST_REST_S)


async def test_a_step_that_fails_leaves_its_rest_and_lets_the_next_one_begin() -> None:
    world = World(busy=True)
    with pytest.raises(ValueError, match="mine"):
        async with world.turns.turn():
            world.pass_by(STEP_S)
            raise ValueError("mine")
    await world.step()
    assert world.rested_s[-1] == near(REST * STEP_S)


async def test_who_still_waits_for_a_turn_when_the_worker_stops_gets_none() -> None:
    world = World(busy=False)
    async with world.turns.turn():
        waiting = asyncio.create_task(world.step())
        await asyncio.sleep(0)
        world.turns.stop()
    with pytest.raises(Busy):
        await waiting
