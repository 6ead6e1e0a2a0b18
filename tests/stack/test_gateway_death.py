"""A gateway holds nothing: whoever followed a job on it reads on at another one."""

import asyncio
import signal
from urllib.parse import urlsplit

import pytest

from common.events import Event, is_terminal
from tests.support.fleet import NUM_TOKENS, TOKENS_PER_S, Fleet
from tests.support.readers import (
    CHROMIUM,
    NEEDS_CHROMIUM,
    Cut,
    Reader,
    SseReader,
    WsReader,
    browser_has,
    browser_page,
    read_in_browser,
)
from tests.support.waiting import within

pytestmark = pytest.mark.anyio

LONG = 2 * NUM_TOKENS
FOR_TWENTY_SECONDS = int(20 * TOKENS_PER_S)


async def disturb(fleet: Fleet, number: signal.Signals, exit_code: int) -> None:
    """Follow a job on one gateway, end that one, and go on at the other."""
    await fleet.start(gateways=2, workers=1)
    job_id = await fleet.submit("Two doors of one house", max_tokens=LONG)
    readers: list[Reader] = [SseReader(job_id), WsReader(job_id)]
    first = fleet.gateways[0].program
    async with within(30), asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(reader.read_through(fleet.urls))
            await reader.has(20)
        first.send(number)
        assert await first.wait() == exit_code

    story = await fleet.story(job_id)
    assert story.outline == "accepted started tokens completed"
    for reader in readers:
        assert reader.num_connections == 2
        story.check(reader.seen)
    assert (await fleet.gateways[1].client.get(job_id)).text == story.text
    await fleet.check_at_rest()


@pytest.mark.fault(23)
async def test_readers_of_a_killed_gateway_read_on_at_another_one(fleet: Fleet) -> None:
    """After `kill -9` of a gateway its readers get the rest elsewhere, and nothing twice."""
    await disturb(fleet, signal.SIGKILL, -signal.SIGKILL)


@pytest.mark.fault(23)
async def test_readers_of_a_stopping_gateway_read_on_at_another_one(fleet: Fleet) -> None:
    """SIGTERM cuts open streams without a terminal event; their readers resume elsewhere."""
    await disturb(fleet, signal.SIGTERM, 0)


@pytest.mark.fault(23)
@pytest.mark.skipif(not CHROMIUM.exists(), reason=NEEDS_CHROMIUM)
async def test_a_browser_reads_on_when_its_gateway_comes_back(fleet: Fleet) -> None:
    """`EventSource` in Chromium reconnects by itself to a restarted gateway, and resumes."""
    await fleet.start(gateways=1, workers=1)
    [gateway] = fleet.gateways
    async with within(45), browser_page(gateway.url) as page:
        job_id = await fleet.submit("Two doors of one house", max_tokens=LONG)
        reading = asyncio.create_task(read_in_browser(page, job_id))
        await browser_has(page, 20)
        await gateway.program.kill()
        await fleet.start(gateways=1, workers=0, port=urlsplit(gateway.url).port)
        seen = await reading
        assert await page.evaluate("window.connections") == 2
    story = await fleet.story(job_id)
    story.check(seen)
    await fleet.check_at_rest()


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    "num_tokens", [LONG, pytest.param(FOR_TWENTY_SECONDS, marks=pytest.mark.faults)]
)
async def test_a_frozen_gateway_that_wakes_up_gives_its_readers_the_rest(
    fleet: Fleet, num_tokens: int
) -> None:
    """Who reads elsewhere does not wait for it; its own readers have every event once, late.

    That it stands still is seen: at the end of the job none of its readers has the end.
    """
    await fleet.start(gateways=2, workers=1)
    frozen, other = fleet.gateways
    job_id = await fleet.submit("Two doors of one house", max_tokens=num_tokens)
    late: list[Reader] = [SseReader(job_id), WsReader(job_id)]
    elsewhere = SseReader(job_id)
    async with within(60), asyncio.TaskGroup() as group:
        for reader in late:
            group.create_task(reader.read(frozen.url))
            await reader.has(20)
        frozen.program.send(signal.SIGSTOP)
        await elsewhere.read(other.url)
        assert not any(reader.is_done for reader in late)
        frozen.program.send(signal.SIGCONT)

    story = await fleet.story(job_id)
    assert story.outline == "accepted started tokens completed"
    for reader in (*late, elsewhere):
        story.check(reader.seen)
    answer = await fleet.follow(await fleet.submit("Is it awake?", max_tokens=5))
    assert is_terminal(answer[-1][1])
    await fleet.check_at_rest()


@pytest.mark.control(23)
async def test_a_reader_without_its_cursor_reads_everything_again(fleet: Fleet) -> None:
    """A reader that forgets where it was gets the job from event 0: the cursor is what resumes."""
    await fleet.start(gateways=2, workers=1)
    job_id = await fleet.submit("Two doors of one house", max_tokens=LONG)
    reader = SseReader(job_id)
    before: list[tuple[int, Event]] = []
    async with within(30):
        reading = asyncio.create_task(reader.read(fleet.urls[0]))
        await reader.has(20)
        await fleet.gateways[0].program.kill()
        with pytest.raises(Cut):
            await reading
        before, reader.seen = reader.seen, []
        await reader.read(fleet.urls[1])
    story = await fleet.story(job_id)
    story.check(reader.seen)
    with pytest.raises(AssertionError, match="repeated"):
        story.check(before + reader.seen)
