"""A replay continues its publisher's trace: by its headers in any language, and as spans with OpenTelemetry."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from requeue_client import Delivery, Message, RequeueClient, Requeued, SyncClient, handler

from tests.servers import NatsServer, WorkerFactory, settle, until

WAIT_S = 30
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """The one tracer of this process, which OpenTelemetry lets be set once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter


@pytest.fixture
async def client(
    nats_server: NatsServer, worker_factory: WorkerFactory, nc: Client
) -> AsyncIterator[RequeueClient]:
    await asyncio.to_thread(worker_factory, nats_server)
    async with RequeueClient(nc) as client:
        yield client


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


async def finished(spans: InMemorySpanExporter, name: str, count: int = 1) -> list[ReadableSpan]:
    await until(lambda: len(named(spans, name)) >= count, WAIT_S)
    return named(spans, name)


async def test_trace_context_of_a_plain_client_is_at_every_replay_as_it_was_sent(
    client: RequeueClient,
) -> None:
    replays: asyncio.Queue[Msg] = asyncio.Queue()

    async def take(msg: Msg) -> None:
        replays.put_nowait(msg)
        await (msg.nak() if (msg.headers or {})["Requeue-Attempt"] == "1" else msg.ack())

    await client.nc.subscribe("orders.created", cb=take)
    await settle(client.nc)
    headers = {
        "Requeue-Subject": "orders.created",
        "Requeue-Min-Backoff": "20ms",
        "traceparent": PARENT,
        "tracestate": "vendor=a,other=b",
    }
    await client.nc.request("requeue.publish", b"x", 20, headers=headers)
    for attempt in ("1", "2"):
        said = (await asyncio.wait_for(replays.get(), WAIT_S)).headers or {}
        assert (said["Requeue-Attempt"], said["traceparent"]) == (attempt, PARENT)
        assert said["tracestate"] == "vendor=a,other=b"


async def test_each_attempt_is_a_span_in_the_trace_of_its_publisher(
    client: RequeueClient, spans: InMemorySpanExporter
) -> None:
    @handler("orders.created")
    async def charge(order: Delivery) -> None:
        with trace.get_tracer("test").start_as_current_span("charge"):
            if order.attempt == 1:
                raise OSError("the bank is closed")

    async with await client.serve(charge):
        with trace.get_tracer("test").start_as_current_span("buy") as buying:
            await client.publish("orders.created", b"17 EUR", queue="orders", min_backoff="20ms")
        first, second = await finished(spans, "process orders.created", 2)
    here = buying.get_span_context()
    for attempt, span in enumerate((first, second), 1):
        assert span.parent is not None
        assert (span.parent.trace_id, span.parent.span_id) == (here.trace_id, here.span_id)
        assert span.kind is SpanKind.CONSUMER
        assert span.attributes is not None
        assert span.attributes["requeue.attempt"] == attempt
        assert span.attributes["requeue.queue"] == "orders"
        assert span.attributes["messaging.destination.name"] == "orders.created"
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert [event.name for event in first.events] == ["exception"]
    inner = named(spans, "charge")
    assert [span.parent and span.parent.span_id for span in inner] == [
        first.context and first.context.span_id,
        second.context and second.context.span_id,
    ]


async def test_a_handler_that_publishes_on_hands_its_trace_on(
    client: RequeueClient, spans: InMemorySpanExporter
) -> None:
    @handler("orders.created")
    async def created(order: Delivery) -> None:
        async for outcome in client.publish_many([Message("orders.paid", b"x")]):
            assert outcome.ok

    @handler("orders.paid")
    def paid(_: Delivery) -> None:
        with trace.get_tracer("test").start_as_current_span("in a thread"):
            pass

    async with await client.serve(created, paid):
        with trace.get_tracer("test").start_as_current_span("buy") as buying:
            queued = await client.request_or_requeue("nobody.yet", b"", "1s", delay="1h")
            assert isinstance(queued, Requeued)
            await client.publish("orders.created")
        [last] = await finished(spans, "process orders.paid")
    [first] = named(spans, "process orders.created")
    [threaded] = named(spans, "in a thread")
    trace_id = buying.get_span_context().trace_id
    assert {span.context.trace_id for span in (first, last, threaded) if span.context} == {trace_id}
    assert last.parent is not None
    assert first.context is not None
    assert last.parent.span_id == first.context.span_id
    assert threaded.parent is not None
    assert last.context is not None
    assert threaded.parent.span_id == last.context.span_id


def test_a_publish_from_a_thread_bears_the_trace_of_that_thread(
    nats_server: NatsServer, worker_factory: WorkerFactory, spans: InMemorySpanExporter
) -> None:
    worker_factory(nats_server)
    seen: list[Delivery] = []
    done = threading.Event()

    @handler("orders.created")
    def charge(order: Delivery) -> None:
        seen.append(order)
        done.set()

    with SyncClient.connect(nats_server.url) as requeue:
        requeue.serve(charge)
        with trace.get_tracer("test").start_as_current_span("buy") as buying:
            requeue.publish("orders.created")
        assert done.wait(WAIT_S)
    assert f"{buying.get_span_context().trace_id:032x}" in seen[0].headers["traceparent"]


async def test_a_context_that_the_caller_gives_is_kept(
    client: RequeueClient, spans: InMemorySpanExporter
) -> None:
    seen: asyncio.Queue[Delivery] = asyncio.Queue()

    @handler("orders.created")
    async def charge(order: Delivery) -> None:
        seen.put_nowait(order)

    async with await client.serve(charge):
        with trace.get_tracer("test").start_as_current_span("buy"):
            await client.publish("orders.created", headers={"Traceparent": PARENT})
        order = await asyncio.wait_for(seen.get(), WAIT_S)
        [span] = await finished(spans, "process orders.created")
    assert order.headers["Traceparent"] == PARENT
    assert "traceparent" not in order.headers
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" in PARENT


WITHOUT = """
import asyncio, sys
sys.modules["opentelemetry"] = None  # an import of it fails
from requeue_client import RequeueClient, handler

async def main():
    done = asyncio.Event()

    @handler("orders.created")
    async def charge(order):
        print(sorted(order.headers))
        done.set()

    async with await RequeueClient.connect(sys.argv[1]) as requeue:
        async with await requeue.serve(charge):
            await requeue.publish("orders.created")
            await done.wait()

asyncio.run(main())
"""


def test_without_opentelemetry_all_works_and_nothing_is_added(
    nats_server: NatsServer, worker_factory: WorkerFactory
) -> None:
    worker_factory(nats_server)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, nats_server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Nats-Msg-Id" in done.stdout
    assert "traceparent" not in done.stdout
