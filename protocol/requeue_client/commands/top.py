"""`requeue top`: the queues on a terminal, again and again. One question at a time; keys are read meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import click
from requeue_protocol.admin import (
    INSTANCES,
    QUEUES,
    STATS,
    InstanceAnswer,
    InstancesRequest,
    QueuesAnswer,
    QueuesRequest,
    StatsAnswer,
    StatsRequest,
)
from rich.live import Live

from requeue_client.commands.output import EXIT_CODES, admin_options, console, run_admin
from requeue_client.commands.top_keys import SORTS, View, keys_of, pressed
from requeue_client.commands.top_view import Look, drawn, kept_on_screen, page_rows
from requeue_client.errors import RequeueError
from requeue_client.service import AdminClient
from requeue_client.times import duration_s


@click.command(epilog=EXIT_CODES)
@click.option("--interval", default="2s", show_default=True, help="Between two looks.")
@click.option(
    "--sort", type=click.Choice(SORTS), default="pending", show_default=True, help="Order of queues."
)
@click.option("--filter", "filter_", default="", help="Only queues with this in their names.")
@click.option("--once", is_flag=True, help="Print one frame, all queues, and end; needs no terminal.")
@admin_options
def top(interval: str, sort: str, filter_: str, once: bool, output: str, **options: Any) -> None:
    """Watch the queues on the terminal; ? shows the keys, q ends it."""
    if output != "table":
        raise click.UsageError("top is for a terminal; for programs: requeue stats --watch -o json")
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "top needs a terminal; without one: requeue top --once, or requeue stats --watch"
        )
    try:
        interval_s = duration_s(interval, "interval")
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    view = View(sort=sort, filter=filter_)

    async def do(admin: AdminClient) -> int:
        if once:
            console().print(drawn(await _look(admin, None), None, view, None))
        else:
            with _keyboard():
                await _Top(admin, view, interval_s).run()
        return 0

    run_admin(options, do)


async def _look(admin: AdminClient, before: Look | None) -> Look:
    """What all workers answer now. Raises as AdminClient.ask."""
    found = Look(time.time_ns(), await admin.ask(INSTANCES, InstancesRequest(), InstanceAnswer))
    async for page in admin.pages(QUEUES, QueuesRequest(), QueuesAnswer):
        found.queues.extend((page.instance, entry) for entry in page.queues)
    async for answer in admin.pages(STATS, StatsRequest(), StatsAnswer):
        found.stats.setdefault(answer.instance, answer)
        found.totals.update({(answer.instance, entry.name): entry for entry in answer.queues})
    known = {each.instance for each in before.instances} | set(before.silent) if before else set()
    return replace(found, silent=tuple(sorted(known - {each.instance for each in found.instances})))


@contextmanager
def _keyboard() -> Iterator[None]:
    """Keys come at once and without echo; afterwards the terminal is as it was."""
    terminal = sys.stdin.fileno()
    settings = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, settings)


class _Top:
    """The screen, and what is on it."""

    def __init__(self, admin: AdminClient, view: View, interval_s: float) -> None:
        self._admin = admin
        self._view = view
        self._interval_s = interval_s
        self._now = Look(time.time_ns(), trouble="asking the workers ...")
        self._before: Look | None = None
        self._live = Live(console=console(), screen=True, auto_refresh=False)
        self._end = asyncio.Event()

    async def run(self) -> None:
        """Until q, Ctrl-C or SIGTERM."""
        loop = asyncio.get_running_loop()
        with self._live:
            self._draw()
            loop.add_reader(sys.stdin.fileno(), self._read)
            loop.add_signal_handler(signal.SIGWINCH, self._draw)
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._end.set)
            asking = asyncio.create_task(self._ask_again_and_again())
            ending = asyncio.create_task(self._end.wait())
            try:
                await asyncio.wait((asking, ending), return_when=asyncio.FIRST_COMPLETED)
            finally:
                loop.remove_reader(sys.stdin.fileno())
                for task in (asking, ending):
                    task.cancel()
                await asyncio.gather(asking, ending, return_exceptions=True)
        if asking.done() and not asking.cancelled():
            asking.result()

    async def _ask_again_and_again(self) -> None:
        last: Look | None = None
        # Not until it is cancelled: an answer that comes just then takes no notice (asyncio.wait_for before Python 3.12).
        while not self._end.is_set():
            if not self._view.stopped:
                try:
                    now = await _look(self._admin, last)
                    self._before, self._now, last = last, now, now
                except RequeueError as error:
                    self._now = replace(self._now, trouble=f"no answer: {error}")
                self._draw()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), self._interval_s)

    def _read(self) -> None:
        data = os.read(sys.stdin.fileno(), 1024)
        if not data:
            self._end.set()
        for key in keys_of(data):
            page = page_rows(self._live.console.height, self._now, self._view)
            self._view = kept_on_screen(pressed(self._view, key, page), self._now, page)
        if self._view.quit:
            self._end.set()
        self._draw()

    def _draw(self) -> None:
        height = self._live.console.height
        self._live.update(drawn(self._now, self._before, self._view, height), refresh=True)
