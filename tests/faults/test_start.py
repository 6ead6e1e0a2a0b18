"""Processes of other versions, and processes that come before their server."""

import asyncio
from contextlib import suppress

import httpx2
import pytest

from tests.faults.checks import check_whole
from tests.support.fleet import Fleet
from tests.support.programs import Programs
from tests.support.readers import SseReader
from tests.support.servers import Server
from tests.support.waiting import within

pytestmark = pytest.mark.anyio

PROMPT = "What will tomorrow's wheel be made of?"
NUM_TOKENS = 60


@pytest.mark.fault(7)
@pytest.mark.faults
async def test_a_worker_of_tomorrow_serves_a_gateway_of_today(fleet: Fleet) -> None:
    """A field that this version does not know passes it by, also where a job changes hands."""
    await fleet.start(gateways=0, workers=1, lease_s=1.0, changes="of_tomorrow")
    await fleet.start(gateways=1, workers=0)
    job_id = await fleet.submit(PROMPT, max_tokens=480)
    reader = SseReader(job_id)
    async with within(30), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        await reader.has(10)
        await fleet.start(gateways=0, workers=1, lease_s=1.0)
        await fleet.workers[0].kill()
    story = await check_whole(fleet, job_id, PROMPT, reader.seen, max_tokens=480)
    assert len(set(story.workers)) == 2


@pytest.mark.control(7)
async def test_a_strict_gateway_could_not_read_it(fleet: Fleet) -> None:
    """The fault bites: where an unknown field is an error, the stream ends without its end."""
    await fleet.start(gateways=0, workers=1, changes="of_tomorrow")
    await fleet.start(gateways=1, workers=0, changes="strict")
    job_id = await fleet.submit(PROMPT, max_tokens=NUM_TOKENS)
    received = b""
    async with within(), httpx2.AsyncClient(base_url=fleet.urls[0], trust_env=False) as client:
        with suppress(httpx2.RemoteProtocolError):
            async with client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
                async for chunk in response.aiter_bytes():
                    received += chunk
    assert b"-unreadable" in received
    assert b"event: completed" not in received


@pytest.mark.control(22)
@pytest.mark.parametrize("process", ["gateway", "worker"])
async def test_a_process_that_does_not_wait_for_its_server_ends(
    own_server: Server, programs: Programs, process: str
) -> None:
    """The fault bites: without patience the order in which things start would matter."""
    own_server.stop()
    settings = {"redis": own_server.url, "port": 0, "engine": "fake", "model": "tiny"}
    program = await programs.start(process, process, changes="impatient", **settings)
    assert await program.wait() != 0
