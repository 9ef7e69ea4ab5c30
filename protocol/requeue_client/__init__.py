"""Client library of nats-requeue: the other end of the wire, and the `requeue` command.

    from requeue_client import RequeueClient

    async with await RequeueClient.connect("nats://127.0.0.1:4222") as requeue:
        await requeue.publish("orders.created", b"...", delay="10m", retries=5)

and on the other side

    @handler("orders.created", queue_group="billing")
    async def charge(order: Delivery) -> None: ...

    run(charge, servers="nats://127.0.0.1:4222")

`client.py` is what an application calls; `message.py` turns arguments into wire bytes, `publisher.py` sends
until the ack is there, `inbox.py` hands out the answers, `pipeline.py` keeps a window of them, `requests.py`
and `admin.py` are the other conversations, `errors.py` is what may be raised. `handler.py` makes handlers of
functions, `serving.py` runs them, `sync.py` is for programs without an event loop, `tracing.py` for those
with OpenTelemetry. `local.py` and `bench/` run the real parts on this machine.
"""

from requeue_client.admin import AdminResult
from requeue_client.client import RequeueClient
from requeue_client.delivery import Delivery
from requeue_client.errors import (
    Busy,
    CommitFailed,
    DiskFull,
    Draining,
    InvalidMessage,
    MalformedMessage,
    MessageTooLarge,
    NotConnected,
    NoWorker,
    PermanentRefusal,
    PublishTimeout,
    QueueFull,
    ReadOnly,
    RefusedError,
    RequestTimeout,
    RequeueError,
    SubjectNotAllowed,
    TransientRefusal,
    UnexpectedReply,
)
from requeue_client.handler import Handler, Reject, Retry, handler
from requeue_client.message import Message, MessageOptions
from requeue_client.pipeline import Outcome
from requeue_client.publisher import Ack
from requeue_client.requests import Reply, Requeued, retry_request
from requeue_client.service import AdminClient
from requeue_client.serving import Serving
from requeue_client.sync import SyncClient, run

__all__ = [
    "Ack",
    "AdminClient",
    "AdminResult",
    "Busy",
    "CommitFailed",
    "Delivery",
    "DiskFull",
    "Draining",
    "Handler",
    "InvalidMessage",
    "MalformedMessage",
    "Message",
    "MessageOptions",
    "MessageTooLarge",
    "NoWorker",
    "NotConnected",
    "Outcome",
    "PermanentRefusal",
    "PublishTimeout",
    "QueueFull",
    "ReadOnly",
    "RefusedError",
    "Reject",
    "Reply",
    "RequestTimeout",
    "RequeueClient",
    "RequeueError",
    "Requeued",
    "Retry",
    "Serving",
    "SubjectNotAllowed",
    "SyncClient",
    "TransientRefusal",
    "UnexpectedReply",
    "handler",
    "retry_request",
    "run",
]
