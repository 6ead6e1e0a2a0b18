"""Jobs that one more lost worker would end: never two of them on one worker."""

import asyncio

import pytest
from redis.asyncio import Redis

from tests.support.jobs import MODEL
from tests.worker.conftest import MakeRig
from tests.worker.rig import Rig, at_rest, end_of, set_fields, submit, until
from worker.attempt import AttemptLog
from worker.backend import Backend
from worker.engine.fake import FakeEngine
from worker.runner import Runner

pytestmark = pytest.mark.anyio

MAX_LOSSES = 3
NUM_JOBS = 4


async def most_at_once(rig: Rig, backend: Backend, jobs: list[str]) -> int:
    """Serve the jobs; returns how many ran at once at most."""
    most, add = 0, rig.publisher.add

    def counted(log: AttemptLog) -> None:
        nonlocal most
        add(log)
        most = max(most, len(rig.publisher.attempts))

    rig.publisher.add = counted  # type: ignore[method-assign]
    await rig.start()
    for job_id in jobs:
        assert (await end_of(backend, job_id)).kind == "completed"
    await at_rest(backend)
    return most


async def jobs_with_losses(redis: Redis, backend: Backend, losses: int) -> list[str]:
    """Submit jobs that have lost so many workers."""
    jobs = [await submit(backend) for _ in range(NUM_JOBS)]
    for job_id in jobs:
        await set_fields(redis, backend, job_id, losses=losses)
    return jobs


def rig_with(make_rig: MakeRig) -> Rig:
    """Return a worker with room for all of them."""
    engine = FakeEngine(MODEL, tokens_per_s=100, capacity=NUM_JOBS)
    return make_rig(engine=engine, max_losses=MAX_LOSSES)


@pytest.mark.fault(5)
async def test_they_run_one_after_another(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """The one that kills its worker takes none of the others along; all get their answer."""
    jobs = await jobs_with_losses(redis, backend, MAX_LOSSES - 1)
    assert await most_at_once(rig_with(make_rig), backend, jobs) == 1


async def test_with_fewer_losses_they_run_together(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """After one death of a worker all that it ran goes on at once, on any worker."""
    jobs = await jobs_with_losses(redis, backend, MAX_LOSSES - 2)
    assert await most_at_once(rig_with(make_rig), backend, jobs) == NUM_JOBS


@pytest.mark.control(5)
async def test_without_the_care_they_would(
    make_rig: MakeRig, redis: Redis, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same jobs, all at once."""
    monkeypatch.setattr(Runner, "_may_risk", lambda _runner, _job: True)
    jobs = await jobs_with_losses(redis, backend, MAX_LOSSES - 1)
    assert await most_at_once(rig_with(make_rig), backend, jobs) == NUM_JOBS


async def test_others_run_beside_them(make_rig: MakeRig, redis: Redis, backend: Backend) -> None:
    """Only two such jobs must not meet: the worker's other slots are for everybody."""
    await jobs_with_losses(redis, backend, MAX_LOSSES - 1)
    fresh = await submit(backend)
    rig = await rig_with(make_rig).start()
    await until(lambda: fresh in rig.publisher.attempts and len(rig.publisher.attempts) == 2)


async def test_a_worker_that_stops_gives_those_back_that_wait(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """At once, while the one that runs may still end here."""
    jobs = await jobs_with_losses(redis, backend, MAX_LOSSES - 1)
    rig = await rig_with(make_rig).start()
    await until(lambda: len(rig.runner._later) == NUM_JOBS - 1)
    await rig.runner.drain(5.0, asyncio.Event())
    other = rig_with(make_rig)
    await other.start()
    for job_id in jobs:
        assert (await end_of(backend, job_id)).kind == "completed"
    await at_rest(backend)
