"""Prompt IDs at the door: what a job may build on, and what is shown and forgotten."""

from urllib.parse import quote

import httpx2
import pytest
from redis.asyncio import Redis

from common.job_store import JobStore
from common.keys import Keys
from common.lanes import Lanes
from common.prompts import Commit, PromptIndex, read_forget
from common.registry import Heartbeat
from gateway.identity import TENANT
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import check_problem, submit
from tests.gateway.player import Player
from tests.support.jobs import MODEL, make_worker, read
from tests.support.waiting import within

CHAT = "chat/1"
LONG_MS = 3_600_000
KEY = {"Idempotency-Key": "k1"}


@pytest.fixture
def prompts(redis: Redis, keys: Keys, player: Player) -> PromptIndex:
    """The index of the model that the player serves."""
    assert player.info.model == MODEL
    return PromptIndex(redis, keys, MODEL)


async def keep(
    prompts: PromptIndex, job: str = "j1", *, tenant: str = TENANT, worker: str = "w1"
) -> int:
    """Store a sequence that the worker holds, the player as a rule; returns its version."""
    sequence = Commit(job, 1, worker, (1, 2, 3), recompute_ms=LONG_MS)
    return await prompts.commit(tenant, CHAT, sequence)


async def test_a_stored_prompt_is_shown(client: httpx2.AsyncClient, prompts: PromptIndex) -> None:
    """With its version, its length and its holder, but without its tokens."""
    await keep(prompts)
    body = (await client.get(f"/v1/prompts/{CHAT}")).json()
    assert body.pop("updated_at") < body.pop("expires_at")
    assert body == {
        "id": CHAT, "model": MODEL, "version": 1, "length": 3, "worker": "w1",
    }  # fmt: skip


async def test_a_quoted_name_is_the_same(client: httpx2.AsyncClient, prompts: PromptIndex) -> None:
    """A client may escape the slashes of an ID."""
    await keep(prompts)
    assert (await client.get(f"/v1/prompts/{quote(CHAT, safe='')}")).json()["id"] == CHAT


async def test_a_dead_holder_is_not_shown(
    client: httpx2.AsyncClient, prompts: PromptIndex, player: Player
) -> None:
    """The sequence is there, its tensors are not."""
    await keep(prompts)
    player.die()
    body = (await client.get(f"/v1/prompts/{CHAT}")).json()
    assert (body["worker"], body["version"]) == (None, 1)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", ["unknown", "foreign", "-malformed", "a%20b", "a{b}", "x" * 201])
async def test_what_is_not_yours_is_not_there(
    name: str, method: str, client: httpx2.AsyncClient, prompts: PromptIndex
) -> None:
    """A foreign ID answers exactly like a missing one, and so does one that nobody can have."""
    if name == "foreign":
        await keep(prompts, tenant="another")
        name = CHAT
    response = await client.request(method, f"/v1/prompts/{name}")
    detail = check_problem(response, 404, "prompt-not-found")["detail"]
    expected = "Nothing is stored under the prompt ID "
    assert detail.startswith(expected)


async def test_another_model_is_another_scope(
    client: httpx2.AsyncClient, prompts: PromptIndex, heartbeat: Heartbeat
) -> None:
    """The model can be named; an unknown one is refused as in a submit."""
    heartbeat.join(make_worker("w2", "another"))
    await keep(prompts)
    path = f"/v1/prompts/{CHAT}"
    check_problem(await client.get(path, params={"model": "another"}), 404, "prompt-not-found")
    assert (await client.get(path, params={"model": MODEL})).status_code == 200
    check_problem(await client.get(path, params={"model": "unheard"}), 404, "model-not-found")


async def test_forgetting_tells_all_workers(
    client: httpx2.AsyncClient,
    prompts: PromptIndex,
    redis: Redis,
    keys: Keys,
    heartbeat: Heartbeat,
) -> None:
    """The holder, which may be frozen, and who may have the tensors from before. Once."""
    heartbeat.join(make_worker("w2"))
    heartbeat.join(make_worker("w3", "another"))
    await keep(prompts, worker="gone")
    path = f"/v1/prompts/{CHAT}?model={MODEL}"
    async with within(), redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        for worker_id in ("w1", "w2", "w3", "gone"):
            await pubsub.subscribe(keys.worker_ctl(worker_id))
            await pubsub.get_message(ignore_subscribe_messages=False, timeout=None)
        response = await client.delete(path)
        assert (response.status_code, response.content) == (204, b"")
        await redis.publish(keys.worker_ctl("w3"), "the end")
        told = []
        while (message := await anext(pubsub.listen()))["data"] != b"the end":
            told.append(message)
    channels = {keys.worker_ctl(worker_id).encode() for worker_id in ("w1", "w2", "gone")}
    assert {message["channel"] for message in told} == channels
    for message in told:
        assert read_forget(message["data"].decode()) == (TENANT, (1, 2, 3))
    assert await prompts.read(TENANT, CHAT) is None
    check_problem(await client.delete(path), 404, "prompt-not-found")


async def post(client: httpx2.AsyncClient, **fields: object) -> httpx2.Response:
    """Submit a job of the chat."""
    return await client.post("/v1/jobs", json={"prompt_id": CHAT, **fields})


@pytest.mark.parametrize("fields", [{}, {"append": "more"}], ids=["continue", "append"])
async def test_a_job_needs_what_it_builds_on(
    fields: dict[str, object], client: httpx2.AsyncClient, prompts: PromptIndex
) -> None:
    """An unknown or a foreign ID is refused, a stored one accepted."""
    await keep(prompts, tenant="another")
    check_problem(await post(client, **fields), 404, "prompt-not-found")
    await keep(prompts)
    assert (await post(client, **fields)).status_code == 202


async def test_a_full_prompt_needs_nothing(
    client: httpx2.AsyncClient, prompts: PromptIndex, store: JobStore
) -> None:
    """The first job of a conversation has an ID under which nothing is stored yet."""
    job_id = await submit(client, prompt_id=CHAT)
    assert (await read(store, job_id)).spec.prompt_id == CHAT


@pytest.mark.parametrize("fields", [{}, {"append": "a"}, {"prompt": "a"}], ids=str)
async def test_another_version_is_a_conflict(
    fields: dict[str, object], client: httpx2.AsyncClient, prompts: PromptIndex
) -> None:
    """The refusal names the version that there is."""
    for job in ("j1", "j2"):
        await keep(prompts, job)
    refused = await post(client, if_version=1, **fields)
    problem = check_problem(refused, 409, "prompt-version-conflict")
    assert "is 2, not 1" in problem["detail"]
    assert (await post(client, if_version=2, **fields)).status_code == 202


async def test_a_repeated_submit_is_not_refused(
    client: httpx2.AsyncClient, prompts: PromptIndex
) -> None:
    """The version has moved since, or the prompt is forgotten: the job is there already."""
    await keep(prompts)
    fields: dict[str, object] = {"append": "more", "if_version": 1, "prompt_id": CHAT}
    first = await client.post("/v1/jobs", json=fields, headers=KEY)
    assert first.status_code == 202
    await keep(prompts, "j2")
    again = await client.post("/v1/jobs", json=fields, headers=KEY)
    assert (again.status_code, again.content) == (202, first.content)
    await prompts.forget(TENANT, CHAT)
    again = await client.post("/v1/jobs", json=fields, headers=KEY)
    assert (again.status_code, again.content) == (202, first.content)
    fresh = await client.post("/v1/jobs", json=fields, headers={"Idempotency-Key": "k2"})
    check_problem(fresh, 404, "prompt-not-found")


@pytest.mark.parametrize(("patience_s", "lane"), [(5, "worker:w1"), (0, f"normal:{TENANT}")])
async def test_the_job_goes_to_the_holders_lane(
    patience_s: float, lane: str, make_gateway: MakeGateway, prompts: PromptIndex
) -> None:
    """For as long as the setting allows; 0 turns it off."""
    await keep(prompts)
    async with (
        make_gateway(affinity_patience_s=patience_s) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        await submit(client, prompt_id=CHAT)
        services = gateway.services
        [depth] = await Lanes(services.redis, services.keys, MODEL).depths()
    assert depth.lane == lane
