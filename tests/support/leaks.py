"""What may stay in Redis after a test: keys with a TTL, and a short written list."""

import re

from redis.asyncio import Redis

from common.connections import every_server

UNEXPIRING = {
    r"\{m:[^}]+\}:lane:.+": "jobs nobody has finished; an empty lane is deleted",
    r"\{m:[^}]+\}:lanes": "the lanes that exist; the set goes with its last member",
    r"\{m:[^}]+\}:ring:(high|normal|low)": "tenants with waiting work; goes with the last one",
    r"\{m:[^}]+\}:full:(high|normal|low)": "tenants that wait for a slot; goes with the last one",
    r"\{m:[^}]+\}:(owners|slots|tenants)": "of unfinished jobs; goes with the last one",
    r"\{m:[^}]+\}:affinity": "workers with waiting work of their own; goes with the last one",
    r"\{m:[^}]+\}:draining": "workers that leave; goes with the last one",
    r"\{m:[^}]+\}:jobs": "unfinished jobs; goes with the last one",
    r"\{m:[^}]+\}:workers": "leases; a dead worker stays until its work is swept",
    r"api_keys": "the API keys, until they are revoked",
    r"secret": "every job ID of an Idempotency-Key hangs on it, for ever",
}
"""The keys without a TTL (as patterns after the prefix), each with the reason."""

_PAGE = 1000


async def find_keys(redis: Redis, prefix: str) -> list[bytes]:
    """Return the keys that begin with the prefix, of every server that takes writes."""
    return [
        key
        for server in await every_server(redis)
        async for key in server.scan_iter(f"{prefix}*", count=_PAGE)
    ]


async def find_leaks(redis: Redis, prefix: str) -> list[str]:
    """Return the keys that would stay for ever: no TTL, not on the list; or an empty lane."""
    return [
        key.decode()
        for key in await find_keys(redis, prefix)
        if await redis.pttl(key) == -1 and not await _may_stay(redis, key)
    ]


async def clear(redis: Redis, prefix: str) -> None:
    """Delete what a test left, so that the session's server stays small."""
    async with redis.pipeline(transaction=False) as pipeline:
        for key in await find_keys(redis, prefix):
            pipeline.unlink(key)
        await pipeline.execute()


async def _may_stay(redis: Redis, key: bytes) -> bool:
    name = key.decode().partition(":")[2]
    if not any(re.fullmatch(pattern, name) for pattern in UNEXPIRING):
        return False
    # A stream does not vanish by itself when it is empty.
    return ":lane:" not in name or await redis.xlen(key) > 0
