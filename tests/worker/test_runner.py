"""The job loop claims what fits, starts what may start, and leaves nothing stuck."""

import asyncio
from collections.abc import Collection
from typing import Any
from unittest.mock import patch

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from common.jobs import FinishReason, JobState
from common.lanes import Claim
from tests.support.jobs import MODEL, STOPPED, TENANT, read
from tests.support.jobs import start as start_job
from tests.support.waiting import eventually, within
from tests.worker.conftest import MakeRig
from tests.worker.rig import (
    POLL_S,
    CutEngine,
    Rig,
    answer_to,
    at_rest,
    end_of,
    events_of,
    hold_at,
    kinds_of,
    lose_reply,
    set_fields,
    submit,
    text_of,
    until,
)
from worker import runner
from worker.backend import Backend
from worker.engine.protocol import Finished

pytestmark = pytest.mark.anyio

LOST_TOO_OFTEN = 3
LONG_S = 60.0


async def is_whole(backend: Backend, job_id: str) -> bool:
    """Tell whether the job's text is that of an undisturbed answer."""
    return text_of(await events_of(backend, job_id)) == await answer_to(backend, job_id)


async def test_it_claims_no_more_than_fits(make_rig: MakeRig, backend: Backend) -> None:
    """The other jobs stay in their lane, for other workers."""
    rig = await make_rig(engine=CutEngine(0)).start(capacity=2)
    for _ in range(5):
        await submit(backend)
    await until(lambda: len(rig.publisher.attempts) == 2)
    [depth] = await backend.lanes.depths()
    assert (depth.waiting, depth.pending) == (3, 2)
    assert rig.runner.num_held == 2


async def test_a_free_slot_takes_the_next_job(make_rig: MakeRig, backend: Backend) -> None:
    """With one slot, ten jobs run one after another without a poll between them."""
    rig = make_rig()
    job_ids = [await submit(backend) for _ in range(10)]
    await rig.join()
    rig.spawn(rig.publisher.run())
    rig.spawn(rig.runner.run(1, 60.0))
    for job_id in job_ids:
        assert (await end_of(backend, job_id)).kind == "completed"
    await at_rest(backend)


async def test_it_does_not_ask_again_for_what_it_has_just_seen(
    make_rig: MakeRig, backend: Backend
) -> None:
    """A claim that left slots free has taken all there is; the bell rings for what comes."""
    rig = make_rig(engine=CutEngine(0))
    await rig.join()
    lanes = rig.backend.lanes
    await submit(backend)
    with patch.object(lanes, "claim", side_effect=lanes.claim) as claim:
        rig.spawn(rig.runner.run(4, LONG_S))
        await until(lambda: len(rig.publisher.attempts) == 1)
        assert claim.call_count == 1


async def test_an_end_is_no_reason_to_ask_where_nothing_was_left(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The bell has told of what came since."""
    rig = make_rig()
    await rig.join()
    lanes = rig.backend.lanes
    job_id = await submit(backend)
    with patch.object(lanes, "claim", side_effect=lanes.claim) as claim:
        rig.spawn(rig.publisher.run())
        rig.spawn(rig.runner.run(4, LONG_S))
        await end_of(backend, job_id)
        await until(lambda: not rig.runner.num_held)
        await at_rest(backend)
        assert not rig.runner.work.is_set()
        assert claim.call_count == 1


async def test_an_end_makes_room_for_what_came_meanwhile(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The bell rang while no slot was free; no poll comes, and no other bell."""
    rig = make_rig(engine=CutEngine(0))
    await rig.join()
    rig.spawn(rig.publisher.run())
    first = await submit(backend)
    rig.spawn(rig.runner.run(1, LONG_S))
    await until(lambda: first in rig.publisher.attempts)
    second = await submit(backend)
    rig.runner.ring()
    await until(lambda: not rig.runner.work.is_set())
    rig.publisher.sink(rig.publisher.attempts[first])(Finished(FinishReason.STOP))
    await until(lambda: second in rig.publisher.attempts)


async def test_only_a_full_claim_may_leave_more(make_rig: MakeRig, backend: Backend) -> None:
    """Also one whose entries are of jobs that the worker holds already."""
    rig = make_rig()
    await rig.join()
    job_ids = [await submit(backend) for _ in range(3)]
    first = await rig.runner.take(2)
    assert (len(first.jobs), first.may_be_more) == (2, True)
    nothing = await rig.runner.take(0)
    assert (nothing.jobs, nothing.may_be_more) == ([], False)
    last = await rig.runner.take(2)
    assert (len(last.jobs), last.may_be_more) == (1, False)
    await add_entry(rig.redis, backend, job_ids[0])
    twice = await rig.runner.take(1)
    assert (twice.jobs, twice.may_be_more) == ([], True)


@pytest.mark.fault(33)
async def test_a_cancelled_job_is_ended_instead(make_rig: MakeRig, backend: Backend) -> None:
    """The engine never hears of it, and its entry goes."""
    job_id = await submit(backend)
    await backend.store.cancel(job_id)
    await make_rig().start()
    assert (await end_of(backend, job_id)).kind == "cancelled"
    await at_rest(backend)
    assert await kinds_of(backend, job_id) == ["accepted", "cancelled"]


@pytest.mark.fault(34)
async def test_an_expired_job_is_ended_instead(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """A deadline that passed in the queue is a distinct end."""
    job_id = await submit(backend)
    await set_fields(redis, backend, job_id, deadline_ms=1)
    await make_rig().start()
    assert (await end_of(backend, job_id)).kind == "expired"
    await at_rest(backend)
    assert await kinds_of(backend, job_id) == ["accepted", "expired"]


@pytest.mark.parametrize("losses", [LOST_TOO_OFTEN - 1, LOST_TOO_OFTEN])
async def test_a_job_that_lost_too_many_workers_is_given_up(
    losses: int, make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """At the limit it fails with its reason; just below it, it runs."""
    job_id = await submit(backend)
    await set_fields(redis, backend, job_id, losses=losses)
    await make_rig(max_losses=LOST_TOO_OFTEN).start()
    end = await end_of(backend, job_id)
    await at_rest(backend)
    if losses < LOST_TOO_OFTEN:
        assert end.kind == "completed"
    else:
        assert end.error
        assert (end.kind, end.error.type) == ("failed", "worker-lost")


@pytest.mark.parametrize("state", ["ended", "gone"])
async def test_an_entry_without_a_live_job_is_released(
    state: str, make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """Nothing is written for a job that has its end or was forgotten."""
    job_id = await submit(backend)
    keys = backend.keys.job(job_id)
    if state == "gone":
        await redis.delete(keys.record, keys.log)
    else:
        await set_fields(redis, backend, job_id, state=b"completed")
    await make_rig().start()
    await at_rest(backend)
    assert len(await backend.store.log(job_id)) == (1 if state == "ended" else 0)


@pytest.mark.fault(5)
@pytest.mark.parametrize("damage", ["spec", "no spec", "state", "event"])
async def test_an_unreadable_job_fails_and_harms_nobody(
    damage: str, make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """It ends with its reason, its entry goes, and its neighbour gets its answer."""
    bad, good = await submit(backend), await submit(backend)
    keys = backend.keys.job(bad)
    match damage:
        case "spec":
            await set_fields(redis, backend, bad, spec=b"\xc1")
        case "no spec":
            await redis.hdel(keys.record, "spec")  # type: ignore[misc]
        case "state":
            await set_fields(redis, backend, bad, state=b"from-the-future")
        case _:
            await redis.xadd(keys.log, {"event": b"\xc1"}, "0-2")
            await set_fields(redis, backend, bad, next=2)
    rig = await make_rig().start()
    assert (await end_of(backend, good)).kind == "completed"
    await at_rest(backend)
    await until(lambda: rig.runner.num_held == 0)
    if damage != "state":  # which nothing may leave: a newer version knows what it means
        assert await redis.hget(keys.record, "state") == b"failed"  # type: ignore[misc]
        assert b"record-unreadable" in (await backend.store.log(bad))[-1][1]


@pytest.mark.fault(14)
async def test_a_lost_claim_reply_is_reconciled(make_rig: MakeRig, backend: Backend) -> None:
    """The entries are handed back and claimed anew: nothing is stuck in a living worker."""
    rig = make_rig()
    lost = lose_reply(rig.backend.lanes, "claim")
    job_ids = [await submit(backend) for _ in range(3)]
    await rig.start()
    for job_id in job_ids:
        await end_of(backend, job_id)
        assert await is_whole(backend, job_id)
    assert len(lost[0]) == 3
    await at_rest(backend)


@pytest.mark.control(14)
async def test_without_reconciling_the_entries_would_be_stuck(
    make_rig: MakeRig, backend: Backend
) -> None:
    """Negative control: a living worker's entries are nobody else's."""
    rig = make_rig()
    await rig.join()
    job_id = await submit(backend)
    lose_reply(rig.backend.lanes, "claim")
    with pytest.raises(RedisConnectionError):
        await rig.backend.lanes.claim(rig.worker_id, 4)
    other = make_rig()
    await other.join()
    await other.sweeper.sweep()
    assert await other.backend.lanes.claim(other.worker_id, 4) == []
    assert (await read(backend.store, job_id)).state is JobState.QUEUED


@pytest.mark.fault(14)
@pytest.mark.parametrize("target", ["snapshot", "start", "finish", "release"])
async def test_a_lost_reply_while_starting_is_asked_again(
    target: str, make_rig: MakeRig, backend: Backend
) -> None:
    """Whichever answer is lost, the job runs once to its end."""
    rig = make_rig()
    job_id = await submit(backend)
    if target in ("finish", "release"):
        await backend.store.cancel(job_id)
    lost = lose_reply(rig.backend.lanes if target == "release" else rig.backend.store, target)
    await rig.start()
    end = await end_of(backend, job_id)
    assert end.kind == ("cancelled" if target in ("finish", "release") else "completed")
    await at_rest(backend)
    assert lost
    assert (await read(backend.store, job_id)).losses == 0


async def test_an_unreadable_job_ends_although_a_reply_is_lost(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """The outage meets the ending of a bad job, and the worker lives on."""
    job_id = await submit(backend)
    await set_fields(redis, backend, job_id, spec=b"\xc1")
    rig = make_rig()
    lost = lose_reply(rig.backend.store, "finish")
    await rig.start()
    await at_rest(backend)
    assert lost
    assert not any(task.done() for task in rig.tasks)


async def add_entry(redis: Redis, backend: Backend, job_id: str) -> None:
    """Put a second entry of the job into its lane, as a server that lost its memory would."""
    keys = backend.keys.model(MODEL)
    await redis.zrem(keys.jobs, job_id)
    record = await read(backend.store, job_id)
    await backend.lanes.enqueue(job_id, TENANT, record.spec.priority, record.deadline_ms)


async def test_a_job_claimed_twice_runs_once(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """The second entry is held until the first run ends, and then it goes too."""
    rig = await make_rig(engine=CutEngine(2)).start()
    job_id = await hold_at(rig, backend)
    await add_entry(redis, backend, job_id)
    await until(lambda: rig.runner._twice == {job_id})
    record = await read(backend.store, job_id)
    await backend.store.finish(job_id, (record.epoch, record.next), STOPPED, record.retention_ms)
    await at_rest(backend)
    assert not rig.runner._twice
    assert (await kinds_of(backend, job_id)).count("started") == 1


async def test_a_lease_that_lapses_while_a_job_starts_leaves_it_to_others(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The start is given up, the entry claimed meanwhile goes back, and the job runs after all."""
    rig = make_rig()
    may_start = asyncio.Event()
    snapshot = rig.backend.store.snapshot

    async def held_up(job_id: str) -> object:
        await may_start.wait()
        return await snapshot(job_id)

    rig.backend.store.snapshot = held_up  # type: ignore[method-assign,assignment]
    await rig.start()
    job_id = await submit(backend)
    await until(lambda: rig.runner.num_held == 1)
    old_id = rig.worker_id
    await make_rig().bury(old_id)
    await until(lambda: rig.runner._twice == {job_id})
    assert rig.worker_id != old_id
    may_start.set()
    end = await end_of(backend, job_id)
    assert end.worker == rig.worker_id
    assert await is_whole(backend, job_id)
    await at_rest(backend)


async def test_a_worker_without_a_current_lease_starts_nothing(
    make_rig: MakeRig, backend: Backend
) -> None:
    """A late worker would fence the one that took its jobs over."""
    rig = make_rig(lease_s=0.4)
    await rig.join()
    job_id = await submit(backend)
    [claim] = await rig.backend.lanes.claim(rig.worker_id, 1)
    await asyncio.to_thread(rig.lease.stop)
    rig._has_lease = False
    await until(lambda: not rig.lease.is_current)
    rig.spawn(_begin(rig, claim))
    with pytest.raises(TimeoutError):
        async with within(0.3):
            await asyncio.wait(rig.tasks)
    assert (await read(backend.store, job_id)).state is JobState.QUEUED
    rig.runner.worker_id = "another"
    async with within():
        await rig.tasks[0]


async def _begin(rig: Rig, claim: Claim) -> None:
    assert rig.runner._hold(claim, rig.worker_id)
    await rig.runner._begin(claim, rig.worker_id)


async def test_a_swept_worker_drops_its_jobs_and_comes_back(
    make_rig: MakeRig, backend: Backend
) -> None:
    """Its jobs wait for anybody, itself under a new ID included."""
    rig = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(rig, backend)
    old_id = rig.worker_id
    engine = rig.engine
    assert isinstance(engine, CutEngine)
    engine.cut = 1_000
    await make_rig().bury(old_id)
    end = await end_of(backend, job_id)
    assert (end.worker, end.attempts) == (rig.worker_id, 2)
    assert rig.worker_id != old_id
    assert await is_whole(backend, job_id)
    await at_rest(backend)


async def test_a_drain_lets_jobs_finish_in_time(make_rig: MakeRig, backend: Backend) -> None:
    """Nothing is handed over, nothing new is claimed, and no entry is held afterwards."""
    rig = await make_rig().start()
    running = await submit(backend, max_tokens=2_000)
    await until(lambda: running in rig.publisher.attempts)
    drained = asyncio.create_task(rig.drain(15))
    await until(lambda: rig.runner.draining)
    late = await submit(backend)
    await drained
    assert (await end_of(backend, running)).attempts == 1
    assert (await read(backend.store, late)).state is JobState.QUEUED
    assert not rig.runner.may_hold_entries


@pytest.mark.fault(6)
async def test_a_drain_that_takes_too_long_hands_over(make_rig: MakeRig, backend: Backend) -> None:
    """The next worker goes on at the token where the first one stopped; it is no loss."""
    first = await make_rig(engine=CutEngine(5)).start()
    job_id = await hold_at(first, backend, max_tokens=40)
    await first.drain(0.05)
    assert not first.runner.may_hold_entries
    assert (await read(backend.store, job_id)).state is JobState.QUEUED
    second = await make_rig().start()
    end = await end_of(backend, job_id)
    assert (end.attempts, end.worker) == (2, second.worker_id)
    assert await is_whole(backend, job_id)
    assert (await read(backend.store, job_id)).losses == 0
    assert await kinds_of(backend, job_id) == [
        "accepted", "started", "tokens", "retrying", "started", "tokens", "completed",
    ]  # fmt: skip
    assert "drain" in str(await events_of(backend, job_id))
    await at_rest(backend)


@pytest.mark.fault(6)
@pytest.mark.parametrize("applied", [False, True])
async def test_a_start_in_flight_is_handed_over_too(
    applied: bool, make_rig: MakeRig, backend: Backend
) -> None:
    """It is stopped before the hand-over; what Redis had done of it already is no loss."""
    leaving = make_rig()
    start, hand_back = leaving.backend.store.start, leaving.backend.lanes.hand_back
    is_starting, may_go_on, is_over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def start_late(*args: Any) -> object:
        try:
            granted = await start(*args) if applied else None
            is_starting.set()
            await may_go_on.wait()
            return granted or await start(*args)
        finally:
            is_over.set()

    async def hand_back_late(worker_id: str, kept: Collection[str] = ()) -> list[str]:
        if leaving.runner.draining:  # the hand-over, and no reconciling before
            may_go_on.set()
            await is_over.wait()
        return await hand_back(worker_id, kept)

    leaving.backend.store.start = start_late  # type: ignore[method-assign,assignment]
    leaving.backend.lanes.hand_back = hand_back_late  # type: ignore[method-assign]
    job_id = await submit(backend)
    await leaving.start()
    async with within():
        await is_starting.wait()
    await leaving.drain(0.05)
    assert (await read(backend.store, job_id)).state is JobState.QUEUED
    assert leaving.runner.num_held == 0
    assert not leaving.runner.may_hold_entries
    heir = await make_rig().start()
    end = await end_of(backend, job_id)
    assert (end.worker, end.attempts) == (heir.worker_id, 2 if applied else 1)
    assert (await read(backend.store, job_id)).losses == 0
    await at_rest(backend)


@pytest.mark.fault(6)
async def test_a_hurried_drain_hands_over_at_once(make_rig: MakeRig, backend: Backend) -> None:
    """A second signal does not wait for the deadline."""
    rig = await make_rig(engine=CutEngine(1)).start()
    job_id = await hold_at(rig, backend)
    hurry = asyncio.Event()
    drained = asyncio.create_task(rig.drain(60, hurry))
    await until(lambda: rig.runner.draining)
    assert not drained.done()
    hurry.set()
    async with within(5):
        await drained
    assert (await read(backend.store, job_id)).state is JobState.QUEUED


@pytest.mark.fault(6)
async def test_a_drain_during_an_outage_leaves_the_jobs_to_the_sweep(
    make_rig: MakeRig, backend: Backend
) -> None:
    """What could not be handed over still carries the worker's ID, so its lease must stay."""
    rig = await make_rig(engine=CutEngine(1)).start()
    job_id = await hold_at(rig, backend)

    async def away(*_args: object, **_options: object) -> None:
        raise RedisConnectionError

    rig.backend.store.requeue = away  # type: ignore[method-assign,assignment]
    with pytest.raises(RedisConnectionError):
        await rig.drain(0.05)
    assert rig.runner.may_hold_entries
    await rig.kill()
    other = await make_rig().start()
    await other.bury(rig.worker_id)
    assert (await end_of(backend, job_id)).attempts == 2
    await at_rest(backend)


@pytest.mark.fault(14)
async def test_a_requeue_that_fails_holds_up_no_other(make_rig: MakeRig, backend: Backend) -> None:
    """All jobs wait for another worker, although the hand-over as a whole has failed."""
    rig = await make_rig(engine=CutEngine(0)).start()
    job_ids = {await submit(backend) for _ in range(3)}
    await until(lambda: rig.publisher.attempts.keys() == job_ids)
    lose_reply(rig.backend.store, "requeue")
    with pytest.raises(RedisConnectionError):
        await rig.drain(0.05)
    for job_id in job_ids:
        assert (await read(backend.store, job_id)).state is JobState.QUEUED
    assert rig.runner.may_hold_entries


async def hold_up_claim(rig: Rig, backend: Backend) -> tuple[str, asyncio.Event]:
    """Submit a job, and let the worker's claim wait; returns the job, and what lets it go on."""
    claim, is_claiming, may_claim = rig.backend.lanes.claim, asyncio.Event(), asyncio.Event()

    async def held_up(worker_id: str, count: int) -> list[Claim]:
        is_claiming.set()
        await may_claim.wait()
        return await claim(worker_id, count)

    rig.backend.lanes.claim = held_up  # type: ignore[method-assign]
    job_id = await submit(backend)
    await rig.start()
    async with within():
        await is_claiming.wait()
    return job_id, may_claim


async def test_a_claim_on_its_way_is_part_of_the_drain(make_rig: MakeRig, backend: Backend) -> None:
    """Entries that arrive while the worker drains are not left behind."""
    rig = make_rig()
    job_id, may_claim = await hold_up_claim(rig, backend)
    drained = asyncio.create_task(rig.drain(15))
    await until(lambda: rig.runner.draining)
    may_claim.set()
    await drained
    assert not rig.runner.may_hold_entries
    assert all(depth.pending == 0 for depth in await backend.lanes.depths())
    assert (await read(backend.store, job_id)).state in (JobState.QUEUED, JobState.COMPLETED)


async def test_a_claim_that_comes_after_the_hand_over_starts_nothing(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The worker is as good as gone: its entries wait for the sweep, the job is no loss."""
    rig = make_rig()
    job_id, may_claim = await hold_up_claim(rig, backend)
    await rig.drain(0.05)
    assert rig.runner.may_hold_entries
    may_claim.set()
    async with within():
        await rig.runner._not_claiming.wait()
    [depth] = await backend.lanes.depths()
    assert depth.pending == 1
    assert (await read(backend.store, job_id)).state is JobState.QUEUED
    assert rig.runner.num_held == 0


async def test_a_stranger_on_the_record_costs_a_loss(make_rig: MakeRig, backend: Backend) -> None:
    """A job still running under a dead worker is taken over and counted."""
    job_id = await submit(backend)
    await start_job(backend.store, job_id, "dead")
    await make_rig().start()
    assert (await end_of(backend, job_id)).attempts == 2
    assert (await read(backend.store, job_id)).losses == 1

    async def is_free() -> bool:
        return await backend.lanes.depths() == []

    await eventually(is_free)


async def test_new_work_goes_to_the_idle_worker(
    make_rig: MakeRig, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy worker hears the same bell, and lets the idle one be first."""
    monkeypatch.setattr(runner, "YIELD_S", LONG_S)
    monkeypatch.setattr(runner, "MAX_YIELD_S", LONG_S)
    busy = await make_rig(engine=CutEngine(0)).start()
    await submit(backend)
    await until(lambda: busy.runner.num_held == 1)
    idle = await make_rig(engine=CutEngine(0)).start()
    jobs = [await submit(backend) for _ in range(2)]
    await until(lambda: idle.runner.num_held > 0)
    assert jobs[0] in idle.runner._kept
    assert busy.runner.num_held == 1


async def test_a_free_slot_is_filled_without_a_wait(
    make_rig: MakeRig, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the bell makes a worker polite: what waits already is nobody else's to take."""
    for _ in range(6):
        await submit(backend)
    monkeypatch.setattr(runner, "YIELD_S", LONG_S)
    monkeypatch.setattr(runner, "MAX_YIELD_S", LONG_S)
    rig = make_rig()
    await rig.join()
    rig.spawn(rig.publisher.run())
    rig.spawn(rig.runner.run(2, POLL_S))
    await at_rest(backend)
