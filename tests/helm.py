"""A real helm, where there is one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from requeue_client.local import LocalProcessError, find_executable

CHART = Path(__file__).parents[1] / "charts/nats-requeue"
Helm = Callable[..., subprocess.CompletedProcess[str]]
"""helm with these arguments, away from the user's own settings."""


def helm_at(home: Path) -> Helm:
    """helm with its settings in `home`. Skips the test where there is none."""
    try:
        binary = find_executable("helm", "`make helm` builds it, with Go")
    except LocalProcessError as missing:
        pytest.skip(str(missing))
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin"}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(binary), *args], capture_output=True, text=True, check=False, timeout=240, env=environ
        )

    return run
