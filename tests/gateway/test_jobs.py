"""The doors of ``/v1/jobs``: read, wait, list, cancel."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import httpx2
import msgspec
import pytest
from redis.asyncio import Redis

from common.events import ChoiceEnd, Completed, ErrorInfo, Failed, Reset, Usage, encode_event
from common.job_store import Append, JobStore
from common.jobs import FinishReason
from common.keys import Keys
from gateway.identity import TENANT
from gateway.schemas import JobView
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import check_problem, submit
from tests.gateway.followers import read_stream
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway
from tests.support.jobs import make_job
from tests.support.jobs import submit as submit_to
from tests.support.waiting import eventually, within

MISSING = "job_" + "0" * 32


async def show(client: httpx2.AsyncClient, job_id: str, **query: str) -> dict[str, Any]:
    """Return the job as the door shows it."""
    response = await client.get(f"/v1/jobs/{job_id}", params=query)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    assert msgspec.to_builtins(msgspec.convert(body, JobView)) == body
    return body


async def test_a_job_is_shown_as_it_stands(
    client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """Queued, running with the text so far, ended with everything."""
    job_id = await submit(client, priority="high")
    queued = await show(client, job_id)
    assert (queued["status"], queued["text"], queued["priority"]) == ("queued", "", "high")
    assert queued["started_at"] is queued["worker"] is queued["finish_reason"] is None

    attempt = await player.take(job_id)
    await attempt.say("Hello", " world")
    running = await show(client, job_id)
    assert (running["status"], running["text"]) == ("running", "Hello world")
    assert (running["worker"], running["attempts"]) == ("w1", 1)
    assert running["usage"]["completion_tokens"] == 2

    await attempt.end(Completed(FinishReason.LENGTH, usage=Usage(3, 2), worker="w1", attempts=1))
    ended = await show(client, job_id)
    assert (ended["status"], ended["finish_reason"]) == ("completed", "length")
    assert (ended["is_eos"], ended["text"]) == (False, "Hello world")
    assert ended["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 0}
    assert ended["created_at"] <= ended["started_at"] <= ended["finished_at"]


async def test_several_answers_are_shown_beside_each_other(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """``text`` is the first one; without ``n`` and ``logprobs`` there is nothing beside it."""
    single = await show(client, await submit(client))
    assert not {"choices", "logprobs"} & set(single)
    job_id = await submit(client, n=2, logprobs=1)
    attempt = await player.take(job_id)
    await attempt.say("Hello")
    await attempt.say("Bye", choice=1)
    choices = (ChoiceEnd(0, FinishReason.STOP, True), ChoiceEnd(1, FinishReason.LENGTH, False))
    await attempt.end(Completed(FinishReason.STOP, is_eos=True, choices=choices, prompt_version=3))
    shown = await show(client, job_id)
    assert (shown["text"], shown["logprobs"], shown["prompt_version"]) == ("Hello", [], 3)
    assert shown["choices"] == [
        {"index": 0, "text": "Hello", "finish_reason": "stop", "is_eos": True, "logprobs": []},
        {"index": 1, "text": "Bye", "finish_reason": "length", "is_eos": False, "logprobs": []},
    ]


async def test_a_failed_job_says_why(client: httpx2.AsyncClient, player: Player) -> None:
    """The reason is in the record, not only in the stream."""
    job_id = await submit(client)
    attempt = await player.take(job_id)
    await attempt.end(Failed(FinishReason.ERROR, error=ErrorInfo("engine-failed", "Try again.")))
    shown = await show(client, job_id)
    assert shown["status"] == "failed"
    assert shown["error"] == {"type": "engine-failed", "detail": "Try again."}


async def test_text_before_a_reset_is_discarded(
    client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """Two attempts' texts are never mixed."""
    job_id = await submit(client)
    attempt = await player.take(job_id)
    await attempt.say("old")
    reset = Append(job_id, attempt._epoch, attempt.n, (encode_event(Reset("model")),))
    [(_, attempt.n)] = await store.append([reset])
    await attempt.say("new")
    assert (await show(client, job_id))["text"] == "new"


async def test_a_wait_ends_with_the_job(
    client: httpx2.AsyncClient, gateway: RunningGateway, player: Player
) -> None:
    """The answer comes at once when the job ends, long before the time is over."""
    job_id = await submit(client)
    attempt = await player.take(job_id)
    waiting = asyncio.create_task(show(client, job_id, wait="60"))

    async def is_watched() -> bool:
        return gateway.relay.num_cursors == 1

    await eventually(is_watched)
    await attempt.end()
    async with within(2):
        assert (await waiting)["status"] == "completed"


async def test_a_wait_for_an_ended_job_is_none(client: httpx2.AsyncClient, player: Player) -> None:
    """It is answered like any read."""
    job_id = await submit(client)
    await (await player.take(job_id)).end()
    async with within(2):
        assert (await show(client, job_id, wait="60"))["status"] == "completed"


async def test_a_wait_that_is_over_shows_the_job_as_it_stands(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """It is no error."""
    began = time.monotonic()
    assert (await show(client, await submit(client), wait="0.2"))["status"] == "queued"
    assert time.monotonic() - began >= 0.2


async def test_a_wait_gives_way_to_a_drain(make_gateway: MakeGateway, player: Player) -> None:
    """The answer is the job as it stands; the gateway need not wait for the job."""
    async with (
        make_gateway() as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        job_id = await submit(client)
        waiting = asyncio.create_task(show(client, job_id, wait="60"))

        async def is_watched() -> bool:
            return gateway.relay.num_cursors == 1

        await eventually(is_watched)
        gateway.services.streams.drain()
        async with within(2):
            assert (await waiting)["status"] == "queued"


async def list_all(client: httpx2.AsyncClient, **query: str) -> list[str]:
    """Follow the pages to the last one; return the job IDs."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        response = await client.get("/v1/jobs", params={**query, **cursor})
        assert response.status_code == 200, response.text
        page = response.json()
        assert len(page["data"]) <= int(query.get("limit", "50"))
        found += [job["id"] for job in page["data"]]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def make_jobs(
    store: JobStore, keys: Keys, redis: Redis, count: int, per_ms: int
) -> list[str]:
    """Submit jobs of which ``per_ms`` share each millisecond; return their IDs, newest first."""
    places = []
    for number in range(count):
        record = await submit_to(store, replace(make_job(), tenant=TENANT))
        places.append((1_000_000 + number // per_ms, record.id))
    await redis.zadd(keys.tenant_jobs(TENANT), {job_id: ms for ms, job_id in places})
    await redis.expire(keys.tenant_jobs(TENANT), 600)
    return [job_id for _, job_id in sorted(places, reverse=True)]


@pytest.mark.parametrize("limit", ["7", "50", "200"])
async def test_a_list_is_paged_without_gap_or_repeat(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, store: JobStore, limit: str
) -> None:
    """Newest first, over more jobs than a page holds, many of them of the same millisecond."""
    jobs = await make_jobs(store, keys, redis, 430, per_ms=9)
    assert await list_all(client, limit=limit) == jobs


async def test_a_millisecond_may_hold_more_jobs_than_a_page(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, store: JobStore
) -> None:
    """The cursor goes on inside it."""
    jobs = await make_jobs(store, keys, redis, 230, per_ms=1000)
    assert await list_all(client, limit="100") == jobs


async def test_jobs_that_arrive_do_not_shift_the_pages(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, store: JobStore
) -> None:
    """A page begins after the last job of the one before, not at a count."""
    jobs = await make_jobs(store, keys, redis, 10, per_ms=1)
    first = (await client.get("/v1/jobs", params={"limit": "5"})).json()
    await redis.zadd(keys.tenant_jobs(TENANT), {"job_new": 9_000_000})
    second = await client.get("/v1/jobs", params={"cursor": first["next_cursor"]})
    assert [job["id"] for job in second.json()["data"]] == jobs[5:]


async def test_expired_records_are_skipped(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, store: JobStore
) -> None:
    """Their place in the list is older than they are."""
    jobs = await make_jobs(store, keys, redis, 10, per_ms=2)
    for job_id in jobs[::2]:
        await redis.delete(keys.job(job_id).record)
    assert await list_all(client, limit="2") == jobs[1::2]


async def test_a_list_can_be_of_one_status(client: httpx2.AsyncClient, player: Player) -> None:
    """And a list shows no texts."""
    ids = [await submit(client) for _ in range(4)]
    await (await player.take(ids[1])).end()
    await player.take(ids[2])
    assert await list_all(client, status="completed") == [ids[1]]
    assert await list_all(client, status="running", limit="1") == [ids[2]]
    assert set(await list_all(client, status="queued")) == {ids[0], ids[3]}
    assert await list_all(client, status="failed") == []
    page = (await client.get("/v1/jobs")).json()
    assert not any("text" in job for job in page["data"])


async def cancel(client: httpx2.AsyncClient, job_id: str) -> tuple[str, str]:
    """Cancel the job; return its status and what the cancel met."""
    response = await client.delete(f"/v1/jobs/{job_id}")
    assert response.status_code == 200, response.text
    assert response.json()["id"] == job_id
    return response.json()["status"], response.json()["cancelled"]


@pytest.mark.fault(33)
async def test_a_queued_job_is_cancelled_here(client: httpx2.AsyncClient, player: Player) -> None:
    """Its end is in the log before the answer; a second cancel changes nothing."""
    job_id = await submit(client)
    assert await cancel(client, job_id) == ("cancelled", "queued")
    seen = await read_stream(client, job_id)
    assert [event.kind for _, event in seen] == ["accepted", "cancelled"]
    assert await cancel(client, job_id) == ("cancelled", "already_ended")
    assert await read_stream(client, job_id) == seen


@pytest.mark.fault(33)
async def test_a_running_job_is_cancelled_by_its_worker(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, store: JobStore, player: Player
) -> None:
    """The worker is told at once, the flag is durable, and the end is left to it."""
    job_id = await submit(client)
    attempt = await player.take(job_id)
    async with redis.pubsub() as subscription:
        await subscription.subscribe(keys.worker_ctl("w1"))
        assert await subscription.get_message(timeout=5)
        assert await cancel(client, job_id) == ("running", "running")
        told = await subscription.get_message(ignore_subscribe_messages=True, timeout=5)
    assert told
    assert told["data"] == job_id.encode()
    assert await attempt.say("a") == "CANCEL"
    record = await store.record(job_id)
    assert record
    assert not record.is_ended


@pytest.mark.fault(33)
async def test_a_job_whose_worker_is_dead_is_cancelled_here(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """Nobody else would end it soon; what the dead one says later is refused."""
    job_id = await submit(client)
    attempt = await player.take(job_id)
    await attempt.say("a")
    player.die()
    assert (await cancel(client, job_id))[0] == "cancelled"
    seen = await read_stream(client, job_id)
    assert seen[-1][1].kind == "cancelled"
    assert await attempt.say("b") == "CLOSED"


@pytest.mark.fault(33)
async def test_an_ended_job_keeps_its_end(client: httpx2.AsyncClient, player: Player) -> None:
    """A cancel that comes too late says so."""
    job_id = await submit(client)
    await (await player.take(job_id)).end()
    assert await cancel(client, job_id) == ("completed", "already_ended")
    assert (await show(client, job_id))["finish_reason"] == "stop"


@pytest.mark.fault(33)
async def test_a_missing_and_a_foreign_job_cannot_be_cancelled(
    client: httpx2.AsyncClient, store: JobStore
) -> None:
    """The foreign one has no flag afterwards."""
    foreign = await submit_to(store)
    for job_id in (MISSING, foreign.id, "x"):
        check_problem(await client.delete(f"/v1/jobs/{job_id}"), 404, "job-not-found")
    record = await store.record(foreign.id)
    assert record
    assert not record.cancel


async def test_a_read_ends_an_overdue_job(
    client: httpx2.AsyncClient, player: Player, redis: Redis, keys: Keys
) -> None:
    """A job past its deadline is never shown as waiting, worker or not."""
    job_id = await submit(client)
    await redis.hset(keys.job(job_id).record, "deadline_ms", "1")  # type: ignore[misc]
    assert (await show(client, job_id))["status"] == "expired"
    seen = await read_stream(client, job_id)
    assert [event.kind for _, event in seen] == ["accepted", "expired"]
