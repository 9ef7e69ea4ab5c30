"""The peer JetStream message schedules: a message in a stream that is published into that stream at an instant.

The nearest that a NATS server has to a delay. A subject of its own for each message, delivery inside the stream alone (so
a consumer reads it there), whole seconds, no retry; durable as its stream is, with the default sync interval here.
"""

from __future__ import annotations

import asyncio
import time

from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

from requeue_client.bench.figures import Result
from requeue_client.bench.ingest import lead_ns, parameters
from requeue_client.bench.jetstream import fresh_stream
from requeue_client.bench.messages import STAMP, Compose, Load, noise
from requeue_client.bench.publisher import WindowedPublisher, check_all_acked, new_inbox
from requeue_client.bench.replay import due_figures
from requeue_client.bench.responder import Responder
from requeue_client.bench.target import Lab
from requeue_client.bench.wire import in_and_out

SYSTEM = "jetstream-schedules"
_SCHEDULE, _FIRED = "requeue-bench.schedule", "requeue-bench.fired"
_STREAM = StreamConfig(
    name="requeue-bench-schedules",
    subjects=[f"{_SCHEDULE}.*", _FIRED],
    storage=StorageType.FILE,
    allow_msg_schedules=True,
)
_IDLE_S = 15.0
_S_NS = 10**9


def scheduled(inbox: str, load: Load, due_ns: int) -> Compose:
    """Messages that are published to `_FIRED` at an instant, a whole second."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(due_ns // _S_NS))
    block = f"NATS/1.0\r\nNats-Schedule: @at {at}\r\nNats-Schedule-Target: {_FIRED}\r\n\r\n"
    sizes = f"{len(block)} {len(block) + load.size}"
    frame = f"HPUB {_SCHEDULE}.%d {inbox}.%d {sizes}\r\n{block}%b\r\n".encode()
    fill = noise(load.size - STAMP.size)

    def compose(first: int, last: int) -> bytes:
        return b"".join([frame % (i, i, STAMP.pack(i, due_ns) + fill(i)) for i in range(first, last)])

    return compose


async def measure_schedules(lab: Lab, load: Load) -> Result:
    """Publish a load that is due at one instant, and count what is fired from then on. Raises WireError."""
    async with (
        lab.peer(sync_always=False) as system,
        fresh_stream(system.url, _STREAM) as js,
        in_and_out(system.url) as (inward, outward),
    ):
        deliver = new_inbox()
        fired = ConsumerConfig(deliver_subject=deliver, filter_subject=_FIRED, ack_policy=AckPolicy.NONE)
        await js.add_consumer(str(_STREAM.name), fired)
        responder = Responder(outward, load.size, load.n, subject=deliver)
        await responder.listen()
        inbox = new_inbox()
        due_ns = -(-(time.time_ns() + lead_ns(load)) // _S_NS) * _S_NS
        compose = scheduled(inbox, load, due_ns)
        publisher = WindowedPublisher(inward, inbox, compose, n=load.n, window=load.window, payload_acks=True)
        check_all_acked(await publisher.run())
        await asyncio.sleep(max(0.0, (due_ns - time.time_ns()) / _S_NS - 0.1))
        meter = system.meter()
        delivered = await responder.finish(idle_s=_IDLE_S)
        costs = meter.figures(load.n)
    return Result("replay", SYSTEM, parameters(load), {**due_figures(load, delivered), **costs})
