"""The web view's HTTP part, without a browser: what it answers, for whom, and whom it refuses."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from requeue_worker.settings import Settings
from requeue_worker.web.server import WebServer
from requeue_worker.web.settings import WebSettings

from tests.integration.worker.support import LiveWorker, StartWorker
from tests.servers import until

HOUR_NS = 3600 * 10**9


@asynccontextmanager
async def viewed(
    live: LiveWorker, *, changes: bool = False, **said: Any
) -> AsyncIterator[aiohttp.ClientSession]:
    """The view of a worker."""
    worker = live.worker
    view = WebServer(
        WebSettings(listen="127.0.0.1:0", **said),
        worker.settings.instance_id,
        changes=changes,
        endpoints=worker.service,
        fleet=worker.fleet(),
    )
    await view.start()
    try:
        async with aiohttp.ClientSession(f"http://{view.address}") as session:
            yield session
    finally:
        await view.close()


async def ask(http: aiohttp.ClientSession, endpoint: str, query: str = "", **request: Any) -> tuple[int, Any]:
    async with http.post(f"/ui/api/{endpoint}{query}", json=request) as response:
        return response.status, await response.json()


async def test_one_view_shows_the_queues_of_all_instances_once_each(
    start: StartWorker, tmp_path: Path
) -> None:
    worker = await start()
    second = await start(instance_id="second.one", data_dir=tmp_path / "other", intake=False)
    await worker.publish("jobs.a", queue="mail", delay_ns=HOUR_NS)
    for each in (worker, second):
        async with viewed(each) as http:
            status, said = await ask(http, "queues")
            assert (status, said["silent"]) == (200, 0)
            found = {answer["instance"]: [q["name"] for q in answer["queues"]] for answer in said["answers"]}
            assert found == {"tested": ["mail"], "second.one": []}
            assert len(said["answers"]) == 2
            _, alone = await ask(http, "queues", "?instance=second.one")
            assert [answer["instance"] for answer in alone["answers"]] == ["second.one"]


async def test_an_instance_that_is_gone_is_silent_and_then_forgotten(
    start: StartWorker, tmp_path: Path
) -> None:
    worker = await start()
    second = await start(instance_id="second", data_dir=tmp_path / "other", intake=False)
    async with viewed(worker) as http:
        assert len((await ask(http, "instances"))[1]["answers"]) == 2
        await second.worker.stop()
        _, said = await ask(http, "instances")
        assert ([answer["instance"] for answer in said["answers"]], said["silent"]) == (["tested"], 1)
        _, nobody = await ask(http, "instances", "?instance=second")
        assert nobody == {"answers": [], "silent": 1}


async def test_dead_letters_are_listed_and_their_lateness_is_told(start: StartWorker) -> None:
    worker = await start()
    await worker.publish("nobody.here", b"gone", queue="lost", retries=1)
    await until(lambda: worker.queue("lost").dead)
    await worker.idle()
    async with viewed(worker) as http:
        _, said = await ask(http, "list", state="dead", reason="exhausted")
        [entry] = said["answers"][0]["messages"]
        assert (entry["subject"], entry["reason"]) == ("nobody.here", "exhausted")
        _, said = await ask(http, "stats")
        late = said["answers"][0]["lateness"]
        assert len(late["counts"]) == len(late["bounds_s"]) + 1
        assert sum(late["counts"]) >= 1


async def test_mistakes_are_told_as_the_admin_api_tells_them(start: StartWorker) -> None:
    worker = await start()
    async with viewed(worker) as http:
        status, said = await ask(http, "list", subject="a..b")
        assert (status, said["answers"][0]["code"]) == (200, 400)
        assert "subject" in said["answers"][0]["error"]
        for endpoint in ("nothing", "queues-one", "cancel", "reschedule", "move", "dead-import"):
            status, said = await ask(http, endpoint)
            assert (status, said["error"]) == (404, f"there is no endpoint {endpoint!r}")
        async with http.post("/ui/api/list", json={"id": "x" * 20_000}) as response:
            assert response.status == 413


async def test_a_view_that_only_shows_changes_nothing(start: StartWorker) -> None:
    worker = await start()
    async with viewed(worker) as http:
        async with http.get("/ui/api/about") as response:
            assert await response.json() == {"instance": "tested", "changes": False}
        for endpoint in ("redrive", "cancel-job", "pause", "resume", "purge", "dead-delete", "dead-export"):
            status, said = await ask(http, endpoint, queue="mail")
            assert (status, "web.changes" in said["error"]) == (403, True), endpoint
    assert "mail" not in worker.worker._registry.by_name
    async with viewed(worker, changes=True) as http:
        status, said = await ask(http, "pause", queue="mail")
        assert (status, said["answers"][0]["known"]) == (200, False)


async def test_a_dead_letter_that_fits_a_message_only_compressed_is_exported_whole_by_all_instances(
    start: StartWorker, tmp_path: Path
) -> None:
    worker = await start()
    second = await start(instance_id="second", data_dir=tmp_path / "other", intake=False)
    await worker.publish("nobody.here", b"x" * 900_000, queue="lost", retries=1)
    await until(lambda: worker.queue("lost").dead)
    await worker.idle()
    for each in (worker, second):
        async with viewed(each, changes=True) as http:
            _, said = await ask(http, "dead-export", "?instance=tested")
            [letter] = said["answers"][0]["letters"]
            assert len(b64decode(letter["payload"])) == 900_000


async def test_chosen_dead_letters_are_deleted_by_the_keys_that_their_list_told(start: StartWorker) -> None:
    worker = await start()
    for _ in range(3):
        await worker.publish("nobody.here", queue="lost", retries=1)
    await until(lambda: len(worker.dead("lost")) == 3)
    async with viewed(worker, changes=True) as http:
        _, said = await ask(http, "list", state="dead")
        [first, kept, last] = said["answers"][0]["messages"]
        _, said = await ask(http, "dead-delete", keys=[first["key"], last["key"]])
        assert said["answers"][0]["deleted"] == 2
    assert [letter.id for letter in worker.dead("lost")] == [kept["id"]]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "requeue.example:8081"}, 200),
        ({"Host": "localhost:8081"}, 200),
        ({"Host": "[::1]:8081"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
async def test_requests_of_other_pages_and_under_other_names_are_refused(
    start: StartWorker, headers: dict[str, str], status: int
) -> None:
    worker = await start()
    async with viewed(worker, changes=True, hosts=["requeue.example"]) as http:
        said = {"Content-Type": "application/json", **headers}
        async with http.post("/ui/api/pause", data=json.dumps({"queue": "mail"}), headers=said) as response:
            assert response.status == status
            assert "Access-Control-Allow-Origin" not in response.headers
        assert ("mail" in worker.worker._registry.by_name) == (status == 200)


async def test_pages_are_own_files_under_a_strict_policy_and_need_nothing_from_elsewhere(
    start: StartWorker,
) -> None:
    worker = await start()
    async with viewed(worker) as http:
        async with http.get("/") as response:
            assert response.url.path == "/ui/"
            page = await response.text()
        assert "http://" not in page
        assert "https://" not in page
        for path, kind in (("", "text/html"), ("app.js", "text/javascript"), ("style.css", "text/css")):
            async with http.get(f"/ui/{path}") as response:
                assert (response.status, response.content_type) == (200, kind)
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert "http://" not in await response.text()
        async with http.get("/ui/../settings.py") as response:
            assert response.status == 404
            assert "Content-Security-Policy" in response.headers


def test_names_of_the_view_are_host_names() -> None:
    assert WebSettings(hosts="A.example, b").hosts == ("a.example", "b")  # type: ignore[arg-type]
    for wrong in ("http://a.example", "a:80", ""):
        with pytest.raises(ValueError, match="host"):
            WebSettings(hosts=(wrong,))
    with pytest.raises(ValueError, match="HOST:PORT"):
        Settings(data_dir=Path("d"), web={"listen": "8081x"})  # type: ignore[arg-type]
