"""More messages than one read takes in, all due at one instant."""

import time

from nats.aio.client import Client
from requeue_protocol.durations import ns_to_rfc3339
from requeue_worker.readahead import READ_LIMIT

from tests.integration.worker.conftest import StartWorker
from tests.integration.worker.support import INTAKE, Handler
from tests.servers import until


async def test_messages_beyond_the_first_read_go_out_too(start: StartWorker, nc: Client) -> None:
    """The read ahead stopped at its limit 10 ms early, and nothing was left to say when the first became due."""
    worker = await start()
    number = 2 * READ_LIMIT
    at = ns_to_rfc3339(time.time_ns() + 1_500_000_000)
    handler = await Handler.listen(nc, "orders.created", answer=lambda message: message.respond(b""))
    for index in range(number):
        await nc.publish(
            INTAKE, b"%d" % index, headers={"Requeue-Subject": "orders.created", "Requeue-At": at}
        )

    await until(lambda: len(handler.received) >= number)
    await worker.until_empty()

    assert sorted(handler.payloads) == sorted(b"%d" % index for index in range(number))
