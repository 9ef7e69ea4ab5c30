"""The admin API of one worker: its parts, put together.

Service ─▶ Overview, Browse                    what there is
        ─▶ Admin, Changes, Pauses              pending messages and queues
        ─▶ Redrives, DeadEndpoints             dead letters
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from requeue_worker.admin import Admin
from requeue_worker.counts import Counts
from requeue_worker.deadletters import DeadLetters
from requeue_worker.micro.browse import Browse
from requeue_worker.micro.changing import Changes
from requeue_worker.micro.dead import DeadEndpoints
from requeue_worker.micro.endpoints import endpoints
from requeue_worker.micro.overview import Overview
from requeue_worker.micro.pauses import Pauses
from requeue_worker.micro.redrive import Redrives
from requeue_worker.micro.service import Service
from requeue_worker.micro.turns import Turns
from requeue_worker.registry import QueueRegistry
from requeue_worker.replay import rfc3339
from requeue_worker.scheduler import Scheduler
from requeue_worker.settings import Settings
from requeue_worker.storage.committer import Committer
from requeue_worker.storage.store import Store


class AdminApi:
    """Built after the scheduler, and stopped before it ends: what changes data goes through both."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        committer: Committer,
        registry: QueueRegistry,
        dead_letters: DeadLetters,
        counts: Counts,
        clock: Callable[[], int],
        scheduler: Scheduler,
        *,
        ready: Callable[[], tuple[bool, str]],
        max_payload: Callable[[], int],
        has_room: Callable[[], bool],
    ) -> None:
        instance, release = settings.instance_id, version("nats-requeue")
        self.overview = Overview(
            registry, counts, instance, settings.fleet, release, clock, ready=ready, max_payload=max_payload
        )
        self.looks, self.turns = (Turns(lambda: counts.intake_messages) for _ in range(2))
        turns = self.turns
        browse = Browse(store, registry, instance, self.looks, max_payload=max_payload)
        pauses = Pauses(registry, committer, instance, clock, look_again=scheduler.look_again)
        admin = Admin(store, committer, registry, instance, clock, counts, withdraw=scheduler.withdraw)
        self.changes = Changes(
            store,
            committer,
            registry,
            instance,
            clock,
            counts,
            turns,
            withdraw_all=scheduler.withdraw_all,
            has_room=has_room,
        )
        self.redrives = Redrives(
            store, committer, registry, dead_letters, instance, clock, counts, turns, has_room=has_room
        )
        dead = DeadEndpoints(
            store,
            committer,
            registry,
            dead_letters,
            instance,
            clock,
            counts,
            turns,
            max_payload=max_payload,
            has_room=has_room,
        )
        self.service = Service(
            instance,
            settings.fleet,
            release,
            rfc3339(clock()).decode(),
            endpoints(self.overview, browse, admin, self.redrives, dead, pauses, self.changes),
            read_only=settings.admin.read_only,
        )

    async def stop(self) -> None:
        """End what goes on by itself: redrives stop between two batches, and changes are refused."""
        await self.redrives.stop()
        self.changes.stop()
        self.turns.stop()
        self.looks.stop()
