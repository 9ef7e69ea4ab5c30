"""The whole look, in the order in which one thing needs the other; it ends where the rest could only fail."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from requeue_protocol.admin import (
    INSTANCES,
    QUEUES,
    InstanceAnswer,
    InstancesRequest,
    QueueEntry,
    QueuesAnswer,
    QueuesRequest,
)

from requeue_client.check import SUBJECT, NotReplayed, check
from requeue_client.client import RequeueClient
from requeue_client.doctor import connection, workers
from requeue_client.doctor.connection import Denied, Ears
from requeue_client.doctor.findings import Finding, fail, ok
from requeue_client.doctor.workers import Asked
from requeue_client.errors import DiskFull, NotConnected, NoWorker, PublishTimeout, RequeueError
from requeue_client.options import Connection
from requeue_client.service import AdminClient


async def diagnose(how: Connection, *, intake: str, probe: bool, timeout_s: float) -> AsyncIterator[Finding]:
    """Look at everything, and tell each thing as it is found. Each step may take `timeout_s`.

    Raises ContextError, as `Connection.open`.
    """
    ears = Ears()
    try:
        client = await how.open(intake=intake, timeout_s=timeout_s, on_error=ears.hear)
    except NotConnected as error:
        yield connection.refused_to_connect(ears.errors, str(error))
        return
    async with client:
        for finding in await connection.examine(client.nc):
            yield finding
        try:
            await _subscribe(client, probe)
            ears.raise_denied()
            async for finding in _ask(client, ears, timeout_s):
                yield finding
            if probe:
                yield await _probe(client, ears, timeout_s)
        except Denied as denial:
            yield connection.denied(denial)
            return
        yield ok(
            "permissions",
            "nothing that was tried is forbidden" + ("" if probe else "; the intake was not tried"),
        )


async def _subscribe(client: RequeueClient, probe: bool) -> None:
    """Subscribe to all that is needed; what is denied is heard by the end of this."""
    await client.inbox.open()
    if probe:
        await (await client.nc.subscribe(f"{SUBJECT}.doctor")).unsubscribe()
    # nats-py's flush overtakes a command that still waits for its flusher: the second one is behind it.
    await client.nc.flush()
    await client.nc.flush()


async def _ask(client: RequeueClient, ears: Ears, timeout_s: float) -> AsyncIterator[Finding]:
    admin = AdminClient(client, timeout_s=timeout_s)
    before_ns = time.time_ns()
    try:
        answers = await ears.during(admin.ask(INSTANCES, InstancesRequest(), InstanceAnswer))
    except NoWorker as error:
        yield fail("workers", str(error), "start one: requeue-worker run --server URL --data-dir DIR")
        return
    except RequeueError as error:
        yield fail("workers", f"the admin API can't be used: {error}", "look for who else answers there")
        return
    for finding in workers.examine(Asked(tuple(answers), before_ns, time.time_ns())):
        yield finding
    wrong = False
    for answer in answers:
        try:
            entries = await _queues(AdminClient(client, instance=answer.instance, timeout_s=timeout_s))
        except RequeueError as error:
            wrong = True
            yield fail("queues", f"{answer.instance} did not tell its queues: {error}", "is it still there?")
            continue
        for finding in workers.examine_queues(answer.instance, entries, answer.time_ns):
            wrong = True
            yield finding
    if not wrong:
        yield ok("queues", f"{sum(each.queues for each in answers)}: none is late or paused, no dead letters")


async def _queues(one: AdminClient) -> list[QueueEntry]:
    entries: list[QueueEntry] = []
    async for page in one.pages(QUEUES, QueuesRequest(), QueuesAnswer):
        entries += page.queues
    return entries


async def _probe(client: RequeueClient, ears: Ears, timeout_s: float) -> Finding:
    """A message of our own through a worker and back. Raises Denied."""
    try:
        done = await ears.during(check(client, timeout_s=timeout_s))
    except NotReplayed as error:
        advice = (
            "allow the workers to publish to requeue-check.> and to subscribe to _INBOX.>; see their logs"
        )
        return fail("round trip", str(error), advice)
    except DiskFull as error:
        return fail("round trip", str(error), "make room or grow the volume; docs/operations.md, A full disk")
    except (NoWorker, PublishTimeout) as error:
        advice = "start a worker that subscribes to it (--intake here, --subject there)"
        return fail("round trip", f"no worker takes messages: {error}", advice)
    except RequeueError as error:
        return fail("round trip", str(error), "docs/operations.md, Faults, has what each refusal means")
    return ok(
        "round trip",
        f"a message was on disk after {done.on_disk_s * 1e3:.0f} ms and back after {done.back_s * 1e3:.0f} ms",
    )
