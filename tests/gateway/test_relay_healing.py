"""What followers see when Redis has lost its last events: the same again, or that it differs."""

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from common.errors import STREAM_DIVERGED, Problem
from common.job_store import JobStore
from common.keys import Keys
from gateway import relay as relay_module
from gateway.dialects import native_sse
from gateway.doorbell import Doorbell
from gateway.relay import Relay, stream_diverged
from tests.gateway.followers import Follower, check_is_log, log_of
from tests.gateway.player import Attempt
from tests.gateway.running import running_relay, until_idle
from tests.gateway.test_relay import DeafDoorbell, begin, open_nowhere
from tests.support.jobs import RETENTION_MS, TENANT
from tests.support.subscriptions import kill_subscriptions
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio

RESYNC_S = 0.05


@pytest.fixture(params=[Doorbell, DeafDoorbell], ids=["heard", "compared"])
async def relay(request: pytest.FixtureRequest, redis_url: str, keys: Keys) -> AsyncIterator[Relay]:
    """A relay that hears what is new, and one that only finds it in the log."""
    async with running_relay(redis_url, keys, resync_s=RESYNC_S, doorbell=request.param) as running:
        yield running
        await until_idle(running)


async def lose_events(redis: Redis, keys: Keys, attempt: Attempt, num_left: int) -> None:
    """Make the log what it was when it had so many events."""
    names = keys.job(attempt.job_id)
    entries = await redis.xrange(names.log, count=num_left)
    await redis.delete(names.log)
    for entry_id, fields in entries:
        await redis.xadd(names.log, fields, id=entry_id)
    await redis.pexpire(names.log, RETENTION_MS)
    await redis.hset(names.record, "next", str(num_left))  # type: ignore[misc]
    attempt.n = num_left


async def reads(follower: Follower, num_events: int) -> None:
    """Wait until the follower has read so many events."""

    async def has_them() -> bool:
        follower.read()
        return follower.after + 1 >= num_events

    await eventually(has_them)


@pytest.mark.fault(11)
async def test_an_answer_that_went_on_differently_is_told(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys
) -> None:
    """Nobody gets the end of one answer behind the beginning of another one."""
    attempt = await begin(store)
    follower = Follower(relay, TENANT, attempt.job_id)
    await follower.attach()
    await attempt.say("one", "two", "three")
    await reads(follower, 5)
    await lose_events(redis, keys, attempt, 3)
    await attempt.say("other", "words", "here", "now")
    with pytest.raises(Problem) as told:
        async with within():
            await follower.read_to_end()
    assert told.value.type == STREAM_DIVERGED
    assert follower.after == 4
    again = Follower(relay, TENANT, attempt.job_id)  # as it was told to, while the old one is there
    await again.attach()
    await attempt.end()
    async with within():
        await again.read_to_end()
    check_is_log(again.seen, await log_of(store, attempt.job_id))
    await follower.leave()


async def test_events_that_are_sent_again_are_the_same(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys
) -> None:
    """A worker that outlived the loss heals the log, and its followers notice nothing."""
    attempt = await begin(store)
    follower = Follower(relay, TENANT, attempt.job_id)
    await follower.attach()
    await attempt.say("one", "two", "three")
    await reads(follower, 5)
    await lose_events(redis, keys, attempt, 3)
    attempt.rewind(1)
    await attempt.say("two", "three", "four")
    await attempt.end()
    async with within():
        await follower.read_to_end()
    check_is_log(follower.seen, await log_of(store, attempt.job_id))


async def open_ahead(url: str, keys: Keys, store: JobStore, redis: Redis) -> int:
    """Resume behind what Redis has lost, just after it came back; returns the log's length then."""
    attempt = await begin(store)
    async with running_relay(url, keys, resync_s=60) as relay:
        await attempt.say("one", "two", "three")
        await eventually(lambda: is_connected(relay))
        await kill_subscriptions(redis)
        await eventually(lambda: is_connected_again(relay))
        await lose_events(redis, keys, attempt, 3)
        async with within(), asyncio.TaskGroup() as group:
            opening = group.create_task(relay.open(TENANT, attempt.job_id, 5, open_nowhere))
            attempt.rewind(1)
            await eventually(lambda: has_found_too_little(relay))
            await attempt.say("two", "three")
        cursor = opening.result()
        await relay.close(cursor)
        return len(cursor.watch.transcript)


async def is_connected(relay: Relay) -> bool:
    """Tell whether Redis has confirmed the first connection."""
    return relay._is_connected


async def is_connected_again(relay: Relay) -> bool:
    """Tell whether the relay has noticed that it lost its connection, and has another one."""
    return relay._reconnected_at > -math.inf


async def has_found_too_little(relay: Relay) -> bool:
    """Tell whether somebody follows a job whose log has been read, and was too short."""
    return relay.num_cursors > 0 and not relay._reading


@pytest.mark.fault(11, 24)
async def test_a_cursor_ahead_of_a_log_that_is_healed_waits(
    redis_url: str, keys: Keys, store: JobStore, redis: Redis
) -> None:
    """Just after Redis came back, what is missing is on its way from the worker."""
    assert await open_ahead(redis_url, keys, store, redis) == 5


@pytest.mark.control(11, 24)
async def test_without_the_wait_it_is_refused(
    redis_url: str, keys: Keys, store: JobStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a reader that resumes in that moment would be told that it knows too much."""
    monkeypatch.setattr(relay_module, "HEAL_S", 0)
    with pytest.raises(ExceptionGroup) as refusals:
        await open_ahead(redis_url, keys, store, redis)
    assert refusals.value.subgroup(Problem) is not None


def test_a_browser_forgets_its_cursor_with_the_stream() -> None:
    """An empty ID is what makes an `EventSource` ask for everything when it reconnects."""
    assert native_sse.broken(stream_diverged()).startswith(b"id\nevent: problem\n")
    assert b"id" not in native_sse.broken(relay_module.job_not_found("j")).partition(b"data")[0]
