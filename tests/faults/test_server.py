"""A server that forgets, stands still, is full, or throws away."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from common.job_store import JobStore
from common.keys import Keys
from tests.faults.checks import check_whole
from tests.support.fleet import Fleet, fleet_on
from tests.support.jobs import make_job, read, submit
from tests.support.oracle import UNDISTURBED
from tests.support.programs import Programs
from tests.support.readers import SseReader, Told
from tests.support.servers import STARTABLE, Server
from tests.support.waiting import within

pytestmark = pytest.mark.anyio

PROMPT = "What does the river remember?"
ENDLESS = 100_000
RESYNC_S = 0.5
NOTICE_S = 5.0
STILL_S = 2.5

Loss = Callable[[Redis, Keys, str], Awaitable[object]]


async def flush_all(redis: Redis, _keys: Keys, _job_id: str) -> None:
    """Everything is gone."""
    await redis.flushall()


async def delete(redis: Redis, keys: Keys, job_id: str) -> None:
    """One job is gone."""
    await redis.delete(keys.job(job_id).record, keys.job(job_id).log)


async def delete_record(redis: Redis, keys: Keys, job_id: str) -> None:
    """The record of one job is gone, its log is not."""
    await redis.delete(keys.job(job_id).record)


async def expire(redis: Redis, keys: Keys, job_id: str) -> None:
    """The time of one job is over, in mid-answer."""
    for key in (keys.job(job_id).record, keys.job(job_id).log):
        await redis.pexpire(key, 1)


LOSSES = [
    flush_all,
    *(pytest.param(loss, marks=pytest.mark.faults) for loss in (delete, delete_record, expire)),
]


async def lose(fleet: Fleet, loss: Loss) -> tuple[SseReader, asyncio.Task[None]]:
    """Let a job vanish while it is followed; returns its reader."""
    job_id = await fleet.submit(PROMPT, max_tokens=ENDLESS)
    reader = SseReader(job_id)
    reading = asyncio.create_task(reader.read(fleet.urls[0]))
    await reader.has(10)
    await loss(fleet.redis, fleet.keys, job_id)
    return reader, reading


@pytest.mark.fault(11)
@pytest.mark.parametrize("loss", LOSSES)
async def test_a_job_that_vanishes_is_a_clear_end(own_fleet: Fleet, loss: Loss) -> None:
    """Its reader is told, its worker lets go of it, and the next job runs."""
    await own_fleet.start(workers=1, capacity=1, resync_s=RESYNC_S)
    _, reading = await lose(own_fleet, loss)
    async with within(NOTICE_S):
        with pytest.raises(Told, match="job-not-found"):
            await reading
    job_id = await own_fleet.submit(PROMPT)
    async with within(30):
        seen = await own_fleet.follow(job_id)
    await check_whole(own_fleet, job_id, PROMPT, seen)


@pytest.mark.control(11)
@pytest.mark.faults
async def test_without_the_comparison_it_is_silence(own_fleet: Fleet) -> None:
    """The fault bites: nobody else tells the reader in the same time."""
    await own_fleet.start(workers=1, resync_s=RESYNC_S, changes="no_resync")
    _, reading = await lose(own_fleet, delete)
    with pytest.raises(TimeoutError):
        async with within(NOTICE_S):
            await asyncio.shield(reading)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


@pytest.mark.fault(11)
@pytest.mark.faults
async def test_a_server_without_its_file_is_a_new_beginning(
    tmp_path: Path, programs: Programs
) -> None:
    """Who followed a job is told that it is gone; every process goes on with the empty server."""
    [backend, *_] = STARTABLE
    assert backend.binary
    server = Server(backend.binary, tmp_path, "--appendonly", "no")
    await asyncio.to_thread(server.start)

    async def restart(_redis: Redis, _keys: Keys, _job_id: str) -> None:
        await asyncio.to_thread(server.restart)

    try:
        async with fleet_on(server, programs) as fleet:
            await fleet.start(workers=1)
            _, reading = await lose(fleet, restart)
            async with within(4 * NOTICE_S):
                with pytest.raises(Told, match="job-not-found"):
                    await reading
            async with within(30):
                job_id = await fleet.submit_when_ready(PROMPT)
                seen = await fleet.follow(job_id)
            await check_whole(fleet, job_id, PROMPT, seen)
    finally:
        await asyncio.to_thread(server.kill)


async def stand_still(fleet: Fleet, server: Server) -> tuple[str, SseReader]:
    """Freeze the server for longer than the timeout of a command and the lease of a worker."""
    job_id = await fleet.submit(PROMPT, max_tokens=480)
    reader = SseReader(job_id)
    async with within(30), asyncio.TaskGroup() as group:
        group.create_task(reader.read(fleet.urls[0]))
        await reader.has(20)
        await asyncio.to_thread(server.freeze)
        try:
            await asyncio.sleep(STILL_S)  # the fault itself: nothing can happen meanwhile
        finally:
            await asyncio.to_thread(server.thaw)
    return job_id, reader


@pytest.mark.fault(15)
async def test_a_server_that_stands_still_is_waited_for(
    own_fleet: Fleet, own_server: Server
) -> None:
    """What was sent in vain is done when it goes on, and sent again; the log has it once."""
    await own_fleet.start(workers=1, lease_s=1.0, changes="hasty")
    job_id, reader = await stand_still(own_fleet, own_server)
    assert '"append_failed"' in own_fleet.workers[0].errors, "the fault has not bitten"
    await check_whole(own_fleet, job_id, PROMPT, reader.seen, max_tokens=480)


@pytest.mark.control(15)
@pytest.mark.faults
async def test_without_the_numbers_its_tokens_come_twice(
    own_fleet: Fleet, own_server: Server
) -> None:
    """The fault bites: the same append is done again, as often as it was sent."""
    await own_fleet.start(workers=1, lease_s=10.0, changes="hasty,no_repeat_check")
    job_id, _ = await stand_still(own_fleet, own_server)
    with pytest.raises(AssertionError, match="repeated"):
        await own_fleet.story(job_id)


@pytest.mark.fault(15)
@pytest.mark.faults
@pytest.mark.parametrize("is_all", [True, False], ids=["all", "writes"])
async def test_a_paused_server_is_waited_for(own_fleet: Fleet, is_all: bool) -> None:
    """``CLIENT PAUSE`` for longer than the timeout and the lease costs time, and nothing else."""
    await own_fleet.start(workers=2, lease_s=1.0)
    job_id = await own_fleet.submit(PROMPT, max_tokens=480)
    reader = SseReader(job_id)
    async with within(40), asyncio.TaskGroup() as group:
        group.create_task(reader.read(own_fleet.urls[0]))
        await reader.has(20)
        await own_fleet.redis.client_pause(6_000, all=is_all)
    await check_whole(own_fleet, job_id, PROMPT, reader.seen, max_tokens=480)


async def fill(redis: Redis, policy: str) -> None:
    """Let strangers fill the server's memory under a policy."""
    await redis.config_set("maxmemory-policy", policy)
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used + 1_000_000)
    for number in range(4_000):
        await redis.set(f"stranger:{number}", b"x" * 1_000, ex=600)


@pytest.mark.fault(18)
async def test_a_full_server_refuses_and_keeps(own_fleet: Fleet) -> None:
    """Under ``noeviction`` a write too many is an error; no accepted job is touched."""
    store = JobStore(own_fleet.redis, own_fleet.keys)
    jobs = [await submit(store) for _ in range(50)]
    with pytest.raises(OutOfMemoryError):
        await fill(own_fleet.redis, "noeviction")
    assert [(await read(store, job.id)).id for job in jobs] == [job.id for job in jobs]


@pytest.mark.control(18)
async def test_a_server_that_evicts_would_lose_accepted_jobs(own_fleet: Fleet) -> None:
    """The fault bites: that is why a worker refuses such a server."""
    store = JobStore(own_fleet.redis, own_fleet.keys)
    jobs = [await submit(store, make_job()) for _ in range(50)]
    await fill(own_fleet.redis, "allkeys-random")
    assert any([await store.record(job.id) is None for job in jobs])


@pytest.mark.fault(18)
@pytest.mark.faults
async def test_a_stream_outlasts_a_full_server(own_fleet: Fleet) -> None:
    """While nothing can be written a job's stream waits; then it goes on with every token."""
    await own_fleet.start(workers=1)
    job_id = await own_fleet.submit(PROMPT, max_tokens=480)
    reader = SseReader(job_id)
    async with within(30), asyncio.TaskGroup() as group:
        group.create_task(reader.read(own_fleet.urls[0]))
        await reader.has(20)
        await own_fleet.redis.config_set("maxmemory", 1)
        await own_fleet.workers[0].says('"append_failed"')
        await own_fleet.redis.config_set("maxmemory", 0)
    story = await check_whole(own_fleet, job_id, PROMPT, reader.seen, max_tokens=480)
    assert story.outline == UNDISTURBED
