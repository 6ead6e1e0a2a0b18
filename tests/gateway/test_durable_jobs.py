"""Jobs that are accepted only once Redis has them on disk."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from common.connections import command_client, is_cluster, lease_client
from common.job_store import JobStore
from common.keys import Keys
from common.registry import Heartbeat
from common.settings import Settings
from tests.gateway.doors import check_problem
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway, running_gateway
from tests.support.jobs import make_worker
from tests.support.servers import Server

pytestmark = pytest.mark.anyio

JOB = {"prompt": "Once", "durable": True}
KEY = {"Idempotency-Key": "k1"}


def settings(server: Server) -> Settings:
    """Return the settings of a gateway on this server."""
    given: dict[str, Any] = {"redis": server.url}
    return Settings(**given)


async def knows_its_disk(redis: Redis) -> bool:
    """Tell whether ``WAITAOF`` says what is on it."""
    if is_cluster(redis):
        return False
    return "waitaof" in await redis.command()  # type: ignore[no-untyped-call]


NEEDS_WAITAOF = "needs one server of Redis 7.2 or Valkey: docs/redis.md"


def logged(data_dir: Path) -> bytes:
    """Return what the server's append-only file has."""
    return b"".join(file.read_bytes() for file in data_dir.glob("appendonlydir/*.incr.aof"))


async def test_a_durable_job_is_on_disk_when_it_is_accepted(
    own_server: Server, tmp_path: Path
) -> None:
    """The answer comes after the sync, not before."""
    async with command_client(own_server.url) as redis:
        if not await knows_its_disk(redis):
            pytest.skip(NEEDS_WAITAOF)
    Heartbeat(lease_client(own_server.url, 5), Keys(), 60).join(make_worker("w1"))
    async with (
        running_gateway(settings(own_server)) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        accepted = await client.post("/v1/jobs", json=JOB)
    assert accepted.status_code == 202
    own_server.kill()
    assert logged(tmp_path).count(accepted.json()["id"].encode()) >= 2  # its record and its entry


async def test_a_server_without_a_file_makes_nothing_durable(own_server: Server) -> None:
    """The client is told so, and that the job was accepted all the same."""
    Heartbeat(lease_client(own_server.url, 5), Keys(), 60).join(make_worker("w1"))
    redis = command_client(own_server.url)
    await redis.config_set("appendonly", "no")
    async with (
        running_gateway(settings(own_server)) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        refused = await client.post("/v1/jobs", json=JOB)
        check_problem(refused, 501, "not-durable")
        assert (await client.get(refused.headers["location"])).status_code == 200
        assert (await client.post("/v1/jobs", json={"prompt": "Once"})).status_code == 202
    await redis.aclose()


async def test_where_nobody_knows_the_disk_nothing_is_durable(
    client: httpx2.AsyncClient, player: Player, redis: Redis
) -> None:
    """On a cluster, and on servers before ``WAITAOF``; the control is a server that has it."""
    answer = await client.post("/v1/jobs", json=JOB | {"model": player.info.model})
    if await knows_its_disk(redis):
        assert answer.status_code == 202
        return
    check_problem(answer, 501, "not-durable")
    jobs = (await client.get("/v1/jobs")).json()["data"]
    assert [job["id"] for job in jobs] == (
        [] if is_cluster(redis) else [answer.headers["x-job-id"]]
    )


async def be_late(*_: object) -> bool:
    """Be a disk that has not got it in time."""
    return False


async def test_a_disk_that_is_late_is_no_success(
    gateway: RunningGateway,
    client: httpx2.AsyncClient,
    player: Player,
    redis: Redis,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same request again waits again, and then answers for the job that it made before."""
    if not await knows_its_disk(redis):
        pytest.skip(NEEDS_WAITAOF)
    with monkeypatch.context() as patched:
        patched.setattr(JobStore, "reach_disk", be_late)
        late = await client.post("/v1/jobs", json=JOB, headers=KEY)
        check_problem(late, 503, "not-on-disk")
    again = await client.post("/v1/jobs", json=JOB, headers=KEY)
    assert again.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    assert await redis.zcard(keys.model(player.info.model).jobs) == 1
