"""The publisher brings every running attempt to its end, whatever Redis does."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from common.events import Completed, Retrying, Tokens
from common.job_store import Append, Outcome
from common.jobs import FinishReason, JobState
from tests.support.jobs import read
from tests.support.servers import Server
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
    has_end,
    hold_at,
    ids_of,
    kinds_of,
    lose_reply,
    set_fields,
    submit,
    text_of,
    until,
)
from worker import publisher as publisher_module
from worker.attempt import AttemptLog
from worker.backend import Backend
from worker.engine.protocol import Delta, Finished, Prefilled

pytestmark = pytest.mark.anyio

LONG_S = 60.0


def record_appends(rig: Rig) -> list[list[Append]]:
    """Return the list in which every append of this worker will be noted."""
    store, noted = rig.backend.store, list[list[Append]]()
    original = store.append

    async def noting(appends: Sequence[Append]) -> list[tuple[Outcome, int]]:
        noted.append(list(appends))
        return await original(appends)

    store.append = noting  # type: ignore[method-assign]
    return noted


async def hold_by_hand(make_rig: MakeRig, backend: Backend, **options: float) -> tuple[Rig, str]:
    """Return a worker whose engine says nothing by itself, and the job that it runs."""
    rig = await make_rig(engine=CutEngine(0), **options).start()
    return rig, await hold_at(rig, backend)


def say(rig: Rig, job_id: str, *outputs: Delta | Finished | Prefilled) -> None:
    """Let the engine say something of a job that the rig runs."""
    sink = rig.publisher.sink(rig.publisher.attempts[job_id])
    for output in outputs:
        sink(output)


async def test_the_first_token_is_sent_at_once(make_rig: MakeRig, backend: Backend) -> None:
    """It does not wait for a long interval; the second one does."""
    rig, job_id = await hold_by_hand(make_rig, backend, flush_s=LONG_S)
    say(rig, job_id, Delta((1,), "a"))

    async def is_logged() -> bool:
        return ids_of(await events_of(backend, job_id)) == (1,)

    await eventually(is_logged)
    say(rig, job_id, Delta((2,), "b"))
    assert not rig.publisher._urgent.is_set()
    assert not rig.publisher.attempts[job_id].is_sent
    assert ids_of(await events_of(backend, job_id)) == (1,)


async def test_later_tokens_are_sent_in_the_rhythm_of_the_engine(
    make_rig: MakeRig, backend: Backend
) -> None:
    """What comes when the interval is over is sent at once, with all that waited for it."""
    rig, job_id = await hold_by_hand(make_rig, backend, flush_s=LONG_S)
    log = rig.publisher.attempts[job_id]
    say(rig, job_id, Delta((1,), "a"))
    await until(lambda: log.is_sent)
    noted = record_appends(rig)
    say(rig, job_id, Delta((2,), "b"))
    await until(lambda: not rig.publisher._wake.is_set())
    assert noted == []
    rig.publisher._flushed_at -= LONG_S
    say(rig, job_id, Delta((3,), "c"))
    await until(lambda: log.is_sent)
    assert [len(item.payloads) for batch in noted for item in batch] == [1]
    assert ids_of(await events_of(backend, job_id)) == (1, 2, 3)


async def test_an_end_is_sent_at_once(make_rig: MakeRig, backend: Backend) -> None:
    """It takes along what was pending."""
    rig, job_id = await hold_by_hand(make_rig, backend, flush_s=LONG_S)
    say(rig, job_id, Delta((1,), "a"), Delta((2,), "b"), Finished(FinishReason.STOP, is_eos=True))
    assert (await end_of(backend, job_id)).is_eos
    assert text_of(await events_of(backend, job_id)) == "ab"
    await at_rest(backend)


async def test_tokens_of_one_interval_are_one_append(make_rig: MakeRig, backend: Backend) -> None:
    """Many tokens per interval cost one append and one event."""
    rig, job_id = await hold_by_hand(make_rig, backend, flush_s=0.05)
    say(rig, job_id, Delta((0,), ""))
    await until(lambda: rig.publisher.attempts[job_id].is_sent)
    noted = record_appends(rig)
    for n in range(1, 50):
        say(rig, job_id, Delta((n,), ""))
        await asyncio.sleep(0)
    await until(lambda: rig.publisher.attempts[job_id].is_sent)
    sent = [item for batch in noted for item in batch if item.payloads]
    assert [len(item.payloads) for item in sent] == [1]
    assert ids_of(await events_of(backend, job_id)) == tuple(range(50))


async def test_all_jobs_share_one_round_trip(make_rig: MakeRig, backend: Backend) -> None:
    """The pipeline of a step carries every job that has news."""
    rig = await make_rig(engine=CutEngine(0), flush_s=0.05).start()
    job_ids = {await submit(backend) for _ in range(4)}
    await until(lambda: rig.publisher.attempts.keys() == job_ids)
    noted = record_appends(rig)
    for job_id in job_ids:
        say(rig, job_id, Delta((1,), "a"))
    await until(lambda: all(log.is_sent for log in rig.publisher.attempts.values()))
    [batch] = [batch for batch in noted if any(item.payloads for item in batch)]
    assert {item.job_id for item in batch} == job_ids


async def hold_many(rig: Rig, backend: Backend, count: int) -> list[AttemptLog]:
    """Let a worker whose publisher is called by hand run many jobs; return their attempts."""
    job_ids = {await submit(backend) for _ in range(count)}
    await rig.join()
    rig.spawn(rig.runner.run(count, POLL_S))
    await until(lambda: rig.publisher.attempts.keys() == job_ids)
    return list(rig.publisher.attempts.values())


async def test_many_ends_are_written_at_once(make_rig: MakeRig, backend: Backend) -> None:
    """The ends of one flush do not wait for each other: nobody else's tokens wait for them all."""
    rig = make_rig(engine=CutEngine(0, capacity=100))
    logs = await hold_many(rig, backend, 100)
    noted = record_appends(rig)
    release, is_met = rig.backend.lanes.release, asyncio.Barrier(len(logs))

    async def meet(*args: Any) -> bool:
        await is_met.wait()
        return await release(*args)

    rig.backend.lanes.release = meet  # type: ignore[method-assign,assignment]
    for log in logs:
        say(rig, log.job_id, Finished(FinishReason.STOP))
    async with within():
        await rig.publisher.flush(logs)
    [ends] = noted
    assert all(append.end for append in ends)
    for log in logs:
        assert (await end_of(backend, log.job_id)).kind == "completed"
    assert rig.runner.num_held == 0
    await at_rest(backend)


@pytest.mark.fault(14)
async def test_an_end_that_fails_holds_up_no_other(make_rig: MakeRig, backend: Backend) -> None:
    """The others are written and released; what failed is known, and done by the next flush."""
    rig = make_rig(engine=CutEngine(0))
    logs = await hold_many(rig, backend, 8)
    lose_reply(rig.backend.lanes, "release")
    for log in logs:
        say(rig, log.job_id, Finished(FinishReason.STOP))
    with pytest.raises(RedisConnectionError):
        await rig.publisher.flush(logs)
    [left] = rig.publisher.attempts.values()
    await rig.publisher.flush([left])
    for log in logs:
        assert (await end_of(backend, log.job_id)).kind == "completed"
    await at_rest(backend)


@pytest.mark.fault(33)
async def test_a_cancelled_job_stops_the_engine(make_rig: MakeRig, backend: Backend) -> None:
    """The append's answer ends the request, and the job ends with what was said."""
    rig = await make_rig().start()
    job_id = await submit(backend, max_tokens=100_000)
    await until(lambda: job_id in rig.publisher.attempts)
    await backend.store.cancel(job_id)
    end = await end_of(backend, job_id)
    assert (end.kind, end.finish_reason) == ("cancelled", FinishReason.CANCELLED)
    assert end.usage.completion_tokens == len(ids_of(await events_of(backend, job_id)))
    assert rig.engine.stats().running == 0
    await at_rest(backend)


@pytest.mark.fault(33)
async def test_a_silent_job_learns_of_its_cancel(
    make_rig: MakeRig, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job in a long prefill asks for its flag without having news."""
    monkeypatch.setattr(publisher_module, "PROBE_S", 0.05)
    rig, job_id = await hold_by_hand(make_rig, backend)
    rig.engine.cancel(rig.publisher.attempts[job_id].request.id)
    await backend.store.cancel(job_id)
    cancelled = asyncio.Event()
    monkeypatch.setattr(rig.engine, "cancel", lambda _request_id: cancelled.set())
    async with within():
        await cancelled.wait()


@pytest.mark.fault(33)
async def test_a_bell_cancels_early(make_rig: MakeRig, backend: Backend) -> None:
    """A hint about an unknown job is ignored, one about a running job ends it."""
    rig = await make_rig(flush_s=0.005).start()
    job_id = await submit(backend, max_tokens=100_000)
    await until(lambda: job_id in rig.publisher.attempts)
    rig.publisher.cancel("job_unknown")
    rig.publisher.cancel(job_id)
    assert (await end_of(backend, job_id)).kind == "cancelled"


@pytest.mark.fault(34)
async def test_a_job_past_its_deadline_expires(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """It ends as expired, not as cancelled."""
    rig = await make_rig().start()
    job_id = await submit(backend, max_tokens=100_000)
    await until(lambda: job_id in rig.publisher.attempts)
    await set_fields(redis, backend, job_id, deadline_ms=1)
    end = await end_of(backend, job_id)
    assert (end.kind, end.finish_reason) == ("expired", FinishReason.EXPIRED)
    await at_rest(backend)


@pytest.mark.fault(11)
async def test_a_server_that_lost_its_tail_gets_it_again(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """After GAP everything from ``next`` on is sent again, byte by byte the same."""
    rig, job_id = await hold_by_hand(make_rig, backend)
    for n in range(5):
        say(rig, job_id, Delta((n,), str(n)))
        await until(lambda: rig.publisher.attempts[job_id].is_sent)
    before = await backend.store.log(job_id)
    keys = backend.keys.job(job_id)
    await redis.delete(keys.log)
    for n, payload in before[:3]:
        await redis.xadd(keys.log, {"event": payload}, f"0-{n + 1}")
    await set_fields(redis, backend, job_id, next=3)
    say(rig, job_id, Delta((5,), "5"), Finished(FinishReason.STOP))
    await end_of(backend, job_id)
    assert (await backend.store.log(job_id))[: len(before)] == before
    assert text_of(await events_of(backend, job_id)) == "012345"
    await at_rest(backend)


async def test_a_fenced_attempt_stops_and_keeps_its_hands_off(
    make_rig: MakeRig, backend: Backend
) -> None:
    """Another one owns the job: nothing is written or released, the engine's slot is free."""
    rig, job_id = await hold_by_hand(make_rig, backend)
    rig.runner.draining = True
    owner = rig.publisher.attempts[job_id].grant.worker_id
    await backend.store.requeue(job_id, owner, Retrying("worker_lost"), lost=True)
    before = await backend.store.log(job_id)
    say(rig, job_id, Delta((1,), "a"), Finished(FinishReason.STOP))
    await until(lambda: not rig.publisher.attempts)
    assert rig.runner._has_doubts
    assert await backend.store.log(job_id) == before
    assert [depth.pending for depth in await backend.lanes.depths()] == [1]


async def test_a_fenced_job_whose_entry_is_held_here_runs_again(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The entry is given back, so the job is not stuck in a living worker."""
    rig, job_id = await hold_by_hand(make_rig, backend)
    engine = rig.engine
    assert isinstance(engine, CutEngine)
    engine.cut = 1_000
    owner = rig.publisher.attempts[job_id].grant.worker_id
    await backend.store.requeue(job_id, owner, Retrying("worker_lost"), lost=True)
    say(rig, job_id, Delta((1,), "x"))
    assert (await end_of(backend, job_id)).attempts == 2
    assert text_of(await events_of(backend, job_id)) == await answer_to(backend, job_id)
    await at_rest(backend)


async def test_a_job_that_somebody_ended_is_released(make_rig: MakeRig, backend: Backend) -> None:
    """CLOSED: the attempt stops and its entry goes, the end stays as it is."""
    rig, job_id = await hold_by_hand(make_rig, backend)
    record = await read(backend.store, job_id)
    end = Completed(FinishReason.STOP)
    await backend.store.finish(job_id, (record.epoch, record.next), end, record.retention_ms)
    say(rig, job_id, Delta((1,), "a"))
    await at_rest(backend)
    assert not rig.publisher.attempts
    assert await end_of(backend, job_id) == end
    assert await kinds_of(backend, job_id) == ["accepted", "started", "completed"]


@pytest.mark.fault(11)
async def test_a_job_that_is_gone_is_released(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """GONE: a late append does not bring the log back to life."""
    rig, job_id = await hold_by_hand(make_rig, backend)
    keys = backend.keys.job(job_id)
    await redis.delete(keys.record, keys.log)
    say(rig, job_id, Delta((1,), "a"))
    await at_rest(backend)
    assert not rig.publisher.attempts
    assert not await redis.exists(keys.record, keys.log)


@pytest.mark.fault(14)
@pytest.mark.parametrize("what", ["append", "end", "release"])
async def test_a_lost_reply_neither_loses_nor_repeats(
    what: str, make_rig: MakeRig, backend: Backend
) -> None:
    """The work was done and the answer did not come: it is asked again, and done once."""
    rig = await make_rig().start()
    if what == "release":
        lost = lose_reply(rig.backend.lanes, "release", times=2)
    else:
        when = has_end if what == "end" else None
        lost = lose_reply(rig.backend.store, "append", times=2, when=when)
    job_id = await submit(backend, max_tokens=64)
    assert (await end_of(backend, job_id)).usage.completion_tokens == 64
    assert text_of(await events_of(backend, job_id)) == await answer_to(backend, job_id)
    await at_rest(backend)
    await until(lambda: not rig.publisher.attempts)
    assert lost
    assert rig.engine.stats().running == 0


@pytest.mark.control(14)
async def test_a_repeat_without_numbers_would_repeat(make_rig: MakeRig, backend: Backend) -> None:
    """Negative control: sent under a new number, the same tokens are there twice."""
    rig, job_id = await hold_by_hand(make_rig, backend)
    log = rig.publisher.attempts[job_id]
    lost = lose_reply(rig.backend.store, "append")
    say(rig, job_id, Delta((1,), "a"))
    await until(lambda: bool(lost))
    await until(lambda: log.is_sent)
    record = await read(backend.store, job_id)
    again = Append(job_id, record.epoch, record.next, (log.payloads[-1],))
    await backend.store.append([again])
    tokens = [event for event in await events_of(backend, job_id) if isinstance(event, Tokens)]
    assert tokens == [Tokens(0, (1,), "a")] * 2


@pytest.mark.fault(19)
async def test_forgotten_scripts_are_loaded_again(
    make_rig: MakeRig, redis: Redis, backend: Backend
) -> None:
    """NOSCRIPT in the pipeline costs a round trip, not an event."""
    rig, job_id = await hold_by_hand(make_rig, backend)
    await redis.script_flush()
    say(rig, job_id, Delta((1,), "a"), Finished(FinishReason.STOP))
    await end_of(backend, job_id)
    assert text_of(await events_of(backend, job_id)) == "a"
    await at_rest(backend)


@pytest.mark.fault(15)
async def test_a_worker_without_a_lease_is_silent(make_rig: MakeRig, backend: Backend) -> None:
    """While it cannot prove that it lives it appends nothing, afterwards everything."""
    rig, job_id = await hold_by_hand(make_rig, backend, lease_s=0.4)
    beat = rig.heartbeat.renew
    rig.heartbeat.renew = _raise_timeout  # type: ignore[assignment]
    await until(lambda: not rig.lease.is_current)
    noted = record_appends(rig)
    say(rig, job_id, Delta((1,), "a"), Delta((2,), "b"))
    log = rig.publisher.attempts[job_id]
    await until(rig.publisher._wake.is_set)
    assert not rig.lease.is_current
    assert noted == []
    assert not log.is_sent
    rig.heartbeat.renew = beat  # type: ignore[method-assign]
    await until(lambda: log.is_sent)
    assert text_of(await events_of(backend, job_id)) == "ab"
    assert (await read(backend.store, job_id)).state is JobState.RUNNING


def _raise_timeout(_info: object) -> bool:
    raise TimeoutError


@pytest.mark.fault(18)
async def test_a_full_server_delays_and_loses_nothing(
    make_rig: MakeRig, own_server: Server, own_redis: Redis, own_backend: Backend
) -> None:
    """Out of memory is an outage: the publisher sends again until there is room."""
    rig = await make_rig(url=own_server.url, engine=CutEngine(0)).start()
    job_id = await hold_at(rig, own_backend)
    await own_redis.config_set("maxmemory", 1)
    say(rig, job_id, Delta((1,), "a"), Finished(FinishReason.STOP))

    async def has_been_refused() -> bool:
        return "errorstat_OOM" in await own_redis.info("errorstats")

    await eventually(has_been_refused)
    assert ids_of(await events_of(own_backend, job_id)) == ()
    await own_redis.config_set("maxmemory", 0)
    await end_of(own_backend, job_id)
    assert text_of(await events_of(own_backend, job_id)) == "a"
    await at_rest(own_backend)


async def test_drop_all_stops_writing_at_once(make_rig: MakeRig, backend: Backend) -> None:
    """What the engine still says is nobody's any more."""
    rig, job_id = await hold_by_hand(make_rig, backend)
    sink = rig.publisher.sink(rig.publisher.attempts[job_id])
    [dropped] = rig.publisher.drop_all()
    sink(Delta((1,), "late"))
    assert dropped.job_id == job_id
    assert dropped.is_sent
    assert not rig.publisher.attempts


@pytest.mark.fault(13)
async def test_a_cancelled_publisher_ends(make_rig: MakeRig, backend: Backend) -> None:
    """However the cancellation meets its commands, the task ends (redis-py loses some on 3.11)."""
    for cut in range(1, 8):
        rig = await make_rig(engine=CutEngine(cut), flush_s=0.0001).start()
        await submit(backend, max_tokens=64)
        engine = rig.engine
        assert isinstance(engine, CutEngine)
        async with within():
            await engine.is_cut.wait()
            await rig.kill()
        assert not rig.tasks
