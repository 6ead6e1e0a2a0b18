"""Jobs to follow, written straight into the store."""

import asyncio
import secrets

from redis.asyncio import Redis

from bench.relay.stack import MODEL
from common.events import Accepted
from common.job_store import JobStore, NewJob
from common.jobs import JobSpec, Priority
from common.keys import Keys
from common.lanes import Lanes
from common.names import random_job_id

TENANT = "default"  # whose jobs a gateway without API keys shows
LIFE_S = 3600.0


async def submit(redis: Redis, count: int) -> list[str]:
    """Accept jobs that no worker can claim yet; returns their IDs."""
    store, model = JobStore(redis, Keys()), Keys().model(MODEL)
    job_ids = [await _submit(store) for _ in range(count)]
    for job_id in job_ids:  # as if a worker held them: a gateway gives a job without a place one
        await redis.zadd(model.jobs, {job_id: await _deadline_ms(redis)})
    return job_ids


async def _submit(store: JobStore) -> str:
    job_id = random_job_id()
    spec = JobSpec(MODEL, max_tokens=100_000, prompt=f"Tell {job_id}", deadline_s=LIFE_S)
    job = NewJob(job_id, TENANT, spec, "", secrets.token_hex(4), LIFE_S)
    await store.submit(job, Accepted(job_id, MODEL))
    return job_id


async def _deadline_ms(redis: Redis) -> int:
    return int((await redis.time())[0] + LIFE_S) * 1000


async def enqueue(redis: Redis, job_ids: list[str], seconds: float) -> None:
    """Give the jobs to the workers, spread over the time, so that they are out of step."""
    lanes = Lanes(redis, Keys(), MODEL)
    deadline_ms = await _deadline_ms(redis)
    for job_id in job_ids:
        await redis.zrem(Keys().model(MODEL).jobs, job_id)
        await lanes.enqueue(job_id, TENANT, Priority.NORMAL, deadline_ms)
        await asyncio.sleep(seconds / len(job_ids))
