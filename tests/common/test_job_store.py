"""The job record: every change of state, and who is refused."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from common.events import (
    Accepted,
    Cancelled,
    Completed,
    Event,
    Expired,
    Retrying,
    Started,
    Tokens,
    decode_event,
    encode_event,
)
from common.job_store import LOG_PAGE, JobStore, Outcome
from common.jobs import FinishReason, JobState
from common.keys import Keys
from tests.support.jobs import (
    BROKEN,
    MODEL,
    RETENTION_MS,
    STOPPED,
    TENANT,
    append,
    make_job,
    read,
    start,
    submit,
)

LOST = Retrying("worker_lost")


async def _finished(store: JobStore) -> str:
    job = await submit(store)
    epoch = await start(store, job.id)
    outcome, _ = await store.finish(job.id, (epoch, 2), STOPPED, RETENTION_MS)
    assert outcome is Outcome.OK
    return job.id


async def _events(store: JobStore, job_id: str) -> list[Event]:
    return [decode_event(payload) for _, payload in await store.log(job_id)]


async def test_submit_creates_a_queued_job_with_event_0(store: JobStore) -> None:
    """A new job waits, and its log says that it was accepted."""
    job = make_job(deadline_s=60.0)
    submitted = await store.submit(job, Accepted(job.id, MODEL))
    assert submitted.created
    assert submitted.state is JobState.QUEUED
    assert submitted.deadline_ms == submitted.created_ms + 60_000
    record = await read(store, job.id)
    assert (record.tenant, record.spec, record.incarnation) == (TENANT, job.spec, "i")
    assert (record.epoch, record.next, record.attempts, record.losses) == (0, 1, 0, 0)
    assert not record.cancel
    assert not record.is_ended
    assert await _events(store, job.id) == [Accepted(job.id, MODEL)]


async def test_submit_twice_is_one_job(store: JobStore) -> None:
    """A repeated submit changes nothing and answers with the first one's fingerprint."""
    first = await submit(store, make_job("job_a", fingerprint="first"))
    again = make_job("job_a", fingerprint="second", incarnation="other")
    submitted = await store.submit(again, Accepted("job_a", "other"))
    assert not submitted.created
    assert submitted.fingerprint == "first"
    assert (submitted.created_ms, submitted.deadline_ms) == (first.created_ms, first.deadline_ms)
    assert await read(store, "job_a") == first
    assert await _events(store, "job_a") == [Accepted("job_a", MODEL)]


async def test_submit_of_a_finished_job_answers_its_state(store: JobStore) -> None:
    """A client that repeats its request after the end learns of the end."""
    job_id = await _finished(store)
    submitted = await store.submit(make_job(job_id), Accepted(job_id, MODEL))
    assert (submitted.created, submitted.state) == (False, JobState.COMPLETED)


async def test_submit_starts_a_log_of_its_own(store: JobStore, redis: Redis, keys: Keys) -> None:
    """What is left of an older job of the same ID does not get into the new one's log."""
    await redis.xadd(keys.job("job_a").log, {"event": "old"}, id="0-7")
    await submit(store, make_job("job_a"))
    assert await _events(store, "job_a") == [Accepted("job_a", MODEL)]


async def test_a_waiting_job_lives_to_its_deadline_and_retention(
    store: JobStore, redis: Redis, keys: Keys
) -> None:
    """Record and log expire together, not before the job can have ended and been read."""
    job = await submit(store, make_job(deadline_s=60.0))
    for key in (keys.job(job.id).record, keys.job(job.id).log):
        assert 60_000 + RETENTION_MS - 10_000 < await redis.pttl(key) <= 60_000 + RETENTION_MS


async def test_start_takes_the_job(store: JobStore) -> None:
    """The worker owns the job under a new epoch, and the log says who runs it."""
    job = await submit(store)
    outcome, epoch, queue_s = await store.start(job, "w1", Started("w1", 1))
    assert outcome is Outcome.OK
    assert epoch > job.epoch
    assert 0 <= queue_s < 30
    record = await read(store, job.id)
    assert (record.state, record.owner, record.epoch) == (JobState.RUNNING, "w1", epoch)
    assert (record.attempts, record.losses, record.next) == (1, 0, 2)
    assert record.started_ms >= record.created_ms
    assert (await _events(store, job.id))[1] == Started("w1", 1)


async def test_two_workers_race_for_a_job_and_one_gets_it(store: JobStore) -> None:
    """Both read the same record; the second start is stale and changes nothing."""
    job = await submit(store)
    await store.start(job, "w1", Started("w1", 1))
    after = await read(store, job.id)
    outcome, epoch, _ = await store.start(job, "w2", Started("w2", 1))
    assert (outcome, epoch) == (Outcome.STALE, 0)
    assert await read(store, job.id) == after


async def test_start_is_stale_when_the_log_has_grown(store: JobStore) -> None:
    """A takeover that missed tokens must read again, or it would write them twice."""
    job = await submit(store)
    epoch = await start(store, job.id)
    running = await read(store, job.id)
    await append(store, job.id, epoch, 2, "a")
    outcome, _, _ = await store.start(running, "w2", Started("w2", 2))
    assert outcome is Outcome.STALE


async def test_start_counts_the_silent_loss_of_another_worker(store: JobStore) -> None:
    """Taking a job that still runs elsewhere means that its worker died."""
    job = await submit(store)
    await start(store, job.id, "w1")
    await start(store, job.id, "w2")
    assert (await read(store, job.id)).losses == 1


async def test_start_by_the_owner_is_no_loss(store: JobStore) -> None:
    """A worker whose reply was lost starts its job again, and the job has lost nobody."""
    job = await submit(store)
    first = await start(store, job.id, "w1")
    second = await start(store, job.id, "w1")
    record = await read(store, job.id)
    assert (record.losses, record.attempts, record.epoch) == (0, 2, second)
    assert second > first


async def test_start_drops_a_cancelled_job(store: JobStore) -> None:
    """A cancel before the start is honoured at the start."""
    job = await submit(store)
    assert await store.cancel(job.id) == (Outcome.OK, JobState.QUEUED, "")
    outcome, _, _ = await store.start(job, "w1", Started("w1", 1))
    assert outcome is Outcome.CANCEL
    assert (await read(store, job.id)).state is JobState.QUEUED


async def test_start_drops_a_job_past_its_deadline(
    store: JobStore, redis: Redis, keys: Keys
) -> None:
    """A job whose deadline passed in the queue is not begun."""
    job = await submit(store)
    await redis.hset(keys.job(job.id).record, "deadline_ms", "1")  # type: ignore[misc]
    outcome, _, _ = await store.start(job, "w1", Started("w1", 1))
    assert outcome is Outcome.EXPIRED


async def test_start_drops_a_finished_job(store: JobStore) -> None:
    """A job that has its end is not begun again."""
    job_id = await _finished(store)
    outcome, _, _ = await store.start(await read(store, job_id), "w2", Started("w2", 2))
    assert outcome is Outcome.CLOSED


async def test_start_drops_a_forgotten_job(store: JobStore, redis: Redis, keys: Keys) -> None:
    """A lane entry can outlive its job; a start does not bring the job back."""
    job = await submit(store)
    await redis.delete(keys.job(job.id).record)
    outcome, _, _ = await store.start(job, "w1", Started("w1", 1))
    assert outcome is Outcome.GONE
    assert not await redis.exists(keys.job(job.id).record)


async def test_finish_writes_end_state_and_result_at_once(
    store: JobStore, redis: Redis, keys: Keys
) -> None:
    """The terminal event ends the log, is the result, and starts the retention of both keys."""
    job = await submit(store)
    epoch = await start(store, job.id)
    assert await store.finish(job.id, (epoch, 2), STOPPED, 5_000) == (Outcome.OK, 3)
    record = await read(store, job.id)
    assert (record.state, record.is_ended) == (JobState.COMPLETED, True)
    assert record.finished_ms >= record.started_ms
    assert record.result == encode_event(STOPPED)
    assert (await _events(store, job.id))[-1] == STOPPED
    for key in (keys.job(job.id).record, keys.job(job.id).log):
        assert 0 < await redis.pttl(key) <= 5_000


async def test_a_job_ends_once(store: JobStore) -> None:
    """A repeated finish, or another end, is refused and changes nothing."""
    job_id = await _finished(store)
    before = (await read(store, job_id), await store.log(job_id))
    for end in (STOPPED, BROKEN, Cancelled(FinishReason.CANCELLED)):
        for n in (2, 3):
            assert await store.finish(job_id, (1, n), end, 1) == (Outcome.CLOSED, 3)
    assert (await read(store, job_id), await store.log(job_id)) == before


async def test_a_zombie_cannot_finish(store: JobStore) -> None:
    """After a takeover the old holder's end is refused; the same call by the new one is not."""
    job = await submit(store)
    old = await start(store, job.id, "w1")
    new = await start(store, job.id, "w2")
    assert await store.finish(job.id, (old, 3), STOPPED, 1) == (Outcome.FENCED, 3)
    assert await store.finish(job.id, (new, 3), STOPPED, RETENTION_MS) == (Outcome.OK, 4)


@pytest.mark.parametrize(("n", "outcome"), [(1, Outcome.STALE), (3, Outcome.GAP)])
async def test_finish_knows_the_length_of_the_log(
    n: int, outcome: Outcome, store: JobStore
) -> None:
    """An end that would overwrite an event or leave a hole is refused."""
    job = await submit(store)
    epoch = await start(store, job.id)
    assert await store.finish(job.id, (epoch, n), STOPPED, 1) == (outcome, 2)
    assert (await read(store, job.id)).state is JobState.RUNNING


async def test_finish_of_a_forgotten_job_writes_nothing(
    store: JobStore, redis: Redis, keys: Keys
) -> None:
    """A worker that comes too late does not bring an expired job back."""
    assert await store.finish("job_x", (1, 2), STOPPED, 1) == (Outcome.GONE, 0)
    assert not await redis.exists(keys.job("job_x").record, keys.job("job_x").log)


async def test_a_queued_job_cannot_move_to_completed(store: JobStore) -> None:
    """The script refuses the illegal move and names it; legal ends of a queued job pass."""
    job = await submit(store)
    with pytest.raises(ResponseError, match="a queued job cannot move to completed"):
        await store.finish(job.id, (0, 1), STOPPED, RETENTION_MS)
    assert await read(store, job.id) == job
    assert await store.finish(job.id, (0, 1), BROKEN, RETENTION_MS) == (Outcome.OK, 2)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (Completed(FinishReason.LENGTH), JobState.COMPLETED),
        (BROKEN, JobState.FAILED),
        (Cancelled(FinishReason.CANCELLED), JobState.CANCELLED),
        (Expired(FinishReason.EXPIRED), JobState.EXPIRED),
    ],
)
async def test_every_end_has_its_state(
    end: Completed | Expired, state: JobState, store: JobStore
) -> None:
    """The record's state is the one of its terminal event."""
    job = await submit(store)
    epoch = await start(store, job.id)
    await store.finish(job.id, (epoch, 2), end, RETENTION_MS)
    assert (await read(store, job.id)).state is state


async def test_cancel_is_a_durable_flag(store: JobStore) -> None:
    """A cancel names the owner to tell, can be repeated, and ends nothing by itself."""
    job = await submit(store)
    await start(store, job.id, "w1")
    for _ in range(2):
        assert await store.cancel(job.id) == (Outcome.OK, JobState.RUNNING, "w1")
    record = await read(store, job.id)
    assert record.cancel
    assert record.state is JobState.RUNNING


async def test_cancel_comes_too_late(store: JobStore) -> None:
    """A finished job stays as it is; an unknown one is not created."""
    job_id = await _finished(store)
    assert await store.cancel(job_id) == (Outcome.CLOSED, JobState.COMPLETED, "w1")
    assert not (await read(store, job_id)).cancel
    assert await store.cancel("job_x") == (Outcome.GONE, None, "")
    assert await store.record("job_x") is None


@pytest.mark.parametrize(("lost", "losses"), [(True, 1), (False, 0)])
async def test_requeue_fences_the_old_holder(lost: bool, losses: int, store: JobStore) -> None:
    """The job waits again; what its old holder still sends is refused."""
    job = await submit(store)
    old = await start(store, job.id, "w1")
    assert await store.requeue(job.id, "w1", LOST, lost=lost) is Outcome.OK
    record = await read(store, job.id)
    assert (record.state, record.owner, record.losses) == (JobState.QUEUED, "", losses)
    assert (await _events(store, job.id))[-1] == LOST
    assert await append(store, job.id, old, 3, "zombie") == (Outcome.FENCED, 3)
    assert await store.finish(job.id, (old, 3), STOPPED, 1) == (Outcome.FENCED, 3)


async def test_requeue_is_for_the_owner_that_runs(store: JobStore) -> None:
    """A job that another one took, that waits, has its end or is gone, is left alone."""
    job = await submit(store)
    assert await store.requeue(job.id, "w1", LOST, lost=True) is Outcome.CLOSED
    await start(store, job.id, "w2")
    before = await read(store, job.id)
    assert await store.requeue(job.id, "w1", LOST, lost=True) is Outcome.STALE
    assert await read(store, job.id) == before
    finished = await _finished(store)
    assert await store.requeue(finished, "w1", LOST, lost=True) is Outcome.CLOSED
    assert await store.requeue("job_x", "w1", LOST, lost=True) is Outcome.GONE


async def test_many_records_in_one_round_trip(store: JobStore) -> None:
    """Records, tops and positions come in the order of the question, None for the lost."""
    first, second = await submit(store), await submit(store)
    epoch = await start(store, second.id)
    ids = [second.id, "job_x", first.id]
    assert await store.records(ids) == [await read(store, second.id), None, first]
    assert await store.top(ids) == [("i", 2), None, ("i", 1)]
    positions = [await store.position(job_id) for job_id in ids]
    assert positions == [(epoch, 2, RETENTION_MS), None, (0, 1, RETENTION_MS)]


async def test_the_log_is_read_over_page_borders(store: JobStore) -> None:
    """A log of more than a page is read whole, and from any event."""
    job = await submit(store)
    epoch = await start(store, job.id)
    texts = [str(i) for i in range(LOG_PAGE + 5)]
    assert await append(store, job.id, epoch, 2, *texts) == (Outcome.OK, LOG_PAGE + 7)
    log = await store.log(job.id)
    assert [n for n, _ in log] == list(range(LOG_PAGE + 7))
    assert await store.log(job.id, 3) == log[3:]
    assert await store.log(job.id, 3, 2) == log[3:5]
    assert await store.log(job.id, 3, LOG_PAGE + 1) == log[3 : LOG_PAGE + 4]
    assert await store.log(job.id, 3, 2) == log[3:5]
    assert await store.log(job.id, len(log)) == []


async def test_a_snapshot_is_the_record_and_its_log(store: JobStore) -> None:
    """A snapshot's events are numbered by their place; an unknown job has none."""
    job = await submit(store)
    epoch = await start(store, job.id)
    await append(store, job.id, epoch, 2, "a")
    snapshot = await store.snapshot(job.id)
    assert snapshot
    assert snapshot.record == await read(store, job.id)
    assert snapshot.events == (
        Accepted(job.id, MODEL),
        Started("w1", 1),
        Tokens(0, (1,), "a"),
    )
    assert snapshot.payloads == tuple(encode_event(event) for event in snapshot.events)
    assert await store.snapshot("job_x") is None


async def test_a_base_is_pinned_by_the_first_start(store: JobStore) -> None:
    """A later one cannot change it, and the end needs it no more."""
    job = await submit(store)
    assert job.base == b""
    for worker_id, base in [("w1", b"first"), ("w2", b"second"), ("w3", b"")]:
        record = await read(store, job.id)
        started = Started(worker_id, record.attempts + 1)
        outcome, epoch, _ = await store.start(record, worker_id, started, base)
        assert outcome is Outcome.OK
        assert (await read(store, job.id)).base == b"first"
    await store.finish(job.id, (epoch, 4), STOPPED, RETENTION_MS)
    assert (await read(store, job.id)).base == b""


async def test_a_refused_start_pins_nothing(store: JobStore) -> None:
    """Who has not got the job does not decide what it builds on."""
    job = await submit(store)
    await store.cancel(job.id)
    outcome, _, _ = await store.start(job, "w1", Started("w1", 1), b"base")
    assert outcome is Outcome.CANCEL
    assert (await read(store, job.id)).base == b""
