"""What handles deliveries: a function of the application, and how its end becomes a reply.

returns                    settled; bytes are the reply's payload, for one who asked directly
raises Retry               failed: again after its delay, or by the backoff of the queue
raises Reject              never again: a dead letter, reason `terminated`
raises anything else       failed: again by the backoff; its type and text are the next `last_error`
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from requeue_protocol import replies

from requeue_client.delivery import Delivery
from requeue_client.errors import RequeueError
from requeue_client.times import Duration, duration_ns, duration_s

DEFAULT_GROUP = "requeue-handlers"
DEFAULT_CONCURRENCY = 32
_BEATS_PER_TIMEOUT = 3  # an open message is beaten for after at most two of these: a third is slack

AsyncFunction = Callable[[Delivery], Awaitable[object]]
SyncFunction = Callable[[Delivery], object]


class Retry(RequeueError):
    """Raise it in a handler: this attempt failed, try again after `delay`, by the queue's backoff without one.

    `reason` is the next `last_error`. Raises ValueError or TypeError for a delay that is none.
    """

    def __init__(self, reason: str = "", *, delay: Duration | None = None) -> None:
        super().__init__(reason)
        self.delay_ns = None if delay is None else duration_ns(delay, "delay")


class Reject(RequeueError):
    """Raise it in a handler: never again. The message becomes a dead letter with this reason."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A function with the subject that it handles; made by `handler`. Call it as the function itself.

    `beat_s`: how often the worker is told that a message is still worked at; None never.
    """

    function: Callable[[Delivery], object]
    subject: str
    queue_group: str
    concurrency: int
    beat_s: float | None
    timeout_s: float | None
    is_async: bool

    def __call__(self, delivery: Delivery) -> object:
        """What the function returns: for an async one, a coroutine."""
        return self.function(delivery)


def handler(
    subject: str,
    *,
    queue_group: str | None = DEFAULT_GROUP,
    concurrency: int = DEFAULT_CONCURRENCY,
    ack_timeout: Duration | None = "15s",
    timeout: Duration | None = None,
) -> Callable[[AsyncFunction | SyncFunction], Handler]:
    """Make a handler of a function: `async def f(delivery)` runs in the event loop, `def f(delivery)` in a thread.

        @handler("orders.created", queue_group="billing")
        async def charge(order: Delivery) -> None: ...

    `subject` may hold wildcards. Processes with one `queue_group` share the messages; with None each one gets
    every message. At most `concurrency` run at a time here, the others wait. `ack_timeout` is the one of the
    queues, or shorter: three times in it the worker hears that a message is still worked at or waits here (for
    12 h in all); None says nothing, then a slow message is sent again. `timeout` is for one run: an async
    function is cancelled then, a thread goes on unheeded; either way the attempt has failed.

    Raises:
        ValueError: an argument is wrong; the text says what would be right.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency}; it is how many messages run at a time, 1 or more")
    if not subject or any(char.isspace() for char in subject):
        raise ValueError(f"subject={subject!r}; give one like orders.created, orders.* or orders.>")
    beat_s = None if ack_timeout is None else duration_s(ack_timeout, "ack_timeout") / _BEATS_PER_TIMEOUT
    timeout_s = None if timeout is None else duration_s(timeout, "timeout")

    def decorate(function: AsyncFunction | SyncFunction) -> Handler:
        return Handler(
            function,
            subject,
            queue_group or "",
            concurrency,
            beat_s,
            timeout_s,
            inspect.iscoroutinefunction(function)
            or inspect.iscoroutinefunction(getattr(function, "__call__", None)),  # noqa: B004 - an object with one
        )

    return decorate


def reply_to(result: object) -> bytes:
    """The reply for what a handler returned. Raises ValueError where the bytes would say something else."""
    if not isinstance(result, bytes):
        return replies.ACK
    if replies.read_replay_reply(None, result).verb is not replies.Verb.SETTLED:
        raise ValueError(
            f"the handler returned {result[:40]!r}, which says failed; raise Retry or Reject instead"
        )
    return result


def reply_for(error: BaseException) -> bytes:
    """The reply for what a handler raised."""
    if isinstance(error, Reject):
        return replies.term(str(error))
    if isinstance(error, Retry):
        return replies.nak(error.delay_ns, str(error))
    text = str(error)
    return replies.nak(None, f"{type(error).__name__}: {text}" if text else type(error).__name__)
