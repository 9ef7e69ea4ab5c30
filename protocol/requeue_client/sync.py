"""For programs without an event loop of their own: the same client, its loop in a thread.

`SyncClient` publishes, asks and serves as `RequeueClient` does, each call returning when the work is done;
`run` is the whole main of a program that only handles.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

from requeue_client.admin import AdminResult
from requeue_client.client import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT,
    RequeueClient,
)
from requeue_client.handler import Handler
from requeue_client.message import Message, MessageOptions
from requeue_client.pipeline import Outcome
from requeue_client.publisher import Ack
from requeue_client.requests import Reply, Requeued
from requeue_client.times import Duration, Instant

_Result = TypeVar("_Result")
_Servers = str | list[str]


class ConnectOptions(TypedDict, total=False):
    """What `RequeueClient.connect` takes, but the servers."""

    intake: str
    ack_wait: Duration
    name: str
    user: str | None
    password: str | None
    token: str | None
    creds_file: Path | str | None
    nkey_file: Path | str | None
    tls: ssl.SSLContext | None
    timeout: Duration


class SyncClient:
    """A RequeueClient whose calls block. Any number of threads may use one.

        with SyncClient.connect("nats://127.0.0.1:4222") as requeue:
            requeue.publish("orders.created", b"...", delay="10m")

    Arguments and errors are those of RequeueClient; an error is raised in the thread that called.
    """

    def __init__(self, servers: _Servers = DEFAULT_SERVER, **options: Unpack[ConnectOptions]) -> None:
        """Connect. Raises NotConnected."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requeue-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._do(RequeueClient.connect(servers, **options))
        except BaseException:
            self._end()
            raise

    @classmethod
    def connect(cls, servers: _Servers = DEFAULT_SERVER, **options: Unpack[ConnectOptions]) -> Self:
        """Connect, and reconnect for ever from then on. Raises NotConnected."""
        return cls(servers, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the handlers and close the connection; the second time does nothing."""
        if not self._loop.is_closed():
            try:
                self._do(self._client.close())
            finally:
                self._end()

    def publish(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout: Duration = DEFAULT_TIMEOUT,
        attempts: int | None = None,
        **options: Unpack[MessageOptions],
    ) -> Ack:
        """Hand a message to a worker; returns once it is fsynced there. As `RequeueClient.publish`."""
        return self._do(self._client.publish(subject, payload, timeout=timeout, attempts=attempts, **options))

    def publish_many(
        self,
        messages: Iterable[Message],
        *,
        window: int = 1024,
        timeout: Duration = DEFAULT_TIMEOUT,
        attempts: int | None = None,
    ) -> list[Outcome]:
        """Publish many, at most `window` unanswered at a time; all their outcomes, in any order."""

        async def publish() -> list[Outcome]:
            outcomes = self._client.publish_many(messages, window=window, timeout=timeout, attempts=attempts)
            return [outcome async for outcome in outcomes]

        return self._do(publish())

    def request_or_requeue(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: Duration = "2s",
        *,
        publish_timeout: Duration = DEFAULT_TIMEOUT,
        attempts: int | None = None,
        **options: Unpack[MessageOptions],
    ) -> Reply | Requeued:
        """Request `subject`, and queue the message when nobody answers."""
        return self._do(
            self._client.request_or_requeue(
                subject, payload, timeout, publish_timeout=publish_timeout, attempts=attempts, **options
            )
        )

    def serve(self, *handlers: Handler) -> None:
        """Let handlers take messages from now on, until `close`; returns once their subscriptions stand.

        Functions run in threads of their own. An `async def` runs in this client's loop: it must not block.
        """
        self._do(self._client.serve(*handlers))

    def cancel(self, msg_id: str, *, timeout: Duration = "2s") -> AdminResult:
        """Remove the pending messages with this `Nats-Msg-Id`. As `RequeueClient.cancel`."""
        return self._do(self._client.cancel(msg_id, timeout=timeout))

    def reschedule(
        self,
        msg_id: str,
        *,
        delay: Duration | None = None,
        at: Instant | None = None,
        timeout: Duration = "2s",
    ) -> AdminResult:
        """Make the pending messages with this `Nats-Msg-Id` due after `delay` from now, or at `at`."""
        return self._do(self._client.reschedule(msg_id, delay=delay, at=at, timeout=timeout))

    def _do(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this client is closed; connect a new one")
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a blocking call inside an async handler; use RequeueClient there")
        result: Future[_Result] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return result.result()
        except BaseException:
            result.cancel()  # Ctrl-C while it waits
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def run(
    *handlers: Handler,
    servers: _Servers = DEFAULT_SERVER,
    grace: Duration = "30s",
    **options: Unpack[ConnectOptions],
) -> None:
    """Connect and let handlers take messages until SIGINT or SIGTERM; then finish what is here within `grace`.

        if __name__ == "__main__":
            run(charge, refund, servers="nats://127.0.0.1:4222")

    For the main thread. Raises NotConnected when no server can be reached at the start.
    """
    asyncio.run(_run(handlers, servers, grace, options))


async def _run(
    handlers: tuple[Handler, ...], servers: _Servers, grace: Duration, options: ConnectOptions
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with await RequeueClient.connect(servers, **options) as client:
        serving = await client.serve(*handlers)
        await stop.wait()
        await serving.stop(grace)
