"""Traces over a queue: W3C trace context in the headers, where OpenTelemetry is installed (the extra `otel`).

A publish injects the current context (`traceparent`, `tracestate`, baggage: what the program's propagator says), the worker
carries headers as they are, and a handler continues the trace with a span of its own for each attempt. Without
OpenTelemetry nothing here does anything, and without a tracer that is set up its API does nothing either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from requeue_client.delivery import Delivery

try:
    from opentelemetry import propagate, trace
except ImportError:
    _INSTALLED = False
else:
    _INSTALLED = True

_TRACER = "requeue_client"
_CONTEXT = "traceparent"


def inject(headers: dict[str, str]) -> None:
    """Add the current trace context to a message's own headers, unless they have one."""
    if not _INSTALLED or not trace.get_current_span().get_span_context().is_valid:
        return
    if not any(name.lower() == _CONTEXT for name in headers):
        propagate.inject(headers)


@contextmanager
def consumer_span(delivery: Delivery) -> Iterator[None]:
    """A span for one attempt, a child of the publisher's; what is raised in it is recorded there."""
    if not _INSTALLED:
        yield
        return
    carrier = {name.lower(): value for name, value in delivery.headers.items()}
    attributes: dict[str, str | int] = {
        "messaging.system": "nats",
        "messaging.operation.type": "process",
        "messaging.destination.name": delivery.subject,
        "messaging.message.body.size": len(delivery.payload),
    }
    if delivery.is_replay:
        attributes["messaging.message.id"] = delivery.id
        attributes["requeue.queue"] = delivery.queue
        attributes["requeue.attempt"] = delivery.attempt
    with trace.get_tracer(_TRACER).start_as_current_span(
        f"process {delivery.subject}",
        context=propagate.extract(carrier),
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
    ):
        yield
