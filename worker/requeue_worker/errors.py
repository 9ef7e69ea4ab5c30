"""The worker's error tree: what can end a worker, and how a caller tells one end from another."""

from __future__ import annotations

from requeue_protocol.errors import RequeueError


class WorkerError(RequeueError):
    """Base of everything that stops a worker."""


class DataDirError(WorkerError):
    """The instance directory can't be used; nothing in it was changed."""


class DataDirLocked(DataDirError):
    """Another process holds the instance directory."""


class DataDirUnreadable(DataDirError):
    """The instance directory is missing rights, corrupt, or not a directory."""


class DataFormatTooNew(DataDirError):
    """The data was written by a newer release; an older one refuses to touch it."""


class DataDamaged(WorkerError):
    """What the disk gave back is not what was written: a checksum does not agree."""


class CommitError(WorkerError):
    """A batch could not be made durable. Nothing of it was acknowledged."""


class DataDirGone(CommitError):
    """The instance directory was removed, moved or unmounted while it was open: what is written now is lost."""


class BrokerError(WorkerError):
    """NATS refused something that no retry mends (for instance, a subscription without permission)."""


class ClientLibraryChanged(BrokerError):
    """nats-py no longer has the private parts that the bulk reader stands on."""
