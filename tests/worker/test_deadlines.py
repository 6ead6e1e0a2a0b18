"""A job ends at the deadline that comes first: for waiting, for running, for both."""

import pytest
from redis.asyncio import Redis

from common.jobs import JobState
from tests.support.jobs import MODEL, TENANT, read
from tests.worker.conftest import MakeRig
from tests.worker.rig import CutEngine, at_rest, end_of, hold_at, kinds_of, set_fields, submit
from worker.backend import Backend
from worker.engine.fake import FakeEngine

pytestmark = pytest.mark.anyio


def slow() -> FakeEngine:
    """Return an engine that needs its time."""
    return FakeEngine(MODEL, tokens_per_s=50, capacity=1)


async def make_older(redis: Redis, backend: Backend, job_id: str, seconds: int) -> None:
    """Let a job have been accepted so much earlier, as far as its deadline for waiting goes."""
    record = await read(backend.store, job_id)
    await set_fields(redis, backend, job_id, created_ms=record.created_ms - 1000 * seconds)
    await redis.zadd(backend.keys.model(MODEL).jobs, {job_id: 1})


@pytest.mark.fault(34)
async def test_a_job_that_waited_too_long_ends_in_the_sweep(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """Without a free worker too; the end says that it never started."""
    job_id = await submit(backend, queue_deadline_s=5.0)
    await make_older(redis, backend, job_id, 10)
    await make_rig().sweeper.sweep()
    end = await end_of(backend, job_id)
    assert end.error
    assert (end.kind, end.error.type) == ("expired", "queue-deadline")
    assert await backend.lanes.unfinished() == 0


async def test_a_worker_that_claims_it_ends_it_too(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """It is not started, however free the worker is."""
    job_id = await submit(backend, queue_deadline_s=5.0)
    await make_older(redis, backend, job_id, 10)
    await make_rig().start()
    assert (await end_of(backend, job_id)).kind == "expired"
    assert await kinds_of(backend, job_id) == ["accepted", "expired"]
    await at_rest(backend)


async def test_a_job_that_started_in_time_has_all_its_time(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """The sweep that looks at its deadline for waiting leaves it, and looks again at the last."""
    rig = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(rig, backend, queue_deadline_s=5.0)
    await make_older(redis, backend, job_id, 10)
    await rig.sweeper.sweep()
    record = await read(backend.store, job_id)
    assert record.state is JobState.RUNNING
    due = await redis.zscore(backend.keys.model(MODEL).jobs, job_id)
    assert due == record.deadline_ms
    assert await redis.hget(backend.keys.model(MODEL).owners, job_id) == TENANT.encode()  # type: ignore[misc]


@pytest.mark.fault(34)
async def test_a_job_that_runs_too_long_ends(make_rig: MakeRig, backend: Backend) -> None:
    """Its time begins with its first start; the end says so, with what there is of the answer."""
    await make_rig(engine=slow()).start()
    job_id = await submit(backend, max_tokens=1_000, run_deadline_s=0.5)
    end = await end_of(backend, job_id)
    assert end.error
    assert (end.kind, end.error.type) == ("expired", "run-deadline")
    assert 0 < end.usage.completion_tokens < 1_000
    await at_rest(backend)


@pytest.mark.fault(34)
async def test_a_second_start_gives_no_more_time(make_rig: MakeRig, backend: Backend) -> None:
    """A job that loses its worker goes on under the deadline of its first start."""
    dead = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(dead, backend, run_deadline_s=30.0)
    first = await read(backend.store, job_id)
    assert first.deadline_ms == first.started_ms + 30_000
    await dead.kill()
    living = await make_rig(engine=CutEngine(5)).start()
    await living.bury(dead.worker_id)
    await living.engine.is_cut.wait()  # type: ignore[attr-defined]
    assert (await read(backend.store, job_id)).deadline_ms == first.deadline_ms


async def test_a_lost_worker_ends_no_deadline(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """Where nobody can take the job over, the sweep ends it when its time to run is over."""
    dead = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(dead, backend, run_deadline_s=30.0)
    await dead.kill()
    due = await redis.zscore(backend.keys.model(MODEL).jobs, job_id)
    assert due == (await read(backend.store, job_id)).deadline_ms


async def test_without_own_deadlines_the_jobs_is_told(make_rig: MakeRig, backend: Backend) -> None:
    """The end of a job that had its whole time says that too."""
    await make_rig(engine=slow()).start()
    job_id = await submit(backend, max_tokens=1_000, deadline_s=0.5)
    end = await end_of(backend, job_id)
    assert end.error
    assert (end.kind, end.error.type) == ("expired", "deadline")
