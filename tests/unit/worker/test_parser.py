"""The bulk reader against nats-py's own parser: the same operations, whatever the reads look like."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser
from requeue_worker.broker.parser import MAX_CONTROL_LINE, BulkParser, Raw

checked = settings(max_examples=120, deadline=None)

HOT = (b"1", b"2")
Event = tuple[Any, ...]


class Recorder:
    """Stands for the client: writes down what a parser calls, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stats = {"in_msgs": 0}
        self.parser: Parser | None = None
        self.resets = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self.stats["in_msgs"] += 1
        self.events.append(("msg", b"%d" % sid, bytes(subject), bytes(reply), headers, data))

    async def _process_ping(self) -> None:
        self.events.append(("ping",))

    async def _process_pong(self) -> None:
        self.events.append(("pong",))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.events.append(("info", info))

    async def _process_err(self, text: str) -> None:
        self.events.append(("err", text))
        if "stale" in text and self.parser is not None:
            self.resets += 1
            self.parser.reset()

    def consume(self, sid: bytes) -> Any:
        def take(batch: list[Raw]) -> None:
            assert batch, "an empty batch is no batch"
            self.events += [
                ("msg", sid, subject, reply, headers, data) for subject, reply, headers, data in batch
            ]

        return take


def plain_parser() -> tuple[Recorder, Parser]:
    recorder = Recorder()
    recorder.parser = Parser(recorder)
    return recorder, recorder.parser


def bulk_parser() -> tuple[Recorder, BulkParser]:
    recorder = Recorder()
    recorder.parser = parser = BulkParser(recorder)
    parser.hot = {sid: recorder.consume(sid) for sid in HOT}
    return recorder, parser


async def feed(parser: Parser, chunks: list[bytes]) -> bool:
    """Parse the chunks; whether a protocol error ended it."""
    try:
        for chunk in chunks:
            await parser.parse(chunk)
    except ProtocolError:
        return True
    return False


def comparable(events: list[Event]) -> list[Event]:
    """Messages of different hot subscriptions are handed over in groups: their order among each other is no promise.

    That towards every other operation is, and that within one subscription.
    """
    ordered: list[Event] = []
    run: list[Event] = []
    for event in [*events, ("end",)]:
        if event[0] == "msg" and event[1] in HOT:
            run.append(event)
        else:
            ordered += sorted(run, key=lambda hot: hot[1])
            ordered.append(event)
            run = []
    return ordered


# ---- a stream of operations

TOKENS = st.text("ab1.-_$", min_size=1, max_size=12).map(str.encode)
SIDS = st.sampled_from([*HOT, b"3", b"12", b"21"])
TRICKY = st.sampled_from([b"MSG a 1 2\r\nhi\r\n", b"\r\n", b"PING\r\n", b"\r\nHMSG", b"-ERR 'x'\r\n", b"\r"])
PAYLOADS = st.binary(max_size=30) | TRICKY | st.sampled_from([0, 1, 4096, 70_000]).map(lambda n: b"x" * n)
BLOCKS = st.sampled_from([b"NATS/1.0\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\nA: \r\nMSG: b\r\n\r\n"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    subject, sid, payload = draw(TOKENS), draw(SIDS), draw(PAYLOADS)
    reply = draw(st.just(b"") | TOKENS.map(lambda token: token + b" "))
    if draw(st.booleans()):
        block = draw(BLOCKS)
        size = len(block) + len(payload)
        return b"HMSG %b %b %b%d %d\r\n%b%b\r\n" % (subject, sid, reply, len(block), size, block, payload)
    return b"MSG %b %b %b%d\r\n%b\r\n" % (subject, sid, reply, len(payload), payload)


CONTROL = st.sampled_from(
    [
        b"PING\r\n",
        b"PONG\r\n",
        b"+OK\r\n",
        b"PING \r\n",
        b"-ERR 'Permissions Violation for Subscription to \"x\"'\r\n",
        b'INFO {"server_id":"x","max_payload":1048576,"nested":{"MSG":"a 1 2"}}\r\n',
    ]
)
STALE = b"-ERR 'Stale Connection'\r\n"
STREAMS = st.lists(messages() | CONTROL, max_size=15)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Split `data` at these places (taken modulo its length)."""
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(at)]


PLACES = st.lists(st.integers(0, 2**40), max_size=12)


@checked
@given(STREAMS, PLACES)
def test_any_split_of_a_stream_gives_what_the_parent_gives(stream: list[bytes], places: list[int]) -> None:
    data = b"".join(stream)
    (wanted, plain), (got, bulk) = plain_parser(), bulk_parser()

    async def run() -> None:
        await plain.parse(data)
        await feed(bulk, cut(data, places))

    asyncio.run(run())
    assert comparable(got.events) == comparable(wanted.events)
    assert got.stats == wanted.stats


@checked
@given(st.lists(messages() | CONTROL, min_size=1, max_size=6), st.integers(1, 7))
def test_reads_of_a_few_bytes_give_what_the_parent_gives(stream: list[bytes], size: int) -> None:
    data = b"".join(operation for operation in stream if len(operation) < 5000)
    (wanted, plain), (got, bulk) = plain_parser(), bulk_parser()

    async def run() -> None:
        await plain.parse(data)
        await feed(bulk, [data[at : at + size] for at in range(0, len(data), size)])

    asyncio.run(run())
    assert comparable(got.events) == comparable(wanted.events)


@checked
@given(STREAMS, PLACES, st.integers(0, 30), STREAMS, PLACES)
def test_nothing_of_a_lost_connection_is_left_when_the_next_one_speaks(
    old: list[bytes], places: list[int], keep: int, new: list[bytes], new_places: list[int]
) -> None:
    """The connection breaks after any number of reads: what was half read must not meet the new one's bytes."""
    chunks = cut(b"".join(old), places)[:keep]
    (wanted, plain), (got, bulk) = plain_parser(), bulk_parser()

    async def run(parser: Parser) -> None:
        await feed(parser, chunks)
        parser.reset()
        await feed(parser, cut(b"".join(new), new_places))

    asyncio.run(run(plain))
    asyncio.run(run(bulk))
    assert comparable(got.events) == comparable(wanted.events)


@checked
@given(STREAMS, STREAMS, STREAMS, PLACES)
def test_an_error_that_ends_the_connection_ends_the_read(
    before: list[bytes], after: list[bytes], new: list[bytes], places: list[int]
) -> None:
    """nats-py resets the parser while it handles the error: the rest of that read is the old connection's."""
    (wanted, plain), (got, bulk) = plain_parser(), bulk_parser()

    async def run(parser: Parser) -> None:
        await parser.parse(b"".join([*before, STALE, *after]))
        await feed(parser, cut(b"".join(new), places))

    asyncio.run(run(plain))
    asyncio.run(run(bulk))
    assert got.resets == wanted.resets == 1
    assert comparable(got.events) == comparable(wanted.events)


@pytest.mark.parametrize(
    "noise", [b"FOO\r\n", b"MSG a b c\r\n", b"MSG a 1 -1\r\n", b"\r\n", b"HMSG a 1 2\r\n"]
)
def test_noise_is_a_protocol_error_as_it_is_for_the_parent(noise: bytes) -> None:
    good = b"MSG a 1 2\r\nhi\r\nMSG b 3 2\r\nho\r\n"
    (wanted, plain), (got, bulk) = plain_parser(), bulk_parser()

    async def run() -> tuple[bool, bool]:
        return await feed(plain, [good + noise]), await feed(bulk, [good + noise])

    assert asyncio.run(run()) == (True, True)
    assert got.events == wanted.events


def test_a_control_line_without_end_is_given_up() -> None:
    _, bulk = bulk_parser()
    chunks = [b"MSG " + b"a" * 100_000] + [b"a" * 100_000] * (MAX_CONTROL_LINE // 100_000 + 1)
    assert asyncio.run(feed(bulk, chunks))


def test_one_read_of_many_messages_is_one_batch() -> None:
    recorder, bulk = bulk_parser()
    sizes: list[int] = []
    bulk.hot = {b"1": lambda batch: sizes.append(len(batch))}
    asyncio.run(feed(bulk, [b"MSG a 1 2\r\nhi\r\n" * 500]))
    assert sizes == [500]
    assert recorder.stats["in_msgs"] == 500


def test_a_large_message_in_many_reads_is_joined_once() -> None:
    """Joining at each read would copy 8 MiB a thousand times."""
    recorder, bulk = bulk_parser()
    payload = b"x" * (8 << 20)
    data = b"MSG a 1 %d\r\n%b\r\n" % (len(payload), payload)
    walks = 0
    walk = bulk._walk

    async def counted(chunk: bytes) -> int:
        nonlocal walks
        walks += 1
        return await walk(chunk)

    bulk._walk = counted  # type: ignore[method-assign]
    asyncio.run(feed(bulk, [data[at : at + 8192] for at in range(0, len(data), 8192)]))
    assert recorder.events == [("msg", b"1", b"a", b"", None, payload)]
    assert walks == 2, "once for the first read, once when it is whole"
