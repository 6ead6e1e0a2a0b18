"""Ends for jobs that nobody works on."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec
import pytest
from redis.asyncio import Redis

from common.deadlines import GRACE_MS
from common.endings import (
    cancelled,
    choose_end,
    end_idle,
    end_if_overdue,
    end_overdue,
    end_unreadable,
    expired,
    worker_lost,
)
from common.events import Cancelled, Ended, Expired, Failed, Retrying, decode_event
from common.job_record import Snapshot
from common.job_store import JobStore
from common.jobs import JobState, Priority
from common.keys import Keys
from common.lanes import Lanes
from tests.support.jobs import RETENTION_MS, STOPPED, append, make_job, read, start, submit

MAX_LOSSES = 3
LATE_MS = 2**42


class Racing(JobStore):
    """A store in which something happens between the first read and what follows."""

    def __init__(self, store: JobStore, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(store._redis, store._keys)
        self._meanwhile: Callable[[], Awaitable[None]] | None = meanwhile

    async def snapshot(self, job_id: str) -> Snapshot | None:
        """Read, and let it happen."""
        snapshot = await super().snapshot(job_id)
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile:
            await meanwhile()
        return snapshot


async def _snapshot(store: JobStore, job_id: str) -> Snapshot:
    snapshot = await store.snapshot(job_id)
    assert snapshot
    return snapshot


async def _choose(store: JobStore, job_id: str, worker_id: str = "") -> type[Ended] | None:
    end = choose_end(await _snapshot(store, job_id), 0, MAX_LOSSES, worker_id)
    return type(end) if end else None


async def _lose(store: JobStore, job_id: str, times: int) -> None:
    for _ in range(times):
        await start(store, job_id, "w1")
        await store.requeue(job_id, "w1", Retrying("worker_lost"), lost=True)


async def test_a_job_that_can_run_needs_no_end(store: JobStore) -> None:
    """A waiting job in time is started, not ended."""
    job = await submit(store)
    assert await _choose(store, job.id) is None
    assert not await end_idle(store, job.id, lambda _: None)
    assert await read(store, job.id) == job


async def test_a_cancel_comes_before_every_other_reason(store: JobStore) -> None:
    """Who asked for the end gets that end, also when the job is late and has lost its workers."""
    job = await submit(store)
    await _lose(store, job.id, MAX_LOSSES)
    late = choose_end(await _snapshot(store, job.id), LATE_MS, MAX_LOSSES)
    assert isinstance(late, Expired)
    assert await _choose(store, job.id) is Failed
    await store.cancel(job.id)
    assert await _choose(store, job.id) is Cancelled


async def test_a_job_may_lose_so_many_workers(store: JobStore) -> None:
    """One loss below the limit the job runs on; at the limit it fails."""
    job = await submit(store)
    await _lose(store, job.id, MAX_LOSSES - 1)
    assert await _choose(store, job.id) is None
    await start(store, job.id, "w1")
    assert await _choose(store, job.id, "w1") is None
    assert await _choose(store, job.id, "w2") is Failed


async def test_the_ends_tell_what_was_done(store: JobStore) -> None:
    """Each end counts the tokens in the log and the attempts."""
    job = await submit(store)
    epoch = await start(store, job.id)
    await append(store, job.id, epoch, 2, "a", "b")
    snapshot = await _snapshot(store, job.id)
    for end in (cancelled(snapshot), expired(snapshot), worker_lost(snapshot)):
        assert end.usage.completion_tokens == 2
        assert end.attempts == 1
    assert worker_lost(snapshot).error


async def test_an_idle_job_is_ended_once(store: JobStore) -> None:
    """The first caller writes the end; for the second there is nothing to do."""
    job = await submit(store)
    assert await end_idle(store, job.id, cancelled)
    assert not await end_idle(store, job.id, expired)
    assert not await end_idle(store, "job_x", cancelled)
    assert (await read(store, job.id)).state is JobState.CANCELLED
    events = [decode_event(payload) for _, payload in await store.log(job.id)]
    assert isinstance(events[-1], Cancelled)


async def test_an_end_races_with_a_start_and_looks_again(store: JobStore) -> None:
    """A job that a worker took after it was read is judged as it stands now."""
    job = await submit(store)
    seen: list[JobState] = []

    async def take() -> None:
        await start(store, job.id, "w1")

    def choose(snapshot: Snapshot) -> Ended | None:
        seen.append(snapshot.record.state)
        return None if snapshot.record.state is JobState.RUNNING else cancelled(snapshot)

    racing = Racing(store, take)
    assert not await end_idle(racing, job.id, choose)
    assert seen == [JobState.QUEUED, JobState.RUNNING]
    assert (await read(store, job.id)).state is JobState.RUNNING


async def test_an_end_loses_against_the_workers(store: JobStore) -> None:
    """A worker that finishes in between has ended the job, and its end stays."""
    job = await submit(store)
    epoch = await start(store, job.id)

    async def finish() -> None:
        await store.finish(job.id, (epoch, 2), STOPPED, RETENTION_MS)

    assert not await end_idle(Racing(store, finish), job.id, cancelled)
    assert (await read(store, job.id)).state is JobState.COMPLETED


async def test_a_job_that_nobody_can_read_gets_an_end(
    store: JobStore, redis: Redis, keys: Keys
) -> None:
    """A spec that this version cannot read fails its job, once, and stops nobody else."""
    job = await submit(store)
    await redis.hset(keys.job(job.id).record, "spec", "?")  # type: ignore[misc]
    with pytest.raises(msgspec.DecodeError) as caught:
        await store.record(job.id)
    assert await end_unreadable(store, job.id, caught.value)
    assert not await end_unreadable(store, job.id, caught.value)
    assert not await end_unreadable(store, "job_x", caught.value)
    end = decode_event((await store.log(job.id))[-1][1])
    assert isinstance(end, Failed)
    assert end.error
    assert end.error.type == "record-unreadable"


async def test_an_overdue_job_is_ended_once_after_the_grace(store: JobStore) -> None:
    """A moment earlier its worker may still do it; afterwards there is nothing to do."""
    job = await submit(store)
    overdue_ms = job.deadline_ms + GRACE_MS
    assert not await end_if_overdue(store, job.id, overdue_ms - 1)
    assert (await read(store, job.id)).state is JobState.QUEUED
    assert await end_if_overdue(store, job.id, overdue_ms)
    assert (await read(store, job.id)).state is JobState.EXPIRED
    assert not await end_if_overdue(store, job.id, overdue_ms)
    assert not await end_if_overdue(store, "job_x", overdue_ms)


async def test_a_job_that_started_in_time_is_left_to_its_worker(store: JobStore) -> None:
    """It was seen overdue for waiting too long; its worker ends it, also when it is cancelled."""
    job = make_job()
    job = replace(job, spec=msgspec.structs.replace(job.spec, queue_deadline_s=1.0))
    record = await submit(store, job)
    await start(store, job.id)
    await store.cancel(job.id)
    assert not await end_if_overdue(store, job.id, record.due_ms + GRACE_MS)
    assert (await read(store, job.id)).state is JobState.RUNNING


async def test_an_overdue_job_that_nobody_can_read_gets_an_end(
    store: JobStore, redis: Redis, keys: Keys
) -> None:
    """Whoever saw that it is overdue ends it, once, and hears of no error."""
    job = await submit(store)
    await redis.hset(keys.job(job.id).record, "spec", "?")  # type: ignore[misc]
    assert await end_if_overdue(store, job.id, LATE_MS)
    assert await store.deadline_ms(job.id) is None
    end = decode_event((await store.log(job.id))[-1][1])
    assert isinstance(end, Failed)
    assert end.error
    assert end.error.type == "record-unreadable"


async def test_an_end_from_elsewhere_is_settled_by_the_sweep(store: JobStore, lanes: Lanes) -> None:
    """A gateway's end leaves the job counted as unfinished, and the next sweep takes it off."""
    job = await submit(store)
    await lanes.enqueue(job.id, job.tenant, Priority.NORMAL, job.deadline_ms)
    assert await end_if_overdue(store, job.id, LATE_MS)
    assert await lanes.unfinished() == 1
    await end_overdue(store, lanes, LATE_MS)
    assert await lanes.unfinished() == 0
