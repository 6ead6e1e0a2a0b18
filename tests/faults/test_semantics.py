"""Repeated submits, cancels, deadlines and crowds, on a whole fleet."""

import asyncio
import time

import httpx2
import pytest
from redis.asyncio import Redis

from common.jobs import Priority
from common.keys import Keys
from common.lanes import Lanes
from tests.faults.checks import check_never_ends, check_whole
from tests.support.fleet import Fleet
from tests.support.jobs import MODEL
from tests.support.oracle import Story
from tests.support.readers import SseReader
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio

PROMPT = "Who may stop the wheel?"
NUM_TOKENS = 60
ENDLESS = 100_000
BODY = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0}
NUM_AT_ONCE = 20
FAR_MS = 2**42


async def submit_at_once(fleet: Fleet, headers: dict[str, str]) -> set[str]:
    """Submit the same job many times at once, on two gateways in turn; returns the jobs."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        answers = await asyncio.gather(
            *(
                client.post(f"{fleet.urls[number % 2]}/v1/jobs", json=BODY, headers=headers)
                for number in range(NUM_AT_ONCE)
            )
        )
    assert {answer.status_code for answer in answers} == {202}
    return {answer.json()["id"] for answer in answers}


@pytest.mark.fault(32)
async def test_one_key_is_one_job_from_its_first_moment_to_its_last(fleet: Fleet) -> None:
    """At once on two gateways, and after the end; when its retention is over, it is a new one."""
    await fleet.start(gateways=2, workers=2, retention_s=1)
    headers = {"Idempotency-Key": '"the-same"'}
    [job_id] = await submit_at_once(fleet, headers)
    seen = await fleet.follow(job_id)
    story = await fleet.story(job_id)
    story.check(seen)
    assert story.outline == "accepted started tokens completed"
    assert await submit_at_once(fleet, headers) == {job_id}

    async def is_forgotten() -> bool:
        return await fleet.store.record(job_id) is None

    await eventually(is_forgotten)
    [again] = await submit_at_once(fleet, headers)
    seen = await fleet.follow(again)
    story = await check_whole(fleet, again, PROMPT, seen, max_tokens=NUM_TOKENS)
    assert story.outline == "accepted started tokens completed"


@pytest.mark.control(32)
async def test_without_a_key_each_is_a_job_of_its_own(fleet: Fleet) -> None:
    """The fault bites: the same payload is no reason to take two submits for one."""
    await fleet.start(gateways=2, workers=2)
    jobs = await submit_at_once(fleet, {})
    assert len(jobs) == NUM_AT_ONCE
    await asyncio.gather(*(fleet.follow(job_id) for job_id in jobs))
    await fleet.check_at_rest()


async def cancelled(fleet: Fleet, job_id: str) -> Story:
    """Return the story of a job that was cancelled, and check that nothing is left of it."""
    seen = await fleet.follow(job_id)
    story = await fleet.story(job_id)
    story.check(seen)
    assert story.end.kind == "cancelled"
    await fleet.check_at_rest()
    return story


@pytest.mark.fault(33)
async def test_a_cancel_without_its_hint_arrives(fleet: Fleet) -> None:
    """The worker hears nothing but the answers to its appends, and stops all the same."""
    await fleet.start(workers=1, changes="deaf_worker")
    job_id = await fleet.submit(PROMPT, max_tokens=ENDLESS)
    await fleet.logged(job_id, 10)
    await fleet.gateways[0].client.cancel(job_id)
    async with within(5):
        await cancelled(fleet, job_id)


@pytest.mark.control(33)
@pytest.mark.faults
async def test_without_hint_and_answer_it_runs_on(fleet: Fleet) -> None:
    """The fault bites: a flag that nobody is told of stops nothing."""
    await fleet.start(workers=1, changes="deaf_to_cancels")
    job_id = await fleet.submit(PROMPT, max_tokens=ENDLESS)
    await fleet.logged(job_id, 10)
    await fleet.gateways[0].client.cancel(job_id)
    await check_never_ends(fleet, job_id, 3)


@pytest.mark.fault(33)
async def test_a_cancel_at_any_stage(fleet: Fleet) -> None:
    """In the queue, at the claim, in mid-answer, twice, and after the end."""
    await fleet.start(workers=1, capacity=1, fake_tokens_per_s=60)
    client = fleet.gateways[0].client
    running = await fleet.submit(PROMPT, max_tokens=ENDLESS)
    await fleet.logged(running, 5)
    waiting = [await fleet.submit(PROMPT, max_tokens=ENDLESS) for _ in range(2)]
    assert (await client.cancel(waiting[0])).cancelled == "queued"
    first, second = await asyncio.gather(client.cancel(running), client.cancel(running))
    assert {first.cancelled, second.cancelled} <= {"running", "already_ended"}
    at_claim = waiting[1]  # the slot is free now: whoever is first, the job or its cancel
    await client.cancel(at_claim)
    async with within(10):
        stories = [await cancelled(fleet, job_id) for job_id in (running, waiting[0], at_claim)]
    assert (await client.cancel(running)).cancelled == "already_ended"
    assert stories[0].outline == "accepted started tokens cancelled"
    assert stories[1].outline == "accepted cancelled"


async def has_no_worker(fleet: Fleet) -> bool:
    """Tell whether all leases are over."""
    return not await fleet.registry.workers()


@pytest.mark.fault(33)
@pytest.mark.faults
async def test_a_cancel_of_a_dead_workers_job(fleet: Fleet) -> None:
    """While its lease runs, and when it is over: the job ends once, as cancelled."""
    await fleet.start(workers=1, lease_s=1.0)
    for has_lease in (True, False):
        job_id = await fleet.submit(PROMPT, max_tokens=ENDLESS)
        await fleet.logged(job_id, 10)
        await fleet.workers.pop().kill()
        if not has_lease:
            await eventually(lambda: has_no_worker(fleet))
        await fleet.gateways[0].client.cancel(job_id)
        await fleet.start(gateways=0, workers=1, lease_s=1.0)
        async with within(15):
            await cancelled(fleet, job_id)


@pytest.mark.fault(34)
@pytest.mark.faults
async def test_a_deadline_in_the_queue_and_in_mid_answer(fleet: Fleet) -> None:
    """The job that runs and the one that waits both end as expired, soon after it."""
    await fleet.start(workers=1, capacity=1)
    began = time.monotonic()
    jobs = [await fleet.submit(PROMPT, max_tokens=ENDLESS, deadline_s=2) for _ in range(2)]
    async with within(15):
        seen = await asyncio.gather(*(fleet.follow(job_id) for job_id in jobs))
    assert time.monotonic() - began >= 2
    for job_id, events in zip(jobs, seen, strict=True):
        story = await fleet.story(job_id)
        story.check(events)
        assert story.end.kind == "expired"
    await fleet.check_at_rest()


async def die_before_the_deadline(fleet: Fleet) -> str:
    """Return a job whose worker dies, with a deadline before anybody can go on."""
    await fleet.start(workers=1, lease_s=4.0)
    job_id = await fleet.submit(PROMPT, max_tokens=ENDLESS, deadline_s=2)
    await fleet.logged(job_id, 10)
    await fleet.workers.pop().kill()
    return job_id


@pytest.mark.fault(34)
@pytest.mark.faults
async def test_a_deadline_during_a_takeover(fleet: Fleet) -> None:
    """It passes while the dead worker's lease still runs: the job ends as expired, once."""
    job_id = await die_before_the_deadline(fleet)
    reader = SseReader(job_id)
    async with within(20), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        await fleet.start(gateways=0, workers=1)
    story = await fleet.story(job_id)
    story.check(reader.seen)
    assert story.end.kind == "expired"
    await fleet.check_at_rest()


@pytest.mark.control(34)
@pytest.mark.faults
async def test_without_sweep_and_comparison_a_deadline_is_only_a_number(fleet: Fleet) -> None:
    """The fault bites: nobody ends a job that nobody runs."""
    job_id = await die_before_the_deadline(fleet)
    await fleet.start(gateways=0, workers=1, changes="no_sweep")
    await check_never_ends(fleet, job_id, 8)


async def wait_behind(lanes: Lanes, tenants: tuple[str, str], crowd: int) -> int:
    """Return how many jobs are claimed before that of a tenant who comes last, with one."""
    many, single = tenants
    for number in range(crowd):
        await lanes.enqueue(f"many-{number}", many, Priority.NORMAL, FAR_MS)
    await lanes.enqueue("single", single, Priority.NORMAL, FAR_MS)
    claimed: list[str] = []
    while "single" not in claimed:
        claimed += [claim.job_id for claim in await lanes.claim("w1", 100)]
    return claimed.index("single")


@pytest.fixture
async def lanes(redis: Redis, keys: Keys) -> Lanes:
    """The lanes of a model with one worker."""
    await redis.zadd(keys.model(MODEL).workers, {"w1": FAR_MS})
    return Lanes(redis, keys, MODEL)


@pytest.mark.fault(35)
@pytest.mark.faults
async def test_ten_thousand_jobs_of_another_tenant_are_one_turn(lanes: Lanes) -> None:
    """Whoever has a single job waits for one of the others', however many they have."""
    assert await wait_behind(lanes, ("crowd", "single"), 10_000) <= 1


@pytest.mark.control(35)
async def test_in_one_line_with_them_it_would_wait_for_all(lanes: Lanes) -> None:
    """The fault bites: among jobs of its own tenant it is the last."""
    assert await wait_behind(lanes, ("crowd", "crowd"), 1_000) == 1_000


@pytest.mark.fault(37)
@pytest.mark.faults
async def test_nothing_grows_with_the_jobs_that_were(fleet: Fleet) -> None:
    """After many jobs, read, cancelled and left, no process holds a stream, a job or a lane."""
    await fleet.start(workers=2)
    client = fleet.gateways[0].client
    for _ in range(10):
        jobs = [await fleet.submit(PROMPT, max_tokens=20) for _ in range(20)]
        await client.cancel(jobs[0])
        reader = SseReader(jobs[1])
        await reader.read(fleet.urls[0], num_events=1)
        await asyncio.gather(*(fleet.follow(job_id) for job_id in jobs[2:]))
    await fleet.check_at_rest()
    held = await fleet.metrics("headrace_stream_subscribers", "headrace_jobs_watched")
    assert held == [0, 0]

    async def are_idle() -> bool:  # by their next heartbeats
        infos = [live.info for live in await fleet.registry.workers()]
        return not any(info.running or info.waiting for info in infos)

    await eventually(are_idle)
