"""A short run of each fuzzer, with a fixed seed and number of inputs. `make fuzz` runs them for long."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUNS = 20_000

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: it has wheels for Linux and Python up to 3.13 alone (see pyproject.toml)",
)


@pytest.mark.parametrize("fuzzer", ["fuzz_envelope.py", "fuzz_headers.py", "fuzz_replies.py"])
def test_fuzzer_finds_nothing(fuzzer: str, tmp_path: Path) -> None:
    command: list[str | Path] = [
        sys.executable,
        HERE / fuzzer,
        f"-runs={RUNS}",
        "-seed=7",
        "-print_final_stats=1",
    ]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=env)
    assert run.returncode == 0, run.stderr[-4000:]
    assert f"Done {RUNS} runs" in run.stderr


def test_a_fuzzer_fails_where_a_reader_raises_what_it_must_not(tmp_path: Path) -> None:
    """The fuzzers can fail at all: one over a reader that trusts its input finds that within the same runs."""
    trusting = tmp_path / "fuzz_trusting.py"
    trusting.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\n"
        "from harness import GOLDEN, fuzz\n"
        "from tests.unit.protocol.oracle import generated_fields\n"
        "fuzz(generated_fields, [path.read_bytes() for path in GOLDEN.glob('envelope*.bin')])\n"
    )
    command: list[str | Path] = [sys.executable, trusting, f"-runs={RUNS}", "-seed=7"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=env)
    assert run.returncode != 0
    assert "Uncaught Python exception" in run.stderr + run.stdout
