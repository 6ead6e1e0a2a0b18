"""The relay: attaching, sharing, catching up, letting go."""

import asyncio
from collections.abc import AsyncIterator
from itertools import product
from unittest.mock import patch

import msgspec
import pytest
from redis.asyncio import Redis

from common.errors import Problem
from common.events import Accepted, Expired, Failed
from common.job_store import JobStore
from common.keys import Keys
from gateway import relay as relay_module
from gateway.doorbell import Doorbell, OnMessage
from gateway.relay import Relay
from gateway.watch import Subject
from tests.gateway.followers import Follower, check_is_log, log_of
from tests.gateway.player import Attempt
from tests.gateway.running import running_relay, until_idle
from tests.support.jobs import TENANT, make_job, start, submit
from tests.support.servers import Server
from tests.support.subscriptions import kill_subscriptions, num_subscribers
from tests.support.waiting import eventually, within

RESYNC_S = 0.05


@pytest.fixture
async def relay(redis_url: str, redis: Redis, keys: Keys) -> AsyncIterator[Relay]:
    """A relay; in the end it watches nothing."""
    async with running_relay(redis_url, keys, resync_s=RESYNC_S) as running:
        yield running
        await until_idle(running)


@pytest.fixture
async def attempt(store: JobStore) -> Attempt:
    """A job that a worker has started."""
    return await begin(store)


async def begin(store: JobStore, **job: float) -> Attempt:
    """Submit a job and start it."""
    job_id = (await submit(store, make_job(**job))).id  # type: ignore[arg-type]
    return Attempt(store, job_id, await start(store, job_id), 2)


async def subject_of(store: JobStore, job_id: str) -> Subject:
    """Return what its maker knows of a job."""
    record = await store.record(job_id)
    assert record
    return Subject(job_id, record.tenant, record.deadline_ms, record.incarnation)


def open_nowhere() -> None:
    """Hear nothing of a cursor's news."""


class DeafDoorbell(Doorbell):
    """Confirms, and delivers nothing."""

    async def run(self, on_message: OnMessage, on_reconnect: object) -> None:
        """Listen for confirmations only."""
        await super().run(lambda _channel, _data: None, lambda: None)


@pytest.mark.fault(25)
async def test_attaching_while_tokens_are_appended(relay: Relay, store: JobStore) -> None:
    """Whatever the moment, between the subscription and the log nothing is lost or doubled."""
    for round_ in range(300):
        attempt = await begin(store)
        follower = Follower(relay, TENANT, attempt.job_id)

        async def work(attempt: Attempt = attempt) -> None:
            for text in "abc":
                await attempt.say(text)
            await attempt.end()

        async def follow(follower: Follower = follower, turns: int = round_ % 30) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await follower.read_to_end()

        async with within():
            await asyncio.gather(work(), follow())
        check_is_log(follower.seen, await log_of(store, attempt.job_id))


@pytest.mark.fault(25)
async def test_two_tabs_of_which_one_leaves(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys, attempt: Attempt
) -> None:
    """The other one goes on over the same subscription, to the end."""
    stays, leaves = (Follower(relay, TENANT, attempt.job_id) for _ in range(2))
    await stays.attach()
    await leaves.attach()
    await leaves.leave()
    assert await num_subscribers(redis, keys.job(attempt.job_id).live) == 1
    await attempt.say("a")
    await attempt.end()
    async with within():
        await stays.read_to_end()
    check_is_log(stays.seen, await log_of(store, attempt.job_id))


async def test_the_last_cursor_takes_watch_and_subscription_with_it(
    relay: Relay, redis: Redis, keys: Keys, attempt: Attempt
) -> None:
    """Nothing is left in the process, nothing in Redis."""
    follower = Follower(relay, TENANT, attempt.job_id)
    await follower.attach()
    assert (relay.num_watches, relay.num_cursors) == (1, 1)
    await follower.leave()
    assert (relay.num_watches, relay.num_cursors) == (0, 0)
    await until_unsubscribed(redis, keys, attempt.job_id)


async def until_unsubscribed(redis: Redis, keys: Keys, job_id: str) -> None:
    """Return when Redis has no subscriber of the job any more."""

    async def is_unsubscribed() -> bool:
        return await num_subscribers(redis, keys.job(job_id).live) == 0

    await eventually(is_unsubscribed)


async def test_a_crowd_shares_one_watch(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys, attempt: Attempt
) -> None:
    """A hundred that come at once cost one reading of the log, and each sees all of it."""
    followers = [Follower(relay, TENANT, attempt.job_id) for _ in range(100)]
    with patch.object(JobStore, "log", autospec=True, side_effect=JobStore.log) as read_log:
        await asyncio.gather(*(follower.attach() for follower in followers))
    assert read_log.call_count == 1
    assert relay.num_watches == 1
    await attempt.end()
    async with within():
        await asyncio.gather(*(follower.read_to_end() for follower in followers))
    log = await log_of(store, attempt.job_id)
    for follower in followers:
        check_is_log(follower.seen, log)


async def test_a_job_that_was_just_made_is_followed_without_its_record(
    relay: Relay, store: JobStore, attempt: Attempt
) -> None:
    """Its maker knows what is in it. Whoever comes later shares the watch."""
    subject = await subject_of(store, attempt.job_id)
    with patch.object(store, "record") as read_record, patch.object(store, "owner") as read_owner:
        cursor = await relay.open_new(subject, open_nowhere)
    assert not read_record.called
    assert not read_owner.called
    later = Follower(relay, TENANT, attempt.job_id)
    await later.attach()
    assert relay.num_watches == 1
    await attempt.end()
    async with within():
        await later.read_to_end()
    assert cursor.take(lambda _job, n, _event: b"%d" % n) == [b"0", b"1", b"2"]
    assert cursor.is_done
    await relay.close(cursor)


async def test_a_job_made_anew_is_not_taken_for_the_one_that_was_lost(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys, attempt: Attempt
) -> None:
    """Who reads the lost one is told; its maker gets the new one's events, with the same key."""
    old = Follower(relay, TENANT, attempt.job_id)
    await old.attach()
    await redis.delete(keys.job(attempt.job_id).record, keys.job(attempt.job_id).log)
    again = make_job(attempt.job_id, incarnation="later")
    await submit(store, again)
    cursor = await relay.open_new(await subject_of(store, attempt.job_id), open_nowhere)
    assert cursor.take(lambda _job, n, _event: b"%d" % n) == [b"0"]
    with pytest.raises(Problem, match="no job"):
        await old.read_to_end()
    await relay.close(cursor)


@pytest.mark.fault(29)
@pytest.mark.parametrize("way", [*product(["as new", "as any"], range(1, 6))])
async def test_a_client_that_leaves_while_it_is_attached_leaves_nothing(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys, attempt: Attempt, way: tuple[str, int]
) -> None:
    """The attach goes on without it, to a job just made too, and what it made is cleared away."""
    door, num_turns = way
    subject = await subject_of(store, attempt.job_id)
    opening = asyncio.create_task(
        relay.open_new(subject, open_nowhere)
        if door == "as new"
        else relay.open(TENANT, attempt.job_id, 0, open_nowhere)
    )
    for _ in range(num_turns):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await until_idle(relay)
    await until_unsubscribed(redis, keys, attempt.job_id)


@pytest.mark.fault(29)
async def test_a_client_that_leaves_takes_no_neighbour_with_it(
    relay: Relay, store: JobStore, attempt: Attempt
) -> None:
    """The one who waits for the same attach gets its stream."""
    stays = Follower(relay, TENANT, attempt.job_id)
    leaving = asyncio.create_task(relay.open(TENANT, attempt.job_id, 0, open_nowhere))
    staying = asyncio.create_task(stays.attach())
    await asyncio.sleep(0)
    leaving.cancel()
    async with within():
        await staying
    await attempt.end()
    async with within():
        await stays.read_to_end()
    check_is_log(stays.seen, await log_of(store, attempt.job_id))


async def test_an_attach_that_fails_leaves_no_subscription(
    relay: Relay, redis: Redis, keys: Keys, attempt: Attempt
) -> None:
    """The channel is given back when the log cannot be read."""
    with (
        patch.object(JobStore, "log", side_effect=ConnectionError("away")),
        pytest.raises(ConnectionError),
    ):
        await relay.open(TENANT, attempt.job_id, 0, open_nowhere)
    assert relay.num_watches == 0
    await until_unsubscribed(redis, keys, attempt.job_id)


async def test_a_client_that_leaves_during_a_catch_up_leaves_no_cursor(
    relay: Relay, attempt: Attempt
) -> None:
    """A cancelled open gives its cursor back."""
    first = Follower(relay, TENANT, attempt.job_id)
    await first.attach()
    reading = asyncio.Event()

    async def never_ends(*_: object) -> None:
        reading.set()
        await asyncio.Event().wait()

    with patch.object(JobStore, "log", side_effect=never_ends):
        opening = asyncio.create_task(relay.open(TENANT, attempt.job_id, 9, open_nowhere))
        async with within():
            await reading.wait()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
    assert relay.num_cursors == 1
    await first.leave()


@pytest.mark.fault(24)
@pytest.mark.parametrize("tenant", [TENANT, "stranger"])
async def test_a_missing_job_and_a_foreign_one_look_alike(
    relay: Relay, attempt: Attempt, tenant: str
) -> None:
    """Both are refused in the same words, whether somebody follows the job or not."""
    missing = attempt.job_id if tenant == "stranger" else make_job().id
    with pytest.raises(Problem) as refusal:
        await relay.open(tenant, missing, 0, open_nowhere)
    assert (refusal.value.status, refusal.value.type) == (404, "job-not-found")
    assert refusal.value.detail == relay_module.job_not_found(missing).detail


@pytest.mark.fault(24)
async def test_a_cursor_beyond_the_log_is_refused(relay: Relay, attempt: Attempt) -> None:
    """The refusal names the last event that there is."""
    with pytest.raises(Problem, match="after=1 ") as refusal:
        await relay.open(TENANT, attempt.job_id, 5, open_nowhere)
    assert refusal.value.status == 409
    assert relay.num_cursors == 0


@pytest.mark.fault(24)
async def test_a_cursor_beyond_the_end_is_refused(relay: Relay, attempt: Attempt) -> None:
    """Nothing follows the terminal event, not even later."""
    await attempt.end()
    with pytest.raises(Problem) as refusal:
        await relay.open(TENANT, attempt.job_id, 4, open_nowhere)
    assert refusal.value.status == 409


async def test_a_resume_that_is_ahead_of_this_gateway_is_served(
    redis_url: str, keys: Keys, store: JobStore, attempt: Attempt
) -> None:
    """Where another gateway was faster, this one reads the log instead of refusing."""
    async with running_relay(redis_url, keys, resync_s=60, doorbell=DeafDoorbell) as behind:
        slow = Follower(behind, TENANT, attempt.job_id)
        await slow.attach()
        await attempt.say("a", "b")
        cursor = await behind.open(TENANT, attempt.job_id, 4, open_nowhere)
        assert len(cursor.watch.transcript) == 4
        await behind.close(cursor)
        await slow.leave()


@pytest.mark.fault(27)
async def test_a_lost_last_message_is_found(
    redis_url: str, keys: Keys, store: JobStore, attempt: Attempt
) -> None:
    """A job that is silent is compared with its log; nothing has to follow the lost message."""
    async with running_relay(redis_url, keys, resync_s=RESYNC_S, doorbell=DeafDoorbell) as deaf:
        follower = Follower(deaf, TENANT, attempt.job_id)
        await follower.attach()
        await attempt.say("a")
        await attempt.end()
        async with within(20 * RESYNC_S):
            await follower.read_to_end()
    check_is_log(follower.seen, await log_of(store, attempt.job_id))


@pytest.mark.control(27)
async def test_without_the_comparison_it_is_not_found(
    redis_url: str, keys: Keys, attempt: Attempt
) -> None:
    """The fault bites: nothing else finds the lost message in the same time."""
    async with running_relay(redis_url, keys, resync_s=60, doorbell=DeafDoorbell) as deaf:
        follower = Follower(deaf, TENANT, attempt.job_id)
        await follower.attach()
        await attempt.end()
        with pytest.raises(TimeoutError):
            async with within(20 * RESYNC_S):
                await follower.read_to_end()
        await follower.leave()


async def test_a_message_that_cannot_be_read_harms_nobody(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys, attempt: Attempt
) -> None:
    """Garbage on the channel is a hint like any other: the log is read, the relay goes on."""
    follower = Follower(relay, TENANT, attempt.job_id)
    await follower.attach()
    for garbage in (b"", b"::", b"i:x:", b"i:2:\xc1", b"\xff:2:"):
        await redis.publish(keys.job(attempt.job_id).live, garbage)
    await attempt.say("a")
    await attempt.end()
    async with within():
        await follower.read_to_end()
    check_is_log(follower.seen, await log_of(store, attempt.job_id))


async def test_a_damaged_log_is_told_to_every_follower(
    relay: Relay, redis: Redis, keys: Keys, attempt: Attempt
) -> None:
    """Nobody waits for ever: each gets the events before the damage, then the reason."""
    followers = [Follower(relay, TENANT, attempt.job_id) for _ in range(3)]
    for follower in followers:
        await follower.attach()
    await redis.xadd(keys.job(attempt.job_id).log, {"event": b"\xc1"}, id="0-3")
    await redis.publish(keys.job(attempt.job_id).live, b"i:9:")
    for follower in followers:
        with pytest.raises(Problem, match="damaged") as told:
            async with within():
                await follower.read_to_end()
        assert told.value.status == 502
        assert follower.after == 1
        await follower.leave()


@pytest.mark.fault(11)
async def test_a_job_that_is_gone_is_told_to_its_followers(
    relay: Relay, redis: Redis, keys: Keys, attempt: Attempt
) -> None:
    """A stream whose record has vanished ends with the reason, not with silence."""
    follower = Follower(relay, TENANT, attempt.job_id)
    await follower.attach()
    await redis.delete(keys.job(attempt.job_id).record, keys.job(attempt.job_id).log)
    with pytest.raises(Problem) as told:
        async with within():
            await follower.read_to_end()
    assert told.value.status == 404
    await follower.leave()


@pytest.mark.fault(24)
async def test_a_new_job_of_the_same_id_is_another_stream(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys
) -> None:
    """Its events never continue the old one's; a new follower gets the new one from the start."""
    job = make_job(incarnation="old")
    old = await submit(store, job)
    follower = Follower(relay, TENANT, old.id)
    await follower.attach()
    await redis.delete(keys.job(old.id).record, keys.job(old.id).log)
    await submit(store, make_job(old.id, incarnation="new"))
    attempt = Attempt(store, old.id, await start(store, old.id), 2)
    with pytest.raises(Problem):
        async with within():
            await follower.read_to_end()
    assert follower.seen == [(0, Accepted(old.id, "tiny"))]
    await follower.leave()
    await attempt.end()
    again = Follower(relay, TENANT, old.id)
    async with within():
        await again.read_to_end()
    check_is_log(again.seen, await log_of(store, old.id))


@pytest.mark.fault(34)
async def test_an_overdue_job_without_a_worker_gets_its_end(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys
) -> None:
    """A follower sees ``expired`` although there is nobody else to write it."""
    job_id = await submit_overdue(store, redis, keys)
    follower = Follower(relay, TENANT, job_id)
    async with within():
        await follower.read_to_end()
    assert isinstance(follower.seen[-1][1], Expired)
    check_is_log(follower.seen, await log_of(store, job_id))


async def submit_overdue(store: JobStore, redis: Redis, keys: Keys) -> str:
    """Submit a job, and let its deadline be long over."""
    job_id = (await submit(store)).id
    await redis.hset(keys.job(job_id).record, "deadline_ms", "1")  # type: ignore[misc]
    return job_id


async def test_an_overdue_job_that_cannot_be_read_gets_its_end(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys
) -> None:
    """A record that was damaged while it was watched stops neither the follower nor the relay."""
    job_id = await submit_overdue(store, redis, keys)
    follower = Follower(relay, TENANT, job_id)
    with patch.object(JobStore, "snapshot", side_effect=msgspec.ValidationError("damaged")):
        async with within():
            await follower.read_to_end()
    assert isinstance(follower.seen[-1][1], Failed)
    check_is_log(follower.seen, await log_of(store, job_id))


async def test_an_overdue_job_is_left_to_its_worker_at_first(
    relay: Relay, store: JobStore, redis: Redis, keys: Keys
) -> None:
    """Within the grace nobody but the worker ends it."""
    attempt = await begin(store)
    now_s, now_us = await redis.time()
    now_ms = str(now_s * 1000 + now_us // 1000)
    await redis.hset(keys.job(attempt.job_id).record, "deadline_ms", now_ms)  # type: ignore[misc]
    follower = Follower(relay, TENANT, attempt.job_id)
    with pytest.raises(TimeoutError):
        async with within(5 * RESYNC_S):
            await follower.read_to_end()
    await attempt.end()
    async with within():
        await follower.read_to_end()
    check_is_log(follower.seen, await log_of(store, attempt.job_id))


@pytest.mark.fault(12)
async def test_events_of_a_broken_connection_are_made_up_for(
    redis_url: str, keys: Keys, store: JobStore, redis: Redis, attempt: Attempt
) -> None:
    """After a reconnect every log is read; the comparison would come far too late."""
    async with running_relay(redis_url, keys, resync_s=60) as relay:
        follower = Follower(relay, TENANT, attempt.job_id)
        await follower.attach()
        await kill_subscriptions(redis)
        await attempt.say("a")
        await attempt.end()
        async with within():
            await follower.read_to_end()
    check_is_log(follower.seen, await log_of(store, attempt.job_id))


@pytest.mark.fault(11)
async def test_a_follower_outlives_a_restart_of_redis(own_server: Server, keys: Keys) -> None:
    """Its stream goes on after the outage where it stopped."""
    async with running_relay(own_server.url, keys) as relay:
        redis = relay._store._redis
        store = JobStore(redis, keys)
        attempt = await begin(store)
        follower = Follower(relay, TENANT, attempt.job_id)
        await follower.attach()
        await attempt.say("a")
        await asyncio.to_thread(own_server.stop)
        await asyncio.to_thread(own_server.start)
        await attempt.say("b")
        await attempt.end()
        async with within():
            await follower.read_to_end()
        check_is_log(follower.seen, await log_of(store, attempt.job_id))
