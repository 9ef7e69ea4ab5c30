"""Golden bytes of both schemas: the wire cannot change unseen. `golden/README.md` tells what each file is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requeue_protocol
from requeue_protocol.envelope import Backoff, build_envelope
from requeue_protocol.stats import InstanceStats, QueueStats, build_stats

from tests.unit.protocol.oracle import as_said, check_envelope, check_stats

GOLDEN = Path(__file__).parent / "golden"
PACKAGE = Path(requeue_protocol.__file__).parent
FLATC = Path(sys.executable).parent / "flatc"

ENVELOPES = ["envelope_full", "envelope_minimal", "envelope_extremes"]
STATS = ["stats_two_queues", "stats_no_queues"]
SCHEMA = dict.fromkeys(ENVELOPES, "requeue_msg.fbs") | dict.fromkeys(STATS, "stats_msg.fbs")


def fields_of(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return fields


def build_ours(name: str) -> bytes:
    """The bytes that this package writes for the fields in `<name>.json`."""
    fields = fields_of(name)
    if name in STATS:
        queues = [QueueStats(q["queue_name"], q["enqueued"], q["in_flight"]) for q in fields["queues"]]
        (only,) = build_stats(fields["instance_id"], queues, 1_000_000)
        return only
    return build_envelope(
        subject=fields["original_subject"],
        payload=bytes(fields["original_payload"]),
        retries=fields["retries"],
        ttl_ns=fields["ttl"],
        delay_ns=fields["delay"],
        backoff=Backoff[fields["backoff_strategy"].upper()],
        queue=fields.get("queue_name"),
    )


def flatc(directory: Path, *arguments: str | Path) -> None:
    subprocess.run([FLATC, "-o", directory, *arguments], check=True, timeout=60)


@pytest.mark.parametrize("name", SCHEMA)
def test_we_write_the_golden_bytes(name: str) -> None:
    assert build_ours(name) == (GOLDEN / f"{name}.ours.bin").read_bytes()


@pytest.mark.parametrize("name", SCHEMA)
def test_flatc_writes_the_golden_bytes_that_we_read(name: str, tmp_path: Path) -> None:
    flatc(tmp_path, "--binary", PACKAGE / SCHEMA[name], GOLDEN / f"{name}.json")
    assert (tmp_path / f"{name}.bin").read_bytes() == (GOLDEN / f"{name}.flatc.bin").read_bytes()


@pytest.mark.parametrize("name", SCHEMA)
@pytest.mark.parametrize("writer", ["ours", "flatc"])
def test_flatc_reads_the_fields_out_of_golden_bytes(name: str, writer: str, tmp_path: Path) -> None:
    raw = GOLDEN / f"{name}.{writer}.bin"
    flatc(
        tmp_path,
        "--json",
        "--strict-json",
        "--defaults-json",
        "--raw-binary",
        PACKAGE / SCHEMA[name],
        "--",
        raw,
    )
    printed = json.loads((tmp_path / f"{name}.{writer}.json").read_text())
    assert printed == fields_of(name)


@pytest.mark.parametrize("name", ENVELOPES)
@pytest.mark.parametrize("writer", ["ours", "flatc"])
def test_we_read_the_fields_out_of_golden_envelopes(name: str, writer: str) -> None:
    data = (GOLDEN / f"{name}.{writer}.bin").read_bytes()
    envelope = check_envelope(data)
    assert envelope is not None
    fields = fields_of(name)
    assert as_said(data, envelope) == (
        fields["retries"],
        fields["ttl"],
        fields["delay"],
        Backoff[fields["backoff_strategy"].upper()],
        fields.get("queue_name", "default").encode(),
        fields["original_subject"].encode(),
        bytes(fields["original_payload"]),
    )


@pytest.mark.parametrize("name", STATS)
@pytest.mark.parametrize("writer", ["ours", "flatc"])
def test_we_read_the_fields_out_of_golden_stats(name: str, writer: str) -> None:
    stats = check_stats((GOLDEN / f"{name}.{writer}.bin").read_bytes())
    fields = fields_of(name)
    queues = tuple(QueueStats(q["queue_name"], q["enqueued"], q["in_flight"]) for q in fields["queues"])
    assert stats == InstanceStats(fields["instance_id"], queues)


def test_an_envelope_of_the_original_client_is_read() -> None:
    data = (GOLDEN / "original_full.bin").read_bytes()
    envelope = check_envelope(data)
    assert envelope is not None
    expected = (
        5,
        86_400_000_000_000,
        1_000_000_000,
        Backoff.FIXED,
        b"default",
        b"orders.created",
        bytes(range(256)),
    )
    assert as_said(data, envelope) == expected


def test_an_envelope_of_the_original_client_without_settings_is_read() -> None:
    data = (GOLDEN / "original_minimal.bin").read_bytes()
    envelope = check_envelope(data)
    assert envelope is not None
    assert as_said(data, envelope) == (0, 0, 0, Backoff.UNDEFINED, b"default", b"orders.created", b"")


def test_stats_of_the_original_worker_are_read() -> None:
    stats = check_stats((GOLDEN / "original_stats.bin").read_bytes())
    assert stats == InstanceStats(
        "instance-1", (QueueStats("default", 3, 1), QueueStats("orders.slow", 2**40, 0))
    )
