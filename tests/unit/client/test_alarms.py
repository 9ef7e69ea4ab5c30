from __future__ import annotations

import asyncio

from requeue_client.alarms import Alarms

from tests.servers import until


class Sleeper:
    def __init__(self) -> None:
        self.wake_tick = 0
        self.woken_at_s: list[float] = []

    def wake(self) -> None:
        self.woken_at_s.append(asyncio.get_running_loop().time())


async def test_sleepers_are_woken_in_their_order_and_never_early() -> None:
    sleepers = {name: Sleeper() for name in ("late", "soon", "middle")}
    alarms = Alarms(sleepers.get)
    started_s = asyncio.get_running_loop().time()
    waits_s = {"late": 0.09, "soon": 0.01, "middle": 0.05}
    for name, wait_s in waits_s.items():
        alarms.set(name, sleepers[name], wait_s)
    await until(lambda: sleepers["late"].woken_at_s)
    order = sorted(sleepers, key=lambda name: sleepers[name].woken_at_s[0])
    assert order == ["soon", "middle", "late"]
    for name, wait_s in waits_s.items():
        assert sleepers[name].woken_at_s[0] - started_s >= wait_s


async def test_a_new_alarm_replaces_the_old_one() -> None:
    sleeper = Sleeper()
    alarms = Alarms({"it": sleeper}.get)
    started_s = asyncio.get_running_loop().time()
    alarms.set("it", sleeper, 0.01)
    alarms.set("it", sleeper, 0.06)
    await until(lambda: sleeper.woken_at_s)
    assert [woken_s - started_s >= 0.06 for woken_s in sleeper.woken_at_s] == [True]


async def test_who_is_gone_is_passed_over() -> None:
    sleepers = {"gone": Sleeper(), "here": Sleeper()}
    alarms = Alarms(sleepers.get)
    gone = sleepers["gone"]
    alarms.set("gone", gone, 0.01)
    alarms.set("here", sleepers["here"], 0.01)
    del sleepers["gone"]
    await until(lambda: sleepers["here"].woken_at_s)
    assert gone.woken_at_s == []


async def test_a_sleeper_may_set_its_next_alarm_when_woken() -> None:
    class Again(Sleeper):
        def wake(self) -> None:
            super().wake()
            if len(self.woken_at_s) < 3:
                alarms.set("it", self, 0.0)

    again = Again()
    alarms = Alarms({"it": again}.get)
    alarms.set("it", again, 0.0)
    await until(lambda: len(again.woken_at_s) >= 3)


async def test_closed_alarms_wake_nobody() -> None:
    sleeper = Sleeper()
    alarms = Alarms({"it": sleeper}.get)
    alarms.set("it", sleeper, 0.01)
    alarms.close()
    await asyncio.sleep(0.05)
    assert sleeper.woken_at_s == []
