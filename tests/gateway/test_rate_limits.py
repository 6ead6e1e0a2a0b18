"""What a tenant has left, and what it is told."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from redis.asyncio import Redis

from common.api_keys import ApiKeyStore, Scope
from common.jobs import Message
from common.keys import Keys
from common.limits import Admission, Limits, Verdict
from gateway.rate_limits import headers, num_tokens
from gateway.schemas import JobRequest
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import check_problem
from tests.gateway.player import Player

pytestmark = pytest.mark.anyio

LIMITS = Limits(max_queued=2, tokens_per_minute=1_000)
JOB = {"prompt": "Once", "max_tokens": 300}


def test_a_job_counts_its_prompt_and_all_its_answers() -> None:
    """A token for every four bytes, begun ones included, and `max_tokens` for every answer."""
    assert num_tokens(JobRequest(prompt="x" * 9, max_tokens=10, n=3)) == 33
    said = (Message("user", "x" * 8), Message("user", "ü"))
    assert num_tokens(JobRequest(messages=said, max_tokens=10)) == 13
    assert num_tokens(JobRequest(prompt_id="chat", append=said, max_tokens=10)) == 13


def test_only_limits_that_are_set_are_told() -> None:
    """A policy each, and what is left of it."""
    admission = Admission(Verdict.OK, 3, 400, 35.2)
    assert headers(Limits(), admission) == {}
    told = headers(Limits(max_queued=9, tokens_per_minute=1_000), admission)
    assert told["RateLimit-Policy"] == '"queued";q=9, "tokens";q=1000;w=60'
    assert told["RateLimit"] == '"queued";r=3, "tokens";r=400;t=36'


@pytest.fixture
async def client(
    make_gateway: MakeGateway, redis: Redis, keys: Keys, player: Player
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with the key of a tenant that has limits."""
    scopes = (Scope.READ, Scope.SUBMIT)
    _, token = await ApiKeyStore(redis, keys).create("acme", scopes, limits=LIMITS)
    bearer = {"Authorization": f"Bearer {token}"}
    async with (
        make_gateway() as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False, headers=bearer) as client,
    ):
        yield client


async def test_the_limits_of_a_key_hold(client: httpx2.AsyncClient) -> None:
    """Answers tell what is left; what is too much is refused, and how long to wait."""
    first = await client.post("/v1/jobs", json=JOB)
    assert first.headers["ratelimit"].startswith('"queued";r=1, "tokens";r=699;t=')
    small = {**JOB, "max_tokens": 1}
    assert (await client.post("/v1/jobs", json=small)).status_code == 202
    full = await client.post("/v1/jobs", json=small)
    assert "2 of your jobs" in check_problem(full, 429, "tenant-queue-full")["detail"]
    assert full.headers["ratelimit"].startswith('"queued";r=0')
    assert int(full.headers["retry-after"]) >= 1


async def test_tokens_of_a_minute_are_refused_until_they_are_back(
    client: httpx2.AsyncClient,
) -> None:
    """`Retry-After` is when there are enough again."""
    assert (await client.post("/v1/jobs", json={**JOB, "max_tokens": 900})).status_code == 202
    refused = await client.post("/v1/jobs", json=JOB)
    check_problem(refused, 429, "too-many-tokens")
    assert 10 <= int(refused.headers["retry-after"]) <= 13
    assert refused.headers["ratelimit-policy"] == '"queued";q=2, "tokens";q=1000;w=60'


async def test_a_job_that_builds_on_nothing_costs_nothing(client: httpx2.AsyncClient) -> None:
    """Else who tries in vain to go on with a forgotten prompt would soon be refused everything."""
    for _ in range(3):
        lost = {"prompt_id": "forgotten", "max_tokens": 900}
        check_problem(await client.post("/v1/jobs", json=lost), 404, "prompt-not-found")
    assert (await client.post("/v1/jobs", json={**JOB, "max_tokens": 900})).status_code == 202


async def test_a_job_beyond_the_limit_itself_can_never_come(client: httpx2.AsyncClient) -> None:
    """It is refused for good: no waiting would help."""
    refused = await client.post("/v1/jobs", json={**JOB, "max_tokens": 1_000})
    check_problem(refused, 400, "job-too-large")
    assert "retry-after" not in refused.headers


async def test_a_repeated_request_costs_nothing(client: httpx2.AsyncClient) -> None:
    """A client that lost its answer asks again under its key, whatever it has left."""
    key = {"Idempotency-Key": "k1"}
    first = await client.post("/v1/jobs", json={**JOB, "max_tokens": 900}, headers=key)
    again = await client.post("/v1/jobs", json={**JOB, "max_tokens": 900}, headers=key)
    assert again.status_code == 202
    assert again.json() == first.json()
