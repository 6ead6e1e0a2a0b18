"""The sweep gives the work of dead workers back, and ends what is overdue."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from common.jobs import JobState
from common.registry import Heartbeat
from tests.support.jobs import MODEL, make_worker, read, start
from tests.support.servers import Server
from tests.support.waiting import eventually, within
from tests.worker.conftest import MakeRig
from tests.worker.rig import (
    LEASE_S,
    CutEngine,
    Rig,
    answer_to,
    at_rest,
    end_of,
    events_of,
    hold_at,
    kinds_of,
    set_fields,
    submit,
    text_of,
)
from worker import runner
from worker import sweeper as sweeper_module
from worker.backend import Backend
from worker.sweeper import PASS_S, Sweeper

pytestmark = pytest.mark.anyio

YOUNG_S = 3600.0
SHORT_S = 0.5


async def overdue(redis: Redis, backend: Backend, job_id: str) -> None:
    """Let a job's deadline be long past."""
    await set_fields(redis, backend, job_id, deadline_ms=1)
    await redis.zadd(backend.keys.model(MODEL).jobs, {job_id: 1})


async def test_a_dead_workers_job_is_taken_over(make_rig: MakeRig, backend: Backend) -> None:
    """It waits again, says why, and the next worker ends it with the whole answer."""
    dead = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(dead, backend)
    await dead.kill()
    living = await make_rig().start()
    await living.bury(dead.worker_id)
    end = await end_of(backend, job_id)
    assert (end.attempts, end.worker) == (2, living.worker_id)
    assert text_of(await events_of(backend, job_id)) == await answer_to(backend, job_id)
    assert await kinds_of(backend, job_id) == [
        "accepted", "started", "tokens", "retrying", "started", "tokens", "completed",
    ]  # fmt: skip
    assert (await read(backend.store, job_id)).losses == 1
    await at_rest(backend)


async def test_the_living_are_left_alone(make_rig: MakeRig, backend: Backend) -> None:
    """A sweep takes nothing from a worker whose lease runs."""
    holder = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(holder, backend)
    await make_rig().sweeper.sweep()
    record = await read(backend.store, job_id)
    assert (record.state, record.owner, record.losses) == (JobState.RUNNING, holder.worker_id, 0)
    assert job_id in holder.publisher.attempts
    assert [depth.pending for depth in await backend.lanes.depths()] == [1]


@pytest.mark.fault(10)
async def test_a_job_that_was_only_claimed_waits_again(make_rig: MakeRig, backend: Backend) -> None:
    """No worker was lost over it: it goes back without an event and without a loss."""
    dead = make_rig()
    await dead.join()
    job_id = await submit(backend)
    assert len(await backend.lanes.claim(dead.worker_id, 4)) == 1
    await dead.kill()
    await make_rig().bury(dead.worker_id)
    record = await read(backend.store, job_id)
    assert (record.state, record.losses, record.next) == (JobState.QUEUED, 0, 1)
    assert [depth.lane for depth in await backend.lanes.depths()] == ["orphans"]


@pytest.mark.fault(11)
async def test_a_young_server_is_not_swept(make_rig: MakeRig, backend: Backend) -> None:
    """After a restart everybody's lease looks over; with an older server the same sweep bites."""
    dead = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(dead, backend)
    await dead.kill()
    living = make_rig()
    await living.expire(dead.worker_id)
    await Sweeper(living.backend, YOUNG_S).sweep()
    assert (await read(backend.store, job_id)).state is JobState.RUNNING
    await living.bury(dead.worker_id)
    assert (await read(backend.store, job_id)).state is JobState.QUEUED


@pytest.mark.fault(9)
async def test_a_sweeper_that_dies_half_way_loses_nothing(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The entry is moved, the record still says running: a start takes it all the same."""
    dead = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(dead, backend)
    await dead.kill()
    living = make_rig()
    await living.join()
    await living.expire(dead.worker_id)
    assert await backend.lanes.sweep(dead.worker_id) == [job_id]
    assert (await read(backend.store, job_id)).state is JobState.RUNNING
    living.serve()
    end = await end_of(backend, job_id)
    assert end.attempts == 2
    assert text_of(await events_of(backend, job_id)) == await answer_to(backend, job_id)
    assert (await read(backend.store, job_id)).losses == 1
    await at_rest(backend)


async def test_a_late_requeue_does_not_disturb_the_new_owner(
    make_rig: MakeRig, backend: Backend
) -> None:
    """A sweeper that wakes up after the takeover leaves the job to whoever runs it now."""
    living = make_rig()
    job_id = await submit(backend)
    await start(backend.store, job_id, "dead")
    await start(backend.store, job_id, "new")
    before = await read(backend.store, job_id)

    async def moved_by_another(worker_id: str) -> list[str]:
        return [job_id] if worker_id == "dead" else []

    living.backend.lanes.sweep = moved_by_another  # type: ignore[method-assign]
    await living.redis.zadd(backend.keys.model(MODEL).workers, {"dead": 1})
    await eventually(lambda: _swept(living))
    assert await read(backend.store, job_id) == before


async def _swept(rig: Rig) -> bool:
    await rig.sweeper.sweep()
    return await rig.backend.registry.uptime_s() >= LEASE_S


@pytest.mark.fault(34)
async def test_an_overdue_job_in_a_lane_ends(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """Without a free worker the sweep writes the end; the entry goes when it is claimed."""
    job_id = await submit(backend)
    await overdue(redis, backend, job_id)
    rig = make_rig()
    await rig.sweeper.sweep()
    assert (await end_of(backend, job_id)).kind == "expired"
    assert await backend.lanes.unfinished() == 0
    await rig.start()
    await at_rest(backend)
    assert await kinds_of(backend, job_id) == ["accepted", "expired"]


@pytest.mark.fault(34)
async def test_an_overdue_job_of_a_lost_worker_ends(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """A job that says running ends too; what was said of it stays."""
    dead = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(dead, backend)
    await dead.kill()
    await overdue(redis, backend, job_id)
    await make_rig().sweeper.sweep()
    end = await end_of(backend, job_id)
    assert (end.kind, end.usage.completion_tokens, end.attempts) == ("expired", 3, 1)


async def test_a_job_that_just_became_overdue_is_left_to_its_worker(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """The worker that runs it ends it with its own figures."""
    job_id = await submit(backend)
    now_ms = await backend.registry.now_ms()
    await redis.zadd(backend.keys.model(MODEL).jobs, {job_id: now_ms - 1})
    await make_rig().sweeper.sweep()
    assert (await read(backend.store, job_id)).state is JobState.QUEUED


@pytest.mark.fault(5)
@pytest.mark.parametrize(
    "damage", [{"spec": b"\xc1"}, {"state": b"from-the-future"}], ids=["spec", "state"]
)
async def test_an_overdue_job_that_cannot_be_read_ends(
    damage: dict[str, bytes], make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """It takes neither the sweep nor its neighbours down with it."""
    bad, good = await submit(backend), await submit(backend)
    for job_id in (bad, good):
        await overdue(redis, backend, job_id)
    await set_fields(redis, backend, bad, **damage)
    await make_rig().sweeper.sweep()
    assert (await end_of(backend, good)).kind == "expired"
    assert await backend.lanes.unfinished() == 0


@pytest.mark.fault(9)
async def test_one_sweeps_at_a_time(make_rig: MakeRig, backend: Backend) -> None:
    """While one holds the sweep nobody else gets it, and it frees itself."""
    registry = backend.registry
    assert await registry.take_sweep(MODEL, "w1", PASS_S)
    assert not await registry.take_sweep(MODEL, "w2", PASS_S)

    async def is_free() -> bool:
        return await registry.take_sweep(MODEL, "w2", PASS_S)

    await eventually(is_free)


@pytest.mark.fault(9)
async def test_a_worker_that_dies_with_the_sweep_takes_it_to_nobody(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The next one sweeps when that lease is over too, and finds its jobs."""
    dead, living, job_id = await two_of_which_one_dies_sweeping(make_rig, backend)
    await living.expire(dead.worker_id)
    end = await end_of(backend, job_id)
    assert (end.kind, end.attempts) == ("completed", 2)
    await at_rest(backend)


@pytest.mark.control(9)
async def test_a_sweep_without_an_end_would_end_all_sweeps(
    make_rig: MakeRig, backend: Backend, redis: Redis
) -> None:
    """The fault bites: with a lock that outlives its holder nobody looks for the dead any more."""
    dead, living, _ = await two_of_which_one_dies_sweeping(make_rig, backend)
    await redis.persist(backend.keys.model(MODEL).sweeper)
    await living.expire(dead.worker_id)
    with pytest.raises(AssertionError, match="not within"):
        await eventually(lambda: is_buried(backend, dead.worker_id), 3 * PASS_S)
    await redis.delete(backend.keys.model(MODEL).sweeper)
    await eventually(lambda: is_buried(backend, dead.worker_id))


async def two_of_which_one_dies_sweeping(
    make_rig: MakeRig, backend: Backend
) -> tuple[Rig, Rig, str]:
    """Return a worker that was killed with a job and the sweep, one that lives, and the job."""
    dead = await make_rig(engine=CutEngine(3), lease_s=SHORT_S).start()
    job_id = await hold_at(dead, backend)
    assert await backend.registry.take_sweep(MODEL, dead.worker_id, PASS_S)
    await dead.kill()
    living = await make_rig(lease_s=SHORT_S).start()
    living.spawn(living.sweeper.run(living.worker_id))
    return dead, living, job_id


async def is_buried(backend: Backend, worker_id: str) -> bool:
    """Tell whether nothing is left of a worker."""
    workers = backend.keys.model(MODEL).workers
    return await backend.lanes._redis.zscore(workers, worker_id) is None


@pytest.mark.control(8)
async def test_two_workers_of_one_name_would_hide_a_death(
    make_rig: MakeRig, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault bites: the living one renews the lease of both. So every ID is fresh."""
    monkeypatch.setattr(runner, "worker_id", lambda: "the-same")
    living = await make_rig().start(capacity=0)
    dead = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(dead, backend)
    await dead.kill()
    assert living.worker_id == dead.worker_id
    for _ in range(3):
        await living.sweeper.sweep()
    record = await read(backend.store, job_id)
    assert (record.state, record.owner) == (JobState.RUNNING, "the-same")
    assert await backend.registry.dead(MODEL) == []


async def test_it_goes_on_after_an_outage(
    make_rig: MakeRig, own_server: Server, own_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is away or full costs a pass, not the worker."""
    monkeypatch.setattr(sweeper_module, "PASS_S", 0.02)
    rig = make_rig(url=own_server.url, lease_s=0.5)
    passes: asyncio.Queue[None] = asyncio.Queue()
    sweep = rig.sweeper.sweep

    async def counted() -> None:
        await sweep()
        passes.put_nowait(None)

    rig.sweeper.sweep = counted  # type: ignore[method-assign]
    rig.spawn(rig.sweeper.run("w1"))
    async with within():
        await passes.get()
        await own_redis.config_set("maxmemory", 1)
        await eventually(lambda: _fails_for_memory(own_redis))
        await own_redis.config_set("maxmemory", 0)
        await asyncio.to_thread(own_server.restart)
        while not passes.empty():
            passes.get_nowait()
        await passes.get()
    assert not rig.tasks[0].done()


async def test_a_worker_that_waited_for_redis_sweeps_nobody_for_a_lease(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The others waited too, and renew their leases now; the control is one that did not wait."""
    dead = await make_rig(engine=CutEngine(3)).start()
    await hold_at(dead, backend)
    await dead.kill()
    late, prompt = make_rig(), make_rig()
    await late.expire(dead.worker_id)
    late.sweeper.was_away()
    await late.sweeper.sweep()
    assert not await is_buried(backend, dead.worker_id)
    await prompt.sweeper.sweep()
    assert await is_buried(backend, dead.worker_id)


async def _fails_for_memory(client: Redis) -> bool:
    stats = await client.info("errorstats")
    return "errorstat_OOM" in stats


async def test_nobody_is_swept_within_a_lease_after_an_outage(
    make_rig: MakeRig, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover every lease looks over, on a server that has long been up.

    The control is a sweeper that noticed no outage.
    """
    monkeypatch.setattr(sweeper_module, "PASS_S", 0.01)
    rig = make_rig()
    Heartbeat(rig._beats, backend.keys, 0.001).join(make_worker("w9"))
    registry = backend.registry

    async def uptime_s() -> int:
        return 1_000_000

    async def is_away(*_: object) -> bool:
        away.set()
        raise RedisConnectionError

    away = asyncio.Event()
    monkeypatch.setattr(registry, "uptime_s", uptime_s)
    monkeypatch.setattr(registry, "take_sweep", is_away)
    witness = Sweeper(backend, YOUNG_S)
    async with within():
        passes = asyncio.create_task(witness.run("w1"))
        await away.wait()
        await asyncio.sleep(0)
        passes.cancel()
        await eventually(lambda: registry.dead(MODEL))
    await witness.sweep()
    assert await registry.dead(MODEL) == ["w9"]
    await Sweeper(backend, YOUNG_S).sweep()
    assert await registry.dead(MODEL) == []


async def test_the_swept_hash_of_a_worker_ends_with_its_lease(
    redis: Redis, make_rig: MakeRig, backend: Backend
) -> None:
    """What a dead worker said of itself has a TTL."""
    rig = make_rig(lease_s=60)
    Heartbeat(rig._beats, backend.keys, 60).join(make_worker("w9"))
    assert 0 < await redis.pttl(backend.keys.worker("w9")) <= 60_000
