"""The doors that describe the fleet."""

import asyncio

import httpx2
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from common.keys import Keys
from common.registry import Heartbeat, WorkerState
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import PROMPT, check_problem, submit
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway
from tests.support.jobs import MODEL, make_worker
from tests.support.servers import Server
from tests.support.waiting import eventually, within

METRICS = {
    "headrace_jobs_accepted", "headrace_jobs_refused", "headrace_cancel_requests",
    "headrace_http_requests", "headrace_http_response_start_seconds",
    "headrace_stream_subscribers", "headrace_jobs_watched", "headrace_redis_up",
    "headrace_slow_consumers_closed",
    "headrace_num_jobs_waiting", "headrace_num_jobs_running", "headrace_workers",
    "headrace_capacity", "headrace_worker_heartbeat_age_seconds",
    "headrace_worker_tokens_per_second",
}  # fmt: skip


async def until_status(client: httpx2.AsyncClient, status: int) -> dict[str, object]:
    """Return the readiness once it has this status."""

    async def is_there() -> httpx2.Response | None:
        response = await client.get("/readyz")
        return response if response.status_code == status else None

    response = await eventually(is_there)
    assert response
    body: dict[str, object] = response.json()
    return body


async def test_models_are_listed_as_openai_does(
    client: httpx2.AsyncClient, heartbeat: Heartbeat, player: Player
) -> None:
    """A model stays in the list when its worker is gone, with no workers."""
    heartbeat.join(make_worker("w2", "another"))
    heartbeat.leave("w2", "another")
    assert (await client.get("/v1/models")).json() == {
        "object": "list",
        "data": [
            {"id": "another", "object": "model", "workers": 0},
            {"id": MODEL, "object": "model", "workers": 1},
        ],
    }


async def test_workers_are_listed_with_their_load(
    client: httpx2.AsyncClient, heartbeat: Heartbeat, player: Player
) -> None:
    """Those that live, by model and ID."""
    busy = msgspec.structs.replace(make_worker("w0"), running=3, state=WorkerState.BUSY)
    heartbeat.join(busy)
    first, second = (await client.get("/v1/workers")).json()["data"]
    assert (first["id"], first["load"], first["state"]) == ("w0", 0.75, "busy")
    assert (second["id"], second["load"], second["state"]) == ("w1", 0.0, "idle")


async def test_the_process_answers(client: httpx2.AsyncClient) -> None:
    """Whatever else is wrong."""
    assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_it_is_ready_with_a_worker(client: httpx2.AsyncClient, player: Player) -> None:
    """A job sent here would run and could be followed."""
    assert await until_status(client, 200) == {
        "status": "ready",
        "checks": {"redis": True, "relay": True, "worker": True},
    }


async def test_it_is_not_ready_without_a_worker(
    client: httpx2.AsyncClient, heartbeat: Heartbeat
) -> None:
    """One that still loads is none."""
    heartbeat.join(msgspec.structs.replace(make_worker("w1"), state=WorkerState.LOADING))

    async def is_that_all() -> bool:
        checks = (await client.get("/readyz")).json()["checks"]
        return bool(checks == {"redis": True, "relay": True, "worker": False})

    await eventually(is_that_all)
    assert (await client.get("/readyz")).status_code == 503


async def test_it_is_not_ready_while_it_drains(make_gateway: MakeGateway, player: Player) -> None:
    """The load balancer hears it before the port closes."""
    async with (
        make_gateway() as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        await until_status(client, 200)
        gateway.services.streams.draining = True
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["status"]) == (503, "draining")


async def test_it_is_not_ready_without_redis(own_server: Server, make_gateway: MakeGateway) -> None:
    """The checks say which part is missing, and readiness comes back by itself."""
    async with (
        make_gateway(redis=own_server.url) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        assert "headrace_redis_up 1.0" in (await client.get("/metrics")).text
        await asyncio.to_thread(own_server.kill)

        async def is_deaf() -> bool:
            checks = (await client.get("/readyz")).json()["checks"]
            return bool(checks == {"redis": False, "relay": False, "worker": False})

        await eventually(is_deaf)
        async with within(8):
            for method, path in [("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("GET", "/v1/workers")]:
                body = PROMPT if method == "POST" else None
                response = await client.request(method, path, json=body)
                check_problem(response, 503, "redis-unavailable")
                assert response.headers["retry-after"] == "1"
        assert (await client.get("/healthz")).status_code == 200
        assert "headrace_redis_up 0.0" in (await client.get("/metrics")).text
        await asyncio.to_thread(own_server.start)

        async def is_back() -> bool:
            checks = (await client.get("/readyz")).json()["checks"]
            return bool(checks["redis"] and checks["relay"])

        await eventually(is_back)


async def test_metrics_are_prometheus(
    client: httpx2.AsyncClient, gateway: RunningGateway, player: Player
) -> None:
    """The text parses, every family is there, and the numbers are those of what happened."""
    job_id = await submit(client)
    await client.delete(f"/v1/jobs/{job_id}")
    waiting = await submit(client)
    async with client.stream("GET", f"/v1/jobs/{waiting}/events"):
        response = await client.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    # A process switches the second series of every counter off (common.telemetry).
    assert {name for name in families if not name.endswith("_created")} == METRICS

    def value(name: str, suffix: str = "", **labels: str) -> float:
        found = [
            sample.value
            for sample in families[name].samples
            if sample.name == name + suffix and labels.items() <= sample.labels.items()
        ]
        assert len(found) == 1, families[name]
        return found[0]

    assert value("headrace_jobs_accepted", "_total", model=MODEL) == 2
    assert value("headrace_cancel_requests", "_total") == 1
    assert value("headrace_num_jobs_waiting", model=MODEL) == 2
    assert value("headrace_workers", model=MODEL) == 1
    assert value("headrace_capacity", model=MODEL) == 4
    assert value("headrace_stream_subscribers") == value("headrace_jobs_watched") == 1
    route = "/v1/jobs/{job_id}/events"
    assert value("headrace_http_requests", "_total", route=route, status="200") == 1


async def test_metrics_have_no_identifiers(client: httpx2.AsyncClient, player: Player) -> None:
    """However many jobs and wrong paths there are, the series stay few."""
    for number in range(5):
        await client.get(f"/v1/jobs/{await submit(client)}")
        await client.get(f"/no/such/path/{number}")
    text = (await client.get("/metrics")).text
    assert "job_" not in text.replace("job_id", "")
    assert "such" not in text


async def test_metrics_forget_what_is_gone(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, player: Player
) -> None:
    """A worker that left is no series any more."""
    assert 'worker="w1"' in (await client.get("/metrics")).text
    player.die()
    assert 'worker="w1"' not in (await client.get("/metrics")).text
