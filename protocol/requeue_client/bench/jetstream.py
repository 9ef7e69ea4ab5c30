"""The peer: JetStream on the same server and disk, with its default sync interval or an fsync per write.

What it does there is the nearest to a worker's: a file stream with work-queue retention takes the same
payloads in, each acknowledged, and a pull consumer gets and acks them. It has no due time and no retry
schedule to keep, and by default it acknowledges before anything is synced (`sync_interval` 2 minutes), so
that a power cut loses acknowledged messages.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import nats
import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError, ServiceUnavailableError

from requeue_client.bench.figures import Result, spread_ms
from requeue_client.bench.ingest import parameters
from requeue_client.bench.messages import Load, bare
from requeue_client.bench.publisher import Published, WindowedPublisher, check_all_acked, new_inbox
from requeue_client.bench.responder import Responder
from requeue_client.bench.target import Lab
from requeue_client.bench.wire import Wire, WireError, in_and_out

_SUBJECT = "requeue-bench.stream"
_CONSUMER = "bench"
_MAX_ACK_PENDING = 16_384  # as many as a worker has in flight
_IDLE_S = 15.0

SYSTEMS = ("jetstream", "jetstream-sync")
_STREAM = StreamConfig(
    name="requeue-bench", subjects=[_SUBJECT], storage=StorageType.FILE, retention=RetentionPolicy.WORK_QUEUE
)


async def measure_jetstream_ingest(lab: Lab, load: Load, system_name: str) -> Result:
    """Publish into a stream, with the same window."""
    async with (
        lab.peer(sync_always=system_name == "jetstream-sync") as system,
        fresh_stream(system.url, _STREAM),
    ):
        wire = await Wire.connect(system.url, "requeue-bench")
        meter = system.meter()
        published = await _publish(wire, load)
        costs = meter.figures(load.n)
        await wire.close()
    figures = {"rate_per_s": round(published.rate_per_s), **spread_ms("ack", published.latencies_ns), **costs}
    return Result("ingest", system_name, parameters(load), figures)


async def measure_jetstream_replay(lab: Lab, load: Load, system_name: str) -> Result:
    """Fill a stream, then pull and ack all of it."""
    async with (
        lab.peer(sync_always=system_name == "jetstream-sync") as system,
        fresh_stream(system.url, _STREAM) as js,
        in_and_out(system.url) as (inward, outward),
    ):
        await _publish(inward, load)
        await js.add_consumer(
            str(_STREAM.name),
            ConsumerConfig(
                durable_name=_CONSUMER,
                ack_policy=AckPolicy.EXPLICIT,
                max_ack_pending=_MAX_ACK_PENDING,
                ack_wait=60,
            ),
        )
        inbox = new_inbox()
        responder = Responder(outward, load.size, load.n, subject=inbox)
        await responder.listen()
        meter = system.meter()
        request = json.dumps({"batch": load.n, "expires": 300 * 10**9}).encode()
        outward.write(
            f"PUB $JS.API.CONSUMER.MSG.NEXT.{_STREAM.name}.{_CONSUMER} {inbox} {len(request)}\r\n".encode()
            + request
            + b"\r\n"
        )
        delivered = await responder.finish(idle_s=_IDLE_S)
        costs = meter.figures(delivered.count)
    figures = {
        "rate_per_s": round(delivered.rate_per_s),
        "missing": load.n - len(delivered.numbers),
        "duplicates": delivered.duplicates,
        **costs,
    }
    return Result("replay", system_name, parameters(load), figures)


async def _publish(wire: Wire, load: Load) -> Published:
    inbox = new_inbox()
    publisher = WindowedPublisher(
        wire, inbox, bare(_SUBJECT, inbox, load), n=load.n, window=load.window, payload_acks=True
    )
    published = await publisher.run()
    check_all_acked(published)
    return published


@asynccontextmanager
async def fresh_stream(url: str, config: StreamConfig) -> AsyncIterator[JetStreamContext]:
    """An empty stream, removed at the end. Raises WireError when the server has no JetStream, or refuses it."""
    nc = await nats.connect(url, allow_reconnect=False)
    js, name = nc.jetstream(timeout=60), str(config.name)
    try:
        with suppress(NotFoundError):
            await js.delete_stream(name)
        await js.add_stream(config)
        yield js
        await js.delete_stream(name)
    except (nats.errors.NoRespondersError, ServiceUnavailableError):
        raise WireError(f"{url} has no JetStream; start it with -js, or leave --peer out") from None
    except nats.errors.Error as error:
        raise WireError(f"JetStream on {url}: {error}") from error
    finally:
        await nc.close()
