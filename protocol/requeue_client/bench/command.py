"""`requeue bench`: the command line."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console

from requeue_client.bench import beanstalkd, schedules
from requeue_client.bench.ack import measure_ack
from requeue_client.bench.both import measure_both
from requeue_client.bench.disk import costless_fsync
from requeue_client.bench.figures import Result, faults, medians
from requeue_client.bench.growth import measure_growth
from requeue_client.bench.headofline import measure_head_of_line
from requeue_client.bench.ingest import measure_ingest
from requeue_client.bench.jetstream import SYSTEMS, measure_jetstream_ingest, measure_jetstream_replay
from requeue_client.bench.lateness import measure_lateness
from requeue_client.bench.messages import INTAKE_SUBJECT, MIN_SIZE, Load
from requeue_client.bench.replay import measure_replay
from requeue_client.bench.report import as_json, print_tables
from requeue_client.bench.startup import measure_startup
from requeue_client.bench.target import Lab
from requeue_client.bench.wire import WireError
from requeue_client.local import LocalProcessError

SCENARIOS = ("ingest", "replay", "both", "ack", "lateness", "headofline", "startup")
OWN_PARTS = ("ack", "headofline", "startup", "growth")  #: they leave messages behind, or restart the worker
PEERS = (*SYSTEMS, schedules.SYSTEM, beanstalkd.SYSTEM)
_FAULTY, _FAILED = 1, 3
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be measured."""

    scenarios: tuple[str, ...]
    load: Load
    rate_per_s: float
    backlogs: tuple[int, ...]
    queues: tuple[int, ...]
    peers: tuple[str, ...]


def _read_cores(context: click.Context, option: click.Parameter, text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset()
    if not hasattr(os, "sched_getaffinity"):
        raise click.BadParameter("this system does not bind processes to cores")
    there = os.sched_getaffinity(0)
    try:
        cores = frozenset(int(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers, as 2,3") from None
    if not cores <= there:
        raise click.BadParameter(f"{text}: the cores here are {', '.join(map(str, sorted(there)))}")
    return cores


def _leave(cores: frozenset[int]) -> None:
    """Keep away from the worker's cores, as what is started from here will; where there are no others, stay."""
    if cores and (others := os.sched_getaffinity(0) - cores):
        os.sched_setaffinity(0, others)


@click.command(
    epilog="""\b
Exit codes:
  0  measured
  1  measured, but messages did not come or came early
  2  usage
  3  a part is missing, did not start, or refused messages
"""
)
@click.argument("scenario", type=click.Choice([*SCENARIOS, "growth", "all"]), default="all")
@click.option("--n", type=click.IntRange(1), default=100_000, show_default=True, help="Messages.")
@click.option("--size", type=click.IntRange(MIN_SIZE), default=256, show_default=True, help="Payload bytes.")
@click.option(
    "--window", type=click.IntRange(1), default=1024, show_default=True, help="Unacked messages allowed."
)
@click.option(
    "--queues",
    type=click.IntRange(1),
    multiple=True,
    default=[1],
    show_default=True,
    help="Queues to spread over; repeatable for growth.",
)
@click.option(
    "--rate",
    type=click.FloatRange(1),
    default=2000,
    show_default=True,
    help="Messages per second (lateness, headofline, growth; half of it: ack).",
)
@click.option(
    "--backlog",
    type=click.IntRange(0),
    multiple=True,
    default=[100_000],
    show_default=True,
    help="Messages that wait meanwhile (lateness, headofline, startup, growth); repeatable for growth.",
)
@click.option(
    "--runs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Measure all so often, in turns, and show medians.",
)
@click.option("--peer", type=click.Choice(PEERS), multiple=True, help="Measure this beside it; repeatable.")
@click.option(
    "--intake",
    default=INTAKE_SUBJECT,
    show_default=True,
    help="Subject to publish to: any that the workers subscribe to.",
)
@click.option(
    "--server", help="Measure what runs on this server; without it, an own server and worker are started."
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the own parts keep their data meanwhile: choose the disk to measure.",
)
@click.option(
    "--worker-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Configuration file of the own worker.",
)
@click.option(
    "--shards", type=click.IntRange(1, 64), default=1, show_default=True, help="Shards of the own worker."
)
@click.option(
    "--cores",
    callback=_read_cores,
    metavar="N,N",
    help="The own worker runs on these cores alone (from 0), server and load on the others.",
)
@click.option("--json", "json_output", is_flag=True, help="JSON on standard output.")
def bench(
    scenario: str,
    n: int,
    size: int,
    window: int,
    queues: tuple[int, ...],
    rate: float,
    backlog: tuple[int, ...],
    runs: int,
    peer: tuple[str, ...],
    intake: str,
    server: str | None,
    data_dir: Path | None,
    worker_config: Path | None,
    shards: int,
    cores: frozenset[int],
    json_output: bool,
) -> None:
    """Measure a worker: durable ingest, replay, both at once, ack latency, lateness, start-up on a backlog.

    headofline: the lateness of one queue while another has --backlog messages due and a handler that never answers.
    growth (not part of all): ingest, replay, lateness, memory and disk at each --backlog, for each --queues.

    Load generator, nats-server and worker share this machine. An ack counts when the message is fsynced. With
    --server, the load goes to the workers that listen there, and is settled again before the end.

    The generator speaks NATS on a bare socket with prebuilt messages, since a client library would be the
    bottleneck: about 3 µs of CPU for a published message and 4 µs for an answered delivery
    (generator_cpu_us_per_msg says what it was). CPU and memory are read from /proc, of own processes only.
    """
    if server is not None and (shards > 1 or cores):
        raise click.UsageError("--shards and --cores are for the own worker: leave --server out")
    own_peers = {"jetstream-sync", beanstalkd.SYSTEM}
    if server is not None and (scenario in OWN_PARTS or own_peers & set(peer)):
        raise click.UsageError(
            f"{', '.join((*OWN_PARTS, *sorted(own_peers)))} need parts of their own: leave --server out"
        )
    if scenario != "growth" and (len(backlog) > 1 or len(queues) > 1):
        raise click.UsageError("more than one --backlog or --queues is for growth alone")
    scenarios = tuple(
        name
        for name in (*SCENARIOS, "growth")
        if name == scenario
        or (scenario == "all" and name in SCENARIOS and not (server and name in OWN_PARTS))
    )
    load = Load(n, size, window, queues[0], intake)
    plan = _Plan(scenarios, load, rate, backlog, queues, tuple(dict.fromkeys(peer)))
    lab = Lab(
        server_url=server,
        directory=data_dir,
        worker_config=worker_config,
        jetstream=bool({"jetstream", schedules.SYSTEM} & set(peer)),
        shards=shards,
        queues=max(queues),
        cores=cores,
    )
    _leave(cores)
    try:
        results, notes = _run(_measure(lab, plan, runs))
    except (LocalProcessError, WireError, TimeoutError) as error:
        click.echo(f"requeue bench: {error}", err=True)
        sys.exit(_FAILED)
    if json_output:
        click.echo(as_json(results, notes))
    else:
        print_tables(results, notes)
    if wrong := faults(results):
        click.echo(f"requeue bench: {'; '.join(wrong)}", err=True)
        sys.exit(_FAULTY)


def _run(main: Awaitable[_T]) -> _T:
    """Run on uvloop where the worker extra brought it: the load costs less on it."""

    async def run() -> _T:
        return await main

    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return asyncio.run(run())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


async def _measure(lab: Lab, plan: _Plan, runs: int) -> tuple[list[Result], list[str]]:
    results = []
    async with lab:
        notes = _notes(lab)
        with Console(stderr=True).status("starting") as status:
            for scenario, system in _steps(plan) * runs:
                status.update(f"measuring {scenario} of {system} ...")
                results += await _step(lab, plan, scenario, system)
    return medians(results), notes


def _notes(lab: Lab) -> list[str]:
    notes = [lab.placement] if lab.placement else []
    if lab.own and costless_fsync(lab.root):
        notes.append(
            f"{lab.root.parent} is in memory and an fsync costs nothing there: choose a disk with --data-dir"
        )
    return notes


def _steps(plan: _Plan) -> list[tuple[str, str]]:
    """Scenario and system of each measurement, in order: peers right after what they are compared with."""
    return [
        (scenario, system)
        for scenario in plan.scenarios
        for system in ("requeue", *(plan.peers if scenario in ("ingest", "replay") else ()))
        if not (scenario == "ingest" and system == schedules.SYSTEM)
    ]


async def _step(lab: Lab, plan: _Plan, scenario: str, system: str) -> list[Result]:
    load, rate, (backlog, *_) = plan.load, plan.rate_per_s, plan.backlogs
    match scenario, system:
        case _, beanstalkd.SYSTEM:
            return [await beanstalkd.measure_beanstalkd(lab, load, scenario)]
        case _, schedules.SYSTEM:
            return [await schedules.measure_schedules(lab, load)]
        case "ingest", "requeue":
            return [await measure_ingest(lab, load)]
        case "ingest", peer:
            return [await measure_jetstream_ingest(lab, load, peer)]
        case "replay", "requeue":
            return [await measure_replay(lab, load)]
        case "replay", peer:
            return [await measure_jetstream_replay(lab, load, peer)]
        case "both", _:
            return [await measure_both(lab, load)]
        case "ack", _:
            return [await measure_ack(lab, load, rate_per_s=rate / 2)]
        case "lateness", _:
            return [await measure_lateness(lab, load, rate_per_s=rate, backlog=backlog)]
        case "headofline", _:
            return [await measure_head_of_line(lab, load, rate_per_s=rate, backlog=backlog)]
        case "growth", _:
            return await measure_growth(
                lab, load, rate_per_s=rate, backlogs=plan.backlogs, queues=plan.queues
            )
        case _:
            return [await measure_startup(lab, load, backlog=backlog)]
