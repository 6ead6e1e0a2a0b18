"""What the fault tests ask again and again."""

import pytest

from common.jobs import JobSpec
from tests.support.fleet import NUM_TOKENS, Fleet
from tests.support.jobs import MODEL
from tests.support.oracle import Seen, Story
from tests.support.waiting import eventually
from tests.worker.rig import undisturbed


async def answer(prompt: str, max_tokens: int = NUM_TOKENS) -> str:
    """Return the text of a greedy job that nothing disturbs."""
    return (await undisturbed(JobSpec(MODEL, max_tokens, prompt=prompt))).text


async def check_whole(
    fleet: Fleet, job_id: str, prompt: str, *readers: Seen, max_tokens: int = NUM_TOKENS
) -> Story:
    """Check that the job ended with the answer of an undisturbed one, and its readers saw it."""
    story = await fleet.story(job_id)
    assert story.end.kind == "completed", story.end
    assert story.text == await answer(prompt, max_tokens)
    for seen in readers:
        story.check(seen)
    await fleet.check_at_rest()
    return story


async def is_ended(fleet: Fleet, job_id: str) -> bool:
    """Tell whether the job has its end."""
    record = await fleet.store.record(job_id)
    assert record
    return record.is_ended


async def check_never_ends(fleet: Fleet, job_id: str, seconds: float) -> None:
    """Check that the job has no end in a time in which it should have one."""

    async def has_end() -> bool:
        return await is_ended(fleet, job_id)

    with pytest.raises(AssertionError, match="not within"):
        await eventually(has_end, seconds)
