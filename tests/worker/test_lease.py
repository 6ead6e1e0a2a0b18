"""The lease keeps a worker alive in Redis, and tells it when it is not."""

from collections.abc import AsyncIterator, Callable

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from common.connections import lease_client
from common.keys import Keys
from common.registry import Heartbeat, Registry, WorkerInfo
from tests.support.jobs import MODEL, make_worker
from tests.support.servers import Server
from tests.support.waiting import eventually, within
from tests.worker.rig import until
from worker.lease import BEATS_PER_LEASE, Lease

pytestmark = pytest.mark.anyio

LEASE_S = 0.4

MakeLease = Callable[..., Lease]


class Describer:
    """What the worker says of itself; the ID can change, and the next call can fail."""

    def __init__(self) -> None:
        self.worker_id = "w1"
        self.failure: Exception | None = None

    def __call__(self) -> WorkerInfo:
        """Return it, or fail as told."""
        if self.failure:
            raise self.failure
        return make_worker(self.worker_id)


@pytest.fixture
def describe() -> Describer:
    """The description under test."""
    return Describer()


@pytest.fixture
async def make_lease(
    lease_redis: SyncRedis, keys: Keys, describe: Describer, redis: Redis
) -> AsyncIterator[MakeLease]:
    """Makes started leases; their threads end with the test."""
    leases: list[Lease] = []

    def make(lease_s: float = LEASE_S, client: SyncRedis = lease_redis) -> Lease:
        lease = Lease(Heartbeat(client, keys, lease_s), describe, lease_s)
        leases.append(lease)
        lease.start()
        return lease

    yield make
    for lease in leases:
        lease.stop()


@pytest.fixture
async def lease(make_lease: MakeLease) -> Lease:
    """A lease that Redis knows."""
    lease = make_lease()
    async with within():
        await lease.joined.wait()
    return lease


async def deadline(redis: Redis, keys: Keys, worker_id: str = "w1") -> float | None:
    """Return the end of a worker's lease as Redis has it."""
    score = await redis.zscore(keys.model(MODEL).workers, worker_id)
    return None if score is None else float(score)


async def until_renewed(redis: Redis, keys: Keys, worker_id: str) -> None:
    """Wait for the next heartbeat of this worker."""
    before = await deadline(redis, keys, worker_id)

    async def is_renewed() -> bool:
        return await deadline(redis, keys, worker_id) != before

    await eventually(is_renewed)


async def test_a_started_lease_joins(lease: Lease, redis: Redis, keys: Keys) -> None:
    """The worker is in the registry and may emit."""
    [worker] = await Registry(redis, keys).workers()
    assert worker.info.id == "w1"
    assert 0 < worker.lease_s <= LEASE_S
    assert lease.is_current


async def test_before_it_joined_a_worker_may_not_emit(keys: Keys, describe: Describer) -> None:
    """A lease that never reached a server is not current."""
    client = lease_client("redis://127.0.0.1:1", LEASE_S)
    lease = Lease(Heartbeat(client, keys, LEASE_S), describe, LEASE_S)
    lease.start()
    lease.stop()
    assert not lease.is_current
    assert not lease.joined.is_set()
    client.close()


async def test_the_lease_is_renewed(lease: Lease, redis: Redis, keys: Keys) -> None:
    """Heartbeats move its end, and the worker stays current over many lease times."""
    first = await deadline(redis, keys)
    assert first

    async def has_outlived_two_leases() -> bool:
        assert lease.is_current
        return (await deadline(redis, keys) or 0) > first + 2000 * LEASE_S

    await eventually(has_outlived_two_leases)


async def test_news_are_sent_at_once(
    make_lease: MakeLease, redis: Redis, keys: Keys, describe: Describer
) -> None:
    """``renew_now`` does not wait for the rhythm of a long lease."""
    lease = make_lease(lease_s=60 * BEATS_PER_LEASE)
    async with within():
        await lease.joined.wait()
    await redis.zadd(keys.model(MODEL).workers, {"w1": 1})
    lease.renew_now()

    async def is_renewed() -> bool:
        return (await deadline(redis, keys) or 0) > 1

    await eventually(is_renewed)


@pytest.mark.fault(15)
async def test_a_frozen_server_ends_the_right_to_emit(
    make_lease: MakeLease, own_server: Server
) -> None:
    """Without an answer for a lease time the worker falls silent, and comes back by itself."""
    client = lease_client(own_server.url, LEASE_S / 2)
    lease = make_lease(client=client)
    async with within():
        await lease.joined.wait()
    assert lease.is_current
    own_server.freeze()
    try:
        await until(lambda: not lease.is_current)
        assert not lease.lapsed.is_set()
    finally:
        own_server.thaw()
    await until(lambda: lease.is_current)
    assert not lease.lapsed.is_set()
    lease.stop()
    client.close()


@pytest.mark.fault(18)
async def test_a_full_server_ends_the_right_to_emit_but_not_the_worker(
    make_lease: MakeLease, own_server: Server, own_redis: Redis
) -> None:
    """A lease that the server has no memory for is tried again until it has."""
    client = lease_client(own_server.url, LEASE_S / 2)
    lease = make_lease(client=client)
    async with within():
        await lease.joined.wait()
    await own_redis.config_set("maxmemory", 1)
    await until(lambda: not lease.is_current)
    await own_redis.config_set("maxmemory", 0)
    await until(lambda: lease.is_current)
    lease.stop()
    client.close()


async def test_a_late_lease_that_nobody_swept_goes_on(
    lease: Lease, redis: Redis, keys: Keys
) -> None:
    """Being late is not death: the same ID renews."""
    await redis.zadd(keys.model(MODEL).workers, {"w1": 1})
    await until_renewed(redis, keys, "w1")
    assert not lease.lapsed.is_set()
    assert lease.is_current


async def test_a_swept_worker_learns_that_it_lapsed(lease: Lease, redis: Redis, keys: Keys) -> None:
    """It may not emit, and it does not come back before it is told to."""
    await redis.zrem(keys.model(MODEL).workers, "w1")
    async with within():
        await lease.lapsed.wait()
    assert not lease.is_current
    assert not lease.joined.is_set()
    lease.renew_now()
    lease.renew_now()
    assert await deadline(redis, keys) is None


async def test_it_joins_again_under_a_new_id(
    lease: Lease, redis: Redis, keys: Keys, describe: Describer
) -> None:
    """The new ID is renewed, the old one never comes back."""
    await redis.zrem(keys.model(MODEL).workers, "w1")
    async with within():
        await lease.lapsed.wait()
    describe.worker_id = "w2"
    lease.join_again()
    async with within():
        await lease.joined.wait()
    assert lease.is_current
    assert not lease.lapsed.is_set()
    for _ in range(2):
        await until_renewed(redis, keys, "w2")
    assert await deadline(redis, keys, "w1") is None


async def test_a_dead_thread_is_heard(lease: Lease, describe: Describer) -> None:
    """Whoever waits for a failure gets the exception itself."""
    describe.failure = ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        async with within():
            await lease.wait_failed()


async def test_a_stopped_lease_sends_nothing_more(lease: Lease, redis: Redis, keys: Keys) -> None:
    """``stop`` returns after the last heartbeat; the lease itself stays for ``leave``."""
    lease.stop()
    last = await deadline(redis, keys)
    lease.renew_now()
    assert last
    assert await deadline(redis, keys) == last
