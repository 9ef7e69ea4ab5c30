"""The performance check sees what it is there for, and noise in single rounds does not make it fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.performance.paired import LIMIT, ROOT, is_slower, main, measure_rounds


@pytest.mark.parametrize(
    ("ratios", "slower"),
    [
        ([1.0, 1.0, 1.0], False),
        ([0.7, 3.0, 1.1, 2.0, 0.9], False),  # two bad rounds of five
        ([LIMIT, LIMIT, LIMIT], False),
        ([1.3, 1.3, 1.0, 1.4, 0.8], True),
        ([1.3], True),
    ],
)
def test_the_median_of_the_rounds_decides(ratios: list[float], slower: bool) -> None:
    assert is_slower(ratios) is slower


def test_a_worker_that_burns_more_for_each_message_is_slower(tmp_path: Path) -> None:
    wasteful = tmp_path / "tree"
    for part in ("worker", "protocol"):
        shutil.copytree(ROOT / part, wasteful / part)
    ingest = wasteful / "worker/requeue_worker/ingest.py"
    text = ingest.read_text()
    loop = "            _subject, reply, headers, payload = raw\n"
    assert text.count(loop) == 1
    # About a hundred times of what a message costs: no noise comes near it.
    ingest.write_text(text.replace(loop, loop + "            sum(range(50_000))\n"))
    assert is_slower(measure_rounds(ROOT, wasteful, rounds=1, n=2_000))


def test_without_a_commit_to_compare_with_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", "no-such-commit"]) == 2
    assert "no-such-commit" in capsys.readouterr().err
