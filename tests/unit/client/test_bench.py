"""The load generator: what it sends is right, and what it reads does not depend on how the bytes are cut."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from requeue_client.bench.disk import costless_fsync, fsyncs_ns
from requeue_client.bench.figures import Result, faults, medians, percentile, spread_ms
from requeue_client.bench.messages import (
    INTAKE_SUBJECT,
    ORIGINAL_SUBJECT,
    STAMP,
    Load,
    bare,
    due_within,
    envelopes,
    noise,
    plain,
)
from requeue_client.bench.publisher import Published, WindowedPublisher, check_all_acked
from requeue_client.bench.replay import due_figures
from requeue_client.bench.report import as_json, print_tables
from requeue_client.bench.responder import Delivered, Responder
from requeue_client.bench.usage import Usage, cpu_us_per, read_usage
from requeue_client.bench.wire import Wire, WireError
from requeue_protocol.envelope import read_envelope
from requeue_protocol.headers import read_intake_headers

INBOX = "_INBOX.bench"
LOAD = Load(n=10, size=64, window=4, queues=3)


class FakeWire(Wire):
    """Collects what is written instead of sending it; bytes are fed as the transport would."""

    def __init__(self) -> None:
        super().__init__()
        self._greeted.set_result(None)
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def _split_pubs(raw: bytes) -> list[tuple[list[bytes], bytes]]:
    """Command words and body of each PUB or HPUB."""
    messages = []
    while raw:
        line, _, raw = raw.partition(b"\r\n")
        words = line.split(b" ")
        size = int(words[-1])
        messages.append((words, raw[:size]))
        assert raw[size : size + 2] == b"\r\n"
        raw = raw[size + 2 :]
    return messages


def test_envelopes_carry_number_due_instant_and_delay() -> None:
    due_ns = time.time_ns() + 3600 * 10**9
    messages = _split_pubs(envelopes(INBOX, LOAD, lambda _: due_ns)(3, 7))
    assert len(messages) == 4
    for number, (words, body) in enumerate(messages, start=3):
        assert words[:3] == [b"PUB", INTAKE_SUBJECT.encode(), f"{INBOX}.{number}".encode()]
        envelope = read_envelope(body)
        assert (envelope.subject, envelope.payload_len) == (ORIGINAL_SUBJECT.encode(), 64)
        assert envelope.queue == f"bench-{number % 3}"
        assert STAMP.unpack_from(body, envelope.payload_at) == (number, due_ns)
        assert 3590 * 10**9 < envelope.delay_ns <= 3600 * 10**9


def test_envelopes_of_one_batch_may_be_due_one_by_one() -> None:
    start_ns = time.time_ns() + 10**12
    messages = _split_pubs(envelopes(INBOX, LOAD, lambda i: start_ns + i * 10**9)(0, 3))
    delays = [read_envelope(body).delay_ns for _, body in messages]
    assert [later - earlier for earlier, later in pairwise(delays)] == [10**9, 10**9]


def test_plain_messages_have_their_exact_instant() -> None:
    for number, (words, body) in enumerate(_split_pubs(plain(INBOX, LOAD, lambda i: 10**18 + i)(0, 5))):
        headers = body[: int(words[3])]
        policy = read_intake_headers(headers)
        assert (policy.subject, policy.at_ns) == (ORIGINAL_SUBJECT.encode(), 10**18 + number)
        assert len(body) - len(headers) == 64
        assert STAMP.unpack_from(body, len(headers)) == (number, 10**18 + number)


def test_bare_messages_are_the_payload_alone() -> None:
    ((words, body),) = _split_pubs(bare("some.subject", INBOX, LOAD)(8, 9))
    assert words[1:3] == [b"some.subject", f"{INBOX}.8".encode()]
    assert (len(body), STAMP.unpack_from(body)[0]) == (64, 8)


def _deliveries(count: int) -> bytes:
    parts = []
    for number in range(count):
        headers = b"NATS/1.0\r\nRequeue-Attempt: 1\r\nNote: MSG not.one 1 2\r\n\r\n" if number % 2 else b""
        body = STAMP.pack(number, 1) + bytes(LOAD.size - STAMP.size)
        verb = b"HMSG" if headers else b"MSG"
        sizes = (b"%d " % len(headers) if headers else b"") + b"%d" % (len(headers) + len(body))
        head = b"%b %b 2 reply.%d %b\r\n" % (verb, ORIGINAL_SUBJECT.encode(), number, sizes)
        parts.append(head + headers + body + b"\r\n")
        if number == 3:
            parts.append(b"PING\r\n+OK\r\n")
    return b"".join(parts)


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64, 101, 10_000])
async def test_deliveries_are_read_however_the_bytes_are_cut(cut: int) -> None:
    wire = FakeWire()
    responder = Responder(wire, LOAD.size, 10)
    wire.reader = responder.read
    raw = _deliveries(10)
    for at in range(0, len(raw), cut):
        wire.data_received(raw[at : at + cut])
    delivered = await responder.finish(idle_s=1)
    assert (delivered.count, delivered.numbers, delivered.duplicates) == (10, set(range(10)), 0)
    assert [line for line in wire.written.split(b"\r\n") if line.startswith(b"PUB")] == [
        b"PUB reply.%d 0" % number for number in range(10)
    ]


async def test_repeats_and_early_deliveries_are_counted() -> None:
    wire = FakeWire()
    responder = Responder(wire, LOAD.size, 2)
    wire.reader = responder.read
    due_ns = time.time_ns() + 10**12
    body = STAMP.pack(0, due_ns) + bytes(LOAD.size - STAMP.size)
    wire.data_received(2 * (b"MSG x 2 r %d\r\n%b\r\n" % (len(body), body)))
    delivered = await responder.finish(idle_s=0.01)
    assert (delivered.duplicates, delivered.early) == (1, 2)


async def test_a_replay_is_counted_from_the_instant_at_which_it_was_due() -> None:
    wire = FakeWire()
    responder = Responder(wire, LOAD.size, 3)
    wire.reader = responder.read
    due_ns = time.time_ns() - 10 * 10**9
    for number in (0, 1, 1, 2):  # at once, but ten seconds after they were due; one of them twice
        body = STAMP.pack(number, due_ns) + bytes(LOAD.size - STAMP.size)
        wire.data_received(b"MSG x 2 r %d\r\n%b\r\n" % (len(body), body))
    delivered = await responder.finish(idle_s=1)
    last_s = max(delivered.lateness_ns) / 1e9
    assert last_s >= 10
    assert delivered.rate_since_due_per_s == pytest.approx(3 / last_s)
    figures = due_figures(replace(LOAD, n=3), delivered)
    assert figures["rate_per_s"] == 0  # 0.3 a second
    assert figures["all_after_due_ms"] == pytest.approx(last_s * 1000, abs=0.001)
    assert (figures["missing"], figures["duplicates"]) == (0, 1)
    assert Delivered().rate_since_due_per_s == 0


def _publish(wire: FakeWire, n: int, window: int, payload_acks: bool = False) -> asyncio.Task[Published]:
    def compose(first: int, last: int) -> bytes:
        return b"".join(b"<%d>" % i for i in range(first, last))

    publisher = WindowedPublisher(wire, INBOX, compose, n=n, window=window, payload_acks=payload_acks)
    return asyncio.create_task(publisher.run())


async def _greet(wire: FakeWire) -> None:
    await asyncio.sleep(0)
    wire.data_received(b"PONG\r\n")
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("cut", [1, 5, 29, 100])
async def test_each_ack_is_replaced_by_the_next_message(cut: int) -> None:
    wire = FakeWire()
    publishing = _publish(wire, n=20, window=4)
    await _greet(wire)
    assert wire.written.endswith(b"<0><1><2><3>")
    raw = b"".join(b"MSG %b.%d 1 0\r\n\r\n" % (INBOX.encode(), number) for number in range(20))
    for at in range(0, len(raw), cut):
        wire.data_received(raw[at : at + cut])
    published = await publishing
    assert (published.acked, published.refused, published.unanswered) == (20, 0, 0)
    assert len(published.latencies_ns) == 20
    assert wire.written.count(b"<") == 20
    check_all_acked(published)


async def test_refusals_are_counted_and_the_first_is_quoted() -> None:
    wire = FakeWire()
    publishing = _publish(wire, n=3, window=3)
    await _greet(wire)
    wire.data_received(b"MSG %b.0 1 0\r\n\r\n" % INBOX.encode())
    for number, body in ((1, b""), (2, b"-ERR 400 bad")):
        headers = b"NATS/1.0 503 queue full\r\n\r\n"
        sizes = (len(headers), len(headers) + len(body))
        wire.data_received(
            b"HMSG %b.%d 1 %d %d\r\n%b%b\r\n" % (INBOX.encode(), number, *sizes, headers, body)
        )
    published = await publishing
    assert (published.acked, published.refused) == (1, 2)
    with pytest.raises(WireError, match=r"2 messages were refused .*503 queue full"):
        check_all_acked(published)


async def test_an_error_of_jetstream_is_no_ack() -> None:
    wire = FakeWire()
    publishing = _publish(wire, n=2, window=2, payload_acks=True)
    await _greet(wire)
    for number, body in enumerate((b'{"stream":"s","seq":1}', b'{"error":{"code":503}}')):
        wire.data_received(b"MSG %b.%d 1 %d\r\n%b\r\n" % (INBOX.encode(), number, len(body), body))
    published = await publishing
    assert (published.acked, published.refused) == (1, 1)


async def test_an_error_of_the_server_ends_the_load() -> None:
    wire = FakeWire()
    publishing = _publish(wire, n=2, window=2)
    await _greet(wire)
    wire.data_received(b"-ERR 'Permissions Violation'\r\n")
    with pytest.raises(WireError, match="Permissions Violation"):
        await publishing


async def test_a_server_that_is_not_there_is_said() -> None:
    with pytest.raises(WireError, match="cannot connect to nats://127"):
        await Wire.connect("nats://127.0.0.1:1", "test")
    with pytest.raises(WireError, match="plain NATS only"):
        await Wire.connect("tls://127.0.0.1:1", "test")


def test_missing_and_early_messages_are_faults() -> None:
    good = Result("replay", "requeue", {}, {"missing": 0, "early": 0, "rate_per_s": 5})
    bad = Result("replay", "requeue", {}, {"missing": 1000, "early": 2})
    assert faults([good, Result("ingest", "requeue", {}, {})]) == []
    assert faults([good, bad]) == [
        "replay of requeue: 1,000 messages were missing",
        "replay of requeue: 2 messages were early",
    ]


def test_percentiles_are_nearest_ranks() -> None:
    assert percentile([], 0.5) is None
    assert percentile(range(100), 0.99) == 99
    assert spread_ms("ack", [3_000_000, 1_000_000, 2_000_000]) == {
        "ack_p50_ms": 2.0,
        "ack_p99_ms": 3.0,
        "ack_max_ms": 3.0,
    }


@pytest.mark.skipif(not Path("/proc/mounts").exists(), reason="reads /proc/mounts")
def test_memory_behind_a_data_directory_is_noticed() -> None:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    in_memory = [Path(at) for at, kind in mounts if kind == "tmpfs" and Path(at).is_dir()]
    assert all(costless_fsync(path) for path in in_memory)
    assert not costless_fsync(Path("/proc"))


def test_each_fsync_is_timed_and_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    taken_ns = fsyncs_ns(tmp_path, 256)
    assert len(taken_ns) >= 100
    assert min(taken_ns) > 0
    assert list(tmp_path.iterdir()) == []


def test_usage_of_this_process_is_read_and_of_none_is_none() -> None:
    usage = read_usage(os.getpid())
    assert usage is None or usage.peak_rss_mb >= usage.rss_mb > 1
    assert read_usage(None) is None
    assert cpu_us_per(Usage(1.0, 0, 0), Usage(3.0, 0, 0), 1000) == 2000.0
    assert cpu_us_per(None, Usage(3.0, 0, 0), 1000) is None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_usage_of_a_process_has_that_of_its_children() -> None:
    hungry = "import os, sys; x = os.urandom(50_000_000); print(flush=True); sys.stdin.read()"
    before = read_usage(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", hungry], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = read_usage(os.getpid())
        child.communicate()
    assert before is not None
    assert with_child is not None
    assert with_child.rss_mb > before.rss_mb + 50
    assert with_child.cpu_s > before.cpu_s


def test_the_report_has_a_column_for_each_system() -> None:
    results = [
        Result("ingest", "requeue", {"n": 1000}, {"rate_per_s": 60_000, "worker_rss_mb": 85.5}),
        Result("ingest", "jetstream", {"n": 1000}, {"rate_per_s": 127_000}, ["a note"]),
    ]
    out = io.StringIO()
    print_tables(results, ["in memory"], file=out)
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["│", "rate_per_s", "│", "60,000", "│", "127,000", "│"] in rows
    assert ["│", "worker_rss_mb", "│", "85.5", "│", "-", "│"] in rows
    assert "note (jetstream): a note" in out.getvalue()
    assert json.loads(as_json(results, ["in memory"]))["results"][1]["figures"] == {"rate_per_s": 127_000}


def test_runs_of_one_system_become_medians_and_no_fault_is_averaged_away() -> None:
    runs = [
        Result(
            "replay", "requeue", {"n": 5}, {"rate_per_s": rate, "missing": missing, "all_ms": None}, [note]
        )
        for rate, missing, note in ((10, 0, "a"), (90, 1, "b"), (20, 0, "a"))
    ]
    other = Result("replay", "jetstream", {"n": 5}, {"rate_per_s": 7})
    merged, alone = medians([runs[0], other, *runs[1:]])
    assert merged.figures == {"rate_per_s": 20, "missing": 1, "all_ms": None}
    assert merged.parameters == {"n": 5, "runs": 3}
    assert merged.notes == ["a", "b"]
    assert alone == other


def test_noise_is_not_to_be_compressed_and_is_the_same_for_a_number() -> None:
    fill = noise(240)
    block = b"".join(fill(number) for number in range(68))  # as many as stand in a block of a table
    assert len(zlib.compress(block, 9)) > len(block) * 0.99
    assert fill(7) == noise(240)(7)


def test_mixed_delays_are_spread_over_all_of_the_time_and_in_no_order() -> None:
    due_at = due_within(1_000, 4_000)
    instants = [due_at(number) for number in range(1_000)]
    assert 1_000 <= min(instants) < 1_010
    assert 4_980 < max(instants) < 5_000
    quarters = [sum(instant // 1_000 == thousand for instant in instants) for thousand in range(1, 5)]
    assert all(240 <= quarter <= 260 for quarter in quarters)
    assert instants != sorted(instants)
