"""What the fuzzers share: the instrumented reader, where finds go, and the way they are started.

`python tests/fuzz/fuzz_envelope.py [libFuzzer options]`, or `make fuzz`. New inputs are kept in a directory of their
own for the time of the run, so that the golden files are read as seeds and never written to. A find ends the run with
exit code 77 and its path; keep it as a unit test.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")  # not typed

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "unit" / "protocol" / "golden"

sys.path.insert(0, str(REPOSITORY))

INSTRUMENTED = [
    f"requeue_protocol.{module}"
    for module in (
        "envelope",
        "tables",
        "stats",
        "subjects",
        "headers",
        "header_values",
        "durations",
        "replies",
    )
]


def instrumented() -> AbstractContextManager[None]:
    """The context in which to import what is to be covered."""
    context: AbstractContextManager[None] = atheris.instrument_imports(
        include=INSTRUMENTED, enable_loader_override=False
    )
    return context


def fuzz(
    one_input: Callable[[bytes], None], seeds: list[bytes], dictionary: list[bytes] | None = None
) -> None:
    """Run libFuzzer with the command line's options over `one_input`; returns by ending the process."""
    scratch = Path(tempfile.mkdtemp(prefix="requeue-fuzz-"))
    corpus = scratch / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-artifact_prefix={scratch}/", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
    if dictionary:
        words = scratch / "words.dict"
        escaped = ["".join(f"\\x{byte:02x}" for byte in word) for word in dictionary]
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        options.append(f"-dict={words}")
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(corpus)], one_input)
    atheris.Fuzz()
