"""What `requeue top` draws and what its keys do, without a terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NoReturn, cast

import pytest
from requeue_client.commands.top import _Top
from requeue_client.commands.top_keys import SORTS, View, keys_of, pressed
from requeue_client.commands.top_view import Look, drawn, kept_on_screen
from requeue_client.errors import RequeueError
from requeue_client.service import AdminClient
from requeue_protocol.admin import Buckets, QueueEntry, QueueTotals, StatsAnswer
from rich.console import Console

SECOND = 10**9


def entry(number: int, **also: int) -> QueueEntry:
    known = {"pending_bytes": 0, "in_flight": 0, "dead": 0, "dead_bytes": 0}
    return QueueEntry(
        name=f"queue-{number:04}",
        next_due_ns=None,
        paused_until_ns=None,
        **(known | {"pending": number} | also),
    )


def look(time_ns: int, settled: int, started_ns: int = 1) -> Look:
    stats = StatsAnswer(
        instance="w", started_ns=started_ns, time_ns=time_ns, intake_messages=3 * settled, intake_bytes=0,
        duplicates=0, refused={}, commits=0, lateness=Buckets(bounds_s=[], counts=[0]), queues=[], next=None,
    )  # fmt: skip
    total = QueueTotals(
        name="queue-0003", accepted=2 * settled, replays=0, settled=settled, retried=0, held=0, expired=0,
        dead={}, dropped={},
    )  # fmt: skip
    queues = [("w", entry(n)) for n in range(1000)]
    return Look(time_ns, queues=queues, stats={"w": stats}, totals={("w", "queue-0003"): total})


def lines(now: Look, before: Look | None, view: View, height: int = 24) -> list[str]:
    console = Console(width=120, height=height)
    with console.capture() as captured:
        console.print(drawn(now, before, view, height))
    return captured.get().splitlines()


def names(shown: list[str]) -> list[str]:
    return [line.split()[0] for line in shown if line.strip().startswith("queue-")]


@pytest.mark.parametrize("height", [12, 24, 60])
def test_of_a_thousand_queues_as_many_are_drawn_as_fit_the_screen(height: int) -> None:
    view = View(filter="queue", stopped=True, help=False)
    shown = lines(look(SECOND, 0), None, view, height)
    assert len(shown) <= height
    found = names(shown)
    assert found[0] == "queue-0999"
    assert f"… and {1000 - len(found)} more" in shown
    assert names(lines(look(SECOND, 0), None, View(first=10**6), height))[-1] == "queue-0000"


def test_rates_are_differences_a_second_and_nothing_of_a_worker_that_started_anew() -> None:
    view = View(filter="0003")
    shown = "\n".join(lines(look(3 * SECOND, 50), look(SECOND, 10), view))
    assert "in 40.0/s" in shown
    assert "out 20.0/s" in shown
    assert [line.split()[-2:] for line in shown.splitlines() if "queue-0003" in line] == [["40.0", "20.0"]]
    anew = "\n".join(lines(look(3 * SECOND, 50, started_ns=2), look(SECOND, 10), view))
    assert "in 0.0/s" in anew
    assert "out 0.0/s" in anew


def test_a_worker_that_does_not_count_what_it_accepts_yet_is_shown_without() -> None:
    def of_before(each: Look) -> Look:
        [(key, total)] = each.totals.items()
        told = total.model_dump_json(exclude={"accepted"})
        return replace(each, totals={key: QueueTotals.model_validate_json(told)})

    shown = lines(of_before(look(3 * SECOND, 50)), of_before(look(SECOND, 10)), View(filter="0003"))
    assert [line.split()[-2:] for line in shown if "queue-0003" in line] == [["0.0", "20.0"]]


def test_silent_workers_and_what_a_terminal_would_obey_are_shown_as_text() -> None:
    evil = entry(1).model_copy(update={"name": "a\x1b[2J[red]b"})
    now = replace(look(SECOND, 0), queues=[("w", evil)], silent=("w-1",), trouble="no answer: no connection")
    shown = "\n".join(lines(now, None, View()))
    assert "no answer from w-1" in shown
    assert "no answer: no connection" in shown
    assert "\x1b" not in shown
    assert "a�[2J[red]b" in shown


def test_keys_sort_scroll_stop_filter_and_quit() -> None:
    def after(data: bytes, view: View | None = None) -> View:
        view = view or View()
        for key in keys_of(data):
            view = pressed(view, key, page=10)
        return view

    assert after(b"1").sort == "name"
    assert [after(b"s" * n).sort for n in (1, len(SORTS))] == ["in_flight", "pending"]
    assert after(b"<").sort == "name"
    assert after(b"\x1b[6~\x1b[B\x1b[A\x1b[B").first == 11
    assert after(b"\x1b[A").first == 0
    assert after(b"p").stopped
    assert not after(b"p ").stopped
    assert after(b"/maq\x7fil\r") == View(filter="mail")
    assert after(b"/mail\x1b") == View()
    assert after(b"?q") == View(help=True, quit=True)


def test_scrolling_ends_at_the_last_page_and_up_shows_at_once_from_there() -> None:
    now, page = look(SECOND, 0), 20
    view = View()
    for key in ["page-down"] * 60 + ["up"]:
        view = kept_on_screen(pressed(view, key, page), now, page)
    assert view.first == 1000 - page - 1


class AnswersWhenItShouldEnd:
    """What asks the workers. An answer that comes with the end makes it go unheard (`asyncio.wait_for`, Python 3.11)."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def ask(self, *_: Any) -> NoReturn:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RequeueError("an answer") from None
        raise AssertionError


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where to write what is typed."""
    its, ours = os.pipe()
    with os.fdopen(its) as stdin, os.fdopen(ours, "wb", buffering=0):
        monkeypatch.setattr(sys, "stdin", stdin)
        yield ours


async def test_q_ends_it_though_an_answer_comes_at_that_moment(keyboard: int) -> None:
    admin = AnswersWhenItShouldEnd()
    top = asyncio.create_task(_Top(cast(AdminClient, admin), View(), interval_s=3600).run())
    await admin.asked.wait()
    os.write(keyboard, b"q")
    await asyncio.wait_for(top, 10)
