"""The frame of an envelope: all of its bytes but the payload and the delay.

A client's envelopes differ in little more than these two. So what the rest says can be worked out once and looked up by
the frame, in less than half the time that reading the envelope takes.
"""

from __future__ import annotations

from typing import NamedTuple

from requeue_protocol.envelope import Envelope, known_layout
from requeue_protocol.tables import U32


class FramePlace(NamedTuple):
    """Where a frame is cut out: it is what lies before the delay, between delay and payload, and behind the payload.

    The payload's place is told by the frame itself, so envelopes that are cut at one place into an equal frame say the
    same. Without a delay field the two `delay_` are equal.
    """

    delay_at: int
    delay_end: int
    payload_at: int
    payload_end: int


def frame_place(data: bytes, envelope: Envelope) -> FramePlace | None:
    """The place, if what `read_envelope` said of this data follows from its frame and delay alone; else None.

    It does in what a builder makes. In noise the payload may share bytes with a name, or with the table.
    """
    layout = known_layout(data)
    if layout is None or not layout.payload_from:
        return None
    begin, end = envelope.payload_at - 4, envelope.payload_at + envelope.payload_len
    if begin < layout.end:
        return None
    for field in filter(None, (layout.subject_from, layout.queue_from)):
        text_at = field + U32(data, field)[0]
        text_end = text_at + 4 + U32(data, text_at)[0]
        if text_at < layout.end or (text_at < end and begin < text_end):
            return None
    delay_at = layout.delay_at or layout.end
    delay_end = delay_at + 8 if layout.delay_at else delay_at
    return FramePlace(delay_at, delay_end, envelope.payload_at, end)
