"""What an envelope becomes: the fixed head of its record, and what the intake has to know about it."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from requeue_protocol.envelope import Backoff, Envelope, read_envelope
from requeue_protocol.frames import FramePlace, frame_place
from requeue_worker.record import DELAY, HAS_CLIENT_ID, HEAD_STATIC, RECORD_VERSION

if TYPE_CHECKING:
    from requeue_worker.storage.queues import Lane

#: of all frames together: room for ten thousand queues, each of which makes a frame of its own. With 2048 frames an
#: envelope of one of these took 3.6 µs to read, so it is 1.3
_FRAMES_BYTES: Final = 16 << 20
_FRAME_BYTES: Final = 450  #: what a frame takes beside its own bytes
_SHAPES_KEPT: Final = 4  #: of one size: clients order their fields differently
#: once there was no room: what never comes twice is mostly not learnt, since that takes as long as reading it
_LEARN_EVERY: Final = 8

_pack_delay = DELAY.pack


class Heading(NamedTuple):
    """The head (HEAD_STATIC) of an envelope's record, and what else counts at intake."""

    head: bytes
    delay_ns: int
    ttl_ns: int
    queue: str
    subject: bytes


class Frame:
    """What all envelopes with one frame say, and where they go."""

    __slots__ = ("lane", "limited", "queue", "start", "subject", "ttl_ns")

    def __init__(self, heading: Heading) -> None:
        #: the head up to its delay
        self.start = heading.head[: -DELAY.size]
        self.ttl_ns = heading.ttl_ns
        self.queue = heading.queue
        self.subject = heading.subject
        #: for whoever reads: the lane of this queue, which takes this subject. To look it up for each took a seventh of
        #: what the event loop spends on a message in one of ten thousand queues
        self.lane: Lane | None = None
        self.limited = (
            False  #: whether the queue's policy limits what it holds; as of when the lane was looked up
        )


#: what stands before the delay, the delay, what stands between it and the payload, and behind the payload
_Cut = Callable[[bytes], tuple[bytes, int, bytes, bytes]]


class _Shape(NamedTuple):
    """Where envelopes of one size are cut up, and what those said that had the same parts but delay and payload."""

    cut: _Cut
    #: by before, between and after
    known: dict[tuple[bytes, bytes, bytes], Frame]
    other: _Shape | None  #: another shape of the same size
    place: FramePlace


class Envelopes:
    """Reads envelopes without headers. What an envelope said is remembered by its frame, in bounded caches."""

    def __init__(self) -> None:
        self._by_size: dict[int, _Shape] = {}
        #: parts of frames, each once: what ten thousand frames share stays in the processor's cache
        self._parts: dict[bytes, bytes] = {}
        self._frames_bytes = 0
        self._were_full = False
        self._unknown = 0

    def read(self, payload: bytes) -> tuple[bytes, int, Frame]:
        """An envelope's head (HEAD_STATIC), its delay in ns, and what else it says. Raises MalformedMessage."""
        # One struct for all cuts: 40 % less than a slice for each, an eighth of what the intake costs.
        shape = self._by_size.get(len(payload))
        while shape is not None:
            cut, known, shape, _ = shape
            before, delay_ns, between, after = cut(payload)
            frame = known.get((before, between, after))
            if frame is not None:
                return frame.start + _pack_delay(delay_ns), delay_ns, frame
        return self._read_unknown(payload)

    def forget_lanes(self) -> None:
        """Queues left, or their policies changed: every lane is to be looked up again."""
        for first in self._by_size.values():
            shape: _Shape | None = first
            while shape is not None:
                for frame in shape.known.values():
                    frame.lane = None
                shape = shape.other

    def _read_unknown(self, payload: bytes) -> tuple[bytes, int, Frame]:
        envelope = read_envelope(payload)
        heading = heading_of(envelope)
        frame = Frame(heading)
        if not self._were_full or self._unknown % _LEARN_EVERY == 0:
            self._learn(payload, envelope, frame)
        self._unknown += 1
        return heading.head, heading.delay_ns, frame

    def _learn(self, payload: bytes, envelope: Envelope, frame: Frame) -> None:
        place = frame_place(payload, envelope)
        if place is None:
            return
        takes = _FRAME_BYTES + len(payload) - envelope.payload_len
        if self._frames_bytes + takes > _FRAMES_BYTES:
            self._by_size.clear()
            self._parts.clear()
            self._frames_bytes = 0
            self._were_full = True
        shape, once = self._shape(len(payload), place), self._parts.setdefault
        before, _, between, after = shape.cut(payload)
        frame.start = once(frame.start, frame.start)
        shape.known[once(before, before), once(between, between), once(after, after)] = frame
        self._frames_bytes += takes

    def _shape(self, size: int, place: FramePlace) -> _Shape:
        """The shape of this size and place, made when new."""
        first = shape = self._by_size.get(size)
        number = 0
        while shape is not None:
            if shape.place == place:
                return shape
            shape = shape.other
            number += 1
        made = _Shape(_cut_at(place, size), {}, first if number < _SHAPES_KEPT else None, place)
        self._by_size[size] = made
        return made


def _cut_at(place: FramePlace, size: int) -> _Cut:
    delay_at, delay_end, payload_at, payload_end = place
    if delay_end > delay_at:
        between = payload_at - delay_end
        return Struct(f"<{delay_at}sQ{between}s{payload_end - payload_at}x{size - payload_end}s").unpack
    bare = Struct(
        f"<{delay_at}s{payload_at - delay_at}s{payload_end - payload_at}x{size - payload_end}s"
    ).unpack

    def cut(payload: bytes) -> tuple[bytes, int, bytes, bytes]:
        before, between, after = bare(payload)
        return before, 0, between, after

    return cut


def heading_of(
    envelope: Envelope,
    headers_len: int = 0,
    extras: bytes = b"",
    client_id: bytes | None = None,
    backoff: Backoff | None = None,
) -> Heading:
    """The heading of an envelope that came with so many bytes of headers; `backoff` is what these say, if they do.

    The envelope's own retries, ttl and delay always count.
    """
    retries, ttl_ns, delay_ns, own_backoff, queue, subject, subject_at, payload_at, payload_len = envelope
    head = HEAD_STATIC.pack(
        RECORD_VERSION,
        0 if client_id is None else HAS_CLIENT_ID,
        # An envelope's Undefined is fixed, as the original has it.
        (own_backoff if backoff is None else backoff) or Backoff.FIXED,
        0,
        len(subject),
        len(extras),
        headers_len,
        headers_len + subject_at,
        headers_len + payload_at,
        payload_len,
        retries or 1,
        delay_ns,
    )
    return Heading(head, delay_ns, ttl_ns, queue, subject)
