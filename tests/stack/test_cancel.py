"""Cancel reaches the engine, from any gateway and from the terminal."""

import asyncio
import signal
import time

import pytest

from tests.support.fleet import Fleet
from tests.support.programs import Programs
from tests.support.readers import SseReader
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio

ENDLESS = 100_000
CANCELLED = "accepted started tokens cancelled"


async def idle(fleet: Fleet) -> bool:
    """Tell whether no worker holds a job."""
    return all(live.info.running == 0 for live in await fleet.registry.workers())


@pytest.mark.fault(33)
async def test_cancel_ends_a_running_job_within_a_second(fleet: Fleet) -> None:
    """A cancel on one gateway ends the stream on the other, and frees the worker's slot."""
    await fleet.start(gateways=2, workers=1, capacity=1)
    job_id = await fleet.submit("Count every drop", max_tokens=ENDLESS)
    reader = SseReader(job_id)
    async with within(), asyncio.TaskGroup() as group:
        reading = group.create_task(reader.read(fleet.urls[0]))
        await reader.has(20)
        asked = time.monotonic()
        met = await fleet.gateways[1].client.cancel(job_id)
        await reading
        took_s = time.monotonic() - asked
    assert met.cancelled == "running"
    assert took_s < 1
    story = await fleet.story(job_id)
    assert story.outline == CANCELLED
    story.check(reader.seen)
    following = await fleet.submit("The next one in the only slot", max_tokens=20)
    async with within(5):
        await fleet.follow(following)
    await eventually(lambda: idle(fleet))
    await fleet.check_at_rest()


async def test_ctrl_c_on_run_cancels_the_job(fleet: Fleet, programs: Programs) -> None:
    """SIGINT to `headrace run` in mid-answer ends its job as cancelled, and the command with 1."""
    await fleet.start(workers=1)
    run = await programs.start(
        "run", "run", "Count every drop", "--max-tokens", str(ENDLESS), "--url", fleet.urls[0]
    )

    async def has_text() -> bool:
        return len(run.output) > 50

    async with within(30):
        await eventually(has_text)
        run.send(signal.SIGINT)
        assert await run.wait() == 1
    [job] = (await fleet.gateways[0].client.jobs()).data
    ended = await fleet.gateways[0].client.get(job.id, wait_s=5)
    assert ended.status == "cancelled"
    assert f"headrace: {job.id}: cancel asked for while it runs" in run.errors
    story = await fleet.story(job.id)
    assert story.outline == CANCELLED
    assert story.text.encode().startswith(run.output.rstrip(b"\n"))
    await fleet.check_at_rest()
