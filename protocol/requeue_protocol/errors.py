"""The error tree of the wire: callers decide by type, never by text.

    RequeueError
      RefusedError            a worker refused a message; `code` and `permanent` say how
        PermanentRefusal      the same bytes will be refused again: do not retry
          MalformedMessage 400, SubjectNotAllowed 403, ReadOnly 405, MessageTooLarge 413
        TransientRefusal      nothing was stored: try again, later or at another worker
          QueueFull 429, CommitFailed 500, UnexpectedReply 502, Busy 503 (Draining, NoWorker), DiskFull 507

The text of an error goes over the wire as it is: it says what was wrong, then what would be right.
"""

from typing import ClassVar


class RequeueError(Exception):
    """Root of everything that nats-requeue raises by intention."""


class RefusedError(RequeueError):
    """A message was refused: it is not on disk. `str(error)` is the text that goes over the wire."""

    code: ClassVar[int] = 500
    permanent: ClassVar[bool] = False


class PermanentRefusal(RefusedError):
    """The same message will be refused every time."""

    code = 400
    permanent = True


class MalformedMessage(PermanentRefusal):
    """The bytes, a header or a subject break the wire contract (400)."""

    code = 400


class SubjectNotAllowed(PermanentRefusal):
    """The original subject is one that this worker may not write to (403)."""

    code = 403


class ReadOnly(PermanentRefusal):
    """The worker's admin API answers questions and changes nothing: `admin.read_only` (405)."""

    code = 405


class MessageTooLarge(PermanentRefusal):
    """With the headers that a replay adds, the message would exceed the server's `max_payload` (413)."""

    code = 413


class TransientRefusal(RefusedError):
    """Nothing was stored and nothing is wrong with the message: sending it again may succeed."""

    code = 503


class QueueFull(TransientRefusal):
    """The queue has reached its `max_messages` or `max_bytes` (429)."""

    code = 429


class CommitFailed(TransientRefusal):
    """The write to disk failed (500)."""

    code = 500


class UnexpectedReply(TransientRefusal):
    """Somebody answered who is no worker, so that nothing is known to be stored (502, client side only)."""

    code = 502


class Busy(TransientRefusal):
    """The worker takes nothing in at the moment (503)."""

    code = 503


class Draining(Busy):
    """The worker is shutting down (503)."""


class NoWorker(Busy):
    """Nobody listens on the intake subject (503, client side only: the server's no-responders)."""


class DiskFull(TransientRefusal):
    """The disk under the data directory is full (507)."""

    code = 507


_BY_CODE: dict[int, type[RefusedError]] = {
    kind.code: kind
    for kind in (
        MalformedMessage,
        SubjectNotAllowed,
        ReadOnly,
        MessageTooLarge,
        QueueFull,
        CommitFailed,
        UnexpectedReply,
        Busy,
        DiskFull,
    )
}


def refusal_for(code: int, text: str) -> RefusedError:
    """The error for a code that came over the wire (client side).

    A code of a newer worker falls back to its class: 4xx is permanent, everything else transient.
    503 gives `Busy`: on the wire a draining worker and a busy one are told apart by text alone.
    """
    known = _BY_CODE.get(code)
    if known is not None:
        return known(text)
    return (PermanentRefusal if 400 <= code < 500 else TransientRefusal)(f"{code} {text}".rstrip())
