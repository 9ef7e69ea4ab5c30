"""What holds at any speed: memory is bounded whatever waits, and a stuck queue holds back no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MEMORY_MB = 300
DISK_SHARE = 1.3 * 1.1  #: of payloads and keys; a log of up to 200 MB is in it, a tenth at ten million


def measure(*args: str) -> list[dict[str, Any]]:
    command = str(Path(sys.executable).parent / "requeue")
    done = subprocess.run(
        [command, "bench", *args, "--json"], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return [result["figures"] for result in json.loads(done.stdout)["results"]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_stays_bounded_with_a_million_pending_in_a_hundred_queues(tmp_path: Path) -> None:
    load = ("--n", "50000", "--rate", "1000", "--queues", "100", "--backlog", "10000", "--backlog", "1000000")
    few, many = measure("growth", *load, "--data-dir", str(tmp_path))
    assert few["missing"] == many["missing"] == 0
    assert many["worker_peak_rss_mb"] < MEMORY_MB
    assert many["disk_share"] < DISK_SHARE


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_due_for_a_dead_handler_hold_back_no_other_queue(tmp_path: Path) -> None:
    load = ("--n", "10000", "--rate", "1000", "--backlog", "1000000")
    (figures,) = measure("headofline", *load, "--data-dir", str(tmp_path))
    assert figures["missing"] == figures["early"] == figures["duplicates"] == 0
