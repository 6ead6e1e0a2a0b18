"""Everybody who follows a job sees the same, whatever they speak and whenever they come."""

import asyncio

import pytest
from playwright.async_api import Page

from tests.support.fleet import Fleet
from tests.support.programs import Programs
from tests.support.readers import (
    CHROMIUM,
    NEEDS_CHROMIUM,
    SseReader,
    WsReader,
    browser_page,
    read_in_browser,
)
from tests.support.waiting import within

pytestmark = pytest.mark.anyio

NUM_CUTS = 10
NUM_TOKENS = 480
PROMPT = "A river, seen from ten bridges"


async def read_with_cuts(reader: SseReader, urls: list[str]) -> None:
    """Hang up after every few events, and go on at the other gateway each time."""
    for number in range(NUM_CUTS):
        await reader.read(urls[number % 2], num_events=8)
    await reader.read(urls[0])


async def check_from_everywhere(fleet: Fleet, programs: Programs, page: Page | None) -> None:
    """Follow one job in every way, each begun at another time, and compare what they saw."""
    job_id = await fleet.submit(PROMPT, max_tokens=NUM_TOKENS)
    early, cut, late = SseReader(job_id), SseReader(job_id), SseReader(job_id)
    socket = WsReader(job_id)
    in_browser = None
    async with within(45), asyncio.TaskGroup() as group:
        group.create_task(early.read(fleet.urls[0]))
        group.create_task(read_with_cuts(cut, fleet.urls))
        await early.has(20)
        cli = await programs.start("follow", "follow", job_id, "--url", fleet.urls[1])
        if page is not None:
            in_browser = group.create_task(read_in_browser(page, job_id))
        await early.has(60)
        group.create_task(socket.read(fleet.urls[1]))
        assert await cli.wait() == 0
    await late.read(fleet.urls[1])

    story = await fleet.story(job_id)
    assert cut.num_connections == NUM_CUTS + 1
    assert story.outline == "accepted started tokens completed"
    for reader in (early, cut, late, socket):
        story.check(reader.seen)
    if in_browser is not None:
        story.check(in_browser.result())
    assert cli.output == f"{story.text}\n".encode()
    for gateway in fleet.gateways:
        assert (await gateway.client.get(job_id)).text == story.text
    await fleet.check_at_rest()


@pytest.mark.fault(24)
async def test_subscribers_of_every_kind_end_with_the_same_bytes(
    fleet: Fleet, programs: Programs
) -> None:
    """A reader cut ten times, a WebSocket, `headrace follow` and a latecomer see the same bytes."""
    await fleet.start(gateways=2, workers=2)
    await check_from_everywhere(fleet, programs, None)


@pytest.mark.skipif(not CHROMIUM.exists(), reason=NEEDS_CHROMIUM)
async def test_event_source_in_a_browser_sees_the_same_bytes(
    fleet: Fleet, programs: Programs
) -> None:
    """`EventSource` in Chromium, attached in mid-answer, sees what all the others see."""
    await fleet.start(gateways=2, workers=2)
    async with within(60), browser_page(fleet.urls[1]) as page:
        await check_from_everywhere(fleet, programs, page)


@pytest.mark.control(24)
async def test_a_reader_that_forgets_its_cursor_sees_repeats(fleet: Fleet) -> None:
    """Without `Last-Event-ID` the stream begins again: it is the cursor that prevents repeats."""
    await fleet.start(gateways=1, workers=1)
    job_id = await fleet.submit(PROMPT, max_tokens=40)
    forgetful = SseReader(job_id)
    async with within():
        await forgetful.read(fleet.urls[0], num_events=10)
        first, forgetful.seen = forgetful.seen, []
        await forgetful.read(fleet.urls[0])
    story = await fleet.story(job_id)
    with pytest.raises(AssertionError, match="repeated"):
        story.check(first + forgetful.seen)
