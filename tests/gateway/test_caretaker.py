"""Accepted jobs end also where no worker lives and nobody reads."""

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from common.events import decode_event
from common.job_store import JobStore
from common.jobs import JobState, Priority
from common.keys import Keys
from common.lanes import Lanes
from common.registry import Heartbeat
from gateway.caretaker import Caretaker
from tests.support.jobs import MODEL, TENANT, make_job, make_worker, read, submit

pytestmark = pytest.mark.anyio


async def overdue_job(store: JobStore, redis: Redis, keys: Keys) -> str:
    """Submit a job, and let its deadline be long over."""
    job = await submit(store, make_job())
    await Lanes(redis, keys, MODEL).enqueue(job.id, TENANT, Priority.NORMAL, 1)
    await redis.hset(keys.job(job.id).record, "deadline_ms", "1")  # type: ignore[misc]
    return job.id


@pytest.mark.fault(34)
async def test_an_overdue_job_without_a_worker_ends(redis: Redis, keys: Keys) -> None:
    """Its log gets the terminal event, and it no longer counts against the limit."""
    store = JobStore(redis, keys)
    job_id = await overdue_job(store, redis, keys)
    await Caretaker(redis, keys, MODEL).care()
    assert (await read(store, job_id)).state is JobState.EXPIRED
    assert decode_event((await store.log(job_id))[-1][1]).kind == "expired"
    assert await Lanes(redis, keys, MODEL).unfinished() == 0


async def test_a_job_of_a_live_model_is_left_to_its_workers(
    redis: Redis, lease_redis: SyncRedis, keys: Keys
) -> None:
    """Where a worker lives, it ends its jobs itself, with its own figures."""
    store = JobStore(redis, keys)
    job_id = await overdue_job(store, redis, keys)
    Heartbeat(lease_redis, keys, 60).join(make_worker("w1"))
    await Caretaker(redis, keys, MODEL).care()
    assert (await read(store, job_id)).state is JobState.QUEUED
