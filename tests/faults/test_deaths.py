"""Workers that die at any step of a job's life, and what they held."""

import asyncio
import signal

import pytest
from redis.asyncio import Redis

from common import job_store, lanes
from common.connections import every_server
from common.scripts import Script
from tests.faults.checks import check_never_ends, check_whole, is_ended
from tests.support.fault_proxy import FaultProxy, Trap
from tests.support.fleet import Fleet
from tests.support.oracle import TAKEN_OVER, UNDISTURBED
from tests.support.readers import SseReader
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio

LEASE_S = 1.0
NUM_TOKENS = 60
PROMPT = "Which way does the wheel turn?"
WITHOUT_TOKENS = "accepted started retrying started tokens completed"
STEPS: dict[str, Script] = {
    "claim": lanes._CLAIM,
    "start": job_store._START,
    "append": job_store._APPEND,
    "finish": job_store._FINISH,
    "release": lanes._RELEASE,
}


async def set_trap(redis: Redis, proxy: FaultProxy, step: str, *, applied: bool) -> Trap:
    """Catch the worker at a step, before Redis takes it or when nobody knows that it did."""
    script = STEPS[step]
    for server in await every_server(redis):  # else the first call is answered with NOSCRIPT
        await server.script_load(script.text)
    job = b"job_" if step == "claim" and applied else b""  # a claim of nothing is no step
    return proxy.set_trap(script.sha.encode(), applied=applied, reply=job)


async def die_at(fleet: Fleet, redis: Redis, proxy: FaultProxy, step: str, *, applied: bool) -> str:
    """Submit a job, and kill its worker at the step; returns the job."""
    await fleet.start(workers=1, redis=proxy.url, lease_s=LEASE_S)
    trap = await set_trap(redis, proxy, step, applied=applied)
    job_id = await fleet.submit(PROMPT, max_tokens=NUM_TOKENS)
    async with within():
        await trap.sprung.wait()
    await fleet.workers[0].kill()
    return job_id


LONG = pytest.mark.faults


@pytest.mark.fault(1, 10)
@pytest.mark.parametrize(
    ("step", "applied", "outline"),
    [
        pytest.param("claim", False, UNDISTURBED, marks=LONG),
        ("claim", True, UNDISTURBED),
        pytest.param("start", False, UNDISTURBED, marks=LONG),
        pytest.param("start", True, WITHOUT_TOKENS, marks=LONG),
        pytest.param("append", False, WITHOUT_TOKENS, marks=LONG),
        pytest.param("append", True, TAKEN_OVER, marks=LONG),
        ("finish", False, TAKEN_OVER),  # the last tokens are in the same packet
        ("finish", True, UNDISTURBED),
        pytest.param("release", False, UNDISTURBED, marks=LONG),
        pytest.param("release", True, UNDISTURBED, marks=LONG),
    ],
)
async def test_killed_at_this_step(
    fleet: Fleet, redis: Redis, proxy: FaultProxy, step: str, applied: bool, outline: str
) -> None:
    """The next worker does what is left to do: all of it, some of it, or nothing at all."""
    job_id = await die_at(fleet, redis, proxy, step, applied=applied)
    reader = SseReader(job_id)
    async with within(30), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        await fleet.start(gateways=0, workers=1, lease_s=LEASE_S)
    story = await check_whole(fleet, job_id, PROMPT, reader.seen, max_tokens=NUM_TOKENS)
    assert story.outline == outline


@pytest.mark.control(1, 10)
@pytest.mark.parametrize("step", ["claim", "append"])
@pytest.mark.faults
async def test_without_the_sweep_nobody_goes_on(
    fleet: Fleet, redis: Redis, proxy: FaultProxy, step: str
) -> None:
    """What a dead worker held stays held: the fault bites."""
    job_id = await die_at(fleet, redis, proxy, step, applied=True)
    await fleet.start(gateways=0, workers=1, lease_s=LEASE_S, changes="no_sweep")
    await check_never_ends(fleet, job_id, 3 * LEASE_S)


@pytest.mark.control(2)
@pytest.mark.faults
async def test_without_the_fence_a_zombie_writes_into_anothers_job(fleet: Fleet) -> None:
    """The fault bites: what a frozen worker writes when it wakes up stands in the log.

    Its numbers are checked too, and would stop most of it; so both checks are off.
    """
    await fleet.start(workers=1, lease_s=LEASE_S, changes="no_fence,no_repeat_check")
    job_id = await fleet.submit(PROMPT, max_tokens=8 * NUM_TOKENS)
    await fleet.logged(job_id, 20)
    [zombie] = fleet.workers
    zombie.send(signal.SIGSTOP)
    await fleet.start(gateways=0, workers=1, lease_s=LEASE_S)

    async def is_taken_over() -> bool:
        record = await fleet.store.record(job_id)
        assert record
        return record.attempts == 2

    await eventually(is_taken_over)
    zombie.send(signal.SIGCONT)
    await eventually(lambda: is_ended(fleet, job_id))
    with pytest.raises(AssertionError, match="tokens repeated"):
        await fleet.story(job_id)
