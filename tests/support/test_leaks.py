"""The check for leaks finds leaks."""

import pytest
from redis.asyncio import Redis

from common.keys import GROUP, ORPHANS, Keys
from tests.support.leaks import clear, find_leaks

MODEL = "org/m:7b"


@pytest.mark.control(37)
@pytest.mark.parametrize("name", ["other", "{j:x}:job", "worker:w", "jobs:t", "{m:x}:secret"])
async def test_a_key_without_a_ttl_is_a_leak(name: str, redis: Redis, keys: Keys) -> None:
    """Everything off the written list must expire."""
    key = f"{keys.prefix}:{name}"
    await redis.set(key, 1)
    assert await find_leaks(redis, keys.prefix) == [key]
    await redis.expire(key, 60)
    assert await find_leaks(redis, keys.prefix) == []


async def test_what_is_on_the_list_may_stay(redis: Redis, keys: Keys) -> None:
    """Unfinished work, leases and the secret are no leaks."""
    model = keys.model(MODEL)
    for key in (model.jobs, model.workers, f"{model.prefix}:ring:low"):
        await redis.zadd(key, {"a": 1})
    await redis.sadd(model.lanes, "low:a/b:c")  # type: ignore[misc]
    await redis.xadd(model.lane("low:a/b:c"), {"job": "j"})
    await redis.set(keys.secret, "s")
    assert await find_leaks(redis, keys.prefix) == []


@pytest.mark.control(37)
async def test_an_empty_lane_is_a_leak(redis: Redis, keys: Keys) -> None:
    """A stream stays when its last entry goes, so somebody must delete it."""
    lane = keys.model(MODEL).lane(ORPHANS)
    await redis.xgroup_create(lane, GROUP, "0", mkstream=True)
    assert await find_leaks(redis, keys.prefix) == [lane]
    await clear(redis, keys.prefix)
    assert not await redis.exists(lane)
