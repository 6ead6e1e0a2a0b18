"""What a fleet must live through, whatever topology its Redis has."""

import asyncio
from collections.abc import Callable

from common.connections import UNAVAILABLE
from tests.support.fleet import NUM_TOKENS, Fleet
from tests.support.oracle import Story
from tests.support.readers import SseReader
from tests.support.waiting import eventually, within

PROMPTS = [f"A mill by the water, seen on day {day}" for day in range(4)]
TAKEN_OVER = "accepted started tokens retrying started tokens completed"
UNDISTURBED = "accepted started tokens completed"
LIFE_S = 60.0


async def expected_texts(fleet: Fleet) -> list[str]:
    """Run the prompts with nobody disturbed; returns their answers."""
    jobs = [await fleet.submit(prompt, max_tokens=NUM_TOKENS) for prompt in PROMPTS]
    async with within(LIFE_S):
        await asyncio.gather(*(fleet.follow(job) for job in jobs))
    stories = [await fleet.story(job) for job in jobs]
    assert {story.outline for story in stories} == {UNDISTURBED}
    return [story.text for story in stories]


async def outlive(fleet: Fleet, texts: list[str], strike: Callable[[str], None]) -> list[Story]:
    """Run the prompts, all followed; ``strike`` gets the first job in the middle of its answer.

    Every job must end with its own text, and every reader must have seen its whole story.
    """
    jobs = [await fleet.submit(prompt, max_tokens=NUM_TOKENS) for prompt in PROMPTS]
    readers = [SseReader(job) for job in jobs]
    async with within(LIFE_S), asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(reader.read(fleet.urls[0]))
        await readers[0].has(15)
        assert not readers[0].is_done, "the fault comes too late to bite"
        await asyncio.to_thread(strike, jobs[0])

    await until_answered(fleet, jobs)
    stories = [await fleet.story(job) for job in jobs]
    assert [story.text for story in stories] == texts
    for story, reader in zip(stories, readers, strict=True):
        assert reader.num_connections == 1
        story.check(reader.seen)
    return stories


async def until_answered(fleet: Fleet, jobs: list[str]) -> None:
    """Wait until the server answers us too, who have not asked since before the fault."""

    async def answers() -> bool:
        try:
            return len(await fleet.store.top(jobs)) == len(jobs)
        except UNAVAILABLE:
            return False

    await eventually(answers)


async def outlive_a_worker(fleet: Fleet, texts: list[str]) -> None:
    """Kill the worker of the first job in the middle of its answer."""
    job_id = await fleet.submit(PROMPTS[0], max_tokens=NUM_TOKENS)
    reader = SseReader(job_id)
    async with within(LIFE_S), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        await reader.has(15)
        victim = await fleet.owner(job_id)
        await victim.kill()
    story = await fleet.story(job_id)
    assert (story.outline, story.text) == (TAKEN_OVER, texts[0])
    story.check(reader.seen)
