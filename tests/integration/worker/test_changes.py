"""Changes by the admin API, asked as any NATS client asks."""

from __future__ import annotations

import json

import pytest
from nats.aio.client import Client
from requeue_client import ReadOnly, RequeueClient

from tests.integration.worker.support import StartWorker, ask

LOOKS = {"instances", "queues", "stats", "list", "count", "get", "jobs"}


# -- admin.read_only ---------------------------------------------------------------------------------------------


async def test_a_read_only_api_refuses_every_change_and_answers_questions(
    start: StartWorker, nc: Client
) -> None:
    worker = await start(admin={"read_only": True})
    await worker.publish_plain("jobs.a", b"", {"Nats-Msg-Id": "x", "Requeue-Delay": "1h"})
    before = worker.pending()
    info = json.loads((await ask(nc, "$SRV.INFO.requeue.tested", b"")).data)
    refused = set()
    for endpoint in info["endpoints"]:
        answer = await ask(nc, endpoint["subject"], b'{"id": "x", "delay_ns": 0}')
        if json.loads(answer.data).get("code") == 405:
            assert answer.headers is not None
            assert answer.headers["Nats-Service-Error-Code"] == "405"
            assert "admin.read_only" in answer.headers["Nats-Service-Error"]
            refused.add(endpoint["name"])
    names = {endpoint["name"] for endpoint in info["endpoints"]}
    assert refused == names - LOOKS - {f"{name}-one" for name in LOOKS}
    assert worker.pending() == before


async def test_a_client_is_told_by_type_that_the_api_is_read_only_and_not_to_ask_again(
    start: StartWorker, nc: Client
) -> None:
    await start(admin={"read_only": True})
    client = RequeueClient(nc)
    for changed in (client.cancel("x"), client.reschedule("x", delay="1h")):
        with pytest.raises(ReadOnly, match="worker tested: nothing was changed") as told:
            await changed
        assert "ask again" not in str(told.value)


async def test_an_error_of_cancel_and_reschedule_is_counted_and_has_the_headers_of_any_service(
    start: StartWorker, nc: Client
) -> None:
    await start()
    for name in ("cancel", "reschedule"):
        answer = await ask(nc, f"_requeue.admin.{name}", b'{"id": ""}')
        assert answer.headers is not None
        assert answer.headers["Nats-Service-Error-Code"] == "400"
        assert answer.headers["Nats-Service-Error"] == json.loads(answer.data)["error"]
    stats = json.loads((await ask(nc, "$SRV.STATS.requeue.tested", b"")).data)
    errors = {each["name"]: each["num_errors"] for each in stats["endpoints"]}
    assert (errors["cancel"], errors["reschedule"]) == (1, 1)
