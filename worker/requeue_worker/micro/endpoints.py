"""The endpoints of the admin API, in the order in which `nats micro info` shows them."""

from __future__ import annotations

from typing import Any, Final

from requeue_protocol.admin import (
    COUNT,
    GET,
    INSTANCES,
    LIST,
    QUEUES,
    STATS,
    AdminSubject,
    CancelAnswer,
    CountAnswer,
    CountRequest,
    GetAnswer,
    GetRequest,
    IdRequest,
    InstanceAnswer,
    InstancesRequest,
    ListAnswer,
    ListRequest,
    QueuesAnswer,
    QueuesRequest,
    RescheduleAnswer,
    RescheduleRequest,
    StatsAnswer,
    StatsRequest,
)
from requeue_protocol.changes import (
    MOVE,
    PAUSE,
    PURGE,
    RESUME,
    ChangeAnswer,
    MoveRequest,
    PauseAnswer,
    PauseRequest,
    PurgeRequest,
    ResumeRequest,
)
from requeue_protocol.dead_letters import (
    DEAD_DELETE,
    DEAD_EXPORT,
    DEAD_IMPORT,
    DEAD_KNOWN,
    KEYS_LIMIT,
    DeadDeleteAnswer,
    DeadDeleteRequest,
    DeadExportAnswer,
    DeadExportRequest,
    DeadImportAnswer,
    DeadImportRequest,
    DeadKnownAnswer,
    DeadKnownRequest,
)
from requeue_protocol.redrive import (
    CANCEL_JOB,
    JOBS,
    REDRIVE,
    CancelJobRequest,
    JobsAnswer,
    JobsRequest,
    RedriveAnswer,
    RedriveRequest,
)
from requeue_worker.admin import CANCEL, RESCHEDULE, Admin
from requeue_worker.micro.browse import Browse
from requeue_worker.micro.changing import Changes
from requeue_worker.micro.dead import DeadEndpoints
from requeue_worker.micro.overview import Overview
from requeue_worker.micro.pauses import Pauses
from requeue_worker.micro.redrive import Redrives
from requeue_worker.micro.service import MAX_REQUEST_BYTES, Endpoint

#: KEYS_LIMIT keys of the longest queue name with the longest ids
_KEYS_BYTES: Final = MAX_REQUEST_BYTES + KEYS_LIMIT * (320 + 520)


def endpoints(
    overview: Overview,
    browse: Browse,
    admin: Admin,
    redrives: Redrives,
    dead: DeadEndpoints,
    pauses: Pauses,
    changes: Changes,
) -> list[Endpoint[Any]]:
    """All of them."""
    by_id = admin.endpoints
    return [
        Endpoint(INSTANCES, InstancesRequest, InstanceAnswer, overview.instances, changes=False),
        Endpoint(QUEUES, QueuesRequest, QueuesAnswer, overview.queues, changes=False),
        Endpoint(STATS, StatsRequest, StatsAnswer, overview.stats, changes=False),
        Endpoint(LIST, ListRequest, ListAnswer, browse.list_messages, changes=False),
        Endpoint(COUNT, CountRequest, CountAnswer, browse.count, changes=False),
        Endpoint(GET, GetRequest, GetAnswer, browse.get, changes=False),
        Endpoint(AdminSubject("cancel"), IdRequest, CancelAnswer, None, by_id[CANCEL], changes=True),
        Endpoint(
            AdminSubject("reschedule"),
            RescheduleRequest,
            RescheduleAnswer,
            None,
            by_id[RESCHEDULE],
            changes=True,
        ),
        Endpoint(PAUSE, PauseRequest, PauseAnswer, pauses.pause, changes=True),
        Endpoint(RESUME, ResumeRequest, PauseAnswer, pauses.resume, changes=True),
        Endpoint(PURGE, PurgeRequest, ChangeAnswer, changes.purge, changes=True),
        Endpoint(MOVE, MoveRequest, ChangeAnswer, changes.move, changes=True),
        Endpoint(REDRIVE, RedriveRequest, RedriveAnswer, redrives.redrive, changes=True),
        Endpoint(JOBS, JobsRequest, JobsAnswer, redrives.jobs, changes=False),
        Endpoint(CANCEL_JOB, CancelJobRequest, JobsAnswer, redrives.cancel, changes=True),
        Endpoint(
            DEAD_DELETE,
            DeadDeleteRequest,
            DeadDeleteAnswer,
            dead.delete,
            most_bytes=_KEYS_BYTES,
            changes=True,
        ),
        Endpoint(DEAD_EXPORT, DeadExportRequest, DeadExportAnswer, None, dead.export, changes=False),
        Endpoint(
            DEAD_KNOWN, DeadKnownRequest, DeadKnownAnswer, dead.known, most_bytes=_KEYS_BYTES, changes=False
        ),
        Endpoint(DEAD_IMPORT, DeadImportRequest, DeadImportAnswer, None, dead.import_letters, changes=True),
    ]
