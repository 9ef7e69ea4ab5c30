"""The worker as a process: signals, HTTP endpoints, backups, and the configuration file, around one `Worker`.

    start: HTTP → worker → web view → control → watch          stop: on SIGTERM or SIGINT, or when the worker ends by itself

A first signal stops gracefully, within `shutdown_grace`: HTTP goes on answering (not ready) until the worker has
stopped. A second signal ends the process at once; nothing acknowledged is lost by that, the store is crash-safe.
An embedding program uses `Worker` itself and does without this module.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing

from requeue_worker.app import Worker
from requeue_worker.control import Control
from requeue_worker.counts import QueueSnapshot
from requeue_worker.hooks import Hooks
from requeue_worker.http import HttpServer
from requeue_worker.settings import Settings
from requeue_worker.shards import listener, shard_number, watch_supervisor
from requeue_worker.watcher import watch_settings

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(settings: Settings, ready: Callable[[], None]) -> None:
    """Run a worker until a signal stops it. `ready` is called once, when its subscription is live.

    Raises DataDirError when the data cannot be opened, HttpListenError when the address cannot be listened on,
    and whatever else ended the worker.
    """
    stop = _stop_signal()
    worker = Worker(settings, Hooks(ready=ready))
    started = asyncio.Event()
    async with AsyncExitStack() as stack:
        # Left in reverse: the watch ends first, then the worker stops, and HTTP answers until it has.
        given = listener()
        if given is not None:
            watch_supervisor(stop.set)
        if given is not None or settings.http is not None:
            await _serve_http(given or settings.http or "", worker, started, stack)
        await stack.enter_async_context(worker)
        started.set()
        if settings.web.listen is not None and shard_number() in (None, 0):
            await _serve_web(worker, stack)
        control = Control(settings.data_dir, settings.instance_id, worker.checkpoint)
        await control.start()
        stack.push_async_callback(control.close)
        watch = asyncio.create_task(_follow_configuration(settings, worker), name="configuration")
        stack.callback(watch.cancel)
        ends = {asyncio.create_task(worker.closed()), asyncio.create_task(stop.wait())}
        for end in ends:
            stack.callback(end.cancel)
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    await worker.closed()


def _stop_signal() -> asyncio.Event:
    """An event that the first signal sets; the second one ends the process."""
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("ended at once by a second signal", extra={"signal": number.name})
            os._exit(128 + number)
        log.info("stopping: a signal asks for it", extra={"signal": number.name})
        stop.set()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    return stop


async def _serve_http(
    address: str | socket.socket, worker: Worker, started: asyncio.Event, stack: AsyncExitStack
) -> None:
    from requeue_worker.metrics import Metrics  # noqa: PLC0415 - prometheus-client only when HTTP is on

    def snapshot() -> Iterable[QueueSnapshot]:
        return worker.reporter.snapshot() if started.is_set() else ()

    def overview() -> AsyncIterator[bytes] | None:
        return worker.overview() if started.is_set() else None

    metrics = Metrics(worker.counts, snapshot, lambda: worker.nats_connected, intake=worker.settings.intake)
    http = HttpServer(
        address, live=worker.live, ready=worker.ready, registry=metrics.registry, overview=overview
    )
    await http.start()
    stack.push_async_callback(http.close)
    log.info("HTTP is listening", extra={"address": str(http.address)})


async def _serve_web(worker: Worker, stack: AsyncExitStack) -> None:
    from requeue_worker.web.server import WebServer  # noqa: PLC0415 - only when the view is on

    settings = worker.settings
    view = WebServer(
        settings.web,
        settings.instance_id,
        changes=settings.web.changes and not settings.admin.read_only,
        endpoints=worker.service,
        fleet=worker.fleet(),
    )
    await view.start()
    stack.push_async_callback(view.close)
    log.info("the web view is listening", extra={"address": str(view.address)})


async def _follow_configuration(settings: Settings, worker: Worker) -> None:
    try:
        async with aclosing(watch_settings(settings)) as changes:
            async for changed in changes:
                worker.use(changed)
    except Exception:
        # A worker without reload is better than none: messages go on.
        log.exception("the configuration is no longer watched; a change needs a restart")
