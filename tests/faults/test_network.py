"""The network between Redis and a process: cut, slow, silent, broken off in mid-reply."""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.fleet import LEASE_S, NUM_TOKENS, Fleet
from tests.support.oracle import TAKEN_OVER, UNDISTURBED
from tests.support.readers import SseReader
from tests.support.waiting import within

pytestmark = pytest.mark.anyio

PROMPT = "How wide is the river?"


@pytest.fixture
async def expected(fleet: Fleet) -> str:
    """What the prompt's answer is when nothing happens; a worker and a gateway run."""
    await fleet.start(workers=1)
    job_id = await fleet.submit(PROMPT)
    await fleet.follow(job_id)
    story = await fleet.story(job_id)
    assert story.outline == UNDISTURBED
    await fleet.workers.pop().kill()
    return story.text


BREAKS: dict[str, Callable[[FaultProxy], None]] = {
    "cut": FaultProxy.cut,
    **{f"reply-{length}": partial(FaultProxy.truncate, length=length) for length in (0, 1, 3, 20)},
}


@pytest.mark.fault(13)
@pytest.mark.parametrize("break_off", BREAKS.values(), ids=BREAKS.keys())
async def test_a_worker_whose_connections_break_goes_on(
    fleet: Fleet, proxy: FaultProxy, expected: str, break_off: Callable[[FaultProxy], None]
) -> None:
    """Between commands or in mid-reply, when Redis has done what was asked and nobody knows."""
    await fleet.start(gateways=0, workers=1, redis=proxy.url)
    job_id = await fleet.submit(PROMPT)
    reader = SseReader(job_id)
    async with within(30), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        for length in (5, 15, 25, 35):
            await reader.has(length)
            break_off(proxy)
    story = await fleet.story(job_id)
    assert proxy.num_cut, "the fault has not bitten"
    assert (story.outline, story.text) == (UNDISTURBED, expected)
    story.check(reader.seen)
    await fleet.check_at_rest()


@pytest.mark.fault(13)
async def test_a_worker_that_hears_nothing_is_replaced(
    fleet: Fleet, proxy: FaultProxy, expected: str
) -> None:
    """Its lease runs out, another one goes on; when it hears again, it writes nothing."""
    await fleet.start(gateways=0, workers=1, redis=proxy.url)
    job_id = await fleet.submit(PROMPT)
    reader = SseReader(job_id)
    async with within(10 * LEASE_S), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        await reader.has(20)
        proxy.swallow()
        await fleet.start(gateways=0, workers=1)
    proxy.heal()
    deaf = fleet.workers[0]
    await deaf.says('"lease_lapsed"')
    story = await fleet.story(job_id)
    assert (story.outline, story.text) == (TAKEN_OVER, expected)
    assert len(set(story.workers)) == 2
    story.check(reader.seen)
    await fleet.check_at_rest()


@pytest.mark.fault(13)
async def test_a_slow_network_is_only_slow(fleet: Fleet, proxy: FaultProxy, expected: str) -> None:
    """Of worker and gateway: every reply takes a while, and nobody is taken for dead."""
    proxy.delay_s = 0.05
    await fleet.start(gateways=1, workers=1, redis=proxy.url)
    job_id = await fleet.submit(PROMPT, gateway=1)
    async with within(30):
        seen = await fleet.follow(job_id, gateway=1)
    story = await fleet.story(job_id)
    assert (story.outline, story.text) == (UNDISTURBED, expected)
    story.check(seen)
    await fleet.check_at_rest()


@pytest.mark.fault(13)
async def test_a_gateway_that_hears_nothing_tells_its_readers_nothing_wrong(
    fleet: Fleet, proxy: FaultProxy, expected: str
) -> None:
    """They wait, or come back; when it hears again, they read on to the same end."""
    await fleet.start(gateways=0, workers=1)
    await fleet.start(gateways=1, workers=0, redis=proxy.url)
    job_id = await fleet.submit(PROMPT, gateway=0, max_tokens=2 * NUM_TOKENS)
    reader = SseReader(job_id)
    async with within(40), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[1]))
        await reader.has(20)
        proxy.swallow()
        num_seen = len(reader.seen)
        await fleet.logged(job_id, num_seen + 60)
        assert len(reader.seen) < num_seen + 30, "the fault has not bitten"
        proxy.heal()
    story = await fleet.story(job_id)
    assert story.text.startswith(expected)
    story.check(reader.seen)
    await fleet.check_at_rest()
