from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from requeue_worker.counts import Counts, QueueSnapshot
from requeue_worker.metrics import Metrics

ORDERS = QueueSnapshot("orders", 12, 3400, 2, 99, 4, 1_800_000_000_500_000_000, paused=True)
EMPTY = QueueSnapshot("emails.retry", 0, 0, 0, 0, 0, None)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def busy_counts() -> Counts:
    counts = Counts()
    counts.intake_messages, counts.intake_bytes, counts.duplicates, counts.commits = 10, 2560, 1, 3
    counts.refused[429] = 5
    counts.redriven, counts.dead_letters_deleted, counts.dead_letters_imported = 21, 22, 23
    counts.purged, counts.moved = 24, 25
    orders = counts.queues["orders"]
    orders.replays, orders.settled, orders.retried, orders.held, orders.expired = 9, 6, 2, 1, 4
    orders.accepted = 11
    orders.dead["exhausted"], orders.dead["terminated"] = 7, 8
    counts.commit_seconds.observe(0.0002)
    counts.commit_messages.observe(512)
    counts.lateness_seconds.observe(0.003, times=2)
    counts.lateness_seconds.observe(90_000)
    return counts


def scrape(metrics: Metrics) -> Samples:
    text = generate_latest(metrics.registry()).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metrics_of(
    counts: Counts, queues: Iterable[QueueSnapshot] = (ORDERS, EMPTY), connected: bool = True
) -> Metrics:
    return Metrics(counts, lambda: queues, lambda: connected, build_version="1.2.3")


def test_totals_are_scraped_as_counted() -> None:
    samples = scrape(metrics_of(busy_counts()))
    assert samples["requeue_intake_messages_total", ()] == 10
    assert samples["requeue_intake_bytes_total", ()] == 2560
    assert samples["requeue_duplicates_total", ()] == 1
    assert samples["requeue_commits_total", ()] == 3
    assert samples["requeue_refused_total", (("code", "429"),)] == 5
    assert samples["requeue_redriven_total", ()] == 21
    assert samples["requeue_purged_total", ()] == 24
    assert samples["requeue_moved_total", ()] == 25
    assert samples["requeue_dead_letters_deleted_total", ()] == 22
    assert samples["requeue_dead_letters_imported_total", ()] == 23
    assert samples["requeue_refused_total", (("code", "400"),)] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("requeue_accepted_total", 11),
        ("requeue_replays_total", 9),
        ("requeue_settled_total", 6),
        ("requeue_retried_total", 2),
        ("requeue_held_total", 1),
        ("requeue_expired_total", 4),
        ("requeue_pending_messages", 12),
        ("requeue_pending_bytes", 3400),
        ("requeue_dead_letter_messages", 2),
        ("requeue_dead_letter_bytes", 99),
        ("requeue_in_flight_messages", 4),
        ("requeue_next_due_timestamp_seconds", 1_800_000_000.5),
        ("requeue_backlog_age_seconds", 0.0),
        ("requeue_queue_paused", 1),
    ],
)
def test_each_number_of_a_queue_is_scraped_under_its_name(name: str, value: float) -> None:
    assert scrape(metrics_of(busy_counts()))[name, (("queue", "orders"),)] == value


def test_dead_letters_are_counted_by_reason() -> None:
    samples = scrape(metrics_of(busy_counts()))
    assert samples["requeue_dead_letters_total", (("queue", "orders"), ("reason", "exhausted"))] == 7
    assert samples["requeue_dead_letters_total", (("queue", "orders"), ("reason", "terminated"))] == 8


def test_dropped_messages_are_counted_by_reason() -> None:
    counts = busy_counts()
    counts.queues["orders"].dropped["expired"] += 3
    samples = scrape(metrics_of(counts))
    assert samples["requeue_dropped_total", (("queue", "orders"), ("reason", "expired"))] == 3


def test_disconnects_and_denials_are_scraped_and_begin_at_zero() -> None:
    counts = Counts()
    counts.nats_disconnects += 2
    counts.nats_denied["publish"] += 5
    samples = scrape(metrics_of(counts))
    assert samples["requeue_nats_disconnects_total", ()] == 2
    assert samples["requeue_nats_denied_total", (("action", "publish"),)] == 5
    assert samples["requeue_nats_denied_total", (("action", "subscribe"),)] == 0


def test_an_empty_queue_has_gauges_of_zero_and_no_next_due() -> None:
    samples = scrape(metrics_of(Counts()))
    assert samples["requeue_pending_messages", (("queue", "emails.retry"),)] == 0
    assert ("requeue_next_due_timestamp_seconds", (("queue", "emails.retry"),)) not in samples


def test_histogram_buckets_add_up() -> None:
    samples = scrape(metrics_of(busy_counts()))
    assert samples["requeue_lateness_seconds_bucket", (("le", "0.002"),)] == 0
    assert samples["requeue_lateness_seconds_bucket", (("le", "0.005"),)] == 2
    assert samples["requeue_lateness_seconds_bucket", (("le", "86400.0"),)] == 2
    assert samples["requeue_lateness_seconds_bucket", (("le", "+Inf"),)] == 3
    assert samples["requeue_lateness_seconds_count", ()] == 3
    assert samples["requeue_lateness_seconds_sum", ()] == pytest.approx(90_000.006)
    assert samples["requeue_commit_seconds_count", ()] == 1
    assert samples["requeue_commit_batch_messages_bucket", (("le", "512.0"),)] == 1


@pytest.mark.parametrize(("connected", "value"), [(True, 1), (False, 0)])
def test_the_connection_is_a_gauge(connected: bool, value: int) -> None:
    assert scrape(metrics_of(Counts(), connected=connected))["requeue_nats_connected", ()] == value


def test_build_and_process_are_described() -> None:
    names = {(name, labels[-1:]) for name, labels in scrape(metrics_of(Counts()))}
    assert ("requeue_build_info", (("version", "1.2.3"),)) in names
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} <= {
        name for name, _ in names
    }


def test_the_version_is_that_of_the_distribution_unless_given() -> None:
    labels = next(
        dict(labels)
        for name, labels in scrape(Metrics(Counts(), tuple, bool))
        if name == "requeue_build_info"
    )
    assert labels["version"][0].isdigit()


def test_a_registry_keeps_the_moment_it_was_taken() -> None:
    counts = busy_counts()
    registry = metrics_of(counts).registry()
    counts.intake_messages += 1
    counts.queues["orders"].dead["exhausted"] += 1
    counts.queues["new"].settled += 1
    counts.lateness_seconds.observe(1)
    assert registry.get_sample_value("requeue_intake_messages_total") == 10
    labels = {"queue": "orders", "reason": "exhausted"}
    assert registry.get_sample_value("requeue_dead_letters_total", labels) == 7
    assert registry.get_sample_value("requeue_settled_total", {"queue": "new"}) is None
    assert registry.get_sample_value("requeue_lateness_seconds_count") == 3


def test_openmetrics_reads_the_same_names() -> None:
    text = openmetrics.generate_latest(metrics_of(busy_counts()).registry()).decode()  # type: ignore[no-untyped-call]
    names = {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert {"requeue_intake_messages", "requeue_dead_letters", "requeue_dead_letter_messages"} <= names


def test_every_name_says_what_it_is_and_in_which_unit() -> None:
    for family in metrics_of(busy_counts()).registry().collect():
        if not family.name.startswith("requeue_"):
            continue
        assert family.documentation.endswith((".", "."))
        unit = (
            "_bytes",
            "_seconds",
            "_messages",
            "_records",
            "_info",
            "_connected",
            "_full",
            "_enabled",
            "_open",
            "_paused",
        )
        assert family.type == "counter" or family.name.endswith(unit), family.name


def test_backlog_age_is_how_long_the_next_message_has_been_due() -> None:
    late = ORDERS._replace(next_due_ns=time.time_ns() - 90 * 10**9)
    samples = scrape(metrics_of(Counts(), [late, EMPTY]))
    assert 90 <= samples["requeue_backlog_age_seconds", (("queue", "orders"),)] < 90 + 3600
    assert samples["requeue_backlog_age_seconds", (("queue", "emails.retry"),)] == 0
