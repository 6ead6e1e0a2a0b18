"""Errors as problem documents."""

import asyncio

import httpx2
import pytest
from redis.exceptions import OutOfMemoryError

from common.job_store import JobStore
from gateway import fleet
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import PROMPT, check_problem
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway
from tests.support.servers import Server
from tests.support.waiting import eventually, within


async def test_an_unknown_path_is_a_problem(client: httpx2.AsyncClient) -> None:
    """It says where to look."""
    body = check_problem(await client.get("/v2/jobs"), 404, "route-not-found")
    assert "/openapi.json" in body["detail"]
    assert body["instance"] == "/v2/jobs"
    assert body["title"] == "Route not found"
    check_problem(await client.get("/v1/prompts"), 404, "route-not-found")  # and no redirect


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", {"GET", "HEAD", "POST"}),
        ("POST", f"/v1/jobs/job_{'0' * 32}", {"GET", "HEAD", "DELETE"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("DELETE", "/openapi.json", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_a_problem(
    client: httpx2.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    """``Allow`` lists every method that the path takes."""
    response = await client.request(method, path)
    check_problem(response, 405, "method-not-allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


async def test_problems_are_not_cached(client: httpx2.AsyncClient) -> None:
    """A job that is missing now may be there in a moment."""
    assert (await client.get("/no")).headers["cache-control"] == "no-store"


@pytest.mark.fault(18)
async def test_a_full_redis_is_a_problem(
    client: httpx2.AsyncClient, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told to come back later, not that it did wrong."""

    async def full(*_: object) -> None:
        raise OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")

    monkeypatch.setattr(JobStore, "submit", full)
    response = await client.post("/v1/jobs", json=PROMPT)
    check_problem(response, 503, "redis-full")
    assert response.headers["retry-after"] == "10"


async def test_a_fault_of_ours_tells_nothing_secret(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer has the request ID, the log has the rest."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(fleet, "ModelList", fail)
    async with (
        make_gateway() as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        response = await client.get("/v1/models")
        check_problem(response, 500, "internal-error")
        assert "secret" not in response.text
        assert "ZeroDivision" not in response.text
        assert gateway.num_faults == 1


@pytest.mark.fault(15)
async def test_redis_that_hangs_is_answered_in_time(
    own_server: Server, make_gateway: MakeGateway
) -> None:
    """A server that holds its connections and says nothing costs seconds, not minutes."""
    async with (
        make_gateway(redis=own_server.url, default_model="tiny") as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client,
    ):
        assert (await client.post("/v1/jobs", json=PROMPT)).status_code == 202
        own_server.freeze()
        try:
            async with within(8):
                response = await client.post("/v1/jobs", json=PROMPT)
        finally:
            own_server.thaw()
        check_problem(response, 503, "redis-unavailable")


async def test_a_client_that_leaves_while_it_sends_is_no_fault(
    gateway: RunningGateway, player: Player, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a body and a closed connection are everyday; nobody is called at night."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    await writer.drain()

    async def is_served() -> bool:
        return len(gateway.server.server_state.tasks) == 1

    await eventually(is_served)
    writer.transport.abort()

    async def is_over() -> bool:
        return len(gateway.server.server_state.tasks) == 0

    await eventually(is_over)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
