"""``GET /v1/jobs/{id}/events``: where a stream begins, and when there is none."""

import httpx2
import pytest
from redis.asyncio import Redis

from common.job_store import JobStore
from common.keys import Keys
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import check_problem, submit
from tests.gateway.followers import check_is_log, log_of, numbered, read_stream
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway
from tests.support.jobs import make_job
from tests.support.jobs import submit as submit_foreign

MISSING = "job_" + "0" * 32


@pytest.fixture
async def finished(client: httpx2.AsyncClient, player: Player) -> str:
    """A job that has ended, with three ``tokens`` events."""
    job_id = await submit(client)
    attempt = await player.take(job_id)
    await attempt.say("a", "b", "c")
    await attempt.end()
    return job_id


async def test_a_late_subscriber_sees_everything(
    client: httpx2.AsyncClient, store: JobStore, finished: str
) -> None:
    """As often as it asks, it gets the whole log and a clean end."""
    log = await log_of(store, finished)
    for _ in range(3):
        check_is_log(await read_stream(client, finished), log)


@pytest.mark.fault(24)
@pytest.mark.parametrize("way", ["header", "query", "both"])
async def test_a_resume_after_any_event_gets_the_rest(
    client: httpx2.AsyncClient, store: JobStore, finished: str, way: str
) -> None:
    """Twice the same resume gives twice the same rest; the header wins over the first URL."""
    log = await log_of(store, finished)
    for after in range(-1, len(log) - 1):
        headers = {} if way == "query" else {"Last-Event-ID": str(after)}
        query = {"query": f"?after={after}", "both": "?after=-1", "header": ""}[way]
        for _ in range(2):
            url = f"/v1/jobs/{finished}/events{query}"
            async with client.sse(url, headers=headers) as source:
                seen = [item async for item in numbered(source)]
            check_is_log(seen, log, after)


async def test_a_reader_that_has_the_end_gets_204(
    client: httpx2.AsyncClient, finished: str
) -> None:
    """It tells an ``EventSource`` to stop coming back."""
    response = await client.get(f"/v1/jobs/{finished}/events", headers={"Last-Event-ID": "5"})
    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.fault(24)
@pytest.mark.parametrize("after", [6, 7, 2**53])
async def test_a_cursor_beyond_the_log_is_refused(
    client: httpx2.AsyncClient, finished: str, after: int
) -> None:
    """The answer says where the log ends."""
    response = await client.get(f"/v1/jobs/{finished}/events?after={after}")
    assert "after=5 " in check_problem(response, 409, "cursor-ahead")["detail"]


@pytest.mark.fault(24)
async def test_a_cursor_that_is_no_number_is_refused(
    client: httpx2.AsyncClient, finished: str
) -> None:
    """It is never taken for the start, which would repeat the stream."""
    for after in ("x", "1.5", "-2", "1e3", "0x1", "\u0663", str(2**53 + 1), "9" * 50, "-"):
        response = await client.get(f"/v1/jobs/{finished}/events", params={"after": after})
        assert "`after`" in check_problem(response, 400, "invalid-parameter")["detail"], after


@pytest.mark.fault(24)
@pytest.mark.parametrize("path", ["/events", ""])
async def test_unknown_expired_and_foreign_jobs_look_alike(
    client: httpx2.AsyncClient,
    store: JobStore,
    redis: Redis,
    keys: Keys,
    finished: str,
    path: str,
) -> None:
    """Nothing tells a stranger that a job exists."""
    foreign = (await submit_foreign(store, make_job())).id
    await redis.delete(keys.job(finished).record, keys.job(finished).log)
    answers = []
    for job_id in (MISSING, finished, foreign):
        body = check_problem(await client.get(f"/v1/jobs/{job_id}{path}"), 404, "job-not-found")
        answers.append({name: str(body[name]).replace(job_id, "ID") for name in body})
        answers[-1].pop("request_id")
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.fault(24)
async def test_what_is_no_job_id_is_a_missing_job(client: httpx2.AsyncClient) -> None:
    """It reaches no key."""
    for job_id in ("x", "job_", "job_" + "G" * 32, MISSING + "0", "%00", "{x}"):
        check_problem(await client.get(f"/v1/jobs/{job_id}/events"), 404, "job-not-found")


@pytest.mark.fault(29)
async def test_head_does_not_stream(
    client: httpx2.AsyncClient, gateway: RunningGateway, player: Player
) -> None:
    """A probe of an endless stream is answered at once and follows nothing."""
    job_id = await submit(client)
    response = await client.head(f"/v1/jobs/{job_id}/events")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert len(gateway.services.streams) == 0


async def test_a_resume_goes_on_at_another_gateway(
    client: httpx2.AsyncClient, make_gateway: MakeGateway, store: JobStore, player: Player
) -> None:
    """Half of the stream here and half there are the whole."""
    job_id = await submit(client)
    attempt = await player.take(job_id)
    await attempt.say("a")
    async with client.sse(f"/v1/jobs/{job_id}/events") as source:
        events = numbered(source)
        first = [await anext(events) for _ in range(3)]
    async with (
        make_gateway() as other,
        httpx2.AsyncClient(base_url=other.url, trust_env=False) as elsewhere,
    ):
        await attempt.say("b")
        await attempt.end()
        rest = await read_stream(elsewhere, job_id, after=2)
    check_is_log(first + rest, await log_of(store, job_id))
