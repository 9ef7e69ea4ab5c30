"""A client that knows nothing of headers, on a bare socket: what programs of before NATS 2.2 see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from requeue_protocol.envelope import build_envelope
from requeue_protocol.errors import Draining

from tests.integration.worker.support import HOUR, INTAKE, WAIT_S, Handler, StartWorker
from tests.servers import NatsServer

SILENCE_S = 0.3
CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"tls_required":false,"name":"old","lang":"raw","headers":false}'


class RawClient:
    """The protocol of NATS by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._requests = 0

    async def request(self, subject: str, payload: bytes) -> bytes:
        """The answer's payload; TimeoutError when none comes for SILENCE_S."""
        self._requests += 1
        inbox = f"_INBOX.raw.{self._requests}"
        self._write(f"SUB {inbox} {self._requests}", f"PUB {subject} {inbox} {len(payload)}", payload)
        async with asyncio.timeout(SILENCE_S):
            return (await self.next())[2]

    async def next(self) -> tuple[str, str, bytes]:
        """Subject, reply subject (empty when there is none) and payload of the next message."""
        while True:
            operation, *arguments = (await self._reader.readline()).decode().split()
            if operation == "PING":
                self._write("PONG")
            elif operation == "MSG":
                payload = await self._reader.readexactly(int(arguments[-1]) + 2)
                return arguments[0], arguments[2] if len(arguments) > 3 else "", payload[:-2]
            else:
                assert operation == "PONG", (operation, arguments)

    async def subscribe(self, subject: str) -> None:
        self._write(f"SUB {subject} 1000", "PING")
        assert await self._reader.readline() == b"PONG\r\n"

    def publish(self, subject: str, payload: bytes) -> None:
        self._write(f"PUB {subject} {len(payload)}", payload)

    def _write(self, *lines: str | bytes) -> None:
        for line in lines:
            self._writer.write((line.encode() if isinstance(line, str) else line) + b"\r\n")


@pytest.fixture
async def raw(nats_server: NatsServer) -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
    assert (await reader.readline()).startswith(b"INFO ")
    writer.write(CONNECT + b"\r\nPING\r\n")
    assert await reader.readline() == b"PONG\r\n"
    yield RawClient(reader, writer)
    writer.close()
    with contextlib.suppress(OSError):
        await asyncio.wait_for(writer.wait_closed(), WAIT_S)


async def test_an_ack_is_an_empty_payload(raw: RawClient, start: StartWorker) -> None:
    worker = await start()
    assert await raw.request(INTAKE, build_envelope(subject="jobs.a", payload=b"w", delay_ns=HOUR)) == b""
    assert len(worker.pending()) == 1


async def test_a_permanent_refusal_can_be_read_from_the_payload(raw: RawClient, start: StartWorker) -> None:
    worker = await start()
    assert (await raw.request(INTAKE, b"garbage")).startswith(b"-ERR 400 ")
    denied = build_envelope(subject="$SYS.REQ.SERVER.PING", payload=b"")
    assert (await raw.request(INTAKE, denied)).startswith(
        b"-ERR 403 subject '$SYS.REQ.SERVER.PING' is not allowed"
    )
    assert len(worker.invalid()) == 2


async def test_a_full_queue_answers_with_silence_and_takes_the_message_once_it_has_room(
    raw: RawClient, start: StartWorker
) -> None:
    worker = await start(defaults={"max_messages": 1, "count_no_responders": False})
    second = build_envelope(subject="jobs.second", payload=b"second")
    await worker.publish("jobs.first", headers={"Nats-Msg-Id": "first"}, delay_ns=HOUR)

    with pytest.raises(TimeoutError):
        await raw.request(INTAKE, second)
    assert worker.worker.counts.refused[429] == 1
    await worker.nc.request("_requeue.admin.cancel", b'{"id": "first"}', timeout=WAIT_S)

    assert await raw.request(INTAKE, second) == b""


async def test_a_worker_that_stops_answers_with_silence(raw: RawClient, start: StartWorker) -> None:
    worker = await start()
    worker.worker._ingest.closed = Draining("this worker is shutting down: send again, to another worker")
    with pytest.raises(TimeoutError):
        await raw.request(INTAKE, build_envelope(subject="jobs.a", payload=b"w"))
    assert worker.pending() == []


async def test_a_replay_reaches_a_handler_without_headers_and_any_reply_settles(
    raw: RawClient, start: StartWorker
) -> None:
    worker = await start()
    await raw.subscribe("jobs.a")
    await worker.publish_plain("jobs.a", b"work", {"Trace": "t-1"})
    subject, reply, payload = await asyncio.wait_for(raw.next(), WAIT_S)
    raw.publish(reply, b"done")
    await worker.until_empty()
    assert (subject, payload) == ("jobs.a", b"work")
    assert worker.queue().counts.settled == 1


async def test_a_client_with_headers_and_one_without_are_served_alike(
    raw: RawClient, start: StartWorker
) -> None:
    worker = await start()
    jobs = await Handler.listen(worker.nc, "jobs.>", answer=lambda msg: msg.ack())
    assert await raw.request(INTAKE, build_envelope(subject="jobs.a", payload=b"raw")) == b""
    await worker.publish("jobs.a", b"py")
    await worker.until_empty()
    assert sorted(jobs.payloads) == [b"py", b"raw"]
