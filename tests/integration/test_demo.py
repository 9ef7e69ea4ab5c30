"""The demo: green on the real parts, red when anything is lost or early, and gone without a trace at its end."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from requeue_client.demo.ledger import Ledger, Report, Seen, percentile
from requeue_client.demo.parts import Parts
from requeue_client.demo.plan import End, How, Planned, make_plan
from requeue_client.demo.run import handling, play
from requeue_client.demo.show import Show, verdict
from requeue_client.local import LocalProcessError
from rich.console import Console

MESSAGES = 150
_S = 1_000_000_000


class Demo:
    """`python -m requeue_client.demo` as a child, its lines as they come."""

    def __init__(self, directory: Path, *args: str) -> None:
        self.directory = directory
        self._child = subprocess.Popen(
            [sys.executable, "-m", "requeue_client.demo", "--directory", str(directory), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str, timeout_s: float = 90.0) -> None:
        """Wait for a line that matches."""
        with self._changed:
            seen = self._changed.wait_for(lambda: re.search(pattern, self.text, re.MULTILINE), timeout_s)
        assert seen, self.text

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self._child.pid).children(recursive=True)

    def send(self, number: signal.Signals) -> None:
        """SIGINT goes to server and worker too, as Ctrl-C in a terminal does; any other to the demo alone."""
        if number is signal.SIGINT:
            os.killpg(self._child.pid, number)
        else:
            self._child.send_signal(number)

    def wait(self) -> int:
        code = self._child.wait(60)
        self._reader.join(10)
        return code

    def end(self) -> None:
        if self._child.poll() is None:
            self.send(signal.SIGINT)
            self.wait()


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(*args: str) -> Demo:
        started.append(Demo(tmp_path / "demo", *args))
        return started[-1]

    yield start
    for demo in started:
        demo.end()


def assert_nothing_is_left(demo: Demo, processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    assert list(demo.directory.iterdir()) == []


def test_demo_loses_nothing_and_what_it_says_to_try_works(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo("--messages", str(MESSAGES), "--keep")
    demo.until(r"^lost \d+$")
    demo.until("are shown below")

    rows = dict(re.findall(r"^  ([a-z]+(?: p\d\d)?) +(\d+(?:\.\d ms)?)", demo.text, re.MULTILINE))
    assert "lost 0" in demo.lines, demo.text
    assert "wrong:" not in demo.text
    assert rows["published"] == rows["acked"] == str(MESSAGES)
    assert int(rows["settled"]) + int(rows["expired"]) + int(rows["dead"]) == MESSAGES
    assert min(int(rows[name]) for name in ("delivered", "retried", "expired", "dead")) > 0
    assert rows["early"] == "0"
    assert {"redelivered", "lateness p50", "lateness p99"} <= rows.keys()
    assert re.search("kill -9 of the worker.*\n(.*\n)*.*a new worker is ready", demo.text)

    commands = [line.strip() for line in demo.lines if re.match(r"  \S*requeue publish", line)]
    assert len(commands) == 3
    for command in commands:
        subprocess.run(shlex.split(command), check=True, timeout=30)
    curl = next(line for line in demo.lines if line.startswith("  curl"))
    metrics = subprocess.run(curl, shell=True, check=True, capture_output=True, text=True, timeout=30)
    assert "requeue_pending_messages" in metrics.stdout
    demo.until(r"b'hello', attempt 1 of 20: settled")
    demo.until(r"dead letter \(exhausted\), after 3 attempts")

    processes = demo.processes()
    assert len(processes) == 2
    demo.send(signal.SIGINT)
    assert demo.wait() == 0, demo.text
    assert_nothing_is_left(demo, processes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_no_process_and_no_file(
    start_demo: Callable[..., Demo], number: signal.Signals
) -> None:
    demo = start_demo("--messages", str(MESSAGES))
    demo.until("kill -9 of the worker")
    processes = demo.processes()
    demo.send(number)
    assert demo.wait() == 130, demo.text
    assert "lost" not in demo.text
    assert "rror" not in demo.text
    assert_nothing_is_left(demo, processes)


class LosesTheDisk(Parts):
    """A disk that forgets everything with the crash."""

    def kill_worker(self) -> None:
        super().kill_worker()
        shutil.rmtree(self.directory / "data" / "demo")


async def test_demo_tells_when_acknowledged_messages_are_lost(tmp_path: Path) -> None:
    ledger = Ledger(make_plan(60, seed=1))
    show = Show(ledger, Console(file=io.StringIO()))
    with LosesTheDisk(tmp_path) as parts:
        async with handling(parts, ledger, show.say):
            report = await play(parts, ledger, show, longest_s=12.0)
    assert report.lost > 0
    assert not report.ok
    out = io.StringIO()
    verdict(report, Console(file=out))
    assert f"wrong: {report.lost} acknowledged messages were lost" in out.getvalue()
    assert out.getvalue().splitlines()[-1] == f"lost {report.lost}"


class RuinsTheDirectory(Parts):
    """Something else lies where the data was."""

    def kill_worker(self) -> None:
        super().kill_worker()
        shutil.rmtree(self.directory / "data" / "demo")
        (self.directory / "data" / "demo").write_text("no directory")


async def test_demo_tells_why_the_worker_did_not_start_again(tmp_path: Path) -> None:
    ledger = Ledger(make_plan(40, seed=1))
    show = Show(ledger, Console(file=io.StringIO()))
    with RuinsTheDirectory(tmp_path) as parts:
        async with handling(parts, ledger, show.say):
            with pytest.raises(LocalProcessError, match="ended with exit code 3 before it was ready"):
                await play(parts, ledger, show)


# -- the account, without the parts ------------------------------------------------------------------------------


def ledger_of(count: int = 40) -> Ledger:
    """A ledger whose messages are sent and acknowledged, and have come to no end."""
    ledger = Ledger(make_plan(count, seed=3))
    for planned in ledger.plan:
        ledger.sending(planned.number)
        ledger.acknowledged(planned.number)
    return ledger


def end_as_planned(ledger: Ledger, *, but: int = -1) -> None:
    for planned in ledger.plan:
        number = planned.number
        if number == but:
            continue
        if planned.end is not End.SETTLED:
            ledger.buried(number, f"id-{number}", planned.end)
            continue
        seen = seen_of(ledger, number, after_due_ns=1)
        ledger.delivery(seen)
        ledger.answered(seen, seen.received_ns, settles=True)


def seen_of(ledger: Ledger, number: int, *, after_due_ns: int, attempt: int = 1) -> Seen:
    enqueued_ns = ledger._sent_ns[number] + 1000
    due_ns = ledger.plan[number].first_due_ns(enqueued_ns)
    return Seen(number, f"id-{number}", attempt, enqueued_ns, due_ns + after_due_ns)


def report_of(ledger: Ledger, *, pending: int = 0, dead_on_disk: int | None = None) -> Report:
    return ledger.report(
        pending=pending, dead_on_disk=len(ledger.dead_ids) if dead_on_disk is None else dead_on_disk
    )


def number_that_is(ledger: Ledger, condition: Callable[[Planned], bool]) -> int:
    return next(planned.number for planned in ledger.plan if condition(planned))


def test_account_is_clean_when_every_message_ends_as_planned() -> None:
    ledger = ledger_of()
    end_as_planned(ledger)
    report = report_of(ledger)
    assert report.ok, report.problems
    assert report.settled + report.expired + report.dead == report.acked == 40


def test_acknowledged_message_without_an_end_is_lost() -> None:
    ledger = ledger_of()
    end_as_planned(ledger, but=7)
    assert report_of(ledger).lost == 1
    assert "were lost, such as 7" in report_of(ledger).problems[0]


def test_delivery_before_it_is_due_is_early() -> None:
    ledger = ledger_of()
    number = number_that_is(ledger, lambda planned: planned.end is End.SETTLED and planned.delay_ns > 0)
    end_as_planned(ledger, but=number)
    seen = seen_of(ledger, number, after_due_ns=-1)
    ledger.delivery(seen)
    ledger.answered(seen, seen.received_ns, settles=True)
    assert report_of(ledger).early == 1
    assert not report_of(ledger).ok


def test_retry_before_its_backoff_is_over_is_early_and_after_it_is_not() -> None:
    for shift_ns, early in ((-1, 1), (0, 0)):
        ledger = ledger_of()
        number = number_that_is(
            ledger, lambda p: p.how is How.NAK and 1 <= p.fails <= 3 and p.end is End.SETTLED
        )
        first = seen_of(ledger, number, after_due_ns=5)
        ledger.delivery(first)
        ledger.answered(first, first.received_ns + 10, settles=False)
        due_ns = first.received_ns + 10 + ledger.plan[number].wait_ns(1)
        ledger.delivery(first._replace(attempt=2, received_ns=due_ns + shift_ns))
        assert len(ledger.early) == early
        assert ledger.retried == 1


def test_claim_to_be_on_disk_before_it_was_sent_is_early() -> None:
    ledger = ledger_of()
    number = number_that_is(ledger, lambda planned: planned.at_ns is None)
    seen = seen_of(ledger, number, after_due_ns=_S)
    ledger.delivery(seen._replace(enqueued_ns=seen.enqueued_ns - 10_000))
    assert "claims" in ledger.early[0]


def test_attempt_repeated_by_a_crash_is_redelivered_and_no_retry() -> None:
    ledger = ledger_of()
    seen = seen_of(ledger, 0, after_due_ns=1)
    ledger.delivery(seen)
    ledger.delivery(seen._replace(received_ns=seen.received_ns + _S))
    assert (ledger.redelivered, ledger.retried) == (1, 0)


def test_worker_whose_own_numbers_disagree_is_told() -> None:
    ledger = ledger_of()
    end_as_planned(ledger)
    assert "still has 2 messages pending" in report_of(ledger, pending=2).problems[0]
    assert "dead letters and published" in report_of(ledger, dead_on_disk=0).problems[0]


def test_message_that_ends_otherwise_than_it_had_to_is_told() -> None:
    ledger = ledger_of()
    number = number_that_is(ledger, lambda planned: planned.end is End.SETTLED)
    end_as_planned(ledger, but=number)
    ledger.buried(number, f"id-{number}", End.EXHAUSTED)
    assert report_of(ledger).lost == 0
    assert "ended otherwise" in report_of(ledger).problems[0]


def test_plan_has_both_intakes_every_kind_of_failure_and_every_end() -> None:
    plan = make_plan(2_000, seed=2020)
    assert {planned.message.envelope for planned in plan} == {True, False}
    assert {planned.how for planned in plan} == set(How)
    assert {planned.end for planned in plan} == set(End)
    assert {planned.how for planned in make_plan(20, seed=5)} >= {How.SILENT, How.SLOW, How.TERM}
    assert [json.loads(p.message.payload)["number"] for p in plan] == list(range(2_000))


def test_percentile_is_the_nearest_rank() -> None:
    assert [percentile(range(1, 101), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([], 0.5) == 0
