"""The scheduler in virtual time: what goes out when, what blocks a queue, and that nothing waits for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from requeue_protocol.envelope import build_envelope
from requeue_protocol.headers import build_headers
from requeue_worker import readahead
from requeue_worker.allowance import FAIR_SLOTS
from requeue_worker.changes import Remove
from requeue_worker.readahead import READ_LIMIT, READY_BYTES
from requeue_worker.record import decode
from requeue_worker.scheduler import TICK_BYTES, UNSENT_BYTES, Scheduler
from requeue_worker.storage import store as stores
from requeue_worker.storage import transaction as transactions
from requeue_worker.storage.queues import NEVER, RETAIN_MOST, QueueState
from requeue_worker.storage.rocksdb import MESSAGES
from requeue_worker.storage.store import ReadRequest, ReadResult
from requeue_worker.storage.transaction import FLOOD, RETAIN_NS

from tests.property.limits import wake_ups
from tests.property.virtual import MS, START_NS, S, Sent, VirtualWorker

NO_RESPONDERS = build_headers([], status=(503, ""))


def settles(_: Sent) -> bytes:
    return b""


def fails(_: Sent) -> bytes:
    return b"-NAK"


def never(_: Sent) -> None:
    return None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is due is read from disk, however soon it is due when it is committed."""
    monkeypatch.setattr(transactions, "RETAIN_NS", -1)


def late_ns(sent: Sent, due_ns: int) -> int:
    assert sent.at_ns >= due_ns, "early"
    return sent.at_ns - due_ns


# ---- wake-ups


@pytest.mark.parametrize(
    "delay_ns", [1, MS, 9 * MS, 10 * MS, 11 * MS, 99 * MS, 101 * MS, 5 * S, 2 * 86_400 * S]
)
@pytest.mark.parametrize("retain_ns", [-1, RETAIN_NS], ids=["read", "retained"])
def test_a_delayed_message_goes_out_within_a_millisecond_of_its_time_and_not_early(
    path: Path, monkeypatch: pytest.MonkeyPatch, retain_ns: int, delay_ns: int
) -> None:
    monkeypatch.setattr(transactions, "RETAIN_NS", retain_ns)
    with VirtualWorker(path) as worker:
        worker.publish(b"a", delay_ns=delay_ns)
        worker.run_for(delay_ns + 10 * MS)
        [sent] = worker.sent
        assert late_ns(sent, START_NS + delay_ns) <= 2 * MS


def test_a_tick_that_takes_its_time_makes_nothing_later(path: Path) -> None:
    with VirtualWorker(path) as worker:

        def takes_20_ms(_: Sent) -> None:
            worker.loop.now_ns += 20 * MS

        worker.answer = takes_20_ms
        for number in range(3):
            worker.publish(b"", subject=f"jobs.{number}", delay_ns=S + 30 * MS * number)
        worker.run_for(2 * S)

        late = [late_ns(sent, START_NS + S + 30 * MS * number) for number, sent in enumerate(worker.sent)]
        assert len(late) == 3
        assert max(late) <= 2 * MS


@pytest.mark.usefixtures("all_read")
def test_a_read_that_takes_40_ms_makes_nothing_late(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.store.read_ns = 40 * MS
        for number in range(20):
            worker.publish(b"%d" % number, delay_ns=S + number * 73 * MS)
        worker.run_for(5 * S)
        late = [late_ns(sent, START_NS + S + int(sent.payload) * 73 * MS) for sent in worker.sent]
        assert len(late) == 20
        assert max(late) <= 2 * MS


def test_a_message_that_is_due_earlier_than_the_known_head_wakes_earlier(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.publish(b"late", delay_ns=10 * S)
        worker.run_for(S)
        worker.publish(b"early", delay_ns=2 * S)
        worker.run_for(30 * S)
        assert [(sent.payload, late_ns(sent, START_NS + 3 * S) // S) for sent in worker.sent[:2]] == [
            (b"early", 0),
            (b"late", 7),
        ]


def test_a_message_due_now_overtakes_what_was_read_ahead(path: Path) -> None:
    with VirtualWorker(path) as worker:
        for number in range(READ_LIMIT):
            worker.publish(b"%d" % number, delay_ns=200 * MS)
        worker.run_for(195 * MS)
        assert len(worker.queue().lane().ready) >= READ_LIMIT // 2, "the case that this is about"
        worker.publish(b"now")
        worker.run_for(3 * MS)
        assert worker.payloads == [b"now"]


def test_sleeping_costs_no_tick(path: Path) -> None:
    with VirtualWorker(path) as worker:
        for hours in (5, 10, 15):
            worker.publish(b"", delay_ns=hours * 3600 * S)
        worker.run_for(S)
        ticks = worker.scheduler.ticks
        worker.run_for(4 * 3600 * S)
        assert worker.scheduler.ticks - ticks <= 4, "an hour is the longest sleep"


def test_a_trickle_costs_a_few_ticks_for_each_message(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.answer = settles
        worker.store.read_ns = worker.store.write_ns = MS
        for number in range(200):
            worker.publish(b"%d" % number, delay_ns=S + number * 37 * MS)
        worker.run_for(500 * MS)
        ticks = worker.scheduler.ticks
        worker.run_for(30 * S)
        assert len(worker.sent) == 200
        assert worker.scheduler.ticks - ticks <= 8 * 200


@pytest.mark.usefixtures("all_read")
def test_many_queues_that_are_due_at_once_are_read_in_a_few_hops(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.answer = settles
        hops = watch_reads(worker)
        for number in range(1000):
            worker.publish(b"%d" % number, queue=f"q{number}", delay_ns=S)
        worker.run_for(10 * S)
        assert len(set(worker.payloads)) == 1000
        assert sum(map(len, hops)) >= 1000
        assert len(hops) <= 15


@pytest.mark.usefixtures("all_read")
def test_thousands_of_queues_that_are_due_at_one_instant_are_read_in_time_and_once(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.answer = settles
        worker.store.read_ns = 7 * MS
        hops = watch_reads(worker)
        publish_to(worker, 2000)
        worker.run_for(2 * S)
        late = [late_ns(sent, START_NS + S) for sent in worker.sent]
        assert len(late) == 2000
        assert max(late) <= 2 * MS
        assert sum(map(len, hops)) == 2000


@pytest.mark.usefixtures("all_read")
def test_a_trickle_beside_thousands_that_are_due_at_one_instant_is_on_time_and_makes_no_read_vain(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "LANE_READ_NS", MS // 4)
    with VirtualWorker(path) as worker:
        worker.answer = settles
        worker.store.read_ns = 7 * MS
        hops = watch_reads(worker)
        publish_to(worker, 1000)
        for _ in range(100):
            worker.publish(b"trickle", queue="trickle", delay_ns=40 * MS)
            worker.run_for(10 * MS)
        worker.run_for(S)
        trickle = [sent for sent in worker.sent if sent.payload == b"trickle"]
        assert (len(trickle), len(worker.sent)) == (100, 1100)
        late = [late_ns(sent, START_NS + n * 10 * MS + 40 * MS) for n, sent in enumerate(trickle)]
        assert max(late) <= 2 * MS
        reads = Counter(chain.from_iterable(hops))
        del reads["trickle"]
        assert set(reads.values()) == {1}


@pytest.mark.usefixtures("all_read")
def test_queues_whose_messages_are_due_one_after_the_other_are_read_together(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.answer = settles
        hops = watch_reads(worker)
        publish_to(worker, 500, apart_ns=MS // 5)
        worker.run_for(2 * S)
        assert len(worker.sent) == 500
        assert max(late_ns(sent, START_NS + S + n * MS // 5) for n, sent in enumerate(worker.sent)) <= 2 * MS
        assert len(hops) <= 40, "in 100 ms"


def test_a_queue_gets_a_turn_for_what_is_due_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: Counter[str] = Counter()
    serve = Scheduler._serve

    def count(scheduler: Scheduler, queue: QueueState, *rest: Any) -> tuple[int, int, bool]:
        turns[queue.name] += 1
        return serve(scheduler, queue, *rest)

    monkeypatch.setattr(Scheduler, "_serve", count)
    with VirtualWorker(path) as worker:
        worker.answer = settles
        publish_to(worker, 100)
        worker.run_for(10 * S)
        assert len(worker.sent) == 100
        assert sum(turns.values()) <= 100, "not for a commit, a read, a reply or a settlement"


@pytest.mark.usefixtures("all_read")
def test_a_lower_priority_goes_out_once_the_higher_one_turns_out_to_have_nothing_due(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.publish(b"low", delay_ns=S, headers={"Requeue-Priority": "9"})
        worker.run_for(995 * MS)
        worker.store.read_ns = 50 * MS
        worker.publish(b"high", headers={"Requeue-Priority": "0"})
        worker.run_for(10 * MS)
        high = worker.queue().lanes[0]
        assert high.reading and not worker.sent, "the case that this is about: due, and not read yet"

        [(key, value)] = worker.store._engine.items(MESSAGES, high.prefix, high.end)
        assert worker.scheduler.withdraw(high, key, value)
        worker.call(lambda: worker.worker._committer.submit(Remove(high, key, decode(value))))
        worker.run_for(100 * MS)
        assert worker.payloads == [b"low"]


@pytest.mark.usefixtures("all_read")
def test_lanes_that_a_hop_has_no_room_for_are_read_with_the_next_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "HOP_MESSAGES", 40)
    with VirtualWorker(path) as worker:
        worker.answer = settles
        worker.store.read_ns = MS
        hops = watch_reads(worker)
        for number in range(1200):
            worker.publish(b"%d" % number, queue=f"q{number % 60}", delay_ns=S)
        worker.run_for(10 * S)
        assert sorted(map(int, worker.payloads)) == list(range(1200)), "each once"
        assert len(hops) >= 30
        assert sum(map(len, hops)) <= 8 * 60, "few are asked for in vain"


# ---- what is due soon when it is committed


def test_what_is_due_soon_is_not_read(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.answer = settles
        worker.run_for(S)
        hops = watch_reads(worker)
        worker.store.read_ns = S
        for number in range(200):
            worker.publish(b"%d" % number, queue=f"q{number % 20}", delay_ns=(number * 37 % 10) * S // 2)
            worker.run_for(5 * MS)
        worker.run_for(10 * S)
        assert sorted(int(sent.payload) for sent in worker.sent) == list(range(200))
        assert not hops


def test_a_retry_that_is_due_soon_is_not_read(path: Path) -> None:
    with VirtualWorker(path, defaults={"min_backoff": "2s", "max_backoff": "2s"}) as worker:
        worker.answer = fails
        worker.run_for(S)
        hops = watch_reads(worker)
        worker.publish(b"a", retries=5)
        worker.run_for(30 * S)
        assert [sent.attempt for sent in worker.sent] == [1, 2, 3, 4, 5]
        assert not hops


def test_what_comes_before_and_after_what_waits_on_disk_goes_out_in_due_order(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.publish(b"20", delay_ns=20 * S)
        worker.run_for(S)
        worker.publish(b"9", delay_ns=8 * S)
        worker.run_for(13 * S)
        worker.publish(b"22", delay_ns=8 * S)  # behind one that is not read yet
        worker.publish(b"18", delay_ns=4 * S)
        worker.run_for(10 * S)
        assert worker.payloads == [b"9", b"18", b"20", b"22"]


def test_a_deadline_passes_for_what_was_never_read(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1}) as worker:
        worker.answer = never
        hops = watch_reads(worker)
        worker.publish(b"holds the slot")
        worker.run_for(MS)
        worker.publish(b"expires", ttl_ns=2 * S)
        worker.run_for(S)
        assert worker.queue().dead == 0
        worker.run_for(1100 * MS)
        assert worker.queue().dead == 1
        assert not hops


def test_a_lane_retains_no_more_than_a_walk_over_it_may_cost(path: Path) -> None:
    with VirtualWorker(path) as worker:
        for number in range(2 * RETAIN_MOST):
            worker.publish(b"%d" % number, delay_ns=5 * S)
        worker.run_for(S)
        assert len(worker.queue().lane().ready) == RETAIN_MOST
        worker.answer = settles
        worker.run_for(10 * S)
        assert worker.payloads == [b"%d" % number for number in range(2 * RETAIN_MOST)]


def test_in_a_flood_what_is_due_at_once_is_read_several_of_a_queue_together(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.answer = settles
        worker.run_for(S)
        hops = watch_reads(worker)
        envelopes = [
            build_envelope(subject="jobs.a", payload=b"%d" % number, queue=f"q{number % 8}")
            for number in range(2 * FLOOD)
        ]
        worker.take_in(envelopes)
        worker.run_for(S)
        assert len(worker.sent) == 2 * FLOOD
        assert 0 < sum(map(len, hops)) <= 16


def test_after_a_flood_nothing_is_read_any_more(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.answer = settles
        worker.publish(b"retained", delay_ns=5 * S)
        worker.take_in([build_envelope(subject="jobs.a", payload=b"flood")] * FLOOD)
        worker.run_for(S)
        hops = watch_reads(worker)
        for _ in range(30):
            worker.publish(b"later", delay_ns=5 * S)
            worker.run_for(S)
        assert len(worker.sent) > FLOOD + 20
        assert not hops


def test_a_burst_of_retries_leaves_room_for_what_is_due_before_them(path: Path) -> None:
    policy = {"min_backoff": "9s", "max_backoff": "9s", "max_in_flight": 1000}
    with VirtualWorker(path, defaults=policy) as worker:
        worker.answer = never
        for number in range(600):
            worker.publish(bytes(100_000), queue=f"q{number % 10}", retries=2)
        worker.run_for(S)
        naks = [(sent.reply, b"", None, b"-NAK") for sent in worker.sent]
        worker.call(lambda: worker.broker.replies(naks))  # type: ignore[misc]
        worker.run_for(10 * MS)
        assert ready_bytes(worker) < READY_BYTES
        del worker.sent[:]
        for number in range(10):
            worker.publish(b"%d" % number, queue=f"q{number}")
        worker.run_for(10 * MS)
        assert sorted(worker.payloads) == [b"%d" % number for number in range(10)]


def test_half_of_the_room_is_left_for_what_is_read(path: Path) -> None:
    with VirtualWorker(path) as worker:
        for number in range(400):
            worker.publish(b"%d" % number + bytes(100_000), queue=f"q{number}", delay_ns=5 * S)
            worker.run_for(MS)
        assert READY_BYTES // 2 <= ready_bytes(worker) < READY_BYTES // 2 + 200_000
        worker.answer = settles
        worker.run_for(10 * S)
        assert len(worker.sent) == 400


def watch_reads(worker: VirtualWorker) -> list[list[str]]:
    """The queues that each hop from now on is asked for."""
    hops: list[list[str]] = []
    read_lanes = worker.store._read_lanes

    def watch(requests: Sequence[ReadRequest]) -> list[ReadResult]:
        hops.append([request.lane.queue.name for request in requests])
        return read_lanes(requests)

    worker.store._read_lanes = watch  # type: ignore[method-assign]
    return hops


def publish_to(worker: VirtualWorker, queues: int, apart_ns: int = 0) -> None:
    """In each of so many queues a message that is due in a second, one so long after the other, and one in an hour."""
    for number in range(queues):
        worker.publish(b"", queue=f"q{number}", delay_ns=S + number * apart_ns)
        worker.publish(b"", queue=f"q{number}", delay_ns=3600 * S)


def test_wake_ups_for_what_comes_late_do_not_pile_up(path: Path) -> None:
    """Every delayed message wakes the lane earlier than the one that is due in a year: it must leave nothing behind."""
    with VirtualWorker(path) as worker:
        worker.answer = settles
        worker.publish(b"in a year", delay_ns=365 * 86_400 * S)
        for _ in range(20):
            for number in range(300):
                worker.publish(b"soon", delay_ns=(50 + number) * MS)
            worker.run_for(S)
        assert len(worker.sent) == 6000
        assert heap_entries(worker) < 2000


def heap_entries(worker: VirtualWorker) -> int:
    return wake_ups(worker.scheduler) + len(worker.scheduler._starved)


def test_a_clock_put_back_delays_and_one_put_forward_releases(path: Path) -> None:
    with VirtualWorker(path, stats_interval="1s") as worker:
        worker.publish(b"a", delay_ns=10 * S)
        worker.run_for(5 * S)
        worker.step_ns = -60 * S
        worker.run_for(10 * S)
        assert not worker.sent
        worker.step_ns = 60 * S
        worker.call(worker.scheduler.look_again)
        worker.run_for(10 * MS)
        assert worker.payloads == [b"a"]


@pytest.mark.usefixtures("all_read")
def test_a_clock_put_back_holds_up_nothing_new_however_much_was_read_ahead(path: Path) -> None:
    with VirtualWorker(path) as worker:
        for _ in range(500):
            worker.publish(b"x" * 100_000, delay_ns=S)
        worker.run_for(995 * MS)
        assert ready_bytes(worker) >= READY_BYTES // 2, "the case that this is about"
        worker.step_ns = -3600 * S
        for number in range(3):
            worker.publish(b"%d" % number)
            worker.run_for(5 * MS)
        assert worker.payloads == [b"0", b"1", b"2"]


# ---- order and shares


def test_priority_is_strict_inside_a_queue(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1}) as worker:
        worker.answer = settles
        worker.broker.connected = False
        for priority in (9, 4, 0, 4, 9, 0):
            worker.publish(b"%d" % priority, headers={"Requeue-Priority": str(priority)})
        worker.run_for(50 * MS)
        worker.broker.mend()
        worker.run_for(S)
        assert worker.payloads == [b"0", b"0", b"4", b"4", b"9", b"9"]


def test_a_lower_priority_goes_out_while_a_higher_one_is_not_due(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.publish(b"high, later", headers={"Requeue-Priority": "0"}, delay_ns=50 * MS)
        worker.run_for(45 * MS)  # read ahead by now
        worker.publish(b"low, now", headers={"Requeue-Priority": "9"})
        worker.run_for(2 * MS)
        assert worker.payloads == [b"low, now"]
        worker.run_for(S)
        assert worker.payloads == [b"low, now", b"high, later"]


def test_due_order_holds_inside_a_lane(path: Path) -> None:
    with VirtualWorker(path) as worker:
        delays = [(number * 7919) % 1000 for number in range(1000)]
        for delay in delays:
            worker.publish(b"%d" % delay, delay_ns=S + delay * MS)
        worker.run_for(5 * S)
        assert [int(payload) for payload in worker.payloads] == sorted(delays)


@pytest.mark.parametrize(("one", "other"), [(100, 100), (300, 100), (100, 1), (10_000, 100)])
def test_queues_share_by_weight_while_both_have_due_messages(path: Path, one: int, other: int) -> None:
    queues = [{"name": "one", "weight": one}, {"name": "other", "weight": other}]
    with VirtualWorker(path, queues=queues, max_in_flight_total=200) as worker:
        worker.answer = settles
        worker.broker.connected = False
        for _ in range(2000):
            worker.publish(b"", queue="one")
            worker.publish(b"", queue="other")
        worker.run_for(50 * MS)
        worker.broker.mend()
        worker.run_for(S)
        names = [sent.queue for sent in worker.sent]
        both = Counter(names[: min(last_index(names, "one"), last_index(names, "other"))])
        assert both["other"] > 0, "no queue starves"
        assert both["one"] / both["other"] == pytest.approx(one / other, rel=0.3) or one / other > 50


def last_index(names: list[str], name: str) -> int:
    return len(names) - names[::-1].index(name) - 1


# ---- what blocks a queue, and what frees it


def test_no_more_are_in_flight_than_the_policy_says_and_a_reply_brings_the_next(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 3}) as worker:
        for number in range(10):
            worker.publish(b"%d" % number)
        worker.run_for(50 * MS)
        assert len(worker.sent) == 3
        for answered in range(7):
            worker.reply(worker.sent[answered])
            worker.run_for(0)
            assert len(worker.sent) == min(4 + answered, 10)
            assert worker.queue().in_flight == 3


def test_a_timeout_frees_a_slot(path: Path) -> None:
    with VirtualWorker(
        path, defaults={"max_in_flight": 1, "ack_timeout": "5s", "min_backoff": "1h"}
    ) as worker:
        worker.publish(b"a")
        worker.run_for(10 * MS)
        worker.publish(b"b")
        worker.run_for(4 * S)
        assert worker.payloads == [b"a"]
        worker.run_for(2 * S)
        assert worker.payloads == [b"a", b"b"]


def test_a_delayed_nak_holds_no_slot(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1}) as worker:
        worker.answer = lambda sent: b'-NAK {"delay": 3600000000000}' if sent.payload == b"a" else b""
        worker.publish(b"a")
        worker.run_for(10 * MS)
        worker.publish(b"b")
        worker.run_for(10 * MS)
        assert worker.payloads == [b"a", b"b"]


def test_the_total_in_flight_is_bounded_and_leaves_every_queue_a_few_slots(path: Path) -> None:
    with VirtualWorker(path, max_in_flight_total=50) as worker:
        for number in range(100):
            worker.publish(b"%d" % number, queue="busy")
        worker.run_for(50 * MS)
        assert len(worker.sent) == 50
        for number in range(20):
            worker.publish(b"%d" % number, queue="other")
        worker.run_for(50 * MS)
        assert len(worker.sent) == 50 + FAIR_SLOTS
        for sent in list(worker.sent[:30]):
            worker.reply(sent)
            worker.run_for(0)
        worker.run_for(50 * MS)
        assert Counter(sent.queue for sent in worker.sent)["other"] >= FAIR_SLOTS


def test_the_bytes_in_flight_are_bounded(path: Path) -> None:
    with VirtualWorker(path, max_in_flight_bytes=1 << 20) as worker:
        for _ in range(60):
            worker.publish(b"x" * 200_000)
        worker.run_for(100 * MS)
        assert worker.worker._replayer.in_flight.bytes < (1 << 20) + TICK_BYTES + 200_500
        while len(worker.sent) < 60:
            before = len(worker.sent)
            for sent in list(worker.sent):
                worker.reply(sent)
            worker.run_for(100 * MS)
            assert len(worker.sent) > before, "a freed byte has to bring the next message"


def test_beyond_the_bytes_in_flight_a_queue_with_nothing_in_flight_gets_one_message(path: Path) -> None:
    queues = 20
    with VirtualWorker(path, max_in_flight_bytes=1 << 20) as worker:
        for number in range(queues):
            for _ in range(5):
                worker.publish(b"x" * 200_000, queue=f"q{number}")
        worker.run_for(100 * MS)
        assert {sent.queue for sent in worker.sent} == {f"q{number}" for number in range(queues)}
        assert worker.worker._replayer.in_flight.bytes < (1 << 20) + TICK_BYTES + queues * 200_500


def test_tokens_come_at_their_rate_and_no_faster(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_rate": 10}) as worker:
        worker.answer = settles
        for number in range(30):
            worker.publish(b"%d" % number)
        worker.run_for(S + 5 * MS)
        assert 10 <= len(worker.sent) <= 12
        worker.run_for(4 * S)
        assert len(worker.sent) == 30
        gaps = [
            after.at_ns - before.at_ns for before, after in zip(worker.sent, worker.sent[1:], strict=False)
        ]
        assert min(gaps[1:]) >= 99 * MS


@pytest.mark.parametrize("rate", [0.5, 3, 7.7, 1000, 12_345])
def test_a_rate_holds_over_time_and_wakes_up_once_a_token_at_most(path: Path, rate: float) -> None:
    with VirtualWorker(path, defaults={"max_rate": rate}) as worker:
        worker.answer = settles
        number = min(int(rate * 10), 3000)
        for _ in range(number + 50):
            worker.publish(b"")
        ticks = worker.scheduler.ticks
        seconds = number / rate
        worker.run_for(int(seconds * S))
        burst = max(1.0, rate / 10)
        assert number * 0.9 - 1 <= len(worker.sent) <= number + burst + 1
        assert worker.scheduler.ticks - ticks <= 6 * len(worker.sent) + 20


def test_a_paused_queue_goes_on_when_the_pause_ends(path: Path) -> None:
    with VirtualWorker(path) as worker:
        queue = worker.queue()
        queue.paused_until_ns = START_NS + 60 * S
        worker.publish(b"a")
        worker.run_for(59 * S)
        assert not worker.sent
        worker.run_for(2 * S)
        assert late_ns(worker.sent[0], START_NS + 60 * S) <= 2 * MS


def test_a_queue_paused_for_ever_costs_nothing_and_goes_on_when_told(path: Path) -> None:
    with VirtualWorker(path) as worker:
        queue = worker.queue()
        queue.paused_until_ns = NEVER
        worker.publish(b"a")
        worker.run_for(S)
        ticks = worker.scheduler.ticks
        worker.run_for(1800 * S)
        assert worker.scheduler.ticks - ticks <= 2
        queue.paused_until_ns = 0
        worker.call(worker.scheduler.look_again)
        worker.run_for(MS)
        assert worker.payloads == [b"a"]


def test_a_new_policy_unblocks(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1}) as worker:
        worker.publish(b"a")
        worker.publish(b"b")
        worker.run_for(20 * MS)
        assert len(worker.sent) == 1
        policy = worker.settings.defaults.model_copy(update={"max_in_flight": 2})
        worker.call(lambda: worker.worker.use(worker.settings.model_copy(update={"defaults": policy})))
        worker.run_for(20 * MS)
        assert len(worker.sent) == 2


def test_nothing_goes_out_while_disconnected_and_everything_after(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.answer = settles
        worker.broker.cut()
        for number in range(5):
            worker.publish(b"%d" % number, delay_ns=number * S)
        worker.run_for(60 * S)
        ticks = worker.scheduler.ticks
        worker.run_for(60 * S)
        assert not worker.sent
        assert worker.scheduler.ticks - ticks <= 2
        worker.broker.mend()
        worker.run_for(50 * MS)
        assert sorted(worker.payloads) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_socket_that_takes_no_more_stops_the_replays_until_it_has_drained(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.broker.unsent_bytes = UNSENT_BYTES
        for number in range(5):
            worker.publish(b"%d" % number)
        worker.run_for(10 * S)
        assert not worker.sent
        worker.broker.drained()
        worker.run_for(10 * MS)
        assert len(worker.sent) == 5


def test_what_is_in_flight_when_the_connection_breaks_is_sent_again_with_no_attempt_spent(path: Path) -> None:
    with VirtualWorker(path, defaults={"retries": 2, "ack_timeout": "5s", "min_backoff": "1s"}) as worker:
        worker.publish(b"a", retries=2)
        worker.run_for(10 * MS)
        worker.broker.cut()
        worker.run_for(S)
        worker.broker.mend()
        worker.run_for(20 * S)
        assert [sent.attempt for sent in worker.sent][:2] == [1, 1]


# ---- expiry


def test_expired_messages_take_no_slot_from_those_that_are_not(path: Path) -> None:
    """They are counted when they are taken out of the buffer: a queue full of them must still send the next one."""
    with VirtualWorker(path, defaults={"max_in_flight": 1}) as worker:
        worker.broker.cut()
        for _ in range(3):
            worker.publish(b"expired", ttl_ns=S)
        worker.publish(b"valid")
        worker.run_for(10 * S)
        worker.broker.mend()
        worker.run_for(S)
        assert worker.payloads == [b"valid"]
        assert worker.queue().dead == 3


def test_a_message_too_large_to_replay_takes_no_slot(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1}) as worker:
        worker.broker.cut()
        worker.publish(b"x" * 5000)
        worker.publish(b"small")
        worker.run_for(S)
        worker.broker.max_payload = 4096
        worker.broker.mend()
        worker.run_for(S)
        assert worker.payloads == [b"small"]
        assert worker.queue().dead == 1


def test_expired_messages_spend_no_tokens(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_rate": 1}) as worker:
        worker.broker.cut()
        for _ in range(50):
            worker.publish(b"expired", ttl_ns=S)
        worker.publish(b"valid")
        worker.run_for(10 * S)
        worker.broker.mend()
        worker.run_for(100 * MS)
        assert worker.queue().dead == 50
        assert worker.payloads == [b"valid"]


def test_waiting_messages_expire_on_time_while_their_queue_is_blocked(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1, "ack_timeout": "1h"}) as worker:
        worker.publish(b"blocks")
        worker.run_for(10 * MS)
        for number in range(1, 6):
            worker.publish(b"%d" % number, ttl_ns=number * S)
        for number in range(1, 6):
            worker.run_for(S)
            worker.run_for(10 * MS)
            assert worker.queue().dead == number
        assert worker.payloads == [b"blocks"]


@pytest.mark.parametrize("blocked_by", ["slots", "tokens", "pause"])
def test_all_that_has_expired_goes_however_long_its_queue_is_blocked(path: Path, blocked_by: str) -> None:
    """More than the read ahead holds: what has expired in it must make room for what expired behind it."""
    number = 2 * READ_LIMIT
    limits = {"max_in_flight": 1} if blocked_by == "slots" else {"max_rate": 0.001}
    with VirtualWorker(path, defaults={"ack_timeout": "1h", **limits}) as worker:
        worker.publish(b"blocks")
        worker.run_for(10 * MS)
        if blocked_by == "pause":
            worker.queue().paused_until_ns = NEVER
        for index in range(number):
            worker.publish(b"%d" % index, ttl_ns=5 * S)
        worker.run_for(20 * S)
        assert (worker.queue().dead, worker.payloads) == (number, [b"blocks"])


def test_expired_messages_of_every_priority_go_while_a_higher_one_is_blocked(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1, "ack_timeout": "1h"}) as worker:
        for payload in (b"blocks", b"waits"):
            worker.publish(payload, headers={"Requeue-Priority": "0"})
        worker.run_for(10 * MS)
        for priority in (1, 4, 9):
            worker.publish(
                b"expires", headers={"Requeue-Priority": str(priority)}, delay_ns=2 * S, ttl_ns=5 * S
            )
        worker.run_for(20 * S)
        assert (worker.queue().dead, worker.payloads) == (3, [b"blocks"])


def test_messages_of_a_lower_priority_expire_behind_a_blocked_higher_one_without_a_busy_loop(
    path: Path,
) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1, "ack_timeout": "1h"}) as worker:
        worker.publish(b"blocks", headers={"Requeue-Priority": "9"})
        worker.run_for(10 * MS)
        worker.publish(b"low", headers={"Requeue-Priority": "5"}, ttl_ns=5 * S)
        worker.run_for(10 * MS)
        worker.publish(b"high", headers={"Requeue-Priority": "0"})
        worker.run_for(10 * MS)
        ticks = worker.scheduler.ticks
        worker.run_for(60 * S)
        assert worker.queue().dead == 1
        assert worker.scheduler.ticks - ticks < 20
        worker.reply(worker.sent[0])
        worker.run_for(10 * MS)
        assert worker.payloads == [b"blocks", b"high"]


def test_a_deadline_before_the_due_time_expires_the_message_at_the_deadline(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.publish(b"a", delay_ns=10 * S, ttl_ns=3 * S)
        worker.run_for(2 * S)
        assert worker.queue().dead == 0
        worker.run_for(S + 5 * MS)
        assert (worker.queue().dead, worker.sent) == (1, [])


# ---- memory


def test_the_read_ahead_of_a_blocked_queue_is_bounded_in_bytes(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1, "ack_timeout": "1h"}) as worker:
        for _ in range(200):
            worker.publish(b"x" * 500_000)
        worker.run_for(5 * S)
        assert worker.queue().pending == 200
        assert ready_bytes(worker) < READY_BYTES + (6 << 20)


def test_the_read_ahead_of_many_queues_is_bounded_in_bytes(path: Path) -> None:
    with VirtualWorker(path, defaults={"max_in_flight": 1, "ack_timeout": "1h"}) as worker:
        worker.broker.cut()
        for number in range(60):
            for _ in range(4):
                worker.publish(b"x" * 900_000, queue=f"q{number}")
            worker.run_for(50 * MS)
        highest = 0
        worker.broker.mend()
        for _ in range(50):
            worker.run_for(0)
            highest = max(highest, ready_bytes(worker))
        worker.run_for(S)
        assert len(worker.sent) == 60
        assert highest < 2 * READY_BYTES + 60 * 901_000


def test_a_blocked_queue_of_large_messages_leaves_the_others_their_read_ahead(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.queue("blocked").paused_until_ns = NEVER
        for _ in range(700):
            worker.publish(b"x" * 100_000, queue="blocked")
        worker.run_for(S)
        worker.store.read_ns = 10 * MS
        worker.broker.cut()
        for _ in range(500):
            worker.publish(b"", queue="other")
        worker.run_for(S)
        worker.broker.mend()
        worker.run_for(50 * MS)
        assert len(worker.sent) == 500, "one read, and not one for each message"


def ready_bytes(worker: VirtualWorker) -> int:
    total = sum(
        len(value)
        for queue in worker.worker._registry
        for lane in queue.lanes.values()
        for _, value in lane.ready
    )
    assert worker.scheduler.read_ahead.ready_bytes == total
    return total


def test_queues_that_wait_for_anybodys_slot_are_remembered_once(path: Path) -> None:
    with VirtualWorker(path, max_in_flight_total=1, defaults={"ack_timeout": "1h"}) as worker:
        for number in range(FAIR_SLOTS + 1):
            worker.publish(b"%d" % number)
        worker.run_for(10 * MS)
        for _ in range(200):
            worker.call(worker.scheduler.look_again)
            worker.run_for(0)
        assert heap_entries(worker) < 10


# ---- long jobs


def test_a_long_job_is_re_keyed_so_that_it_never_pins_the_checkpoint(path: Path) -> None:
    with VirtualWorker(path, defaults={"ack_timeout": "1h"}) as worker:
        worker.publish(b"long")
        worker.run_for(10 * MS)
        assert lowest_unsettled_ns(worker) < START_NS + S
        worker.run_for(70 * S)
        assert lowest_unsettled_ns(worker) > START_NS + 3000 * S
        worker.reply(worker.sent[0])
        worker.run_for(S)
        assert worker.queue().pending == 0
        assert worker.queue().lane().unsettled == {}


def test_a_job_that_was_re_keyed_to_the_same_time_again_is_not_read_beside_itself(path: Path) -> None:
    with VirtualWorker(path, defaults={"ack_timeout": "10m", "min_backoff": "1s"}) as worker:
        worker.publish(b"long", retries=3)
        worker.run_for(15 * 60 * S)
        assert [(sent.payload, sent.attempt) for sent in worker.sent] == [(b"long", 1), (b"long", 2)]
        worker.reply(worker.sent[-1])
        worker.run_for(S)
        assert (worker.queue().pending, worker.worker._error) == (0, None)


def test_a_job_that_says_it_is_working_every_few_seconds_is_re_keyed_too(path: Path) -> None:
    with VirtualWorker(path, defaults={"ack_timeout": "15s"}) as worker:
        worker.publish(b"long")
        worker.run_for(10 * MS)
        for _ in range(60):
            worker.run_for(5 * S)
            worker.reply(worker.sent[0], b"+WPI")
            assert lowest_unsettled_ns(worker) > worker.clock() - 75 * S
        assert len(worker.sent) == 1
        worker.reply(worker.sent[0])
        worker.run_for(S)
        assert (worker.queue().pending, worker.queue().lane().unsettled) == (0, {})


def lowest_unsettled_ns(worker: VirtualWorker) -> int:
    from requeue_worker.storage.keys import time_of

    return min(time_of(key) for key in worker.queue().lane().unsettled)


def test_work_in_progress_ends_after_twelve_hours(path: Path) -> None:
    with VirtualWorker(path, defaults={"ack_timeout": "10m", "min_backoff": "1s"}) as worker:
        worker.publish(b"for ever", retries=5)
        worker.run_for(10 * MS)
        for _ in range(12 * 12 + 6):
            worker.run_for(300 * S)
            worker.reply(worker.sent[0], b"+WPI")
        assert len(worker.sent) >= 2
        assert late_ns(worker.sent[1], START_NS + 12 * 3600 * S) < 60 * S


# ---- failures


@pytest.mark.usefixtures("all_read")
def test_a_read_that_fails_ends_the_worker(path: Path) -> None:
    with VirtualWorker(path) as worker:
        worker.publish(b"a", delay_ns=S)
        worker.run_for(100 * MS)

        def fail(_: Any) -> Any:
            raise OSError("the disk is gone")

        worker.store._read_lane = fail  # type: ignore[method-assign]
        worker.run_for(2 * S)
        assert str(worker.worker._error) == "the disk is gone"
