"""How a command's process runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import pytest
from requeue_worker import event_loop


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before_s = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before_s)


def test_a_command_runs_on_uvloop_and_takes_turns_with_its_threads_often() -> None:
    async def main() -> tuple[str, float]:
        return type(asyncio.get_running_loop()).__module__, sys.getswitchinterval()

    assert event_loop.run(main()) == ("uvloop", pytest.approx(0.0005))
