"""One change of pending messages over all instances: counted, then done step by step until each instance is through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from requeue_protocol.admin import AdminSubject
from requeue_protocol.changes import MOST_IDS, ChangeAnswer, ChangeRequest

from requeue_client.service import AdminClient


@dataclass(frozen=True, slots=True)
class Tally:
    """By instance: how many messages were changed (or would be), and how many are meant and in flight."""

    changed: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Changing:
    """A purge or a move, as `subject` and `request` say, of these ids (any number) or of what the filter means."""

    admin: AdminClient
    subject: AdminSubject
    request: ChangeRequest
    ids: Sequence[str] = ()
    #: what is done so far
    done: Tally = field(default_factory=Tally)

    async def count(self) -> Tally:
        """What it would change by now; nothing is changed. Raises as `AdminClient.ask`."""
        counted = Tally()
        await self._walk(counted, dry_run=True, on_step=lambda: None)
        return counted

    async def run(self, on_step: Callable[[], None] = lambda: None) -> Tally:
        """Do it. What is published meanwhile is left alone, so is what handlers have.

        Raises as `AdminClient.ask`; what was changed by then stays so, and stands in `done`.
        """
        await self._walk(self.done, dry_run=False, on_step=on_step)
        return self.done

    async def _walk(self, tally: Tally, *, dry_run: bool, on_step: Callable[[], None]) -> None:
        for ids in self._chunks():
            request = self.request.model_copy(update={"dry_run": dry_run, "ids": ids})
            async for page in self.admin.pages(self.subject, request, ChangeAnswer):
                tally.changed[page.instance] += page.changed
                tally.in_flight[page.instance] += page.in_flight
                on_step()

    def _chunks(self) -> Iterator[tuple[str, ...]]:
        ids = tuple(dict.fromkeys(self.ids))
        yield from (ids[first : first + MOST_IDS] for first in range(0, max(len(ids), 1), MOST_IDS))
