"""The performance check: does a message cost more of a worker's CPU here than in the parent commit?

    python -m tests.performance.paired [--base HEAD^] [--rounds 5] [--n 100000]

Both trees run on this machine, in this environment, in turns: A B, B A, A B ... A round gives one ratio; what counts is
the median of the ratios. It is CPU time of the worker's process for a message's whole life (taken in, acknowledged,
replayed, settled), since wall time says as much about whoever else uses the machine. Beyond the limit another series
is measured, and all rounds count. Exit codes: 0 not slower, 1 slower, 2 could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from requeue_client.bench.both import measure_both
from requeue_client.bench.messages import Load
from requeue_client.bench.target import Lab
from requeue_client.bench.wire import WireError
from requeue_client.local import LocalProcessError

ROOT = Path(__file__).parents[2]
LIMIT = 1.25  #: of the parent's CPU: what the same commit gives against itself stays well within


def is_slower(ratios: Sequence[float], limit: float = LIMIT) -> bool:
    """Whether the median of new / old lies beyond the limit."""
    return statistics.median(ratios) > limit


def cpu_us_per_message(tree: Path, n: int) -> float:
    """CPU of the worker of this tree for a message, in µs; the load is this tree's. Raises LocalProcessError, WireError."""

    async def measure() -> float:
        async with Lab() as lab:
            result = await measure_both(lab, Load(n))
        if result.figures["missing"]:
            raise WireError(f"{result.figures['missing']} messages did not come")
        return float(str(result.figures["worker_cpu_us_per_msg"]))

    # Only what is started from here on takes its modules from there: the worker.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(tree / part) for part in ("worker", "protocol"))
    try:
        return asyncio.run(measure())
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def measure_rounds(old: Path, new: Path, rounds: int, n: int) -> list[float]:
    """The ratio new / old of each round."""
    ratios = []
    for number in range(rounds):
        order = (old, new) if number % 2 == 0 else (new, old)
        cost = {tree: cpu_us_per_message(tree, n) for tree in order}
        ratios.append(cost[new] / cost[old])
        print(
            f"round {number + 1}: before {cost[old]:.1f} µs, now {cost[new]:.1f} µs, ratio {ratios[-1]:.2f}"
        )
    return ratios


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A commit of this repository in a directory of its own. Raises LocalProcessError when there is no such commit."""
    with tempfile.TemporaryDirectory(prefix="requeue-parent-") as parent:
        tree = Path(parent) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*args: str) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalProcessError(f"git {' '.join(args)}: {done.stderr.strip()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare with a commit; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="HEAD^", help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=100_000, help="messages in each measurement")
    options = parser.parse_args(arguments)
    try:
        with checked_out(options.base) as old:
            ratios = measure_rounds(old, ROOT, options.rounds, options.n)
            if is_slower(ratios):
                print("beyond the limit: measured once more, and all rounds count")
                ratios += measure_rounds(old, ROOT, options.rounds, options.n)
    except (LocalProcessError, WireError, TimeoutError) as error:
        print(f"could not be measured: {error}", file=sys.stderr)
        return 2
    median = statistics.median(ratios)
    print(f"a message costs {median:.2f} times the CPU that it cost in {options.base}; the limit is {LIMIT}")
    return 1 if is_slower(ratios) else 0


if __name__ == "__main__":
    sys.exit(main())
