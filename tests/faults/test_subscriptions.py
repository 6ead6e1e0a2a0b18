"""Connections that the server closes, and attaching while a job speaks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from common.connections import command_client
from common.job_store import JobStore
from common.keys import Keys
from gateway.relay import Relay
from gateway.watch import Watch
from tests.faults.checks import check_whole
from tests.gateway.followers import Follower, check_is_log, log_of
from tests.gateway.player import Attempt
from tests.gateway.running import running_relay
from tests.support.fleet import Fleet
from tests.support.jobs import TENANT, start, submit
from tests.support.readers import SseReader
from tests.support.servers import Server
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio

PROMPT = "How often can a thread be cut?"
LATER_S = 60.0  # the comparison with the log comes after the test
NOTICE_S = 2.0
BUFFER = 100_000
KILL_EVERY_S = 0.15
NUM_KILLS = 12
MOMENTS = 50


async def begin(store: JobStore) -> Attempt:
    """Return a started job that the test writes."""
    job_id = (await submit(store)).id
    return Attempt(store, job_id, await start(store, job_id), 2)


@pytest.fixture
async def follower(own_server: Server, keys: Keys) -> AsyncIterator[tuple[Follower, Attempt]]:
    """A follower on a server of its own, whose gateway looks at logs only when it must."""
    async with (
        command_client(own_server.url) as redis,
        running_relay(own_server.url, keys, resync_s=LATER_S) as relay,
    ):
        attempt = await begin(JobStore(redis, keys))
        attached = Follower(relay, TENANT, attempt.job_id)
        await attached.attach()
        yield attached, attempt


async def kill_subscriptions(redis: Redis, attempt: Attempt) -> None:
    """Cut the doorbell, and speak before it is back."""
    await redis.client_kill_filter(_type="pubsub")
    await attempt.say("a")


async def fill_buffer(redis: Redis, attempt: Attempt) -> None:
    """Send more at once than the server keeps for a subscriber: it hangs up."""
    before = await subscriptions(redis)
    await redis.config_set("client-output-buffer-limit", f"pubsub {BUFFER} 0 0")
    await attempt.say(*["a" * (BUFFER // 20)] * 200)
    assert not before & await subscriptions(redis), "the fault has not bitten"


async def subscriptions(redis: Redis) -> set[str]:
    """Return the IDs of the connections that listen."""
    return {client["id"] for client in await redis.client_list(_type="pubsub")}


Cut = Callable[[Redis, Attempt], Awaitable[None]]


@pytest.mark.fault(12, 17)
@pytest.mark.parametrize("cut", [kill_subscriptions, fill_buffer])
async def test_what_a_cut_subscription_missed_is_read(
    follower: tuple[Follower, Attempt],
    own_server: Server,
    cut: Cut,
) -> None:
    """When it is there again every log is read; nothing is missing, and nothing comes twice."""
    attached, attempt = follower
    async with command_client(own_server.url) as redis, within():
        await cut(redis, attempt)
        await attempt.end()
        await attached.read_to_end()
    check_is_log(attached.seen, await log_of(attempt._store, attempt.job_id))


@pytest.mark.control(12, 17)
@pytest.mark.parametrize("cut", [kill_subscriptions, fill_buffer])
async def test_without_a_look_after_it_the_end_never_comes(
    follower: tuple[Follower, Attempt],
    own_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    cut: Cut,
) -> None:
    """The fault bites: the new subscription brings what comes, not what came."""
    attached, attempt = follower
    monkeypatch.setattr(Relay, "_start_catch_up", lambda _relay, _watch: None)
    async with command_client(own_server.url) as redis:
        await cut(redis, attempt)
        await attempt.end()
        with pytest.raises(TimeoutError):
            async with within(NOTICE_S):
                await attached.read_to_end()
    await attached.leave()


@pytest.mark.fault(12)
@pytest.mark.faults
async def test_connections_that_are_cut_again_and_again(own_fleet: Fleet) -> None:
    """``CLIENT KILL`` of everybody's connections, several times a second, costs no token."""
    await own_fleet.start()
    job_id = await own_fleet.submit(PROMPT, max_tokens=480)
    reader = SseReader(job_id)
    async with within(40), asyncio.TaskGroup() as group:
        group.create_task(reader.read(own_fleet.urls[0]))
        await reader.has(10)
        async with command_client(own_fleet.url, max_connections=1) as executioner:
            for _ in range(NUM_KILLS):
                for kind in ("normal", "pubsub"):
                    await executioner.client_kill_filter(_type=kind, skipme=True)
                await asyncio.sleep(KILL_EVERY_S)
    for process in (own_fleet.gateways[0].program, *own_fleet.workers):
        assert process.is_running
    await check_whole(own_fleet, job_id, PROMPT, reader.seen, max_tokens=480)


async def attach_while_it_speaks(relay: Relay, store: JobStore, turns: int) -> None:
    """Attach at some moment of a short job, and read it to its end."""
    attempt = await begin(store)
    follower = Follower(relay, TENANT, attempt.job_id)

    async def speak() -> None:
        for text in "abc":
            await attempt.say(text)
        await attempt.end()

    async def follow() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await follower.read_to_end()

    async with within(NOTICE_S):
        await asyncio.gather(speak(), follow())
    check_is_log(follower.seen, await log_of(store, attempt.job_id))


async def attach_often(relay: Relay, store: JobStore, rounds: int) -> None:
    """Attach to one short job after the other, each at another moment."""
    for round_ in range(rounds):
        await attach_while_it_speaks(relay, store, round_ % MOMENTS)


@pytest.mark.fault(25)
@pytest.mark.faults
async def test_a_thousand_attach_while_it_speaks(redis_url: str, redis: Redis, keys: Keys) -> None:
    """Each at another moment; each sees the whole job, though no comparison ever helps."""
    async with running_relay(redis_url, keys, resync_s=LATER_S) as relay:
        await attach_often(relay, JobStore(redis, keys), 1_000)


@pytest.mark.control(25)
async def test_reading_before_subscribing_would_lose_the_end(
    redis_url: str, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault bites: what is said between the two is never heard."""

    async def the_wrong_way_round(relay: Relay, watch: Watch, *, is_ended: bool) -> Watch:
        relay._watches[watch.job_id] = watch
        await relay._read_log(watch)
        if not is_ended:
            await relay._doorbell.subscribe(relay._keys.job(watch.job_id).live)
        return watch

    monkeypatch.setattr(Relay, "_feed", the_wrong_way_round)
    async with running_relay(redis_url, keys, resync_s=LATER_S) as relay:
        with pytest.raises(TimeoutError):
            await attach_often(relay, JobStore(redis, keys), MOMENTS)
        await eventually(lambda: is_free(relay))


async def is_free(relay: Relay) -> bool:
    """Tell whether nobody is being attached."""
    return not relay._attaching
