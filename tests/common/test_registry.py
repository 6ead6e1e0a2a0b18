"""Leases: who lives, who is dead, and who sweeps."""

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from common.keys import Keys
from common.lanes import Lanes
from common.registry import Heartbeat, Registry
from tests.support.jobs import MODEL, make_worker
from tests.support.waiting import eventually

SHORT_LEASE_S = 0.05
LEASE_S = 60.0


@pytest.fixture
def short(lease_redis: SyncRedis, keys: Keys) -> Heartbeat:
    """Leases that end during the test."""
    return Heartbeat(lease_redis, keys, SHORT_LEASE_S)


async def _dead(registry: Registry) -> list[str]:
    return await eventually(lambda: registry.dead(MODEL))


async def test_a_worker_that_joins_is_alive(heartbeat: Heartbeat, registry: Registry) -> None:
    """A joined worker is listed with what it says of itself and the rest of its lease."""
    info = make_worker("w1")
    heartbeat.join(info)
    [worker] = await registry.workers()
    assert worker.info == info
    assert 0 < worker.lease_s <= LEASE_S
    assert await registry.is_alive(MODEL, "w1")
    assert not await registry.is_alive(MODEL, "w2")
    assert await registry.dead(MODEL) == []


async def test_workers_are_listed_by_model_and_id(heartbeat: Heartbeat, registry: Registry) -> None:
    """All models' workers come in one order on every gateway."""
    for worker_id, model in [("w3", "b"), ("w2", "a"), ("w1", "b")]:
        heartbeat.join(make_worker(worker_id, model))
    listed = [(worker.info.model, worker.info.id) for worker in await registry.workers()]
    assert listed == [("a", "w2"), ("b", "w1"), ("b", "w3")]
    assert set(await registry.models()) == {"a", "b"}


async def test_a_silent_worker_dies(short: Heartbeat, registry: Registry) -> None:
    """Past its lease a worker is dead, no longer listed, and its hash is gone."""
    short.join(make_worker("w1"))
    assert await _dead(registry) == ["w1"]
    assert not await registry.is_alive(MODEL, "w1")
    assert await registry.workers() == []
    assert MODEL in await registry.models()


async def test_a_late_renewal_before_the_sweep_is_in_time(
    short: Heartbeat, heartbeat: Heartbeat, registry: Registry
) -> None:
    """A worker that was late, but whose work nobody has moved, lives on."""
    short.join(make_worker("w1"))
    await _dead(registry)
    assert heartbeat.renew(make_worker("w1"))
    assert await registry.is_alive(MODEL, "w1")
    assert await registry.dead(MODEL) == []


async def test_a_swept_worker_cannot_come_back(
    short: Heartbeat, heartbeat: Heartbeat, registry: Registry, lanes: Lanes
) -> None:
    """Once the sweep has removed a worker its lease cannot be renewed, and it writes nothing."""
    short.join(make_worker("w1"))
    await _dead(registry)
    await lanes.sweep("w1")
    assert await registry.dead(MODEL) == []
    assert not heartbeat.renew(make_worker("w1"))
    assert await registry.workers() == []
    heartbeat.join(make_worker("w1-again"))
    assert await registry.is_alive(MODEL, "w1-again")


async def test_a_worker_that_leaves_is_gone_at_once(
    heartbeat: Heartbeat, registry: Registry, redis: Redis, keys: Keys
) -> None:
    """After leave there is nothing to sweep and nothing to read."""
    heartbeat.join(make_worker("w1"))
    heartbeat.leave("w1", MODEL)
    assert await registry.workers() == []
    assert await registry.dead(MODEL) == []
    for key in (keys.worker("w1"), keys.model(MODEL).workers):
        assert not await redis.exists(key)


async def test_what_a_worker_says_ends_with_its_lease(
    heartbeat: Heartbeat, redis: Redis, keys: Keys
) -> None:
    """The worker's hash and the list of models expire by themselves."""
    heartbeat.join(make_worker("w1"))
    assert 0 < await redis.pttl(keys.worker("w1")) <= LEASE_S * 1000
    assert await redis.ttl(keys.models) > 0


@pytest.mark.fault(19)
async def test_a_renewal_outlives_a_script_flush(
    heartbeat: Heartbeat, registry: Registry, redis: Redis
) -> None:
    """A server that lost its scripts gets them again from the lease thread."""
    heartbeat.join(make_worker("w1"))
    await redis.script_flush()
    assert heartbeat.renew(make_worker("w1"))
    assert await registry.is_alive(MODEL, "w1")


async def test_one_worker_sweeps_at_a_time(registry: Registry) -> None:
    """Among those who ask, one gets the sweep for a lease; then it is free again."""
    assert await registry.take_sweep(MODEL, "w1", LEASE_S)
    assert not await registry.take_sweep(MODEL, "w2", LEASE_S)
    assert await registry.take_sweep("other", "w1", SHORT_LEASE_S)
    assert await eventually(lambda: registry.take_sweep("other", "w2", LEASE_S))


async def test_the_clock_is_the_servers(registry: Registry, redis: Redis) -> None:
    """Leases and deadlines are compared in the server's milliseconds."""
    before = await redis.time()
    now = await registry.now_ms()
    after = await redis.time()
    assert int(before[0]) * 1000 <= now <= (int(after[0]) + 1) * 1000
    assert await registry.uptime_s() >= 0
