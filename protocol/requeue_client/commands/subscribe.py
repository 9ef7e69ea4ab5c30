"""`requeue subscribe`: a handler to test with, that shows what it gets and fails as often as it is told."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from base64 import b64encode
from typing import Any, Literal

import click

from requeue_client.client import DEFAULT_INTAKE
from requeue_client.commands.output import printable
from requeue_client.contexts import ContextError
from requeue_client.delivery import Delivery
from requeue_client.errors import RequeueError
from requeue_client.exits import exit_code
from requeue_client.handler import Handler, Retry, handler
from requeue_client.options import Connection, connection_options
from requeue_client.times import duration_s

#: not that of real handlers: it would take its share of their messages
GROUP = "requeue-subscribe"
_SHOWN_BYTES = 256
_EXIT_CODES = """\b
Exit codes:
  0  --count deliveries were answered, or it was stopped (Ctrl-C, SIGTERM)
  2  usage: an option or the context is wrong
  3  NATS unreachable
"""


@click.command(epilog=_EXIT_CODES)
@click.argument("subject")
@click.option("--fail-rate", type=click.FloatRange(0, 1), default=0.0, help="Fail that share of them: 0.2.")
@click.option("--delay", help="Work so long at each: 200ms.")
@click.option("--count", type=click.IntRange(1), help="End after so many; others are given back.")
@click.option("--queue", "group", default=GROUP, show_default=True, help="Queue group.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--timeout", default="5s", show_default=True, help="How long to try to connect.")
@connection_options
def subscribe(
    subject: str,
    fail_rate: float,
    delay: str | None,
    count: int | None,
    group: str,
    output: Literal["text", "json"],
    timeout: str,
    **options: Any,
) -> None:
    """Handle what comes to SUBJECT (wildcards as in NATS), and print a line for each delivery.

    It answers, and that counts: beside a real handler the worker goes by the first answer.
    """
    try:
        work_s = 0.0 if delay is None else duration_s(delay, "delay")
        tester = _Tester(fail_rate, work_s, count, output)
        handling = handler(subject, queue_group=group)(tester.handle)
        asyncio.run(_serve(Connection(**options), handling, tester, duration_s(timeout, "timeout")))
    except RequeueError as error:
        click.echo(f"requeue: {error}", err=True)
        sys.exit(exit_code(error))
    except (ContextError, ValueError) as wrong:
        raise click.UsageError(str(wrong)) from None


async def _serve(connection: Connection, handling: Handler, tester: _Tester, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, tester.ended.set)
    async with await connection.open(intake=DEFAULT_INTAKE, timeout_s=timeout_s) as client:
        serving = await client.serve(handling)
        click.echo(f"subscribed to {handling.subject} in {handling.queue_group}", err=True)
        await tester.ended.wait()
        await serving.stop()


class _Tester:
    """Counts, shows and fails deliveries; `ended` once `count` of them are answered."""

    def __init__(
        self, fail_rate: float, work_s: float, count: int | None, output: Literal["text", "json"]
    ) -> None:
        self.ended = asyncio.Event()
        self._fail_rate = fail_rate
        self._work_s = work_s
        self._count = count
        self._output = output
        self._taken = self._answered = 0

    async def handle(self, delivery: Delivery) -> None:
        """Settle it, or raise Retry."""
        if self._count is not None and self._taken >= self._count:
            raise Retry("given back: beyond the --count of requeue subscribe")
        self._taken += 1
        fails = random.random() < self._fail_rate
        try:
            await asyncio.sleep(self._work_s)
        finally:
            self._answered += 1
            if self._answered == self._count:
                self.ended.set()
        click.echo(_line(delivery, fails) if self._output == "text" else _json(delivery, fails))
        if fails:
            raise Retry("failed on purpose by requeue subscribe --fail-rate")


def _line(delivery: Delivery, fails: bool) -> str:
    most = "unlimited" if delivery.max_attempts is None else delivery.max_attempts
    attempt = f"attempt {delivery.attempt} of {most}" if delivery.is_replay else "direct"
    payload = printable(delivery.payload[:_SHOWN_BYTES].decode(errors="replace")).replace(r"\[", "[")
    more = " ..." if len(delivery.payload) > _SHOWN_BYTES else ""
    return f"{'failed ' if fails else 'settled'}  {delivery.subject}  {attempt}  {payload}{more}"


def _json(delivery: Delivery, fails: bool) -> str:
    return json.dumps(
        {
            "time_ns": time.time_ns(),
            "outcome": "failed" if fails else "settled",
            "subject": delivery.subject,
            "id": delivery.id,
            "queue": delivery.queue,
            "attempt": delivery.attempt,
            "max_attempts": delivery.max_attempts,
            "last_error": delivery.last_error,
            "headers": dict(delivery.headers),
            "payload": b64encode(delivery.payload).decode(),
        },
        ensure_ascii=False,
    )
