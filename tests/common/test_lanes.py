"""Lanes: who gets which job, and where a dead worker's jobs go."""

import asyncio
from collections.abc import Iterable

import pytest
from redis.asyncio import Redis

from common import lanes as lanes_module
from common.jobs import Priority
from common.keys import GROUP, Keys
from common.lanes import Claim, LaneDepth, Lanes, LeaseLapsed
from common.registry import Heartbeat, Registry
from tests.support.cutting import cut_for_now
from tests.support.jobs import MODEL, TENANT, make_worker
from tests.support.waiting import within

FAR_MS = 2**42
LAPSED_MS = 1


@pytest.fixture(autouse=True)
def workers(heartbeat: Heartbeat) -> None:
    """Two workers with a lease."""
    for worker_id in ("w1", "w2"):
        heartbeat.join(make_worker(worker_id))


@pytest.fixture
def small_sweep(monkeypatch: pytest.MonkeyPatch) -> int:
    """A sweep that moves at most two entries."""
    monkeypatch.setattr(lanes_module, "SWEEP_LIMIT", 2)
    return 2


async def _enqueue(
    lanes: Lanes, *job_ids: str, tenant: str = TENANT, priority: Priority = Priority.NORMAL
) -> None:
    for job_id in job_ids:
        assert await lanes.enqueue(job_id, tenant, priority, FAR_MS)


async def _lapse(redis: Redis, keys: Keys, worker_id: str) -> None:
    await redis.zadd(keys.model(MODEL).workers, {worker_id: LAPSED_MS}, xx=True)


def _jobs(claims: Iterable[Claim]) -> list[str]:
    return [claim.job_id for claim in claims]


async def test_a_job_is_enqueued_once(lanes: Lanes) -> None:
    """A repeated enqueue is told so, and the job is claimed once."""
    assert await lanes.enqueue("j1", TENANT, Priority.NORMAL, FAR_MS)
    assert not await lanes.enqueue("j1", TENANT, Priority.NORMAL, FAR_MS)
    assert not await lanes.enqueue("j1", "other", Priority.HIGH, 1)
    assert await lanes.overdue(1) == []
    assert _jobs(await lanes.claim("w1", 9)) == ["j1"]
    assert not await lanes.enqueue("j1", TENANT, Priority.NORMAL, FAR_MS)
    assert await lanes.claim("w2", 9) == []


async def test_a_claim_takes_what_was_asked_for(lanes: Lanes) -> None:
    """A worker gets as many jobs as it has free slots, in order, and the rest waits."""
    await _enqueue(lanes, "j1", "j2", "j3")
    assert _jobs(await lanes.claim("w1", 2)) == ["j1", "j2"]
    assert _jobs(await lanes.claim("w2", 2)) == ["j3"]
    assert await lanes.claim("w2", 2) == []


async def test_orphans_come_first_then_high_normal_low(lanes: Lanes) -> None:
    """What has waited for a second worker goes before every priority."""
    await _enqueue(lanes, "orphan")
    await lanes.claim("w2", 1)
    await _enqueue(lanes, "low", priority=Priority.LOW)
    await _enqueue(lanes, "normal", priority=Priority.NORMAL)
    await _enqueue(lanes, "high", priority=Priority.HIGH)
    await lanes.hand_back("w2")
    assert _jobs(await lanes.claim("w1", 9)) == ["orphan", "high", "normal", "low"]


@pytest.mark.fault(35)
async def test_tenants_take_turns(lanes: Lanes) -> None:
    """A tenant with one job waits for one turn of the others, however many they have."""
    await _enqueue(lanes, *(f"a{i}" for i in range(5)), tenant="a")
    await _enqueue(lanes, "b0", "b1", tenant="b")
    await _enqueue(lanes, "c0", tenant="c")
    claimed = _jobs(await lanes.claim("w1", 6)) + _jobs(await lanes.claim("w2", 6))
    assert claimed == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]


async def test_turns_go_on_over_claims(lanes: Lanes) -> None:
    """Who was served last is last in the next claim too."""
    await _enqueue(lanes, "a0", "a1", tenant="a")
    await _enqueue(lanes, "b0", "b1", tenant="b")
    claimed = [_jobs(await lanes.claim("w1", 1)) for _ in range(4)]
    assert claimed == [["a0"], ["b0"], ["a1"], ["b1"]]


async def test_a_tenant_that_comes_back_goes_to_the_end(lanes: Lanes) -> None:
    """Emptying one's lane and adding a job is no way past those who wait."""
    await _enqueue(lanes, "a0", tenant="a")
    await _enqueue(lanes, "b0", "b1", tenant="b")
    assert _jobs(await lanes.claim("w1", 1)) == ["a0"]
    await _enqueue(lanes, "a1", tenant="a")
    assert _jobs(await lanes.claim("w1", 9)) == ["b0", "a1", "b1"]


async def test_enqueue_rings_the_bell(lanes: Lanes, redis: Redis, keys: Keys) -> None:
    """A new job and an orphan wake the workers; a repeated enqueue does not."""
    bell = keys.model(MODEL).bell
    async with within(), redis.pubsub() as pubsub:
        await pubsub.subscribe(bell)
        assert await pubsub.get_message(timeout=None)
        await _enqueue(lanes, "j1")
        await lanes.enqueue("j1", TENANT, Priority.NORMAL, FAR_MS)
        await lanes.claim("w1", 1)
        await lanes.hand_back("w1")
        await redis.publish(bell, "end of the test")
        rung = [(await anext(pubsub.listen()))["data"] for _ in range(3)]
    assert rung == [b"", b"", b"end of the test"]


async def test_release_ends_the_job_and_the_empty_lane(
    lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """A released entry is gone; a lane without entries goes with its place in the set."""
    await _enqueue(lanes, "j1", "j2")
    first, second = await lanes.claim("w1", 2)
    lane = keys.model(MODEL).lane(first.lane)
    assert await lanes.release("w1", first)
    assert await redis.xlen(lane) == 1
    assert await lanes.unfinished() == 1
    assert await lanes.release("w1", second)
    assert not await redis.exists(lane, keys.model(MODEL).lanes, keys.model(MODEL).jobs)


@pytest.mark.fault(2)
@pytest.mark.control(2)
async def test_a_zombie_cannot_release(lanes: Lanes, redis: Redis, keys: Keys) -> None:
    """After the sweep an entry is not the old worker's, and it is the script that refuses.

    The control: a bare XACK by anybody at all takes the new holder's entry away.
    """
    await _enqueue(lanes, "j1")
    [stale] = await lanes.claim("w1", 1)
    await _lapse(redis, keys, "w1")
    await lanes.sweep("w1")
    [claim] = await lanes.claim("w2", 1)
    assert not await lanes.release("w1", stale)
    assert not await lanes.release("w1", claim)
    assert await lanes.unfinished() == 1
    assert await redis.xack(keys.model(MODEL).lane(claim.lane), GROUP, claim.entry) == 1
    assert not await lanes.release("w2", claim)


async def test_release_is_for_the_holder(lanes: Lanes) -> None:
    """Another worker's entry, and one that was released, answer False."""
    await _enqueue(lanes, "j1")
    [claim] = await lanes.claim("w1", 1)
    assert not await lanes.release("w2", claim)
    assert await lanes.release("w1", claim)
    assert not await lanes.release("w1", claim)


async def test_a_swept_worker_cannot_claim(lanes: Lanes, redis: Redis, keys: Keys) -> None:
    """A worker that was declared dead takes no more jobs under its old ID."""
    await _enqueue(lanes, "j1")
    await _lapse(redis, keys, "w1")
    await lanes.sweep("w1")
    with pytest.raises(LeaseLapsed):
        await lanes.claim("w1", 1)
    assert _jobs(await lanes.claim("w2", 1)) == ["j1"]


async def test_the_sweep_moves_a_dead_workers_jobs(
    lanes: Lanes, registry: Registry, redis: Redis, keys: Keys
) -> None:
    """All it held, of every lane, goes to the next worker; the dead one is forgotten."""
    await _enqueue(lanes, "j1", tenant="a")
    await _enqueue(lanes, "j2", tenant="b")
    assert len(await lanes.claim("w1", 2)) == 2
    await _enqueue(lanes, "j3", tenant="a")
    await _lapse(redis, keys, "w1")
    assert sorted(await lanes.sweep("w1")) == ["j1", "j2"]
    assert await registry.dead(MODEL) == []
    claimed = _jobs(await lanes.claim("w2", 9))
    assert sorted(claimed[:2]) == ["j1", "j2"]
    assert claimed[2:] == ["j3"]
    assert await lanes.unfinished() == 3


async def test_the_sweep_moves_orphans_again(lanes: Lanes, redis: Redis, keys: Keys) -> None:
    """A job that loses its second worker too waits for a third."""
    await _enqueue(lanes, "j1")
    for worker_id in ("w1", "w2"):
        assert _jobs(await lanes.claim(worker_id, 1)) == ["j1"]
        await _lapse(redis, keys, worker_id)
        assert await lanes.sweep(worker_id) == ["j1"]
    assert await lanes.depths() == [LaneDepth("orphans", waiting=1, pending=0)]


async def test_the_sweep_leaves_a_live_worker_alone(lanes: Lanes, registry: Registry) -> None:
    """A worker whose lease runs keeps its jobs, whoever asks for the sweep."""
    await _enqueue(lanes, "j1")
    [claim] = await lanes.claim("w1", 1)
    assert await lanes.sweep("w1") == []
    assert await registry.is_alive(MODEL, "w1")
    assert await lanes.release("w1", claim)


@pytest.mark.fault(8)
async def test_the_sweep_is_bounded(
    lanes: Lanes, registry: Registry, redis: Redis, keys: Keys, small_sweep: int
) -> None:
    """Each pass moves a few entries, and the worker is forgotten after the last one."""
    await _enqueue(lanes, "j1", "j2", "j3", "j4", "j5")
    await lanes.claim("w1", 5)
    await _lapse(redis, keys, "w1")
    passes = []
    while await registry.dead(MODEL):
        passes.append(await lanes.sweep("w1"))
        assert len(passes[-1]) <= small_sweep
    assert passes == [["j1", "j2"], ["j3", "j4"], ["j5"]]
    assert _jobs(await lanes.claim("w2", 9)) == ["j1", "j2", "j3", "j4", "j5"]


@pytest.mark.fault(5)
async def test_a_pending_entry_without_a_body_stops_no_sweep(
    lanes: Lanes, registry: Registry, redis: Redis, keys: Keys
) -> None:
    """An entry that was deleted while it was held is acknowledged, and the rest moves."""
    await _enqueue(lanes, "j1", "j2")
    claim, _ = await lanes.claim("w1", 2)
    await redis.xdel(keys.model(MODEL).lane(claim.lane), claim.entry)
    await _lapse(redis, keys, "w1")
    assert await lanes.sweep("w1") == ["j2"]
    assert await registry.dead(MODEL) == []


@pytest.mark.fault(5)
async def test_entries_without_a_body_hide_no_job_from_the_sweep(
    lanes: Lanes, registry: Registry, redis: Redis, keys: Keys, small_sweep: int
) -> None:
    """A worker is forgotten after its last job has moved, however much rubbish it held before."""
    rubbish = [f"j{i}" for i in range(10 * small_sweep)]
    await _enqueue(lanes, *rubbish, "last")
    claims = await lanes.claim("w1", 99)
    entries = [claim.entry for claim in claims if claim.job_id in rubbish]
    await redis.xdel(keys.model(MODEL).lane(claims[0].lane), *entries)
    await _lapse(redis, keys, "w1")
    moved = []
    while await registry.dead(MODEL):
        moved += await lanes.sweep("w1")
    assert moved == _jobs(await lanes.claim("w2", 9)) == ["last"]


@pytest.mark.control(8)
async def test_without_a_second_look_the_sweep_would_lose_a_job(
    lanes: Lanes,
    registry: Registry,
    redis: Redis,
    keys: Keys,
    small_sweep: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fault bites: a consumer that is removed takes what it holds out of everybody's reach."""
    look = "#redis.call('XPENDING', lane, 'workers', '-', '+', 1, ARGV[2]) == 0"
    cut_for_now(monkeypatch, lanes_module._ORPHAN, look, "true")
    rubbish = [f"j{i}" for i in range(10 * small_sweep)]
    await _enqueue(lanes, *rubbish, "last")
    claims = await lanes.claim("w1", 99)
    entries = [claim.entry for claim in claims if claim.job_id in rubbish]
    await redis.xdel(keys.model(MODEL).lane(claims[0].lane), *entries)
    await _lapse(redis, keys, "w1")
    while await registry.dead(MODEL):
        assert await lanes.sweep("w1") == []
    assert await lanes.claim("w2", 9) == []
    assert await lanes.unfinished() == len(rubbish) + 1


async def test_hand_back_keeps_the_kept(lanes: Lanes, small_sweep: int) -> None:
    """A draining worker gives back all but what it runs, in as many passes as that takes."""
    await _enqueue(lanes, *(f"j{i}" for i in range(2 + 2 * small_sweep)))
    claims = await lanes.claim("w1", 9)
    kept = claims[0], claims[3]
    moved = await lanes.hand_back("w1", [claim.job_id for claim in kept])
    assert moved == ["j1", "j2", "j4", "j5"]
    assert _jobs(await lanes.claim("w2", 9)) == moved
    for claim in kept:
        assert await lanes.release("w1", claim)


async def test_hand_back_of_nothing_moves_nothing(lanes: Lanes) -> None:
    """A worker that holds nothing can give nothing back, and others keep theirs."""
    await _enqueue(lanes, "j1")
    [claim] = await lanes.claim("w2", 1)
    assert await lanes.hand_back("w1") == []
    assert await lanes.release("w2", claim)


async def test_overdue_jobs_are_found_by_their_deadline(lanes: Lanes) -> None:
    """Unfinished jobs past their deadline are listed, oldest first and bounded."""
    for job_id, deadline_ms in [("late", 20), ("later", 30), ("latest", 10), ("good", 50)]:
        await lanes.enqueue(job_id, TENANT, Priority.NORMAL, deadline_ms)
    assert await lanes.overdue(40) == ["latest", "late", "later"]
    assert await lanes.overdue(40, limit=1) == ["latest"]
    await lanes.settle("latest")
    assert await lanes.overdue(40) == ["late", "later"]


async def test_a_forgotten_job_leaves_with_its_claim(
    lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """Forget takes a job off the list only; its entry goes when a worker has claimed it."""
    await _enqueue(lanes, "j1")
    await lanes.settle("j1")
    assert await lanes.unfinished() == 0
    [claim] = await lanes.claim("w1", 1)
    assert await lanes.release("w1", claim)
    assert not await redis.exists(keys.model(MODEL).lanes)


async def test_depths_tell_waiting_from_held(lanes: Lanes) -> None:
    """Each lane says what waits in it and what is being worked on."""
    await _enqueue(lanes, "j1", "j2", "j3", tenant="a")
    await _enqueue(lanes, "j4", tenant="b", priority=Priority.HIGH)
    await lanes.claim("w1", 2)
    assert await lanes.depths() == [
        LaneDepth("high:b", waiting=0, pending=1),
        LaneDepth("normal:a", waiting=2, pending=1),
    ]


async def test_depths_race_with_the_release_of_a_lane(lanes: Lanes) -> None:
    """Lanes that come and go while they are counted are counted whole or not at all."""
    seen: set[LaneDepth] = set()

    async def work() -> None:
        for i in range(200):
            await _enqueue(lanes, f"j{i}")
            for claim in await lanes.claim("w1", 1):
                await lanes.release("w1", claim)

    async with within(), asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(work())
        while not worker.done():
            seen.update(await lanes.depths())
    lane = f"normal:{TENANT}"
    assert seen <= {LaneDepth(lane, 1, 0), LaneDepth(lane, 0, 1)}
