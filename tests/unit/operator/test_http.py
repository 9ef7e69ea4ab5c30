"""`/livez` and `/metrics` of the operator."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from requeue_operator.http import Address, ListenError, serving
from requeue_operator.metrics import Metrics

_ANY = Address("127.0.0.1", 0)


async def _get(port: int, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        return response.status, await response.text()


def _samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_livez_says_what_is_wrong() -> None:
    wrong: list[str | None] = [None]
    async with serving(_ANY, lambda: wrong[0], Metrics().registry) as port:
        assert await _get(port, "/livez") == (200, "alive\n")
        wrong[0] = "the reconcile of shop/orders does not end, for 700 s now"
        assert await _get(port, "/livez") == (503, f"{wrong[0]}\n")


async def test_metrics_count_reconciles_requests_and_states() -> None:
    metrics = Metrics()
    metrics.reconciled(0.2, failed=False)
    metrics.reconciled(0.2, failed=True)
    metrics.requested("GET", 429)
    stalled = {"status": {"conditions": [{"type": "Stalled", "status": "True"}]}}
    metrics.see_queue("shop", "gone", stalled)
    metrics.see_queue("shop", "gone", None)
    metrics.see_queue("shop", "orders", {"status": {"observedGeneration": -1}})
    metrics.see_queue("shop", "orders", stalled)
    metrics.see_queue("shop", "new", {"status": {"observedGeneration": -1}})
    async with serving(_ANY, lambda: None, metrics.registry) as port:
        status, text = await _get(port, "/metrics")
    found = _samples(text)
    assert status == 200
    assert found["requeue_operator_reconciles_total", ("ok",)] == 1
    assert found["requeue_operator_reconciles_total", ("failed",)] == 1
    assert found["requeue_operator_reconcile_seconds_count", ()] == 2
    assert found["requeue_operator_api_requests_total", ("GET", "429")] == 1
    states = {key[1][0]: n for key, n in found.items() if key[0] == "requeue_operator_requeuequeues"}
    assert states == {"ready": 0, "reconciling": 0, "stalled": 1, "unknown": 1}
    assert found["process_resident_memory_bytes", ()] > 0


async def test_an_address_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            async with serving(Address("127.0.0.1", port), lambda: None, Metrics().registry):
                pass


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), (":8080", (None, 8080)), ("[::1]:1", ("::1", 1))],
)
def test_an_address_is_read(text: str, address: tuple[str | None, int]) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["8080", "localhost", "::1:80", "a:70000", "a:-1", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        Address.parse(text)
