"""What the client raises: the wire's error tree, and what only this side of it can see.

    RequeueError
      RefusedError
        PermanentRefusal     MalformedMessage (InvalidMessage: seen before sending), SubjectNotAllowed,
                             MessageTooLarge, ReadOnly (the admin API changes nothing)
        TransientRefusal     QueueFull, CommitFailed, UnexpectedReply, Busy (Draining, NoWorker), DiskFull
      PublishTimeout         no answer: the message may be on disk, or may not
      RequestTimeout         nobody answered a request, after all its attempts
      NotConnected           no connection to NATS: nothing was sent

Callers decide by type: a PermanentRefusal will be refused again, after a TransientRefusal nothing is stored,
after a PublishTimeout publish again with the same `msg_id`, so that a copy that did arrive is not doubled.
"""

from requeue_protocol.errors import (
    Busy,
    CommitFailed,
    DiskFull,
    Draining,
    MalformedMessage,
    MessageTooLarge,
    NoWorker,
    PermanentRefusal,
    QueueFull,
    ReadOnly,
    RefusedError,
    RequeueError,
    SubjectNotAllowed,
    TransientRefusal,
    UnexpectedReply,
)

__all__ = [
    "Busy",
    "CommitFailed",
    "DiskFull",
    "Draining",
    "InvalidMessage",
    "MalformedMessage",
    "MessageTooLarge",
    "NoWorker",
    "NotConnected",
    "PermanentRefusal",
    "PublishTimeout",
    "QueueFull",
    "ReadOnly",
    "RefusedError",
    "RequestTimeout",
    "RequeueError",
    "SubjectNotAllowed",
    "TransientRefusal",
    "UnexpectedReply",
]


class InvalidMessage(MalformedMessage, ValueError):
    """An argument is wrong: nothing was sent. The text says what would be right."""


class PublishTimeout(RequeueError, TimeoutError):
    """No worker answered in time.

    The message may be on disk: repeat it with the same `msg_id` and nothing else.
    """

    def __init__(self, text: str, *, msg_id: str, attempts: int) -> None:
        super().__init__(text)
        self.msg_id = msg_id
        self.attempts = attempts


class RequestTimeout(RequeueError, TimeoutError):
    """Nobody answered a request, in any of its attempts."""


class NotConnected(RequeueError, ConnectionError):
    """There is no connection to NATS (or it was closed for good), so that nothing was sent."""
