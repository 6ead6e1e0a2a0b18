"""Who may come in: API keys, scopes, tenants, signed links."""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from websockets.exceptions import InvalidStatus

from common.api_keys import ApiKeyStore, Scope, Token
from common.job_store import JobStore
from common.keys import Keys
from common.prompts import Commit, PromptIndex
from gateway import identity
from gateway.openapi import template
from gateway.routes import DOORS, Door
from tests.gateway.doors import check_problem, submit
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway
from tests.gateway.talk import check_refusal, talk_to

MISSING = "job_" + "0" * 32
ALL = tuple(Scope)

As = Callable[..., httpx2.AsyncClient]


def path_of(door: Door, job_id: str, prompt_id: str) -> str:
    """Return the door's path with these IDs."""
    return template(door.path).format(job_id=job_id, prompt_id=prompt_id)


@pytest.fixture
def api_keys(redis: Redis, keys: Keys) -> ApiKeyStore:
    """The stored keys."""
    return ApiKeyStore(redis, keys)


@pytest.fixture
async def mine(api_keys: ApiKeyStore) -> Token:
    """A key of the tenant ``mine`` that may do everything."""
    return (await api_keys.create("mine", ALL))[1]


@pytest.fixture
async def theirs(api_keys: ApiKeyStore) -> Token:
    """The same for ``theirs``."""
    return (await api_keys.create("theirs", ALL))[1]


@pytest.fixture
async def as_(gateway: RunningGateway) -> AsyncIterator[As]:
    """Return a client with a token, or with none; keys are looked up each time."""
    clients: list[httpx2.AsyncClient] = []

    def make(token: Token | None = None, **headers: str) -> httpx2.AsyncClient:
        given = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx2.AsyncClient(
            base_url=gateway.url, headers={**given, **headers}, trust_env=False
        )
        clients.append(client)
        return client

    with patch.object(identity, "FRESH_S", -1):
        yield make
    for client in clients:
        await client.aclose()


async def test_without_keys_everybody_is_the_default_tenant(as_: As, player: Player) -> None:
    """On a loopback address."""
    for headers in ({}, {"Authorization": "Basic dXNlcjpwYXNz"}, {"X-API-Key": "anything"}):
        assert (await as_(**headers).get("/v1/jobs")).json()["data"] == []


async def test_with_the_first_key_the_door_closes(as_: As, mine: Token) -> None:
    """Health stays public, everything else says what is missing."""
    nobody = as_()
    for door in DOORS:
        path = path_of(door, MISSING, "p")
        answer = await nobody.request(door.method, path)
        if door.scope is None:
            assert answer.status_code in (200, 503)
        else:
            check_problem(answer, 401, "key-missing")
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert (await as_(mine).get("/v1/jobs")).status_code == 200
    assert (await as_(**{"X-API-Key": str(mine)}).get("/v1/jobs")).status_code == 200


async def test_the_first_key_counts_at_once_for_who_brings_it(
    as_: As, api_keys: ApiKeyStore
) -> None:
    """What it makes is its tenant's, while the gateway still lets others in without a key."""
    with patch.object(identity, "FRESH_S", 60):
        assert (await as_().get("/v1/jobs")).status_code == 200
        _, token = await api_keys.create("mine", (Scope.READ,))
        refused = await as_(token).post("/v1/jobs", content=b"{}")
    check_problem(refused, 403, "scope-missing")


@pytest.mark.parametrize(
    "given",
    ["Bearer nonsense", "Bearer hr_000000000000_" + "a" * 43, "Basic dXNlcjpwYXNz", "Bearer", ""],
)
async def test_a_wrong_key_opens_nothing(as_: As, mine: Token, given: str) -> None:
    """A right one with another secret neither."""
    check_problem(await as_(Authorization=given).get("/v1/jobs"), 401, "key-invalid")
    forged = Token(mine.key_id, "a" * 43)
    check_problem(await as_(forged).get("/v1/jobs"), 401, "key-invalid")


async def test_a_revoked_or_expired_key_opens_nothing(
    as_: As, api_keys: ApiKeyStore, mine: Token
) -> None:
    """From the next look on."""
    assert (await as_(mine).get("/v1/jobs")).status_code == 200
    await api_keys.revoke(mine.key_id)
    check_problem(await as_(mine).get("/v1/jobs"), 401, "key-invalid")
    _, late = await api_keys.create("mine", ALL, lifetime_s=0.001)
    check_problem(await as_(late).get("/v1/jobs"), 401, "key-invalid")


async def test_what_redis_said_last_holds_while_it_is_away(
    gateway: RunningGateway, as_: As, mine: Token
) -> None:
    """So that metrics are served, and readers of what is watched here are let in."""
    assert (await as_(mine).get("/metrics")).status_code == 200
    away = RedisConnectionError("away")
    with patch.object(ApiKeyStore, "find", side_effect=away):
        assert (await as_(mine).get("/metrics")).status_code == 200
        check_problem(
            await as_(Token("0" * 12, "a" * 43)).get("/metrics"), 503, "redis-unavailable"
        )
        with patch.object(identity, "STALE_S", -1):
            check_problem(await as_(mine).get("/metrics"), 503, "redis-unavailable")


async def test_a_key_is_looked_up_once_in_a_while(as_: As, mine: Token) -> None:
    """Not for every request: Redis has better things to do."""
    client = as_(mine)
    with patch.object(ApiKeyStore, "find", autospec=True, side_effect=ApiKeyStore.find) as find:
        assert (await client.get("/v1/jobs")).status_code == 200
        assert find.call_count == 1
        with patch.object(identity, "FRESH_S", 60):
            for _ in range(5):
                assert (await client.get("/v1/jobs")).status_code == 200
    assert find.call_count == 1


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_key_opens_what_its_scope_says(
    as_: As, api_keys: ApiKeyStore, player: Player, scope: Scope
) -> None:
    """And nothing else; ``admin`` opens all."""
    _, token = await api_keys.create("mine", (scope,))
    client = as_(token)
    for door in DOORS:
        path = path_of(door, MISSING, "p")
        answer = await client.request(door.method, path, content=b"{}")
        if door.scope in (None, scope) or scope is Scope.ADMIN:
            assert answer.status_code not in (401, 403), path
        else:
            check_problem(answer, 403, "scope-missing")


async def test_a_socket_asks_for_the_key_too(
    gateway: RunningGateway, as_: As, api_keys: ApiKeyStore, player: Player, mine: Token
) -> None:
    """With every message: a key that is revoked opens nothing on a socket that is open."""
    _, reader = await api_keys.create("mine", (Scope.READ,))
    request = {"type": "submit", "job": {"prompt": "Once"}}
    async with talk_to(gateway, str(reader)) as talk:
        check_refusal(await talk.ask(request), 403, "scope-missing", ref=None)
    async with talk_to(gateway, str(mine)) as talk:
        assert (await talk.ask(request))["type"] == "submitted"
        await api_keys.revoke(mine.key_id)
        check_refusal(await talk.ask(request), 401, "key-invalid", ref=None)
    with pytest.raises(InvalidStatus, match="403"):
        async with talk_to(gateway):
            pass


async def test_strangers_see_nothing(
    gateway: RunningGateway,
    as_: As,
    player: Player,
    mine: Token,
    theirs: Token,
) -> None:
    """On no door: a foreign job or prompt ID answers like a missing one."""
    owner, stranger = as_(mine), as_(theirs)
    job_id = await submit(owner)
    commit = Commit(job_id, 1, "w1", (1, 2, 3))
    parts = gateway.services
    await PromptIndex(parts.redis, parts.keys, player.info.model).commit("mine", "chat", commit)
    assert (await owner.get("/v1/prompts/chat")).status_code == 200
    for door in DOORS:
        if "{" not in door.path:
            continue
        foreign = await stranger.request(door.method, path_of(door, job_id, "chat"))
        missing = await stranger.request(door.method, path_of(door, MISSING, "none"))
        assert _told(foreign, job_id, "chat") == _told(missing, MISSING, "none")
        assert foreign.status_code == missing.status_code == 404
    assert (await stranger.get("/v1/jobs")).json()["data"] == []
    async with talk_to(gateway, str(theirs)) as talk:
        for kind in ("subscribe", "cancel"):
            answer = await talk.ask({"type": kind, "job": job_id})
            check_refusal(answer, 404, "job-not-found", ref=None)
    assert (await owner.get(f"/v1/jobs/{job_id}")).json()["status"] == "queued"


def _told(answer: httpx2.Response, job_id: str, prompt_id: str) -> dict[str, Any]:
    """Return what an answer says, but for what was asked and the request's own ID."""
    text = answer.text.replace(job_id, "JOB").replace(prompt_id, "PROMPT")
    return {**json.loads(text), "request_id": ""}


async def test_a_foreign_job_costs_what_a_missing_one_costs(
    as_: As, player: Player, mine: Token, theirs: Token
) -> None:
    """The same commands, so that the time says nothing; also while its owner follows it."""
    owner, stranger = as_(mine), as_(theirs)
    job_id = await submit(owner)
    async with owner.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        assert stream.status_code == 200
        for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", ""), ("POST", "/link")):
            asked = []
            for job in (job_id, MISSING):
                with spying(JobStore) as calls:
                    answer = await stranger.request(method, f"/v1/jobs/{job}{path}")
                assert answer.status_code == 404
                asked.append(calls)
            assert asked[0] == asked[1] == ["owner"]


@contextmanager
def spying(store: type[JobStore]) -> Iterator[list[str]]:
    """Note which of the store's methods are called."""
    calls: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        original = getattr(store, name)

        def note(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return original(*args, **options)

        return note

    names = ("owner", "record", "snapshot", "log", "cancel")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(store, name, noting(name)))
        yield calls


async def test_a_link_opens_one_job(as_: As, player: Player, mine: Token, theirs: Token) -> None:
    """Without headers, until its time is over; it opens nothing else."""
    owner, nobody = as_(mine), as_()
    job_id = await submit(owner)
    attempt = await player.take(job_id)
    await attempt.say("Hello")
    await attempt.end()
    answer = await owner.post(f"/v1/jobs/{job_id}/link", params={"ttl": "60"})
    assert answer.status_code == 200
    url = answer.json()["url"]
    assert "Hello" in (await nobody.get(url)).text
    proof = url.partition("?link=")[2]
    other = await submit(owner)
    for path in (f"/v1/jobs/{other}/events", f"/v1/jobs/{job_id}", "/v1/jobs"):
        answer = await nobody.get(path, params={"link": proof})
        check_problem(answer, 403, "scope-missing")
        assert "its own job's events" in answer.json()["detail"]
    with patch.object(time, "time", return_value=time.time() + 61):
        check_problem(await nobody.get(url), 401, "link-invalid")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t[:-2],
        lambda t: ("B" if t[0] == "A" else "A") + t[1:],
        lambda _: "é",
        str.lower,
    ],
)
async def test_a_forged_link_opens_nothing(
    as_: As, player: Player, mine: Token, spoil: Callable[[str], str]
) -> None:
    """Every bit of it counts."""
    owner, nobody = as_(mine), as_()
    job_id = await submit(owner)
    url = (await owner.post(f"/v1/jobs/{job_id}/link")).json()["url"]
    path, _, proof = url.partition("?link=")
    answer = await nobody.get(path, params={"link": spoil(proof)})
    check_problem(answer, 401, "link-invalid")
