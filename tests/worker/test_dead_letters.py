"""Jobs that were given up leave a letter, once; others leave none."""

import pytest
from redis.asyncio import Redis

from common.dead_letters import DeadLetters, Filed
from common.events import Accepted, Failed, Retrying, Started
from tests.support.jobs import MODEL, TENANT, read
from tests.worker.conftest import MakeRig
from tests.worker.rig import CutEngine, at_rest, end_of, lose_reply, set_fields, submit
from worker.backend import Backend

pytestmark = pytest.mark.anyio


async def letters(redis: Redis, backend: Backend) -> list[Filed]:
    """Return the model's dead letters."""
    return await DeadLetters(redis, backend.keys, MODEL).all()


async def poison(make_rig: MakeRig, backend: Backend, num_workers: int) -> str:
    """Run a job that costs every worker its life; returns it when so many are dead."""
    job_id = await submit(backend)
    for number in range(num_workers):
        victim = make_rig(engine=CutEngine(number + 1))
        await victim.start()
        assert isinstance(victim.engine, CutEngine)
        await victim.engine.is_cut.wait()
        await victim.kill()
        await make_rig().bury(victim.worker_id)
    return job_id


@pytest.mark.fault(5)
async def test_a_job_that_kills_its_workers_leaves_a_letter(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """It has all that is needed to understand it and to try it again."""
    job_id = await poison(make_rig, backend, 2)
    spec = (await read(backend.store, job_id)).spec
    await make_rig(max_losses=2).start()
    end = await end_of(backend, job_id)
    await at_rest(backend)
    [filed] = await letters(redis, backend)
    letter = filed.letter
    assert (letter.job, letter.tenant, letter.spec, letter.attempts) == (job_id, TENANT, spec, 2)
    assert letter.error == end.error
    kinds = [type(event) for event in letter.history]
    assert kinds == [Accepted, Started, Retrying, Started, Retrying, Failed]
    assert await redis.pttl(backend.keys.model(MODEL).dead) > 0


async def test_a_neighbour_is_not_held_up(make_rig: MakeRig, backend: Backend) -> None:
    """The worker that gives a poisonous job up serves the next one."""
    await poison(make_rig, backend, 2)
    neighbour = await submit(backend)
    await make_rig(max_losses=2).start()
    assert (await end_of(backend, neighbour)).kind == "completed"


async def test_a_lost_reply_makes_no_second_letter(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """The entry and its letter are one script: who repeats it holds no entry any more."""
    job_id = await poison(make_rig, backend, 1)
    rig = make_rig(max_losses=1)
    lost = lose_reply(rig.backend.lanes, "release")
    await rig.start()
    await end_of(backend, job_id)
    await at_rest(backend)
    assert lost == [True]
    assert len(await letters(redis, backend)) == 1


@pytest.mark.fault(1, 5)
async def test_a_worker_that_dies_before_the_letter_leaves_it_to_the_next(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """The job has its end, the entry is still held: whoever gets it writes the letter."""
    job_id = await poison(make_rig, backend, 1)
    first = make_rig(max_losses=1)
    await first.join()
    [claim] = await first.backend.lanes.claim(first.worker_id, 1)

    async def die(*_: object) -> bool:
        raise ConnectionAbortedError

    first.backend.lanes.release = die  # type: ignore[method-assign,assignment]
    with pytest.raises(ConnectionAbortedError):
        await first.runner._starter.start(claim, first.worker_id)
    assert (await end_of(backend, job_id)).kind == "failed"
    assert await letters(redis, backend) == []
    second = await make_rig(max_losses=1).start()
    await second.bury(first.worker_id)
    await at_rest(backend)
    assert len(await letters(redis, backend)) == 1


async def test_a_job_that_cannot_be_read_leaves_a_letter(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """Without its specification, which is what cannot be read."""
    job_id = await submit(backend)
    await set_fields(redis, backend, job_id, spec=b"\xc1")
    await make_rig().start()
    await at_rest(backend)
    [filed] = await letters(redis, backend)
    assert (filed.letter.job, filed.letter.tenant, filed.letter.spec) == (job_id, TENANT, None)
    assert filed.letter.error.type == "record-unreadable"


async def test_other_ends_leave_none(make_rig: MakeRig, redis: Redis, backend: Backend) -> None:
    """A completed job, a cancelled and an overdue one are nothing to look into."""
    cancelled, overdue = await submit(backend), await submit(backend)
    await backend.store.cancel(cancelled)
    await set_fields(redis, backend, overdue, deadline_ms=1)
    await make_rig().start()
    completed = await submit(backend)
    for job_id in (cancelled, overdue, completed):
        await end_of(backend, job_id)
    await at_rest(backend)
    assert await letters(redis, backend) == []
