"""Accepting a job: once, bounded, and only when it is safe."""

import asyncio
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from common import tenant_jobs
from common.job_store import JobStore
from common.jobs import Sampling
from common.keys import Keys
from common.lanes import Lanes
from common.names import idempotent_job_id
from common.registry import Heartbeat
from gateway.identity import TENANT
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import PROMPT, check_problem, submit
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway
from tests.support.jobs import MODEL, make_worker, read

KEY = {"Idempotency-Key": '"k1"'}


async def num_waiting(redis: Redis, keys: Keys) -> int:
    """Return how many lane entries the model has."""
    return sum(depth.waiting for depth in await Lanes(redis, keys, MODEL).depths())


async def test_an_accepted_job_waits_in_its_lane(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, store: JobStore, player: Player
) -> None:
    """The answer says where to find it, and everything is written before the answer."""
    response = await client.post("/v1/jobs", json={**PROMPT, "metadata": {"k": "v"}})
    body = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == body["url"] == f"/v1/jobs/{body['id']}"
    assert response.headers["x-job-id"] == body["id"]
    assert (body["status"], body["model"]) == ("queued", MODEL)
    assert "idempotency-replayed" not in response.headers
    record = await read(store, body["id"])
    assert (record.next, record.spec.metadata) == (1, {"k": "v"})
    assert await num_waiting(redis, keys) == 1


async def test_a_seed_is_chosen_for_a_job_without_one(
    client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """Two such jobs differ, and each keeps its seed over a takeover; a given seed stays."""
    ids = [await submit(client), await submit(client), await submit(client, seed=7)]
    seeds = [(await read(store, job_id)).spec.sampling.seed for job_id in ids]
    assert seeds[0] != seeds[1]
    assert seeds[2] == 7


async def test_every_option_reaches_the_worker(
    client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """What a request says of its answer is in the job's specification."""
    sampling: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 7, "min_p": 0.1,
        "repetition_penalty": 1.5, "presence_penalty": -1.0, "frequency_penalty": 2.0,
    }  # fmt: skip
    options: dict[str, Any] = {
        "max_tokens": 9, "min_tokens": 2, "stop_token_ids": [5, 6], "ignore_eos": True, "n": 2,
        "logprobs": 0, "echo": True, "allow_reset": True,
    }  # fmt: skip
    job_id = await submit(client, **sampling, **options, logit_bias={"11": -100, "2": 1.5})
    spec = (await read(store, job_id)).spec
    assert spec.sampling == Sampling(**sampling, logit_bias={11: -100.0, 2: 1.5})
    options["stop_token_ids"] = (5, 6)
    assert {name: getattr(spec, name) for name in options} == options


async def test_one_key_is_one_job_whatever_the_order_of_the_fields(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """Objects with the same fields are the same payload; another bias is another one."""
    bodies = [
        b'{"prompt": "a", "logit_bias": {"11": 1, "2": 3}}',
        b'{"logit_bias": {"2": 3, "11": 1}, "prompt": "a"}',
        b'{"prompt": "a", "logit_bias": {"11": 1, "2": 4}}',
    ]
    answers = [await client.post("/v1/jobs", content=body, headers=KEY) for body in bodies]
    assert answers[0].json() == answers[1].json()
    check_problem(answers[2], 422, "idempotency-key-reused")


@pytest.mark.fault(32)
async def test_one_key_is_one_job(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, player: Player
) -> None:
    """Twenty requests at once make one record and one lane entry, and all get the same answer."""
    requests = [client.post("/v1/jobs", json=PROMPT, headers=KEY) for _ in range(20)]
    responses = await asyncio.gather(*requests)
    assert {response.status_code for response in responses} == {202}
    assert len({response.content for response in responses}) == 1
    replayed = [response.headers.get("idempotency-replayed") for response in responses]
    assert replayed.count(None) == 1
    assert await num_waiting(redis, keys) == 1
    assert await redis.zcard(keys.tenant_jobs(TENANT)) == 1


@pytest.mark.fault(32)
async def test_one_key_is_one_job_on_every_gateway(
    client: httpx2.AsyncClient, make_gateway: MakeGateway, player: Player
) -> None:
    """A retry that lands elsewhere finds the job."""
    first = await client.post("/v1/jobs", json=PROMPT, headers=KEY)
    async with (
        make_gateway() as other,
        httpx2.AsyncClient(base_url=other.url, trust_env=False) as elsewhere,
    ):
        second = await elsewhere.post("/v1/jobs", json=PROMPT, headers=KEY)
    assert second.json() == first.json()


async def test_a_burst_is_accepted(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, player: Player
) -> None:
    """More requests at once than the gateway has connections to Redis are no outage."""
    await asyncio.gather(*(submit(client) for _ in range(300)))
    assert await num_waiting(redis, keys) == 300


@pytest.mark.fault(32)
async def test_one_key_with_another_payload_is_refused(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """The first job stays as it is; how the answer is delivered is no part of the payload."""
    first = await client.post("/v1/jobs", json=PROMPT, headers=KEY)
    other = await client.post("/v1/jobs", json={"prompt": "Twice"}, headers=KEY)
    check_problem(other, 422, "idempotency-key-reused")
    same = await client.post("/v1/jobs", json={**PROMPT, "stream": False}, headers=KEY)
    assert same.json() == first.json()


@pytest.mark.fault(32)
async def test_a_repeat_after_the_end_gets_the_same_answer(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, player: Player
) -> None:
    """The job is not run again."""
    first = await client.post("/v1/jobs", json=PROMPT, headers=KEY)
    job_id = first.json()["id"]
    [claim] = await Lanes(redis, keys, MODEL).claim(player.info.id, 1)
    await (await player.take(job_id)).end()
    await Lanes(redis, keys, MODEL).release(player.info.id, claim)
    again = await client.post("/v1/jobs", json=PROMPT, headers=KEY)
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert await num_waiting(redis, keys) == 0


@pytest.mark.fault(32)
async def test_a_repeat_finishes_what_a_crash_left_half_done(
    client: httpx2.AsyncClient,
    gateway: RunningGateway,
    redis: Redis,
    keys: Keys,
    player: Player,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gateway that died between the record and the lane loses no job."""

    async def crash(*_: object) -> None:
        raise ConnectionError("the gateway dies here")

    with monkeypatch.context() as patched:
        patched.setattr(Lanes, "enqueue", crash)
        response = await client.post("/v1/jobs", json=PROMPT, headers=KEY)
    check_problem(response, 503, "redis-unavailable")
    assert await num_waiting(redis, keys) == 0
    secret = await gateway.services.secret.get()
    again = await client.post("/v1/jobs", json=PROMPT, headers=KEY)
    assert again.json()["id"] == idempotent_job_id(secret, TENANT, "k1")
    assert await num_waiting(redis, keys) == 1


async def test_too_many_jobs_are_refused_at_once(
    make_gateway: MakeGateway, redis: Redis, keys: Keys, player: Player
) -> None:
    """The refusal says when to come back; a repeated request is no new job; an end makes room."""
    async with (
        make_gateway(max_queued=2) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        first = await client.post("/v1/jobs", json=PROMPT, headers=KEY)
        await submit(client)
        refused = await client.post("/v1/jobs", json=PROMPT)
        assert "2 jobs" in check_problem(refused, 429, "too-many-jobs")["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        again = await client.post("/v1/jobs", json=PROMPT, headers=KEY)
        assert again.json() == first.json()
        lanes = Lanes(redis, keys, MODEL)
        [claim] = await lanes.claim(player.info.id, 1)
        await lanes.release(player.info.id, claim)
        await submit(client)


async def test_a_model_that_nobody_serves_is_refused(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """The answer names those that are served."""
    response = await client.post("/v1/jobs", json={**PROMPT, "model": "other"})
    assert MODEL in check_problem(response, 404, "model-not-found")["detail"]


async def test_without_any_model_it_says_so(client: httpx2.AsyncClient) -> None:
    """An installation without a worker tells its user what is missing."""
    response = await client.post("/v1/jobs", json=PROMPT)
    assert "headrace worker" in check_problem(response, 503, "no-model")["detail"]
    assert "retry-after" in response.headers


async def test_the_default_model_needs_no_worker(make_gateway: MakeGateway, redis: Redis) -> None:
    """Its jobs wait for the first worker."""
    async with (
        make_gateway(default_model="later") as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        for body in (PROMPT, {**PROMPT, "model": "later"}):
            response = await client.post("/v1/jobs", json=body)
            assert response.json()["model"] == "later"


async def test_without_a_name_the_model_of_the_latest_lease_is_taken(
    client: httpx2.AsyncClient, heartbeat: Heartbeat, player: Player
) -> None:
    """A model whose workers have gone does not win over one that is served."""
    heartbeat.join(make_worker("w2", "newer"))
    response = await client.post("/v1/jobs", json=PROMPT)
    assert response.json()["model"] == "newer"


async def test_the_list_of_a_tenant_forgets(
    client: httpx2.AsyncClient,
    redis: Redis,
    keys: Keys,
    player: Player,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What retention has ended leaves the list with the next submit."""
    await redis.zadd(keys.tenant_jobs(TENANT), {"job_old": 1})
    monkeypatch.setattr(tenant_jobs, "MARGIN_S", 0)
    job_id = await submit(client)
    assert await redis.zrange(keys.tenant_jobs(TENANT), 0, -1) == [job_id.encode()]
