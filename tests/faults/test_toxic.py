"""What a job's own engine or payload can do to its worker."""

import asyncio
import signal
from typing import Any

import pytest

from tests.faults.checks import check_never_ends, check_whole
from tests.support.fleet import Fleet
from tests.support.oracle import TAKEN_OVER, UNDISTURBED
from tests.support.readers import SseReader
from tests.support.waiting import within

pytestmark = pytest.mark.anyio

LEASE_S = 1.0
FOREVER_S = 60.0
NUM_TOKENS = 60
LONG = 300
BLOCKED_S = 3


async def run(fleet: Fleet, prompt: str, *, seconds: float = 30) -> tuple[str, SseReader]:
    """Run a job to its end, followed by one reader."""
    job_id = await fleet.submit(prompt, max_tokens=NUM_TOKENS)
    reader = SseReader(job_id)
    async with within(seconds):
        await reader.read(fleet.urls[0])
    return job_id, reader


@pytest.mark.fault(3)
async def test_a_worker_whose_interpreter_stands_still_is_replaced(fleet: Fleet) -> None:
    """Not even its lease thread runs; when it does again, the job is another worker's."""
    prompt = f"Hold on [gil={BLOCKED_S}]"
    await fleet.start(lease_s=LEASE_S, changes="toxic")
    job_id, reader = await run(fleet, prompt)
    story = await check_whole(fleet, job_id, prompt, reader.seen, max_tokens=NUM_TOKENS)
    assert story.outline == TAKEN_OVER
    assert len(set(story.workers)) == 2


@pytest.mark.fault(3)
@pytest.mark.faults
async def test_a_worker_whose_loop_stands_still_is_alive(fleet: Fleet) -> None:
    """Its lease is renewed from a thread: a long step in the event loop is no death."""
    prompt = f"Hold on [loop={BLOCKED_S}]"
    await fleet.start(lease_s=LEASE_S, changes="toxic")
    job_id, reader = await run(fleet, prompt)
    story = await check_whole(fleet, job_id, prompt, reader.seen, max_tokens=NUM_TOKENS)
    assert story.outline == UNDISTURBED


@pytest.mark.control(3)
@pytest.mark.faults
async def test_with_the_lease_in_the_loop_it_would_be_dead(fleet: Fleet) -> None:
    """The same job is taken away from its living worker."""
    prompt = f"Hold on [loop={BLOCKED_S}]"
    await fleet.start(lease_s=LEASE_S, changes="toxic,lease_in_loop")
    job_id, reader = await run(fleet, prompt)
    story = await check_whole(fleet, job_id, prompt, reader.seen, max_tokens=NUM_TOKENS)
    assert story.outline == TAKEN_OVER


@pytest.mark.fault(4)
async def test_an_engine_that_raises_gives_its_jobs_away(fleet: Fleet) -> None:
    """At once, whatever its lease: the worker ends with its reason, another one goes on."""
    prompt = "Careful [raise]"
    await fleet.start(lease_s=FOREVER_S, changes="toxic")
    job_id, reader = await run(fleet, prompt)
    story = await check_whole(fleet, job_id, prompt, reader.seen, max_tokens=NUM_TOKENS)
    assert story.outline == TAKEN_OVER
    [dead] = [worker for worker in fleet.workers if '"engine_failed"' in worker.errors]
    assert await dead.wait() == 1


@pytest.mark.control(4)
@pytest.mark.faults
async def test_without_the_hand_over_they_wait_for_the_lease(fleet: Fleet) -> None:
    """The fault bites: nobody else may touch what a worker with a lease holds."""
    await fleet.start(lease_s=FOREVER_S, changes="toxic,no_hand_over")
    job_id = await fleet.submit("Careful [raise]", max_tokens=NUM_TOKENS)
    await check_never_ends(fleet, job_id, 4)


@pytest.mark.fault(4)
@pytest.mark.faults
async def test_an_engine_that_hangs_in_the_loop_ends_its_worker(fleet: Fleet) -> None:
    """The lease thread alone would keep it alive for ever, and with it everything that it holds."""
    prompt = "Careful [hang]"
    await fleet.start(lease_s=LEASE_S, watchdog_s=2, changes="toxic")
    job_id, reader = await run(fleet, prompt)
    story = await check_whole(fleet, job_id, prompt, reader.seen, max_tokens=NUM_TOKENS)
    assert story.outline == TAKEN_OVER
    [dead] = [worker for worker in fleet.workers if '"loop_hangs"' in worker.errors]
    assert await dead.wait() == 1


@pytest.mark.control(4)
@pytest.mark.faults
async def test_unwatched_it_would_hold_its_jobs_for_ever(fleet: Fleet) -> None:
    """The fault bites: a lease that is renewed says nothing of the loop beside it."""
    await fleet.start(lease_s=LEASE_S, watchdog_s=2, changes="toxic,no_loop_watch")
    job_id = await fleet.submit("Careful [hang]", max_tokens=NUM_TOKENS)
    await check_never_ends(fleet, job_id, 6)


@pytest.mark.fault(4)
@pytest.mark.faults
async def test_an_engine_that_exits_is_a_death(fleet: Fleet) -> None:
    """``sys.exit`` in the middle of a job ends its worker; its lease runs out, another goes on."""
    prompt = "Careful [exit]"
    await fleet.start(lease_s=LEASE_S, changes="toxic")
    job_id, reader = await run(fleet, prompt)
    story = await check_whole(fleet, job_id, prompt, reader.seen, max_tokens=NUM_TOKENS)
    assert story.outline == TAKEN_OVER
    by_code = [worker for worker in fleet.workers if not worker.is_running]
    assert [await worker.wait() for worker in by_code] == [9]


async def poison(fleet: Fleet, max_losses: int) -> str:
    """Submit a job that kills every worker which touches it."""
    await fleet.start(workers=3, lease_s=LEASE_S, max_losses=max_losses, changes="toxic")
    return await fleet.submit("Careful [exit][always]", max_tokens=NUM_TOKENS)


@pytest.mark.fault(5)
@pytest.mark.faults
async def test_a_poisonous_job_is_given_up(fleet: Fleet) -> None:
    """After two workers it fails with its reason; the third lives and serves the next job."""
    job_id = await poison(fleet, max_losses=2)
    seen = await fleet.follow(job_id)
    story = await fleet.story(job_id)
    story.check(seen)
    assert story.end.error
    assert (story.end.kind, story.end.error.type) == ("failed", "worker-lost")
    assert [worker.is_running for worker in fleet.workers].count(True) == 1
    prompt = "The next one"
    job_id, reader = await run(fleet, prompt)
    await check_whole(fleet, job_id, prompt, reader.seen, max_tokens=NUM_TOKENS)


@pytest.mark.control(5)
@pytest.mark.faults
async def test_without_a_limit_it_kills_them_all(fleet: Fleet) -> None:
    """The fault bites: with patience for a hundred losses no worker is left."""
    await poison(fleet, max_losses=100)
    for worker in fleet.workers:
        assert await worker.wait() == 9


async def poison_neighbours(fleet: Fleet, changes: str) -> list[str]:
    """Run a poisonous job beside three others on one worker after the other; returns their ends."""
    settings: dict[str, Any] = {"lease_s": LEASE_S, "max_losses": 3, "capacity": 8}
    settings["changes"] = changes
    await fleet.start(workers=1, **settings)
    jobs = [await fleet.submit(f"Neighbour {number}", max_tokens=LONG) for number in range(3)]
    jobs.append(await fleet.submit("Careful [exit][always]", max_tokens=NUM_TOKENS))
    await fleet.start(gateways=0, workers=3, **settings)
    async with within(60):
        await asyncio.gather(*(fleet.follow(job_id) for job_id in jobs))
    return [(await fleet.story(job_id)).end.kind for job_id in jobs]


@pytest.mark.fault(5)
@pytest.mark.faults
async def test_a_poisonous_job_takes_no_neighbour_along(fleet: Fleet) -> None:
    """Those that lost two workers beside it get their last chance without it."""
    assert await poison_neighbours(fleet, "toxic") == ["completed"] * 3 + ["failed"]


@pytest.mark.control(5)
@pytest.mark.faults
async def test_together_they_would_all_be_given_up(fleet: Fleet) -> None:
    """The fault bites: every death counts against every job of that worker."""
    assert await poison_neighbours(fleet, "toxic,reckless") == ["failed"] * 4


@pytest.mark.fault(6)
async def test_a_drain_in_prefill_hands_over(fleet: Fleet) -> None:
    """A worker that is told to stop before its job's first token gives it away, without a loss."""
    prompt = "A long story [prefill=2]"
    await fleet.start(workers=2, lease_s=FOREVER_S, worker_drain_s=0.2, changes="toxic")
    job_id = await fleet.submit(prompt, max_tokens=NUM_TOKENS)
    reader = SseReader(job_id)
    async with within(30), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        await reader.has(2)
        leaving = await fleet.owner(job_id)
        leaving.send(signal.SIGTERM)
        assert await leaving.wait() == 0
    story = await check_whole(fleet, job_id, prompt, reader.seen, max_tokens=NUM_TOKENS)
    assert story.outline == "accepted started retrying started tokens completed"
    record = await fleet.store.record(job_id)
    assert record
    assert record.losses == 0


@pytest.mark.control(6)
@pytest.mark.faults
async def test_without_the_hand_over_a_drain_is_a_death(fleet: Fleet) -> None:
    """The fault bites: what a worker left behind waits until its lease is over."""
    await fleet.start(
        lease_s=FOREVER_S, worker_drain_s=0.2, changes="no_hand_over", fake_tokens_per_s=20
    )
    job_id = await fleet.submit("A long story")
    await fleet.logged(job_id, 5)
    worker = await fleet.owner(job_id)
    worker.send(signal.SIGTERM)
    await worker.wait()
    record = await fleet.store.record(job_id)
    assert record
    length = record.next
    await check_never_ends(fleet, job_id, 3)
    record = await fleet.store.record(job_id)
    assert record
    assert record.next == length
