"""Request IDs and the line in the metrics."""

import httpx2
import pytest

from tests.gateway.player import Player
from tests.gateway.running import RunningGateway


async def test_a_request_gets_an_id(client: httpx2.AsyncClient) -> None:
    """Each its own, on answers and refusals alike."""
    ids = [(await client.get(path)).headers["x-request-id"] for path in ("/healthz", "/no")]
    assert all(request_id.startswith("req_") for request_id in ids)
    assert ids[0] != ids[1]


async def test_a_harmless_id_of_the_client_is_kept(client: httpx2.AsyncClient) -> None:
    """It is in the header and in the problem document."""
    response = await client.get("/no", headers={"X-Request-ID": "my-id_1.2"})
    assert response.headers["x-request-id"] == "my-id_1.2"
    assert response.json()["request_id"] == "my-id_1.2"


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 65, b"a;b", b"\xff", b"a\tb"])
async def test_any_other_id_is_replaced(client: httpx2.AsyncClient, given: bytes) -> None:
    """Nothing from outside reaches a log line or a header as it is."""
    response = await client.get("/healthz", headers=[(b"x-request-id", given)])
    assert response.headers["x-request-id"].startswith("req_")


async def test_a_stream_carries_its_id(client: httpx2.AsyncClient, player: Player) -> None:
    """It too can be found in the logs."""
    body = {"prompt": "a", "stream": True}
    headers = {"X-Request-ID": "stream-1"}
    async with client.sse("/v1/jobs", method="POST", json=body, headers=headers) as source:
        assert source.response.headers["x-request-id"] == "stream-1"


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/healthz", "/healthz", "200"),
        ("GET", f"/v1/jobs/job_{'0' * 32}", "/v1/jobs/{job_id}", "404"),
        ("GET", "/no/such/path", "other", "404"),
    ],
)
async def test_an_answer_is_counted_by_route(
    client: httpx2.AsyncClient,
    gateway: RunningGateway,
    method: str,
    path: str,
    route: str,
    status: str,
) -> None:
    """The label is the route, never the path; the time of its headers is measured."""
    await client.request(method, path)
    registry = gateway.services.metrics.registry
    labels = {"route": route, "status": status}
    assert registry.get_sample_value("headrace_http_requests_total", labels) == 1
    name = "headrace_http_response_start_seconds_count"
    assert registry.get_sample_value(name, {"route": route}) == 1
