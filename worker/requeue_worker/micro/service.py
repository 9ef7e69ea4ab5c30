"""A NATS micro service (ADR-32 of nats-architecture-and-design) over the worker's own subscriptions.

    $SRV.PING | INFO | STATS [.requeue [.<instance>]]     who is there, what it answers, how often it did
    _requeue.admin.<endpoint>                             each instance answers
    _requeue.admin.<endpoint>.<instance>                  that one does

nats-py has such services too. Theirs can't do without a queue group, and know nothing of subscriptions that a server
denies and allows again later; `broker/subscriptions.py` does.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from requeue_protocol.admin import (
    INFO_TYPE,
    PING_TYPE,
    SERVICE_NAME,
    STATS_TYPE,
    AdminRequest,
    AdminSubject,
    instance_token,
    mistakes_of,
)
from requeue_protocol.errors import Busy, MalformedMessage, ReadOnly, RefusedError
from requeue_protocol.headers import ERROR, ERROR_CODE, build_headers
from requeue_protocol.replies import one_line
from requeue_worker.broker.nats import Answer
from requeue_worker.errors import CommitError, DataDamaged

log = logging.getLogger(__name__)

DESCRIPTION: Final = "Durable delay, retry and dead letters: admin API of a requeue worker"
MAX_REQUEST_BYTES: Final = 16 << 10
_READ_ONLY: Final = (
    "nothing was changed: the admin API is read-only here (the worker's setting admin.read_only)"
)

R = TypeVar("R", bound=AdminRequest)
Respond = Callable[[bytes], Awaitable[Answer | bytes]]


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[R]):
    """What is answered under one name, and the shapes of request and answer."""

    subject: AdminSubject
    request: type[R]
    answer: type[BaseModel]
    handle: Callable[[R], Awaitable[BaseModel]] | None
    #: answers bytes by bytes, where it is there instead of `handle`
    raw: Callable[[bytes], Awaitable[bytes]] | None = None
    _: KW_ONLY
    most_bytes: int = MAX_REQUEST_BYTES  #: of a request
    #: whether it changes anything: `admin.read_only` switches it off. No default: whoever adds one decides
    changes: bool

    @property
    def metadata(self) -> dict[str, str]:
        """The JSON schemas of request and answer."""
        return {
            "request_schema": _compact(self.request.model_json_schema()),
            "response_schema": _compact(self.answer.model_json_schema()),
        }


@dataclass(slots=True)
class _Tally:
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_ns: int = 0


@dataclass(slots=True)
class _Served:
    """An endpoint on one subject: ADR-32 counts each by itself."""

    name: str
    subject: str
    endpoint: Endpoint[Any]
    tally: _Tally = field(default_factory=_Tally)


class Service:
    """Discovery and endpoints of one instance."""

    def __init__(
        self,
        instance_id: str,
        fleet: str,
        version: str,
        started: str,
        endpoints: list[Endpoint[Any]],
        *,
        read_only: bool,
    ) -> None:
        self._read_only = read_only
        self._instance_id = instance_id
        self._started = started
        self._identity = {
            "name": SERVICE_NAME,
            "id": instance_token(instance_id),
            "version": version,
            "metadata": {"instance": instance_id, "fleet": fleet},
        }
        self._served = [
            _Served(name, subject, endpoint)
            for endpoint in endpoints
            for name, subject in (
                (endpoint.subject.endpoint, endpoint.subject.everybody),
                (f"{endpoint.subject.endpoint}-one", endpoint.subject.one(instance_id)),
            )
        ]

    def subjects(self) -> Iterator[tuple[str, Respond]]:
        """Every subject to subscribe to, and who answers there."""
        for verb, say in (("PING", self._ping), ("INFO", self._info), ("STATS", self._stats)):
            for of in ("", f".{SERVICE_NAME}", f".{SERVICE_NAME}.{self._identity['id']}"):
                yield f"$SRV.{verb}{of}", _discovery(say)
        for served in self._served:
            yield served.subject, self._responder(served)

    def changes(self, endpoint: str) -> bool | None:
        """Whether this endpoint changes anything; None when there is none of that name."""
        found = [served.endpoint for served in self._served if served.name == endpoint]
        return found[0].changes if found else None

    async def answer(self, endpoint: str, payload: bytes) -> bytes:
        """What this instance answers there: JSON, of an error too. Raises KeyError."""
        responders = {served.name: served for served in self._served}
        answer = await self._responder(responders[endpoint])(payload)
        return answer if isinstance(answer, bytes) else answer.payload

    # -- discovery -------------------------------------------------------------------------------------------

    def _ping(self) -> dict[str, object]:
        return {"type": PING_TYPE, **self._identity}

    def _info(self) -> dict[str, object]:
        endpoints = [
            {
                "name": served.name,
                "subject": served.subject,
                "queue_group": "",
                "metadata": served.endpoint.metadata,
            }
            for served in self._served
        ]
        return {"type": INFO_TYPE, **self._identity, "description": DESCRIPTION, "endpoints": endpoints}

    def _stats(self) -> dict[str, object]:
        endpoints = [
            {
                "name": served.name,
                "subject": served.subject,
                "queue_group": "",
                "num_requests": served.tally.requests,
                "num_errors": served.tally.errors,
                "last_error": served.tally.last_error,
                "processing_time": served.tally.processing_ns,
                "average_processing_time": served.tally.processing_ns // max(served.tally.requests, 1),
            }
            for served in self._served
        ]
        return {"type": STATS_TYPE, **self._identity, "started": self._started, "endpoints": endpoints}

    # -- endpoints -------------------------------------------------------------------------------------------

    def _responder(self, served: _Served) -> Respond:
        async def respond(payload: bytes) -> Answer | bytes:
            tally, began_ns = served.tally, time.monotonic_ns()
            tally.requests += 1
            try:
                if self._read_only and served.endpoint.changes:
                    raise ReadOnly(_READ_ONLY)
                return await _answer(served.endpoint, payload)
            except (ValueError, RecursionError) as error:
                text = mistakes_of(error) if isinstance(error, ValidationError) else str(error)
                return self._refuse(tally, MalformedMessage.code, text)
            except RefusedError as error:
                return self._refuse(tally, error.code, str(error))
            except (CommitError, DataDamaged) as error:
                return self._refuse(tally, Busy.code, str(error))
            finally:
                tally.processing_ns += time.monotonic_ns() - began_ns

        return respond

    def _refuse(self, tally: _Tally, code: int, text: str) -> Answer:
        tally.errors += 1
        tally.last_error = f"{code}:{text}"
        body = {"instance": self._instance_id, "error": text, "code": code}
        block = build_headers([(ERROR, one_line(text)), (ERROR_CODE, str(code))])
        return Answer(json.dumps(body).encode(), block)


async def _answer(endpoint: Endpoint[Any], payload: bytes) -> bytes:
    if endpoint.raw is not None:
        return await endpoint.raw(payload)
    if len(payload) > endpoint.most_bytes:
        raise ValueError(f"the request has {len(payload)} bytes: {endpoint.most_bytes} are enough")
    request = endpoint.request.model_validate_json(payload or b"{}")
    assert endpoint.handle is not None
    answer: BaseModel = await endpoint.handle(request)
    return answer.model_dump_json().encode()


def _discovery(say: Callable[[], dict[str, object]]) -> Respond:
    async def respond(_: bytes) -> bytes:
        return json.dumps(say()).encode()

    return respond


def _compact(schema: dict[str, Any]) -> str:
    return json.dumps(schema, separators=(",", ":"))
