"""A worker's death is a pause: another one goes on where the log ends, and nobody reads twice."""

import asyncio
import signal

import pytest

from common.events import Tokens, encode_event
from common.job_store import Append, Outcome
from tests.support.fleet import NUM_TOKENS, Fleet
from tests.support.oracle import TAKEN_OVER, UNDISTURBED, Story
from tests.support.readers import SseReader, WsReader
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio

PROMPTS = [f"Question {number} of a long night" for number in range(8)]
LONG = 2 * NUM_TOKENS


async def run_all(fleet: Fleet, prompts: list[str], max_tokens: int = NUM_TOKENS) -> list[Story]:
    """Run the prompts side by side with nobody disturbed; returns their stories."""
    jobs = [await fleet.submit(prompt, max_tokens=max_tokens) for prompt in prompts]
    await asyncio.gather(*(fleet.follow(job) for job in jobs))
    stories = [await fleet.story(job) for job in jobs]
    assert {story.outline for story in stories} == {UNDISTURBED}
    return stories


@pytest.mark.fault(1)
async def test_followers_read_on_when_the_worker_is_killed(fleet: Fleet) -> None:
    """After `kill -9` of a worker its job goes on under the other one, to the same text."""
    await fleet.start()
    [expected] = await run_all(fleet, PROMPTS[:1])
    job_id = await fleet.submit(PROMPTS[0])
    sse, socket = SseReader(job_id), WsReader(job_id)
    async with within(30), asyncio.TaskGroup() as group:
        group.create_task(sse.read(fleet.urls[0]))
        group.create_task(socket.read(fleet.urls[0]))
        ours = group.create_task(fleet.follow(job_id))
        await sse.has(20)
        victim = await fleet.owner(job_id)
        await victim.kill()

    story = await fleet.story(job_id)
    assert story.outline == TAKEN_OVER
    assert story.text == expected.text
    assert len(set(story.workers)) == 2
    assert sse.num_connections == socket.num_connections == 1
    for seen in (sse.seen, socket.seen, ours.result()):
        story.check(seen)
    await fleet.check_at_rest()


@pytest.mark.fault(1)
async def test_several_answers_go_on_when_the_worker_is_killed(fleet: Fleet) -> None:
    """Each to its own text, behind the prompt, and with the probabilities of all its tokens."""
    await fleet.start()
    client = fleet.gateways[0].client
    options = {"n": 2, "echo": True, "logprobs": 1}
    undisturbed = await fleet.submit(PROMPTS[0], **options)
    await fleet.follow(undisturbed)
    expected = await client.get(undisturbed)
    job_id = await fleet.submit(PROMPTS[0], **options)
    sse = SseReader(job_id)
    async with within(30), asyncio.TaskGroup() as group:
        group.create_task(sse.read(fleet.urls[0]))
        await sse.has(20)
        victim = await fleet.owner(job_id)
        await victim.kill()

    story = await fleet.story(job_id)
    assert story.outline == TAKEN_OVER
    story.check(sse.seen)
    job = await client.get(job_id)
    assert (job.choices, job.text) == (expected.choices, expected.text)
    assert [len(choice.logprobs) for choice in job.choices] == [NUM_TOKENS] * 2
    assert all(choice.text.startswith(PROMPTS[0]) for choice in job.choices)
    assert job.choices[0].text != job.choices[1].text
    await fleet.check_at_rest()


@pytest.mark.fault(1)
async def test_every_job_of_a_killed_worker_and_its_queue_survive(fleet: Fleet) -> None:
    """Jobs that ran on the killed worker, and those that waited, all end with their own text."""
    await fleet.start(capacity=3)
    expected = await run_all(fleet, PROMPTS)
    jobs = [await fleet.submit(prompt) for prompt in PROMPTS]
    async with within(40), asyncio.TaskGroup() as group:
        followers = [group.create_task(fleet.follow(job)) for job in jobs]
        await fleet.logged(jobs[0], 20)
        victim = await fleet.owner(jobs[0])
        await victim.kill()

    stories = [await fleet.story(job) for job in jobs]
    assert [story.text for story in stories] == [story.text for story in expected]
    assert [story.outline for story in stories].count(TAKEN_OVER) >= 3
    for story, follower in zip(stories, followers, strict=True):
        story.check(follower.result())
    await fleet.check_at_rest()


@pytest.mark.fault(2)
async def test_a_frozen_worker_that_wakes_up_writes_nothing(fleet: Fleet) -> None:
    """A worker stopped past its lease finds its job taken over, and comes back under a new ID."""
    await fleet.start()
    job_id = await fleet.submit(PROMPTS[0], max_tokens=LONG)
    sse = SseReader(job_id)
    async with within(40), asyncio.TaskGroup() as group:
        group.create_task(sse.read(fleet.urls[0]))
        await sse.has(20)
        zombie = await fleet.owner(job_id)
        old_id = await fleet.worker_id(zombie)
        held = await fleet.store.record(job_id)
        assert held
        zombie.send(signal.SIGSTOP)
        taken_at = await taken_over(fleet, job_id, old_id)
        zombie.send(signal.SIGCONT)
        await zombie.says('"lease_lapsed"')
        stale = Append(job_id, held.epoch, taken_at, (encode_event(Tokens(0, (1,), "!")),))
        [refused] = await fleet.store.append([stale])

    story = await fleet.story(job_id)
    assert refused[0] is Outcome.FENCED
    assert story.outline == TAKEN_OVER
    assert story.workers[0] == old_id
    assert story.end.worker == story.workers[1] != old_id
    story.check(sse.seen)
    await eventually(lambda: fleet.worker_id(zombie))
    assert await fleet.worker_id(zombie) != old_id
    await fleet.check_at_rest()


async def taken_over(fleet: Fleet, job_id: str, old_id: str) -> int:
    """Wait until another worker has written tokens of the job; returns the log's length."""

    async def by_another() -> int:
        record = await fleet.store.record(job_id)
        assert record
        return record.next if record.owner not in ("", old_id) else 0

    started = await eventually(by_another)
    await fleet.logged(job_id, started + 5)
    return started


@pytest.mark.fault(6)
async def test_a_rolling_restart_loses_and_repeats_nothing(fleet: Fleet) -> None:
    """SIGTERM hands over what does not finish in time; with both workers replaced all is whole."""
    await fleet.start(worker_drain_s=0.2)
    expected = await run_all(fleet, PROMPTS, LONG)
    # Long enough that those of the second worker are not over when the first one is replaced.
    jobs = [await fleet.submit(prompt, max_tokens=LONG) for prompt in PROMPTS]
    async with within(40), asyncio.TaskGroup() as group:
        followers = [group.create_task(fleet.follow(job)) for job in jobs]
        for number, job in enumerate((jobs[0], jobs[-1])):
            await fleet.logged(job, 10)
            old = fleet.workers[number]
            old.send(signal.SIGTERM)
            assert await old.wait() == 0
            await fleet.start(gateways=0, workers=1)

    stories = [await fleet.story(job) for job in jobs]
    assert [story.text for story in stories] == [story.text for story in expected]
    # Some were handed over twice: the second worker took what the first one had.
    moved = [story for story in stories if " retrying started tokens" in story.outline]
    assert len(moved) >= 4
    for story, follower in zip(stories, followers, strict=True):
        story.check(follower.result())
    await fleet.check_at_rest()


@pytest.mark.fault(6)
async def test_a_worker_with_time_to_drain_finishes_its_jobs(fleet: Fleet) -> None:
    """SIGTERM with a long deadline lets the running job end on the worker that runs it."""
    await fleet.start(workers=1, worker_drain_s=20)
    job_id = await fleet.submit(PROMPTS[0])
    async with within(30):
        await fleet.logged(job_id, 20)
        [worker] = fleet.workers
        worker.send(signal.SIGTERM)
        waiting = await fleet.submit(PROMPTS[1])
        assert await worker.wait() == 0
        assert (await fleet.story(job_id)).outline == UNDISTURBED
        await fleet.start(gateways=0, workers=1)
        seen = await fleet.follow(waiting)
    story = await fleet.story(waiting)
    story.check(seen)
    assert story.outline == UNDISTURBED
    await fleet.check_at_rest()
