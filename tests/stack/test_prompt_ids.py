"""A conversation under a prompt ID outlives its workers, and takes its turns on any gateway."""

import asyncio

import pytest

from tests.support.fleet import NUM_TOKENS, Fleet
from tests.support.oracle import Story
from tests.support.readers import SseReader
from tests.support.waiting import within

pytestmark = pytest.mark.anyio

FIRST = "The long night begins"
TURNS = [" and goes on", " and on", None, " and ends"]  # None: continue


async def take_turn(fleet: Fleet, chat: str, text: str | None, gateway: int = 0) -> Story:
    """Submit the next turn the moment the one before has ended; returns its story."""
    job_id = await fleet.submit(None, gateway=gateway, append=text, prompt_id=chat)
    await fleet.follow(job_id, gateway=gateway)
    return await fleet.story(job_id)


async def begin(fleet: Fleet, chat: str) -> None:
    """Take the first turn, with a full prompt."""
    await fleet.follow(await fleet.submit(FIRST, prompt_id=chat))


async def test_a_conversation_outlives_its_workers(fleet: Fleet) -> None:
    """Every turn equals that of an undisturbed conversation, also the one that two workers made."""
    await fleet.start(gateways=2)
    for chat in ("calm", "stormy"):
        await begin(fleet, chat)
    expected = [
        await take_turn(fleet, "calm", text, number % 2) for number, text in enumerate(TURNS)
    ]
    assert [story.end.prompt_version for story in expected] == [2, 3, 4, 5]

    job_id = await fleet.submit(None, append=TURNS[0], prompt_id="stormy")
    reader = SseReader(job_id)
    async with within(30), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        await reader.has(20)
        victim = await fleet.owner(job_id)
        await victim.kill()
    stories = [await fleet.story(job_id)]
    stories += [await take_turn(fleet, "stormy", text) for text in TURNS[1:]]
    assert [story.text for story in stories] == [story.text for story in expected]
    assert [story.end.prompt_version for story in stories] == [2, 3, 4, 5]
    assert len(set(stories[0].workers)) == 2

    shown = await fleet.gateways[1].client.prompt("stormy")
    prompt = await fleet.gateways[1].client.prompt("calm")
    assert (shown.version, shown.length) == (prompt.version, prompt.length)
    assert shown.length == len(FIRST + "".join(filter(None, TURNS))) + 5 * NUM_TOKENS
    for chat in ("calm", "stormy"):
        await fleet.gateways[0].client.forget_prompt(chat)
    await fleet.check_at_rest()
