"""One HTTP address for all shards: what each says, together.

A shard that is just being started again makes it not ready, but is no reason to restart all: `/livez` goes on. Metrics have
the label `shard`; sums are the reader's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp
from aiohttp import web
from requeue_worker.http import HttpAddress, HttpListenError, listening
from requeue_worker.shards import Probe

_TIMEOUT_S: Final = 4.0
_SCRAPE_TIMEOUT_S: Final = 30.0


class ShardHttp:
    """Serves from `start` to `close`."""

    def __init__(self, address: str, shards: Callable[[], list[Probe]]) -> None:
        self.address = HttpAddress.parse(address)
        self._shards = shards

    async def start(self) -> None:
        """Listen. Raises HttpListenError."""
        app = web.Application(client_max_size=0)
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/overview", self._overview)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        try:
            self._runner, self.address = await listening(app, self.address)
        except HttpListenError:
            await self._session.close()
            raise

    async def close(self) -> None:
        """End open connections within a second."""
        await self._runner.cleanup()
        await self._session.close()

    async def _live(self, _: web.Request) -> web.Response:
        return await self._probe("/livez", when_not_running=(True, "is being started again"))

    async def _ready(self, _: web.Request) -> web.Response:
        return await self._probe("/readyz", when_not_running=(False, "is being started again"))

    async def _probe(self, path: str, when_not_running: tuple[bool, str]) -> web.Response:
        async def ask(shard: Probe) -> tuple[bool, str]:
            if not shard.is_running:
                return when_not_running
            status, text = await self._get(shard, path, _TIMEOUT_S)
            return status == 200, text.strip()

        shards = self._shards()
        answers = await asyncio.gather(*(ask(shard) for shard in shards))
        lines = [f"shard {shard.number}: {text}\n" for shard, (_, text) in zip(shards, answers, strict=True)]
        status = 200 if all(well for well, _ in answers) else 503
        return web.Response(status=status, text="".join(lines), headers={"Cache-Control": "no-store"})

    async def _metrics(self, _: web.Request) -> web.Response:
        shards = self._shards()
        texts = await self._texts(shards, "/metrics")
        body = await asyncio.to_thread(merged, texts)
        return web.Response(
            body=(own_metrics(shards, texts) + body).encode(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _overview(self, _: web.Request) -> web.Response:
        """Each line has its instance; a shard that does not answer has none."""
        texts = await self._texts(self._shards(), "/overview")
        headers = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"}
        return web.Response(body="".join(texts.values()).encode(), headers=headers)

    async def _texts(self, shards: list[Probe], path: str) -> dict[int, str]:
        running = [shard for shard in shards if shard.is_running]
        answers = await asyncio.gather(*(self._get(each, path, _SCRAPE_TIMEOUT_S) for each in running))
        found = zip(running, answers, strict=True)
        return {shard.number: text for shard, (status, text) in found if status == 200}

    async def _get(self, shard: Probe, path: str, timeout_s: float) -> tuple[int, str]:
        url = f"http://127.0.0.1:{shard.port}{path}"
        try:
            async with asyncio.timeout(timeout_s), self._session.get(url) as response:
                return response.status, await response.text()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return 0, f"does not answer: {error or 'no answer in time'}"


def own_metrics(shards: list[Probe], texts: Mapping[int, str]) -> str:
    """Of the shards as processes, in Prometheus text format. `texts`: of those that answered."""
    lines = ["# HELP requeue_shard_up 1 while the shard answers.", "# TYPE requeue_shard_up gauge"]
    lines += [f'requeue_shard_up{{shard="{each.number}"}} {int(each.number in texts)}' for each in shards]
    lines += ["# HELP requeue_shard_restarts_total Times that it ended by itself and was started again."]
    lines += ["# TYPE requeue_shard_restarts_total counter"]
    lines += [f'requeue_shard_restarts_total{{shard="{each.number}"}} {each.restarts}' for each in shards]
    return "\n".join(lines) + "\n"


def merged(texts: Mapping[int, str]) -> str:
    """Metrics in Prometheus text format, by shard: one text, each family whole, each sample with the label `shard`."""
    families: dict[str, list[str]] = {}
    for number, text in texts.items():
        lines: list[str] = []
        is_new = False
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                is_new = name not in families
                lines = families.setdefault(name, [])
            if line.startswith("#"):
                lines += [line] if is_new else []
            elif line:
                lines.append(_labelled(line, number))
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


def _labelled(sample: str, number: int) -> str:
    name, space, value = sample.partition(" ")
    brace = name.find("{")
    if brace >= 0:
        return f'{sample[: brace + 1]}shard="{number}",{sample[brace + 1 :]}'
    return f'{name}{{shard="{number}"}}{space}{value}'
