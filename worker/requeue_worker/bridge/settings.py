"""Which consumers of which streams are bridged, and what becomes of what they gave up."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator
from requeue_protocol.errors import MalformedMessage
from requeue_protocol.subjects import check_publish_subject, check_queue_name
from requeue_worker.setting_types import Section

ADVISORIES = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"
ANY = "*"


def _jetstream_name(name: str) -> str:
    if re.fullmatch(r"[^\s.*>/\\]{1,255}", name) is None:
        raise ValueError(
            f"{name[:60]!r} is no name of a stream or consumer; it has no spaces, dots, *, > or /"
        )
    return name


def _consumer(name: str) -> str:
    return name if name == ANY else _jetstream_name(name)


def _queue(name: str) -> str:
    try:
        check_queue_name(name)
    except MalformedMessage as error:
        raise ValueError(str(error)) from None
    return name


def _subject(subject: str) -> str:
    try:
        check_publish_subject(subject.encode())
    except MalformedMessage as error:
        raise ValueError(str(error)) from None
    return subject


StreamName = Annotated[str, AfterValidator(_jetstream_name)]


class BridgedConsumer(Section):
    """One consumer, or all of a stream, whose exhausted messages are taken over."""

    stream: StreamName = Field(description="Name of the stream.")
    consumer: Annotated[str, AfterValidator(_consumer)] = Field(
        default=ANY, description="Name of the consumer; * for all of the stream."
    )
    action: Literal["dead-letter", "requeue"] = Field(
        default="dead-letter", description="What a message becomes that was delivered too often."
    )
    queue: Annotated[str, AfterValidator(_queue)] = Field(
        default="default", description="Queue whose policy it gets."
    )
    subject: Annotated[str, AfterValidator(_subject)] | None = Field(
        default=None, description="Where it goes (again); its own subject unless given."
    )
    rounds: int = Field(
        default=10, ge=1, le=1_000_000, description="With requeue: after so many it is a dead letter."
    )
    delete: bool = Field(default=False, description="Delete it from the stream once it is on disk here.")

    @property
    def advisories(self) -> str:
        """Subject of its advisories."""
        return f"{ADVISORIES}.{self.stream}.{self.consumer}"

    def takes(self, stream: str, consumer: str) -> bool:
        """Whether an advisory about this consumer is meant."""
        return stream == self.stream and self.consumer in (ANY, consumer)


class BridgeSettings(Section):
    """The bridge from JetStream; off while no consumer is named."""

    consumers: tuple[BridgedConsumer, ...] = Field(
        default=(), description="Consumers whose exhausted messages are taken over."
    )
    advisory_stream: StreamName | None = Field(
        default=None, description="Stream that captures the advisories, so that none is lost."
    )
    durable: StreamName = Field(
        default="requeue-bridge", description="Consumer of that stream, shared by the workers."
    )

    @field_validator("consumers")
    @classmethod
    def _check_consumers(cls, consumers: tuple[BridgedConsumer, ...]) -> tuple[BridgedConsumer, ...]:
        for number, one in enumerate(consumers):
            for other in consumers[:number]:
                if one.stream == other.stream and (
                    one.consumer == other.consumer or ANY in (one.consumer, other.consumer)
                ):
                    raise ValueError(
                        f"stream {one.stream!r}: consumers {other.consumer!r} and {one.consumer!r} overlap; "
                        "name each once, or all of them by *"
                    )
        return consumers

    def for_advisory(self, stream: str, consumer: str) -> BridgedConsumer | None:
        """What was said about this consumer, None when nothing."""
        return next((each for each in self.consumers if each.takes(stream, consumer)), None)
